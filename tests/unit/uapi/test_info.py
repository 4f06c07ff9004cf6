# SPDX-License-Identifier: MIT
"""``info`` over a made-up sysfs, and its command lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab.cli import main as npulab
from rknpu_userspace import info
from rknpu_userspace.__main__ import main as tools

CORES = {"fdab0000": "fdab9000", "fdac0000": "fdaca000", "fdad0000": "fdada000"}
COMPATIBLE = b"rockchip,rk3588-rknn-core\0"


def board(root: Path, *, driver: bool = True) -> Path:
    """The files of a board with three cores, as Linux 7.3 shows them."""
    devices = root / "sys/bus/platform/devices"
    for number, (core, mmu) in enumerate(CORES.items()):
        device, iommu = devices / f"{core}.npu", devices / f"{mmu}.iommu"
        for folder in (device, iommu):
            (folder / "power").mkdir(parents=True)
            (folder / "power/runtime_status").write_text("suspended\n")
        (device / "power/control").write_text("auto\n")
        (device / "power/runtime_active_time").write_text(f"{1500 * number}\n")
        (device / "of_node").mkdir()
        (device / "of_node/compatible").write_bytes(COMPATIBLE)
        (device / "of_node/assigned-clock-rates").write_bytes((200_000_000).to_bytes(4, "big"))
        group = root / "sys/kernel/iommu_groups" / str(number)
        group.mkdir(parents=True)
        (group / "type").write_text("DMA\n")
        (device / "iommu_group").symlink_to(group)
        (iommu / "iommu" / f"{mmu}.iommu" / "power").mkdir(parents=True)
        (iommu / "iommu" / f"{mmu}.iommu" / "power/runtime_status").write_text("unsupported\n")
        (device / "iommu").symlink_to(iommu / "iommu" / f"{mmu}.iommu")
        if driver:
            for folder, name in ((device, "rocket"), (iommu, "rk_iommu")):
                target = root / "sys/bus/platform/drivers" / name
                target.mkdir(parents=True, exist_ok=True)
                (folder / "driver").symlink_to(target)
    (devices / "fd5f8000.serial" / "of_node").mkdir(parents=True)
    clock = root / "sys/kernel/debug/clk/scmi_clk_npu"
    clock.mkdir(parents=True)
    (clock / "clk_rate").write_text("200000000\n")
    return root


def tree(root: Path, status: str) -> None:
    for core in CORES:
        node = root / f"proc/device-tree/npu@{core}"
        node.mkdir(parents=True)
        (node / "compatible").write_bytes(COMPATIBLE)
        (node / "status").write_text(f"{status}\0")
    (root / "proc/device-tree/model").write_text("Some Board\0")


def test_a_board(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(
        "".join(f"6,{n},{n},-;rocket fdab0000.npu: Rockchip NPU core {n} version: 1179210309\n" for n in range(3))
    )
    tree(board(tmp_path), "okay")
    found, disabled = info.cores(tmp_path, log)
    assert not disabled
    assert [core.address for core in found] == list(CORES)
    for core in found:
        assert (core.driver, core.iommu_driver, core.version) == ("rocket", "rk_iommu", info.KNOWN_VERSION)
        assert (core.power, core.iommu_power, core.control) == ("suspended", "suspended", "auto")
        assert (core.clock_hz, core.assigned_hz) == (200_000_000, 200_000_000)
        assert (core.iommu, core.iommu_group, core.domain) == (f"{CORES[core.address]}.iommu", str(core.number), "DMA")
    assert found[2].active_ms == 3000
    rows = info.core_rows(info.Info("x", cores=found))
    assert rows[0][3] == "0x46495245 (RK3588)"
    assert "200 MHz, device tree 200 MHz" in rows[0]


def test_what_can_not_be_seen_is_said(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/platform/devices/fdab0000.npu"
    (device / "of_node").mkdir(parents=True)
    (device / "of_node/compatible").write_bytes(COMPATIBLE)
    found, _ = info.cores(tmp_path, tmp_path / "none")
    row = info.core_rows(info.Info("x", cores=found))[0]
    assert row[2:7] == ["-", "not seen", "-", "not seen", "-"]


def test_advice(tmp_path: Path) -> None:
    nothing = info.gather("/nonexistent/accel0", tmp_path / "a", tmp_path / "none")
    assert "no RK3588 NPU" in nothing.hint
    tree(tmp_path / "b", "disabled")
    disabled = info.gather("/nonexistent/accel0", tmp_path / "b", tmp_path / "none")
    assert "the device tree disables npu@fdab0000" in disabled.hint
    assert disabled.board == "Some Board"
    unbound = info.gather("/nonexistent/accel0", board(tmp_path / "c", driver=False), tmp_path / "none")
    assert "modprobe rocket" in unbound.hint
    bound = info.gather("/nonexistent/accel0", board(tmp_path / "d"), tmp_path / "none")
    assert bound.hint
    for one in (nothing, disabled, unbound, bound):
        assert "/nonexistent/accel0 does not exist" in one.problem


def test_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert npulab(["npu", "info", "--device", "model", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert len(document["cores"]) == 3
    assert document["quirks"]["tie_rounding"] == "half_even"
    assert document["limits"]["CBUF"] == "12 banks of 32 KiB"
    assert "int8" in document["limits"]["formats"]
    assert npulab(["npu", "info", "--device", "model"]) == 0
    assert "12 banks of 32 KiB" in capsys.readouterr().out


def test_quirks_in_force(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chosen = tmp_path / "board.json"
    chosen.write_text('{"quirks": {"bn_order": "alu_mul"}}')
    assert npulab(["npu", "info", "--device", "model", "--quirks", str(chosen), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quirks"]["bn_order"] == "alu_mul"
    chosen.write_text("nonsense")
    assert npulab(["npu", "info", "--device", "model", "--quirks", str(chosen)]) == 2
    assert "quirks file" in capsys.readouterr().err


def test_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert npulab(["npu", "info", "--device", "/nonexistent"]) == 4
    assert "/nonexistent does not exist" in capsys.readouterr().err
    plain = tmp_path / "file"
    plain.touch()
    assert npulab(["npu", "info", "--device", str(plain), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert "is not a device of the rocket driver" in document["error"]["message"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_no_permission(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node = tmp_path / "accel0"
    node.touch(0o000)
    assert npulab(["npu", "info", "--device", str(node)]) == 4
    assert "no permission" in capsys.readouterr().err


def test_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert tools(["info", "--device", "model"]) == 0
    assert "limits" in capsys.readouterr().out
    assert tools(["info", "--device", "/nonexistent", "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problem"].startswith("/nonexistent does not exist")
    assert "error: /nonexistent does not exist" in captured.err
    assert tools([]) == 2
    assert tools(["--help"]) == 0
    assert tools(["nothing"]) == 2
    assert "no tool 'nothing'" in capsys.readouterr().err
