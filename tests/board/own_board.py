# SPDX-License-Identifier: MIT
"""Virtual boards that a test has for itself: another kernel or driver than the suite's, or one that it may break."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from on_board import Board

from lab.assemble.virt import BuildOptions, assemble
from lab.cache import Cache
from lab.kernel import driver
from lab.output import Output
from lab.virt.select import board_config
from lab.virt.session import BoardSession

HELPERS = Path(__file__).parent / "modules"
MODULES = "/tmp/modules"


class _Command:
    """A session's shell with the face of labgrid's CommandProtocol."""

    def __init__(self, session: BoardSession) -> None:
        self._session = session

    def run(self, command: str, timeout: float) -> tuple[list[str], list[str], int]:
        """Lines, no error output of its own, and the exit code."""
        lines, code = self._session.run(command, timeout)
        return lines, [], code


@contextmanager
def modular_board(results: Path, files: Sequence[Path] = ()) -> Iterator[Board]:
    """A virtual board whose kernel has rocket as a module, booted to its shell; ``files`` are in `MODULES`."""
    config = board_config(assemble(BuildOptions(rocket_module=True), Output()))
    results.mkdir(parents=True, exist_ok=True)
    package = results / "modules.tar"
    with tarfile.open(package, "w") as archive:
        for path in files:
            archive.add(path, path.name)
    chosen = replace(config, disks=(*config.disks, package)) if files else config
    with BoardSession(chosen, results) as session:
        session.to("shell")
        board = Board(_Command(session))
        if files:
            board.output(f"mkdir -p {MODULES} && tar -xf /dev/vdc -C {MODULES}")
        yield board


@contextmanager
def fixed_board(results: Path) -> Iterator[Board]:
    """A virtual board that runs rocket with the kit's fixes (kernel-patches), and has the tests' helper modules."""
    variants = driver.build(Cache(), Output(), os.cpu_count() or 1, HELPERS)
    files = variants.modules("fixed", ("groupref.ko",))
    with modular_board(results, files) as board:
        loads = [f"insmod {MODULES}/{path.name}" for path in files if path.name != "groupref.ko"]
        board.output(" && ".join(["modprobe -r rocket", *loads]))
        yield board
