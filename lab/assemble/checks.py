# SPDX-License-Identifier: MIT
"""Checks before an artifact set is called good: configuration, driver, modules, device trees."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab import boards
from lab.assemble import trees
from lab.errors import ExitCode, KitError
from lab.kernel import elf

DRIVER = "rocket"


def lost_lines(fragment: str, config: str) -> list[str]:
    """Lines of a configuration fragment that a ``.config`` does not have.

    ``CONFIG_X=n`` and ``# CONFIG_X is not set`` survive when the symbol is unset or unknown.
    """
    have = {line.strip() for line in config.splitlines()}
    set_symbols = {line.split("=")[0] for line in have if line.startswith("CONFIG_")}
    lost = []
    for line in (raw.strip() for raw in fragment.splitlines()):
        off = re.fullmatch(r"# (CONFIG_\w+) is not set|(CONFIG_\w+)=n", line)
        if off:
            if (off[1] or off[2]) in set_symbols:
                lost.append(line)
        elif line.startswith("CONFIG_") and line not in have:
            lost.append(line)
    return lost


def symbols(fragment: str, config: str) -> None:
    """Every symbol that the fragment sets to ``y`` is built in or a module in a configuration that is not ours."""
    have = {line.split("=")[0] for line in config.splitlines() if line.endswith(("=y", "=m"))}
    wanted = [line.split("=")[0] for line in fragment.splitlines() if line.endswith("=y")]
    missing = [name for name in wanted if name not in have]
    if missing:
        raise KitError(
            ExitCode.FAILED,
            f"the kernel's configuration lacks {', '.join(missing)}",
            "the NPU needs them: --kernel fast",
        )


def _canonical(name: str) -> str:
    """One spelling for both: ``depends`` says gpu-sched, the module calls itself gpu_sched (kmod takes either)."""
    return name.replace("-", "_")


def module(path: Path) -> dict[str, Any]:
    """Name, vermagic, aliases and dependencies of a kernel module; KitError when it is not one for arm64."""
    found = elf.module(path)
    if not found.release:
        raise KitError(ExitCode.FAILED, f"{path}: it says no kernel that it is for", "build it again")
    return {
        "name": _canonical(found.name),
        "file": path.name,
        "vermagic": found.vermagic,
        "aliases": list(found.aliases),
        "depends": [_canonical(name) for name in found.depends],
    }


def vermagic(modules: Iterable[Mapping[str, Any]], release: str) -> None:
    """Every module must be for the kernel ``release``: the first word of its vermagic."""
    for entry in modules:
        words = entry["vermagic"].split()
        if not words or words[0] != release:
            raise KitError(
                ExitCode.FAILED,
                f"module {entry['name']} is for kernel {words[0] if words else '(none)'}, the image is {release}",
                "build both from one source",
            )


def builtin_aliases(path: Path, name: str) -> list[str]:
    """Aliases of a built-in driver, from ``modules.builtin.modinfo``."""
    try:
        fields = elf.modinfo(path.read_bytes())
    except FileNotFoundError:
        return []
    return fields.get(f"{name}.alias", [])


def alias_matches(aliases: Iterable[str], compatible: str) -> bool:
    """Whether an ``of:`` alias of a driver matches a compatible, as modprobe matches them."""
    modalias = f"of:NnpuT(null)C{compatible}"
    return any(fnmatch.fnmatchcase(modalias, alias) for alias in aliases)


def device_trees(folder: Path) -> dict[str, Any]:
    """Manifest entries of every dtb in a folder, by board."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.dtb")):
        try:
            found[path.stem] = {"file": f"dtbs/{path.name}", **trees.describe(path)}
        except ValueError as error:
            raise KitError(ExitCode.FAILED, f"device tree {error}", "build it again") from error
    return found


def kernel(component: Mapping[str, Any], config: str) -> None:
    """The kernel can drive the virtual board's NPU: driver there, alias matches, default device tree in order."""
    wanted = "m" if component["rocket"] == "module" else "y"
    if component["flavour"] != "distro" and f"CONFIG_DRM_ACCEL_ROCKET={wanted}" not in config.splitlines():
        raise KitError(ExitCode.FAILED, f"the kernel has no {DRIVER} driver ({component['rocket']})", "see its config")
    if not alias_matches(component["rocket_aliases"], trees.CORE):
        raise KitError(
            ExitCode.FAILED,
            f"the {DRIVER} driver's aliases {component['rocket_aliases']} do not match {trees.CORE}",
            "the driver and the device trees come from different kernels",
        )
    default = Path(boards.load("virt").dtb).stem
    entry = component["dtbs"].get(default)
    if entry is None:
        raise KitError(ExitCode.FAILED, f"this kernel has no device tree {default}", "take a kernel from 6.18 on")
    if entry["npu"] != "enabled":
        raise KitError(ExitCode.FAILED, f"device tree {default}: the NPU is {entry['npu']}", "take a newer kernel")
    if entry["problems"]:
        raise KitError(ExitCode.FAILED, f"device tree {default}: {entry['problems'][0]}", "correct the tree")
