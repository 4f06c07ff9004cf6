# SPDX-License-Identifier: MIT
"""Can the NPU work with this kernel? Asked of an artifact set, a build tree, an unpacked package or loose files.

Each check has one of three results: it holds, it does not and why, or the files at hand do not tell.
"""

from __future__ import annotations

import fnmatch
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.kernel import elf, fdtree, graph, uapi
from rknpu_userspace import uapi as library

FRAGMENTS = Path(__file__).parents[2] / "recipes/recipes-kernel/linux/files"
REQUIRED = FRAGMENTS / "npu.cfg"
"""What the driver needs on any kernel: the fragment that every build of the kit merges."""
DRIVER = "rocket"
SYMBOL = "CONFIG_DRM_ACCEL_ROCKET"
OK, BAD, UNKNOWN = "ok", "failed", "unknown"


@dataclass(frozen=True)
class Result:
    """One check's result."""

    name: str
    state: str
    found: str
    why: str = ""


@dataclass
class Files:
    """What a kernel consists of, as far as it is there."""

    image: Path | None = None
    config: Path | None = None
    module: Path | None = None
    modules: list[Path] = field(default_factory=list)
    builtin: Path | None = None
    symbols: list[Path] = field(default_factory=list)
    header: Path | None = None
    dtbs: list[Path] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Nothing of a kernel at all."""
        return not (self.image or self.config or self.module or self.builtin or self.header or self.dtbs)


def collect(root: Path) -> Files:
    """Look for a kernel's files below a directory, whatever its layout (artifact set, build tree, package)."""
    files = Files()
    for path in sorted(root.rglob("*")):
        name = path.name
        if not path.is_file():
            continue
        if name in ("Image", "Image.gz") or name.startswith("vmlinuz"):
            files.image = files.image or path
        elif name in ("config", ".config") or name.startswith(("config-", "config.arm64_none_arm64.")):
            files.config = files.config or path
        elif name.split(".")[0] == DRIVER and ".ko" in path.suffixes:
            files.module = path
        elif ".ko" in path.suffixes:
            files.modules.append(path)
        elif name == "modules.builtin.modinfo":
            files.builtin = path
        elif name in ("Module.symvers", "vmlinux") or name.startswith("System.map"):
            files.symbols.append(path)
        elif path.suffix == ".dtb" and name.startswith("rk3588"):
            files.dtbs.append(path)
        elif str(path).endswith(uapi.HEADER):
            files.header = path
    return files


def run(files: Files, boards: Sequence[str] = (), *, release: str = "") -> list[Result]:
    """Every check on these files; ``boards`` limits the device trees to those names (without suffix)."""
    if files.empty:
        raise KitError(ExitCode.USAGE, "there is no kernel: no Image, configuration, module or dtb", "check the path")
    image = elf.image(files.image) if files.image else None
    driver = elf.module(files.module) if files.module else None
    release = release or (image.release if image else "")
    results = [_image(files, image)]
    results += _config(files)
    results += [_driver(files, driver), _alias(files, driver), _vermagic(driver, release), _symbols(files, driver)]
    results += _interface(files, driver)
    chosen = [path for path in files.dtbs if not boards or path.stem in boards]
    results += [_dtb(path) for path in chosen]
    results += [
        Result(f"device tree {name}", BAD, "not there", "this kernel does not have the board, or was built without it")
        for name in boards
        if name not in {path.stem for path in chosen}
    ]
    return results


# --- image and configuration -----------------------------------------------------------------------------------------


def _image(files: Files, image: elf.Image | None) -> Result:
    if image is None or files.image is None:
        return Result("image", UNKNOWN, "no image here")
    return Result("image", OK, f"arm64 {image.kind} {image.release}".strip())


