# SPDX-License-Identifier: MIT
"""A real board's kernel: its installer adds an entry beside those that are there, and the names lead somewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.assemble import board
from lab.cli import main
from lab.errors import ExitCode, KitError

ENTRY = """label npulab-7.3.4
\tmenu label Linux 7.3.4 with the NPU
\tlinux /boot/npulab/7.3.4/Image
\tfdt /boot/npulab/7.3.4/board.dtb
\tappend root=@ROOT@ rw rootwait console=ttyS2,1500000n8
"""
EXISTING = """default l0
menu title U-Boot menu

label l0
\tlinux /boot/vmlinuz-6.12
\tinitrd /boot/initrd.img-6.12
\tappend root=UUID=1234 ro quiet
"""


@pytest.fixture
def installer(tmp_path: Path) -> Path:
    folder = tmp_path / "install"
    (folder / "root/boot/npulab/7.3.4").mkdir(parents=True)
    (folder / "root/boot/npulab/7.3.4/Image").write_text("kernel")
    (folder / "extlinux-entry.conf").write_text(ENTRY)
    (folder / "install.sh").write_bytes(board.INSTALLER.read_bytes())
    return folder / "install.sh"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    conf = tmp_path / "board/boot/extlinux/extlinux.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(EXISTING)
    return tmp_path / "board"


def install(installer: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", installer, *map(str, words)], capture_output=True, text=True, check=False)


def test_entry_stands_beside_what_is_there_and_only_once(installer: Path, root: Path) -> None:
    assert install(installer, root).returncode == 0
    conf = root / "boot/extlinux/extlinux.conf"
    text = conf.read_text()
    assert text.startswith(EXISTING)
    assert text.endswith(ENTRY.replace("@ROOT@", "UUID=1234"))
    assert (root / "boot/npulab/7.3.4/Image").read_text() == "kernel"
    again = install(installer, root)
    assert (again.returncode, conf.read_text()) == (0, text)
    assert "has the entry npulab-7.3.4 already" in again.stdout


def test_boot_partition_of_its_own_gets_paths_inside_it(installer: Path, root: Path) -> None:
    conf = root / "boot/extlinux/extlinux.conf"
    conf.write_text(EXISTING.replace("/boot/", "/"))
    assert install(installer, root).returncode == 0
    assert "\tlinux /npulab/7.3.4/Image\n\tfdt /npulab/7.3.4/board.dtb\n" in conf.read_text()


def test_entry_only_copies_nothing(installer: Path, root: Path) -> None:
    assert install(installer, "--entry-only", root).returncode == 0
    assert not (root / "boot/npulab").exists()
    assert "npulab-7.3.4" in (root / "boot/extlinux/extlinux.conf").read_text()


@pytest.mark.parametrize("more", ["", "\nlabel other\n\tlinux /boot/x\n", "\n\n\nlabel other\n"])
def test_removal_restores_the_configuration_byte_for_byte(installer: Path, root: Path, more: str) -> None:
    conf = root / "boot/extlinux/extlinux.conf"
    assert install(installer, root).returncode == 0
    # what came after the kit's entry stays too
    conf.write_text(conf.read_text() + more)
    conf.chmod(0o600)
    answer = install(installer, "--remove-entry", root)
    assert answer.returncode == 0 and "took the entry npulab-7.3.4 out" in answer.stdout
    assert conf.read_text() == EXISTING + more
    assert conf.stat().st_mode & 0o777 == 0o600
    assert list(conf.parent.iterdir()) == [conf]
    assert install(installer, "--remove-entry", root).returncode == 0, "a second removal has nothing to do"
    assert conf.read_text() == EXISTING + more


def test_removal_of_one_release_leaves_the_other(installer: Path, root: Path) -> None:
    conf = root / "boot/extlinux/extlinux.conf"
    assert install(installer, root).returncode == 0
    first = conf.read_text()
    entry = installer.with_name("extlinux-entry.conf")
    entry.write_text(ENTRY.replace("7.3.4", "7.3.4-debug"))
    assert install(installer, root).returncode == 0
    assert install(installer, "--remove-entry", root).returncode == 0
    assert conf.read_text() == first


def test_configuration_without_a_root_device_stays_as_it_is(installer: Path, root: Path) -> None:
    conf = root / "boot/extlinux/extlinux.conf"
    conf.write_text("default l0\nlabel l0\n\tlinux /boot/x\n")
    answer = install(installer, root)
    assert answer.returncode == 1
    assert conf.read_text() == "default l0\nlabel l0\n\tlinux /boot/x\n"
    assert list(conf.parent.iterdir()) == [conf]


def test_other_loaders_are_left_to_the_user(installer: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = install(installer, empty)
    assert answer.returncode == 0
    assert "label npulab-7.3.4" in answer.stderr
    assert (empty / "boot/npulab/7.3.4/Image").is_file()


@pytest.mark.parametrize("words", [(), ("/nowhere",), ("a", "b")])
def test_wrong_use_is_refused(installer: Path, words: tuple[str, ...]) -> None:
    assert install(installer, *words).returncode == 2


def test_boards_and_their_trees() -> None:
    assert board.dtb_name("rock-5-itx-plus") == "rk3588-rock-5-itx-plus"
    assert board.dtb_name("orangepi-5") == "rk3588s-orangepi-5"


def test_base_without_a_source_names_the_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "orangepi-5", "--kernel", "6.18"]) == ExitCode.USAGE
    assert "one of three ways" in capsys.readouterr().err
    assert main(["build", "virt", "--kernel", "6.18"]) == ExitCode.USAGE


def test_package_holds_the_tree_and_leaves_nothing_half_made(installer: Path, tmp_path: Path) -> None:
    (tmp_path / "install/root/boot/npulab/7.3.4").mkdir(exist_ok=True)
    kernel = {"release": "7.3.4"}
    built = board.BoardSet(tmp_path, {"kernel": kernel, "board": "orangepi-5"})
    target = tmp_path / "out"
    target.mkdir()
    deb = board.package(built, target, tmp_path / "log")
    listing = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout
    assert "./boot/npulab/7.3.4/Image" in listing
    assert "./boot/npulab/7.3.4/install.sh" in listing
    assert list(target.iterdir()) == [deb]
    kernel["release"] = "no version"
    (tmp_path / "install/root/boot/npulab/no version").mkdir()
    with pytest.raises(KitError, match="making the package"):
        board.package(built, target, tmp_path / "log")
    assert list(target.iterdir()) == [deb]


def dpkg(root: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """dpkg on another system's tree; its scripts run here, with DPKG_ROOT."""
    forced = ("not-root", "script-chrootless", "architecture")
    command = ["dpkg", f"--root={root}", *(f"--force-{name}" for name in forced), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_package_installs_upgrades_and_leaves_the_system_as_it_was(installer: Path, root: Path, tmp_path: Path) -> None:
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    (root / "var/lib/dpkg/status").touch()
    conf = root / "boot/extlinux/extlinux.conf"
    before = {path.relative_to(root) for path in root.rglob("*") if "dpkg" not in path.parts}
    entry = installer.with_name("extlinux-entry.conf")
    for release in ("7.3.4", "7.3.5"):
        if release != "7.3.4":
            (tmp_path / "install/root/boot/npulab/7.3.4").rename(tmp_path / f"install/root/boot/npulab/{release}")
            entry.write_text(ENTRY.replace("7.3.4", release))
        built = board.BoardSet(tmp_path, {"kernel": {"release": release}, "board": "orangepi-5"})
        answer = dpkg(root, "-i", board.package(built, tmp_path, tmp_path / "log"))
        assert answer.returncode == 0, answer.stderr
        assert conf.read_text() == EXISTING + "\n" + entry.read_text().replace("@ROOT@", "UUID=1234")
        assert [path.name for path in (root / "boot/npulab").iterdir()] == [release]
    answer = dpkg(root, "-r", "linux-npulab-orangepi-5")
    assert answer.returncode == 0, answer.stderr
    assert conf.read_text() == EXISTING
    assert {path.relative_to(root) for path in root.rglob("*") if "dpkg" not in path.parts} == before
