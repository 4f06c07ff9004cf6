# SPDX-License-Identifier: MIT
"""Device tree sources of a kernel tree and of the kit, compiled with the host's preprocessor and dtc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.cache import Cache, digest, tree_digest
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require

BOARDS = "arch/arm64/boot/dts/rockchip"
INCLUDES = (BOARDS, "arch/arm64/boot/dts", "include", "scripts/dtc/include-prefixes")
OWN = Path(__file__).parents[2] / "dts"
"""Sources of boards that mainline lacks."""


def compile_source(tree: Path, source: Path, target: Path, *, symbols: bool = False) -> None:
    """Compile one source against a kernel tree; KitError (failed) with the compiler's first complaint."""
    flags = [word for name in INCLUDES for word in ("-I", str(tree / name))]
    preprocess = [require("gcc", "gcc"), "-E", "-nostdinc", "-undef", "-D__DTS__", "-x", "assembler-with-cpp", *flags]
    first = subprocess.run([*preprocess, str(source)], capture_output=True, check=False)
    if first.returncode:
        raise _complaint(source, tree, first.stderr)
    partial = target.with_name(f".{target.name}.partial")
    options = ["-q", "-I", "dts", "-O", "dtb", *(["-@"] if symbols else []), "-o", str(partial), "-"]
    try:
        second = subprocess.run(
            [require("dtc", "device-tree-compiler"), *options], input=first.stdout, capture_output=True, check=False
        )
        if second.returncode:
            raise _complaint(source, tree, second.stderr)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _complaint(source: Path, tree: Path, stderr: bytes) -> KitError:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if "rror" in line or "FATAL" in line]
    if any("No space left" in line for line in lines):
        return KitError(ExitCode.INFRASTRUCTURE, f"{source.name}: the disk is full", "free space")
    first = lines[0].replace(f"{tree}/", "") if lines else "the compiler failed without a message"
    return KitError(ExitCode.FAILED, f"{source.name} does not compile: {first}", "does it belong to this kernel?")


def compile_boards(tree: Path, cache: Cache, out: Output, label: str, own: Sequence[Path] = ()) -> Path:
    """Directory with the dtb of every RK3588 board of a tree (and of ``own`` sources), made once for each content.

    A board that does not compile leaves ``NAME.error`` with the complaint instead.
    """
    folder = tree / BOARDS
    key = digest(
        "boards 1", tree_digest(folder), tree_digest(tree / "include/dt-bindings"), [p.read_text() for p in own]
    )
    sources = [*sorted(folder.glob("rk3588*.dts")), *own]

    def make(entry: Path) -> None:
        with out.stage(f"device trees of {label}") as meter, ThreadPoolExecutor(os.cpu_count()) as pool:

            def one(source: Path) -> None:
                try:
                    compile_source(tree, source, entry / f"{source.stem}.dtb")
                except KitError as error:
                    if error.code is not ExitCode.FAILED:
                        raise
                    (entry / f"{source.stem}.error").write_text(error.message)

            for done, _ in enumerate(pool.map(one, sources), 1):
                meter.update(done, len(sources))

    return cache.entry("board-dtbs", key, make)
