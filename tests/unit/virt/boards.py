# SPDX-License-Identifier: MIT
"""Boards of stand-in programs, and what has to be gone afterwards."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import fdt

from lab.virt.board import BoardConfig
from lab.virt.runtime import _alive

PROGRAMS = Path(__file__).with_name("fake_programs.py")


def make_dtb(
    path: Path, *, compatible: str = "rockchip,rk3588s", cores: int = 3, status: str = "okay", stdout: str = ""
) -> Path:
    """A device tree with as much in it as the launcher looks at."""
    # its default list of reservations is shared by all trees of the process
    tree = fdt.FDT(entries=[])
    tree.header.version = 17
    tree.header.last_comp_version = 16
    tree.root = fdt.Node("/")
    tree.set_property("compatible", ["test,board", compatible])
    tree.set_property("model", "Test board")
    if stdout:
        tree.set_property("serial9", "/serial@febc0000", "/aliases")
        tree.set_property("stdout-path", stdout, "/chosen")
    for core in range(cores):
        node = fdt.Node(f"npu@fd{0xAB + core:x}0000")
        node.append(fdt.PropStrings("compatible", "rockchip,rk3588-rknn-core"))
        node.append(fdt.PropStrings("status", status))
        tree.root.append(node)
    path.write_bytes(tree.to_dtb())
    return path


def make_config(directory: Path, *, qemu: str = "normal", model: str = "normal", memory: str = "256M") -> BoardConfig:
    """A board whose programs behave as told."""
    script = directory / "qemu"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAMS}" qemu {qemu} "$@"\n')
    script.chmod(0o755)
    kernel = directory / "Image"
    kernel.write_bytes(b"kernel")
    return BoardConfig(
        qemu=script,
        kernel=kernel,
        dtb=make_dtb(directory / "board.dtb"),
        cmdline="console=ttyS2",
        memory=memory,
        model=(sys.executable, str(PROGRAMS), "model", model),
    )


def processes_mentioning(text: str) -> list[int]:
    """Processes with ``text`` in their command line or environment, other than this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if text.encode() in words and state != "Z":
            found.append(int(entry.name))
    return found


def wait_until_gone(text: str, seconds: float = 10.0) -> list[int]:
    """Wait for `processes_mentioning` to find none; returns who is left."""
    deadline = time.monotonic() + seconds
    while (left := processes_mentioning(text)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def run_directories() -> set[Path]:
    """Run directories of this user; other boards may come and go at the same time."""
    return {path for base in ("/dev/shm", "/tmp") for path in Path(base).glob(f"npulab-{os.getuid()}-*")}


def abandoned(before: set[Path], seconds: float = 2.0) -> set[Path]:
    """Run directories that were not there before and whose lock nobody holds, after a while."""
    deadline = time.monotonic() + seconds
    while (left := {path for path in run_directories() - before if not _alive(path)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
