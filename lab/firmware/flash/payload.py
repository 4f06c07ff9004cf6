# SPDX-License-Identifier: MIT
"""What of an artifact set goes onto a board: kernel, device tree, initramfs, modules, each with its hash and place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lab.assemble import artifacts
from lab.assemble import board as board_set
from lab.boards import Board
from lab.cache import digest, file_digest
from lab.errors import ExitCode, KitError
from lab.kernel import elf
from lab.virt.dtb import read_board_tree

KERNEL, TREE, INITRD = "Image", "board.dtb", "initrd.img"
MODULES = "usr/lib/modules"


@dataclass(frozen=True)
class File:
    """``place``: ``boot`` (in the entry's own directory) or ``root``; ``path`` is relative to it."""

    place: str
    path: str
    source: str
    size: int
    sha256: str
    mode: int = 0o644


@dataclass(frozen=True)
class Payload:
    """A kernel to try. ``name`` tells it from any other content; ``model`` is what its device tree calls the board;
    ``banner`` is the text of /proc/version by which it is recognised when it runs."""

    name: str
    release: str
    banner: str
    model: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes on the board."""
        return sum(file.size for file in self.files)

    @property
    def initrd(self) -> bool:
        """Whether the kernel brings its initramfs."""
        return any(file.path == INITRD for file in self.files)


def _file(place: str, path: str, source: Path) -> File:
    return File(place, path, str(source.resolve()), source.stat().st_size, file_digest(source))


def _banner(kernel: Path) -> str:
    """The version line in a kernel image; KitError (usage) when U-Boot's booti does not start it."""
    found = elf.image(kernel)
    if found.kind != "Image":
        raise KitError(ExitCode.USAGE, f"{kernel}: U-Boot's booti starts no {found.kind}", "build it as Image")
    return found.banner


def _kind(path: Path) -> str:
    """``board-kernel``, or empty for the virtual board's set and for what is none (its reader says why)."""
    try:
        return str(json.loads((path / artifacts.MANIFEST).read_text()).get("kind", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _set_files(path: Path, board: Board) -> tuple[Path, Path, Path | None, str, list[tuple[str, Path]]]:
    """Kernel, tree, initramfs, release and modules of a set of either kind."""
    modules: list[tuple[str, Path]] = []
    if _kind(path) == "board-kernel":
        made = board_set.load(path)
        if made.manifest["board"] != board.name:
            other = made.manifest["board"]
            raise KitError(
                ExitCode.REFUSED, f"{path} is made for {other}, not for {board.name}", f"npulab build {board.name}"
            )
        _check_hashes(path, made.manifest["files"])
        folder = path / "install/root" / MODULES
        modules = [
            (f"{MODULES}/{file.relative_to(folder)}", file) for file in sorted(folder.rglob("*")) if file.is_file()
        ]
        initrd = path / INITRD
        release = str(made.manifest["kernel"]["release"])
        return made.kernel, made.dtb, initrd if initrd.is_file() else None, release, modules
    found = artifacts.load(path)
    return (
        found.kernel,
        found.dtb(Path(board.dtb).stem),
        found.initrd,
        str(found.manifest["kernel"]["release"]),
        modules,
    )


def _check_hashes(path: Path, files: dict[str, dict[str, object]]) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file_digest(file) != expected["sha256"]:
            raise KitError(ExitCode.MISMATCH, f"{path}: {name} is missing or was changed", "build the set again")


def load(path: Path, board: Board) -> Payload:
    """The payload of an artifact set for a board.

    KitError: usage when the directory is no set or its kernel none for arm64, refused when it is made for another
    board, mismatch when a file of it was changed.
    """
    path = path.expanduser().absolute()
    kernel, dtb, initrd, release, modules = _set_files(path, board)
    banner, tree = _banner(kernel), read_board_tree(dtb)
    if banner and not banner.startswith(f"Linux version {release} "):
        raise KitError(ExitCode.MISMATCH, f"{kernel} is not {release}, as its set says", "build the set again")
    if not board.virtual and board.compatible[0] not in tree.compatible:
        raise KitError(ExitCode.REFUSED, f"{dtb} is of a {tree.model}, not of a {board.title}", "name the right board")
    files = [_file("boot", KERNEL, kernel), _file("boot", TREE, dtb)]
    files += [_file("boot", INITRD, initrd)] if initrd else []
    files += [_file("root", name, file) for name, file in modules]
    key = digest([(file.place, file.path, file.sha256) for file in files])
    return Payload(f"npulab-{release}-{key[:8]}", release, banner, tree.model, tuple(files))