def read_config(path: Path) -> dict[str, str]:
    """Symbol to value (``n`` when it is not set) of a kernel configuration, also compressed by xz."""
    text = lzma.decompress(path.read_bytes()).decode() if path.suffix == ".xz" else path.read_text(errors="replace")
    values: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            symbol, _, value = line.partition("=")
            values[symbol] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            values[line.split()[1]] = "n"
    return values


def fragment_misses(fragment: str, config: dict[str, str]) -> list[tuple[str, str, str]]:
    """Lines of a fragment that a configuration does not have: symbol, wanted value, value found."""
    missed = []
    for symbol, wanted in _wanted(fragment):
        found = config.get(symbol, "n")
        if found != wanted:
            missed.append((symbol, wanted, found))
    return missed


def _wanted(fragment: str) -> Iterable[tuple[str, str]]:
    for line in (raw.strip() for raw in fragment.splitlines()):
        if line.startswith("CONFIG_"):
            symbol, _, value = line.partition("=")
            yield symbol, value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            yield line.split()[1], "n"


def _config(files: Files) -> list[Result]:
    if files.config is None:
        return [Result("configuration", UNKNOWN, "no configuration here")]
    config = read_config(files.config)
    missed = fragment_misses(REQUIRED.read_text(), config)
    absent = [f"{symbol}={wanted} (is {found})" for symbol, wanted, found in missed if found == "n"]
    weaker = [symbol for symbol, wanted, found in missed if (wanted, found) == ("y", "m")]
    other = [f"{symbol} is {found}" for symbol, wanted, found in missed if found not in ("n", "m")]
    results = []
    if absent or other:
        why = "the NPU's driver needs them; see recipes/recipes-kernel/linux/files/npu.cfg"
        results.append(Result("configuration", BAD, ", ".join(absent + other), why))
    else:
        results.append(Result("configuration", OK, "everything the driver needs is on"))
    if weaker:
        why = "built as modules: they must be in the initramfs, or the NPU is deferred until they are loaded"
        results.append(Result("configuration, modules", OK, ", ".join(weaker), why))
    return results


# --- the driver ------------------------------------------------------------------------------------------------------


def _driver(files: Files, driver: elf.Module | None) -> Result:
    if driver is not None:
        return Result("driver", OK, f"module {driver.name}.ko")
    value = read_config(files.config).get(SYMBOL, "n") if files.config else None
    if value == "y":
        return Result("driver", OK, "built in")
    if value == "m":
        return Result(
            "driver", BAD, "configured as a module, but there is no rocket.ko", "build or install the modules"
        )
    if value == "n":
        why = "build it against the headers of this kernel, or take a kernel of the kit"
        return Result("driver", BAD, f"{SYMBOL} is not set", why)
    return Result("driver", UNKNOWN, "no configuration and no module here")


def _aliases(files: Files, driver: elf.Module | None) -> Sequence[str] | None:
    if driver is not None:
        return driver.aliases
    if files.builtin is not None:
        return elf.modinfo(files.builtin.read_bytes()).get(f"{DRIVER}.alias", [])
    return None


def matches(aliases: Iterable[str], compatible: str) -> bool:
    """Whether a driver's ``of:`` alias matches a compatible, as modprobe does it."""
    modalias = f"of:NnpuT(null)C{compatible}"
    return any(fnmatch.fnmatchcase(modalias, alias) for alias in aliases)


def _alias(files: Files, driver: elf.Module | None) -> Result:
    aliases = _aliases(files, driver)
    if not aliases:
        return Result("alias", UNKNOWN, "no module and no modules.builtin.modinfo here")
    if matches(aliases, graph.CORE):
        return Result("alias", OK, f"matches {graph.CORE}")
    return Result("alias", BAD, " ".join(aliases), f"does not match {graph.CORE}: driver and device tree do not fit")


