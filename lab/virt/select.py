# SPDX-License-Identifier: MIT
"""From an artifact set and what the user asked for to a `BoardConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.assemble.artifacts import ArtifactSet, load
from lab.assemble.virt import FLAVOURS, BuildOptions, assemble
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.virt.board import BoardConfig
from lab.virt.dtb import require_npu

DEFAULT_BOARD = "rk3588s-orangepi-5"


def find_artifacts(path: str | Path | None, kernel: str, out: Output) -> ArtifactSet:
    """The set in a directory, or without one the cached set of that kernel, assembled if need be."""
    if path:
        return load(Path(path))
    flavour = next((name for name in FLAVOURS if name == kernel), None)
    if flavour is None:
        message = f"the virtual board has no kernel {kernel}"
        raise KitError(ExitCode.USAGE, message, f"one of {', '.join(FLAVOURS)}")
    return assemble(BuildOptions(kernel=flavour), out)


def find_dtb(artifacts: ArtifactSet, board: str) -> Path:
    """A device tree by the name it has in the kernel tree, or a file when the name is a path."""
    path = Path(board).expanduser()
    if "/" in board or (path.suffix == ".dtb" and path.is_file()):
        return path.absolute()
    return artifacts.dtb(board)


def with_console(cmdline: str, console: str) -> str:
    """The command line with its console on the UART that the board's tree names: QEMU's serial port is there."""
    if not console:
        return cmdline
    words = [word for word in cmdline.split() if not word.startswith("console=")]
    return " ".join([*words, f"console={console}"])


def board_config(
    artifacts: ArtifactSet, board: str = DEFAULT_BOARD, *, boot_args: str = "", **options: Any
) -> BoardConfig:
    """What to boot: the set's files, a board's tree, and options of `BoardConfig`."""
    dtb = find_dtb(artifacts, board)
    return BoardConfig(
        qemu=artifacts.qemu,
        kernel=artifacts.kernel,
        initrd=artifacts.initrd,
        dtb=dtb,
        cmdline=f"{with_console(artifacts.cmdline, require_npu(dtb).console)} {boot_args}".strip(),
        disks=(artifacts.rootfs, artifacts.kit),
        ssh_key=artifacts.ssh_key,
        **options,
    )
