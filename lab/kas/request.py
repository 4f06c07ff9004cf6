# SPDX-License-Identifier: MIT
"""What to build with kas: a board, a kernel, an image and options, each a file below ``kas/``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab import boards
from lab.assemble.board import BoardKernelOptions
from lab.assemble.kernel import KernelOptions
from lab.assemble.sources import REPOSITORY
from lab.errors import ExitCode, KitError

KERNELS = ("7.3", "6.18")
IMAGES = {"bringup": "", "rescue": "rescue", "kernel": "kernel-only"}
"""What ``--image`` takes: the option file that asks for it; the bring-up image is what the files ask for anyway."""
PARTS = ("kas", "recipes", "kernel-patches", "dts", "lab/virt/qemu", "LICENSES", "rknpu_userspace")
"""What kas and BitBake read of the repository."""
_OTHERS = {*(f"kernel-{version}" for version in KERNELS), *IMAGES.values()}


def options(project: Path = REPOSITORY) -> list[str]:
    """What ``--option`` takes: the files of ``kas/opt`` that are neither a kernel's version nor an image."""
    return sorted(path.stem for path in (project / "kas/opt").glob("*.yml") if path.stem not in _OTHERS)


@dataclass(frozen=True)
class Request:
    """One build. ``project``: the repository, or a copy of the parts of it that kas and BitBake read."""

    board: str
    kernel: str = "7.3"
    image: str = "bringup"
    options: tuple[str, ...] = ()
    project: Path = REPOSITORY

    def __post_init__(self) -> None:
        """KitError (usage) when a name is not known or two exclude each other."""
        _known("kernel", self.kernel, KERNELS)
        _known("image", self.image, list(IMAGES))
        for name in self.options:
            _known("option", name, options(self.project))
        if "loader" in self.options and boards.load(self.board).virtual:
            raise KitError(ExitCode.USAGE, "the virtual board has no loader", "leave --option loader out")
        if "icecc" in self.options and "host-toolchain" not in self.options:
            message = "--option icecc: OE-core's own compilers cannot run on a cluster, this machine's can"
            raise KitError(ExitCode.USAGE, message, "add --option host-toolchain --image kernel")
        if "host-toolchain" in self.options and self.image != "kernel":
            message = "--option host-toolchain builds no image: this machine's compiler makes kernels only"
            raise KitError(ExitCode.USAGE, message, "add --image kernel")

    @property
    def machine(self) -> str:
        """BitBake's name of the board."""
        return Path(boards.load(self.board).kas).stem

    @property
    def files(self) -> list[str]:
        """The kas files, relative to the project."""
        extra = [f"kernel-{self.kernel}", IMAGES[self.image], *self.options]
        return [f"kas/{self.machine}.yml", *(f"kas/opt/{name}.yml" for name in extra if name)]

    @property
    def config(self) -> str:
        """The files as kas takes them."""
        return ":".join(self.files)

    @property
    def target(self) -> str:
        """What BitBake is asked for: the last file that says so."""
        found = "npu-bringup-image"
        for name in self.files:
            found = yaml.safe_load((self.project / name).read_text()).get("target", found)
        return found

    @property
    def trees(self) -> list[str]:
        """Names of the machine's device trees."""
        text = (self.project / f"recipes/conf/machine/{self.machine}.conf").read_text()
        found = re.search(r'^KERNEL_DEVICETREE = "([^"]*)"', text, re.MULTILINE)
        return [Path(name).stem for name in found[1].split()] if found else []

    @property
    def kernel_options(self) -> KernelOptions:
        """The same kernel in the words of the minutes path: for fragments, patches and checks."""
        kind = KernelOptions if boards.load(self.board).virtual else BoardKernelOptions
        return kind(
            rocket_module="rocket-builtin" not in self.options,
            jobs=1,
            debug="kernel-debug" in self.options,
            fixes="without-fixes" not in self.options,
        )


def _known(what: str, name: str, names: list[str] | tuple[str, ...]) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise KitError(ExitCode.USAGE, f"there is no {what} {name} for kas", hint)