def _vermagic(driver: elf.Module | None, release: str) -> Result:
    if driver is None:
        return Result("vermagic", UNKNOWN, "no module here")
    if not release:
        return Result("vermagic", UNKNOWN, f"module for {driver.release}, but the image does not say what it is")
    if driver.release != release:
        found = f"module for {driver.release}, image {release}"
        return Result("vermagic", BAD, found, "the kernel refuses it: build both from one source")
    return Result("vermagic", OK, release)


def _symbols(files: Files, driver: elf.Module | None) -> Result:
    if driver is None:
        return Result("symbols", UNKNOWN, "no module here")
    if not files.symbols:
        return Result("symbols", UNKNOWN, "no vmlinux, Module.symvers or System.map here")
    offered = set().union(*(elf.exported_symbols(path) for path in files.symbols))
    needed = set(driver.undefined) - offered
    for name in driver.depends if needed else ():
        for path in files.modules:
            if path.name.split(".")[0].replace("-", "_") == name.replace("-", "_"):
                needed -= elf.module(path).exports
    if needed:
        found = f"{len(needed)} that no part of this kernel offers: {', '.join(sorted(needed)[:5])}"
        return Result("symbols", BAD, found, "the module was built for another configuration")
    return Result("symbols", OK, f"all {len(driver.undefined)} resolve")


# --- interface and device trees --------------------------------------------------------------------------------------


IOCTLS = ("CREATE_BO", "SUBMIT", "PREP_BO", "FINI_BO")


def expected_ioctls() -> dict[str, int]:
    """The ioctl numbers that the user-space library uses; they hold the sizes of the structures passed."""
    return {name: int(getattr(library, name)) for name in IOCTLS}


def expected_sizes() -> dict[str, int]:
    """Structure name to size in bytes, as the library packs them."""
    names = (*IOCTLS, "JOB", "TASK")
    return {f"drm_rocket_{name.lower()}": getattr(library, f"{name}_FORMAT").size for name in names}


def _interface(files: Files, driver: elf.Module | None) -> list[Result]:
    wanted = expected_ioctls()
    results: list[Result] = []
    if files.header is not None:
        try:
            interface = uapi.parse(files.header.read_text())
        except ValueError as error:
            return [Result("interface", BAD, str(error), "the library may not fit this kernel")]
        sizes = interface.sizes()
        wrong = [
            f"{name} is {interface.ioctls.get(name, 0):#x}"
            for name in wanted
            if interface.ioctls.get(name) != wanted[name]
        ]
        wrong += [
            f"{name} has {sizes.get(name, 0)} bytes"
            for name, size in expected_sizes().items()
            if sizes.get(name) != size
        ]
        if wrong:
            found = ", ".join(wrong)
            results.append(Result("interface", BAD, found, "rknpu_userspace speaks another version"))
        else:
            results.append(Result("interface", OK, f"header {interface.fingerprint}, {len(interface.ioctls)} ioctls"))
    if driver is not None:
        wrong = [name for name, number in wanted.items() if number not in driver.words]
        state = BAD if wrong else OK
        found = f"the module does not handle {', '.join(wrong)}" if wrong else "the module handles every ioctl we use"
        results.append(Result("interface, module", state, found))
    return results or [Result("interface", UNKNOWN, "no header and no module here")]


def _dtb(path: Path) -> Result:
    found = graph.examine(fdtree.load_rk3588(path))
    name = f"device tree {path.stem}"
    if found.state in ("absent", "disabled"):
        return Result(name, BAD, f"the NPU is {found.state}", found.errors[0].why)
    if found.errors:
        first = found.errors[0]
        return Result(name, BAD, f"{first.path}: {first.what}", first.why)
    warnings = "; ".join(finding.what for finding in found.findings)
    return Result(name, OK, warnings or f"NPU {found.state}, nothing missing")


def verdict(results: Sequence[Result]) -> bool:
    """Whether no check failed."""
    return all(result.state != BAD for result in results)


def document(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [{"name": r.name, "ok": r.state != BAD, "state": r.state, "found": r.found, "why": r.why} for r in results]
