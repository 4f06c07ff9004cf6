# SPDX-License-Identifier: MIT
"""The machine rk3588-virt describes to runqemu the virtual board that npulab starts."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import LAYER

from lab.assemble.virt import CMDLINE
from lab.virt.board import BoardConfig, VirtualBoard
from lab.virt.runtime import create_runtime


def variable(name: str) -> str:
    """A variable of the machine's configuration, as it stands there; its lines are joined."""
    text = (LAYER / "conf/machine/rk3588-virt.conf").read_text()
    found = re.search(rf'^{name} = "((?:[^"\\]|\\\n)*)"', text, re.MULTILINE)
    assert found, name
    return found[1].replace("\\\n", " ")


def ours(tmp_path: Path) -> list[str]:
    """npulab's command line for a board with one disk."""
    config = BoardConfig(qemu=tmp_path, kernel=tmp_path, dtb=tmp_path, cmdline="", disks=(tmp_path / "rootfs",))
    runtime = create_runtime(256 << 20)
    try:
        return VirtualBoard(config, tmp_path).qemu_argv(runtime)
    finally:
        runtime.discard()


def test_machine_and_its_memory_are_the_same(tmp_path: Path) -> None:
    argv = ours(tmp_path)
    name, *properties = argv[argv.index("-M") + 1].split(",")
    machine, *chosen = variable("QB_MACHINE").removeprefix("-machine ").split(",")
    assert machine == name
    assert set(chosen) <= set(properties)
    ram = argv[argv.index("-object") + 1].split(",")
    theirs = variable("QB_OPT_APPEND").split()[1].split(",")
    assert [word.partition("=")[0] for word in theirs] == [word.partition("=")[0] for word in ram]
    assert (theirs[0], theirs[1], theirs[-1]) == (ram[0], ram[1], ram[-1])
    assert f"size={variable('QB_MEM').split()[1]}M" in theirs


def test_devices_and_links_to_the_model_are_the_same(tmp_path: Path) -> None:
    argv = ours(tmp_path)
    devices = re.findall(r"virtio-[a-z]+-device", " ".join(argv))
    named = ("QB_ROOTFS_OPT", "QB_NETWORK_DEVICE", "QB_RNG")
    assert sorted(re.findall(r"virtio-[a-z]+-device", " ".join(map(variable, named)))) == sorted(devices)
    cores = [word for word in argv if word.startswith("socket,id=npu")]
    links = variable("QB_OPT_APPEND")
    assert "socket,id=npu%d,path=%s" in links
    assert f"for core in range({len(cores)})" in links


def test_kernel_finds_its_root_and_its_console() -> None:
    assert f"root={variable('QB_KERNEL_ROOT')}" in CMDLINE.split()
    assert variable("QB_KERNEL_CMDLINE_APPEND").split()[0] in CMDLINE.split()
