# SPDX-License-Identifier: MIT
"""Run the real ``rkdeveloptool`` against a stand-in: its libusb is replaced by one that talks to our socket."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab import process
from lab.cache import Cache, digest, file_digest

SOURCE = Path(__file__).with_name("libusb.c")


def build(cache: Cache | None = None) -> Path:
    """Directory that holds our ``libusb-1.0.so.0``; compiled once per content."""
    compiler = process.require("gcc", "gcc")

    def make(directory: Path) -> None:
        target = directory / "libusb-1.0.so.0"
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libusb-1.0.so.0"]
        command: list[str | Path] = [compiler, *flags, "-o", target, SOURCE]
        process.run(command, stage="compiling the libusb replacement", log=directory / "log")

    return (cache or Cache()).entry("libusb-shim", digest(file_digest(SOURCE)), make)


def rkdeveloptool(
    socket: Path, *arguments: str, cwd: Path | None = None, timeout: float = 60, cache: Cache | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the tool; raises subprocess.TimeoutExpired when it hangs, as it does on a silent device."""
    tool = process.require("rkdeveloptool", "rkdeveloptool")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(build(cache)), "NPULAB_STANDIN_SOCKET": str(socket)}
    return subprocess.run(
        [tool, *arguments], env=environment, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False
    )
