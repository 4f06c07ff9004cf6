# SPDX-License-Identifier: MIT
"""What ``npulab kas verify`` does: the steps, and the machines, images and options that it goes through."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.assemble.sources import REPOSITORY
from lab.errors import ExitCode, KitError

STEPS = {
    "checkout": "the layers' repositories at the commits of the lock files",
    "graph": "full parse, and the task graph (bitbake -g) of every image for every machine",
    "dryrun": "every task of every image for every machine, without executing it (bitbake -n)",
    "layer": "yocto-check-layer, as a BSP layer, with all machines",
    "patches": "OE-core's patchreview on the patches of the kernel and of QEMU",
    "kernel": "the kernel, built by BitBake with this machine's compiler",
    "board": "that kernel on the virtual board with a real board's device tree: the board suite",
}
"""Name and meaning, in the order they are done."""

IMAGES = ("npu-bringup-image", "npu-rescue-initramfs")
OFFLINE = "kas/opt/offline.yml"
"""Nothing is fetched for graphs and dry runs, so nothing may be waited for."""


@dataclass(frozen=True)
class Configuration:
    """One set of options. ``targets``: as for ``bitbake``; ``on_boards``: more options, for real boards only."""

    name: str
    options: tuple[str, ...]
    targets: tuple[str, ...]
    dry_run: bool = True
    on_boards: tuple[str, ...] = ()

    @property
    def llvm(self) -> bool:
        """Whether it asks for GPU drivers, which need LLVM."""
        return "gpu" in self.options

    def chosen(self, *, virtual: bool) -> tuple[str, ...]:
        """The options for a machine."""
        return self.options if virtual else (*self.options, *self.on_boards)

    def files(self, machine: str, *, virtual: bool) -> str:
        """What kas is given."""
        options = self.chosen(virtual=virtual)
        return ":".join([f"kas/{machine}.yml", *(f"kas/opt/{name}.yml" for name in options), OFFLINE])


CONFIGURATIONS = (
    Configuration("images", (), IMAGES),
    Configuration(
        "options",
        ("kernel-6.18", "rocket-builtin", "kernel-debug", "without-fixes", "gpu"),
        IMAGES,
        dry_run=False,
        on_boards=("loader",),
    ),
    Configuration("test image", ("testimage",), ("npu-bringup-image:do_testimage",)),
)
"""Every option of ``kas/opt`` that changes what an image is built from is in one of them."""


@dataclass(frozen=True)
class Item:
    """One piece of work; ``key`` names it in the state file and for people."""

    step: str
    machine: str = ""
    configuration: Configuration | None = None

    @property
    def key(self) -> str:
        """E.g. ``graph orangepi-5 images``."""
        return " ".join(filter(None, (self.step, self.machine, self.configuration.name if self.configuration else "")))


def machines(project: Path = REPOSITORY) -> list[str]:
    """Every machine of the layer: each has a kas file of its name."""
    return sorted(path.stem for path in (project / "recipes/conf/machine").glob("*.conf"))


def is_virtual(machine: str, project: Path = REPOSITORY) -> bool:
    """Whether a machine is QEMU's: it needs no BSP layer and has no loader."""
    text = (project / f"kas/{machine}.yml").read_text()
    return not re.search(r"rockchip\.yml", text)


def choose(what: str, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The wanted ones in the order of those known; all when none is named. KitError (usage) for another name."""
    for name in wanted:
        if name not in known:
            close = " ".join(difflib.get_close_matches(name, known, 3, 0.3))
            raise KitError(ExitCode.USAGE, f"there is no {what} {name}", f"{close or 'one'} of {' '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def items(
    steps: Sequence[str], chosen: Sequence[str], configurations: Sequence[str] = (), project: Path = REPOSITORY
) -> list[Item]:
    """The work, machine by machine so that one build directory serves its graphs and dry runs."""
    found = [Item("checkout", machine) for machine in chosen] if "checkout" in steps else []
    for machine in chosen:
        for one in (one for one in CONFIGURATIONS if not configurations or one.name in configurations):
            found += [Item("graph", machine, one)] if "graph" in steps else []
            found += [Item("dryrun", machine, one)] if "dryrun" in steps and one.dry_run else []
    return [*found, *(Item(step) for step in ("layer", "patches", "kernel", "board") if step in steps)]
