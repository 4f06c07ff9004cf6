# SPDX-License-Identifier: MIT
"""A virtual board whose power fails at a chosen access of its eMMC.

The eMMC is a file; a small library preloaded into QEMU counts the reads and writes of that file and ends QEMU at the
n-th, a write half done (powercut.c). What the guest still had in its caches is lost, as when the plug is pulled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from lab import boards, process
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.firmware.transports.linux import LinuxTransport, open_linux
from lab.firmware.transports.ssh import SshRemote
from lab.virt.background import ssh_options, wait_for_ssh
from lab.virt.board import BoardConfig, VirtualBoard

SOURCE = Path(__file__).with_name("powercut.c")
BOOT_SECONDS = 180.0
"""How long a boot may take; seen: 4 s, and a busy machine is many times slower."""
LOGIN = b" login: "
DEATH_SECONDS = 10.0
"""How long after a broken link QEMU's end may be noticed."""


def build_library(cache: Cache | None = None) -> Path:
    """The library; compiled once per content."""
    compiler = process.require("gcc", "gcc")

    def make(directory: Path) -> None:
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        command: list[str | Path] = [compiler, *flags, "-o", directory / "powercut.so", SOURCE]
        process.run(command, stage="compiling the power cut", log=directory / "log")

    return (cache or Cache()).entry("powercut", digest(file_digest(SOURCE)), make) / "powercut.so"


class CutPage:
    """The numbers that the library and we share."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(32))
        with path.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), 32)

    def count(self, which: str) -> int:
        """Reads or writes so far."""
        found: int = struct.unpack_from("<Q", self._map, 0 if which == "write" else 16)[0]
        return found

    def set(self, which: str, ahead: int | None) -> None:
        """Cut at the ``ahead``-th access from now (1 is the next); None: not at all."""
        number = 0 if ahead is None else self.count(which) + ahead
        struct.pack_into("<Q", self._map, 8 if which == "write" else 24, number)

    def close(self) -> None:
        """Let go of the page."""
        self._map.close()


def light(config: BoardConfig) -> BoardConfig:
    """The same board with what a power cut needs and no more, so that it boots in little time.

    One CPU, little memory, nobody behind the NPU, a console that prints no boot messages.
    """
    return dataclasses.replace(config, model=(), cpus=1, memory="256M", cmdline=f"{config.cmdline} quiet")


class CutBoard:
    """A virtual board that can be cut off. ``image`` is its eMMC; ``boots`` counts how often it came up."""

    def __init__(self, root: Path, config: BoardConfig, image: Path) -> None:
        self.image, self.root = image, root
        self.page = CutPage(root / "page")
        wrapper = root / "qemu"
        wrapper.write_text(
            f"#!/bin/sh\nLD_PRELOAD={build_library()} NPULAB_CUT_FILE={image} NPULAB_CUT_PAGE={root / 'page'} "
            f'exec {config.qemu} "$@"\n'
        )
        wrapper.chmod(0o700)
        self._config = dataclasses.replace(light(config), qemu=wrapper, emmc=image)
        self._board: VirtualBoard | None = None
        self._transport: LinuxTransport | None = None
        self.boots = 0

    def power_on(self) -> None:
        """Boot, until its ssh server greets."""
        self.power_off()
        self.boots += 1
        results = self.root / "logs"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        self._board = board = VirtualBoard(self._config, results)
        board.start()
        board.power_on()
        deadline, said = time.monotonic() + BOOT_SECONDS, b""
        # A connection to the guest's port that comes before its network hangs for seconds: the console says when.
        while LOGIN not in said:
            said = said[-len(LOGIN) :] + board.read(1.0)
            if time.monotonic() >= deadline:
                raise KitError(ExitCode.INFRASTRUCTURE, f"the virtual board did not boot in {BOOT_SECONDS:.0f} s")
        if not wait_for_ssh(board.ssh_port, max(5.0, deadline - time.monotonic())):
            raise KitError(ExitCode.INFRASTRUCTURE, "the virtual board booted, but its ssh server does not answer")

    def power_off(self) -> None:
        """End what is left of it."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._board is not None:
            self._board.stop()
            self._board = None

    def dead(self) -> bool:
        """Whether QEMU has ended, as a cut ends it; waits a little for that to be noticed."""
        assert self._board is not None
        deadline = time.monotonic() + DEATH_SECONDS
        while self._board.running and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._board.running

    @contextlib.contextmanager
    def armed(self, which: str, ahead: int) -> Iterator[None]:
        """Within the block the power fails at the ``ahead``-th read or write from its start."""
        self.page.set(which, ahead)
        try:
            yield
        finally:
            self.page.set(which, None)

    def reach(self, board: boards.Board) -> LinuxTransport:
        """A transport to it, one per boot."""
        if self._transport is None:
            assert self._board is not None and self._config.ssh_key is not None
            remote = SshRemote(f"root@127.0.0.1:{self._board.ssh_port}", ssh_options(self._config.ssh_key))
            self._transport = open_linux(board, remote)
        return self._transport

    def close(self) -> None:
        """Nothing stays."""
        self.power_off()
        self.page.close()
