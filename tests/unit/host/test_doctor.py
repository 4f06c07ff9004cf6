# SPDX-License-Identifier: MIT
"""The doctor's checks of adapters, rights, KVM and network, on hosts laid out in a directory."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from lab.cli import main
from lab.farm import state
from lab.host import Check, adapters, kvm, network
from lab.host.adapters import Host


def usb(root: Path, name: str, vendor: str, product: str, **attributes: str) -> Path:
    """A device of /sys/bus/usb/devices."""
    place = root / "sys/bus/usb/devices" / name
    place.mkdir(parents=True)
    for key, value in {"idVendor": vendor, "idProduct": product, **attributes}.items():
        (place / key).write_text(f"{value}\n")
    return place


def tty(root: Path, name: str, vendor: str, product: str, **attributes: str) -> Path:
    """A USB serial adapter with its node."""
    device = usb(root, f"usb-{name}", vendor, product, **attributes)
    (device / "interface" / name).mkdir(parents=True)
    place = root / "sys/class/tty" / name
    place.mkdir(parents=True)
    (place / "device").symlink_to(device / "interface" / name)
    node = root / "dev" / name
    node.parent.mkdir(exist_ok=True)
    node.touch()
    return node


def only(checks: list[Check]) -> Check:
    assert len(checks) == 1
    return checks[0]


@pytest.mark.parametrize(
    ("vendor", "product", "text", "ok", "words"),
    [
        ("0403", "6001", "FT232R USB UART", True, "FTDI FT232R"),
        ("1a86", "7523", "USB Serial", False, "CH340"),
        ("10c4", "ea60", "CP2102N USB to UART Bridge Controller", True, "CP2102N"),
        ("10c4", "ea60", "CP2102 USB to UART Bridge Controller", True, "a CP2102 ends at 1 Mbaud"),
        ("dead", "beef", "", True, "unknown chip dead:beef"),
    ],
)
def test_serial_adapter(tmp_path: Path, vendor: str, product: str, text: str, ok: bool, words: str) -> None:
    node = tty(tmp_path, "ttyUSB0", vendor, product)
    if text:
        (tmp_path / f"sys/bus/usb/devices/usb-{node.name}" / "product").write_text(text)
    check = only(adapters.serial_adapters(Host(tmp_path, uid=0)))
    assert check.ok is ok and not check.needed
    assert words in check.found + check.todo
    assert ok or "1.5 Mbaud" in check.todo


def test_no_adapter_is_fine(tmp_path: Path) -> None:
    check = only(adapters.serial_adapters(Host(tmp_path, uid=1000)))
    assert check.ok and check.state == "ok"


def test_adapter_of_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tty(tmp_path, "ttyUSB0", "0403", "6001")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = only(adapters.serial_adapters(Host(tmp_path, uid=1000)))
    assert not check.ok and check.state == "advice"
    assert "usermod -aG" in check.todo and "belongs to group" in check.todo


def test_board_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usb(tmp_path, "1-2", "2207", "350b", busnum="1", devnum="7")
    usb(tmp_path, "1-3", "046d", "c31c", busnum="1", devnum="8")
    gone = only(adapters.usb_boards(Host(tmp_path, uid=0)))
    assert not gone.ok and "007 is not in /dev" in gone.todo
    node = tmp_path / "dev/bus/usb/001/007"
    node.parent.mkdir(parents=True)
    node.touch()
    assert only(adapters.usb_boards(Host(tmp_path, uid=0))).ok
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    closed = only(adapters.usb_boards(Host(tmp_path, uid=1000)))
    assert not closed.ok and "udevadm control --reload" in closed.todo


def test_udev_rules(tmp_path: Path) -> None:
    user = Host(tmp_path, uid=1000)
    assert not adapters.udev_rules(user).ok and "70-npulab.rules" in adapters.udev_rules(user).todo
    assert adapters.udev_rules(Host(tmp_path, uid=0)).ok
    folder = tmp_path / "etc/udev/rules.d"
    folder.mkdir(parents=True)
    shipped = Path(adapters.__file__).parents[2] / adapters.SHIPPED_RULES
    (folder / shipped.name).write_text(shipped.read_text())
    assert adapters.udev_rules(user).ok


def test_modem_manager(tmp_path: Path) -> None:
    assert adapters.modem_manager(Host(tmp_path)).ok
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/comm").write_text("ModemManager\n")
    assert not adapters.modem_manager(Host(tmp_path)).ok


def test_this_host_can_be_asked() -> None:
    host = Host.this()
    assert host.uid == os.geteuid() and host.root == Path("/")


def stand_in(path: Path, body: str) -> tuple[str, ...]:
    path.write_text(body)
    return (sys.executable, str(path))


def test_kvm_that_is_not_there(tmp_path: Path) -> None:
    assert kvm.check(tmp_path / "kvm").ok


def test_kvm_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "PROBE_SECONDS", 1.0)
    hang = kvm.check(device, stand_in(tmp_path / "hang.py", "import time; time.sleep(60)"))
    assert not hang.ok and not hang.needed and "it lies" in hang.found
    refuse = kvm.check(device, stand_in(tmp_path / "no.py", "import sys; sys.exit('the guest left with reason 9')"))
    assert not refuse.ok and "reason 9" in refuse.found
    good = kvm.check(device, stand_in(tmp_path / "yes.py", "print('runs')"))
    assert good.ok and "runs guests" in good.found
    # the real probe on something that is not KVM
    assert "does not run a guest" in kvm.check(device).found


def test_kvm_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "kvm $USER" in kvm.check(device).todo


def test_loopback() -> None:
    assert network.loopback().ok


@pytest.fixture
def farm_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path / "farm"))
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    return tmp_path


def test_no_coordinator_is_fine(farm_state: Path) -> None:
    assert only(network.coordinator(farm_state)).ok


def test_coordinator_that_is_away(farm_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LG_COORDINATOR", f"127.0.0.1:{unused.getsockname()[1]}")
        check = only(network.coordinator(farm_state))
    assert not check.ok and not check.needed and "is away" in check.found


@pytest.mark.parametrize(("address", "ok"), [("00000000", False), ("0100007F", True)])
def test_coordinator_that_is_open_to_everybody(farm_state: Path, address: str, ok: bool) -> None:
    (farm_state / "net").mkdir()
    line = f"   0: {address}:4FB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 1 1\n"
    (farm_state / "net/tcp").write_text("  sl  local_address rem_address   st\n" + line)
    found = [check for check in network.coordinator(farm_state) if check.name == "coordinator's address"]
    assert [check.ok for check in found] == ([] if ok else [False])
    assert ok or "neither passwords nor encryption" in found[0].todo


def test_leases_of_killed_runs(farm_state: Path) -> None:
    assert network.leases().ok
    path = state.root() / "leases" / "1-a.json"
    path.write_text("{}\n")
    assert not network.leases().ok and network.leases().todo == "npulab farm sweep"
    with state.lock(path) or pytest.fail("the lock is free"):
        assert network.leases().ok


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path / "file" / "farm"))
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    check = network.leases()
    assert not check.ok and not check.needed and "NPULAB_FARM" in check.todo
    assert only(network.coordinator(tmp_path)).ok


def test_the_report_fails_for_what_is_needed_only(
    farm_state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LG_COORDINATOR", "127.0.0.1:1")
    monkeypatch.setattr(kvm, "PROBE_SECONDS", 2.0)
    main(["doctor", "--json"])
    document = json.loads(capfd.readouterr().out)
    rows = {row["name"]: row for row in document["checks"]}
    assert not rows["coordinator"]["ok"] and not rows["coordinator"]["needed"]
    assert document["ok"] is all(row["ok"] for row in document["checks"] if row["needed"])
    assert all(row["todo"] for row in document["checks"] if not row["ok"]), "every complaint says what to do"
    assert {"host", "Debian packages", "cache", "KVM", "loopback", "leases", "udev rules"} <= set(rows)


def test_rules_are_for_everybody_who_sits_there() -> None:
    path = Path(adapters.__file__).parents[2] / adapters.SHIPPED_RULES
    text = path.read_text()
    assert 'ATTR{idVendor}=="2207"' in text and 'TAG+="uaccess"' in text
    assert not path.stat().st_mode & stat.S_IXUSR
