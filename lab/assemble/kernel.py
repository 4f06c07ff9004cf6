# SPDX-License-Identifier: MIT
"""Kernels from source: the trimmed ones for the virtual board, those of real boards, and every RK3588 device tree.

Made from a base (allnoconfig, alldefconfig) and the fragments below ``recipes/recipes-kernel/linux/files``; every line
of a fragment must have survived into the configuration, else the build is refused. The build tree stays between runs,
so an edit costs what it touches.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.assemble import checks, initramfs
from lab.assemble.apt import Apt
from lab.assemble.artifacts import describe
from lab.assemble.sources import (
    LINUX_BASE,
    REPOSITORY,
    Source,
    base_of,
    linux_tree,
    patches_digest,
    patches_manifest,
    version_of,
)
from lab.cache import Cache, digest, file_digest, tree_digest
from lab.errors import ExitCode, KitError, from_os_error
from lab.kernel import uapi
from lab.kernel.patches import STOCK, WITH_FIXES
from lab.output import Meter, Output
from lab.process import require, run

FRAGMENTS = REPOSITORY / "recipes/recipes-kernel/linux/files"
DTS = REPOSITORY / "dts"
CROSS = "aarch64-linux-gnu-"

SPACE = 2_500_000_000
"""Bytes for the first build of another kernel (measured: source 1.8 GB where it is not there, objects 0.4 GB)."""

TOOLS = (
    (f"{CROSS}gcc", "gcc-aarch64-linux-gnu"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
)

_SYMBOL = re.compile(r"(CONFIG_\w+)=|# (CONFIG_\w+) is not set$")
_STEP = re.compile(r"^  (CC|AS|LD|AR|HOSTCC|GEN|DTC|OBJCOPY|KSYMS)\b")


@dataclass(frozen=True)
class KernelOptions:
    """What distinguishes one kernel for the virtual board from another.

    ``debug``: with the kernel's own checkers; ``fixes``: with the kit's fixes of the driver.
    """

    rocket_module: bool
    jobs: int
    debug: bool = False
    fixes: bool = False

    @property
    def base(self) -> str:
        """The configuration that the fragments go onto: make's target."""
        return "allnoconfig"

    @property
    def fragments(self) -> tuple[str, ...]:
        """Fragment names in the order they are merged."""
        return ("npu.cfg", "virt.cfg", *self._last_fragments)

    @property
    def _last_fragments(self) -> tuple[str, ...]:
        driver = "rocket-module.cfg" if self.rocket_module else "rocket-builtin.cfg"
        return (driver, "debug.cfg") if self.debug else (driver,)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of the kit's patches that are applied."""
        return WITH_FIXES if self.fixes else STOCK

    @property
    def build_tree(self) -> object:
        """What tells build trees of one source apart."""
        return ("debug", self.rocket_module) if self.debug else self.rocket_module

    @property
    def expected_steps(self) -> int:
        """Steps of a first build (7.3.4); later builds count those of the build before."""
        return 1650 if self.debug else 1550


def fragment_files(options: KernelOptions, version: str = LINUX_BASE) -> list[Path]:
    """The fragments as files, with what only a kernel of that series needs (``linux-6.18.cfg``)."""
    own = FRAGMENTS / f"linux-{base_of(version)}.cfg"
    return [*(FRAGMENTS / name for name in options.fragments), *([own] if own.is_file() else [])]


def merge(texts: Iterable[str]) -> str:
    """The fragments as one: where two set the same symbol, the later one does (as merge_config.sh has it)."""
    last: dict[str, str] = {}
    for line in (raw.strip() for text in texts for raw in text.splitlines()):
        found = _SYMBOL.match(line)
        if found:
            symbol = found[1] or found[2]
            last.pop(symbol, None)
            last[symbol] = line
    return "".join(f"{line}\n" for line in last.values())


def key(source: Source, options: KernelOptions) -> str:
    """Cache key of the kernel: source, patches, fragments, device trees, compiler and the way it is built."""
    return digest(
        "kernel 2",
        recipe(Path(__file__)),
        options.base,
        source.key,
        patches_digest(source, options.groups),
        [(path.name, file_digest(path)) for path in [*fragment_files(options), *sorted(FRAGMENTS.glob("linux-*.cfg"))]],
        tree_digest(DTS),
        compiler(),
    )


def recipe(*modules: Path) -> list[str]:
    """Hashes of the code that makes a kernel's entry: with ``modules``, how modules are described and loaded."""
    return [file_digest(path) for path in (*modules, Path(checks.__file__), Path(initramfs.__file__))]


def compiler() -> str:
    """First line of the cross compiler's version."""
    program = require(*TOOLS[0])
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()[0]


def build(source: Source, options: KernelOptions, apt: Apt, cache: Cache, out: Output, log: Path) -> Path:
    """The kernel's cache entry: ``Image``, ``config``, ``dtbs/`` and ``component.json``.

    With a modular driver also ``modules/`` and ``initrd.img``.
    """

    def make(entry: Path) -> None:
        for program, package in TOOLS:
            require(program, package)
        with (
            linux_tree(source, cache, out, log, options.groups) as tree,
            workdir(tree, options, cache) as objects,
        ):
            _seed(tree, objects, options, cache, log)
            builder = _Builder(tree, objects, options, apt, cache, out, log)
            builder.configure()
            builder.compile()
            builder.device_trees(entry / "dtbs")
            builder.collect(entry, source)

    return cache.entry("kernel-fast", key(source, options), make)


def workdir(tree: Path, options: KernelOptions, cache: Cache) -> AbstractContextManager[Path]:
    """The build tree of a source: it stays, and is locked while it is used."""
    return cache.workdir("kernel-fast", _workdir_path(tree, options, cache).name)


def _workdir_path(tree: Path, options: KernelOptions, cache: Cache) -> Path:
    return cache.root / "work" / "kernel-fast" / digest(str(tree), options.build_tree)


def _seed(tree: Path, objects: Path, options: KernelOptions, cache: Cache, log: Path) -> None:
    """A build tree that is empty starts as a copy of its sibling's, where only the driver is configured otherwise.

    make then compiles what depends on that, some fifty files. The sibling is locked after us; it never does the same,
    because its own tree is not empty.
    """
    sibling = replace(options, rocket_module=not options.rocket_module)
    image = "arch/arm64/boot/Image"
    if any(objects.iterdir()) or not (_workdir_path(tree, sibling, cache) / image).is_file():
        return
    with workdir(tree, sibling, cache) as other:
        # complete or not at all: a file cut short would look up to date to make
        partial = objects.with_name(f"{objects.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            run(["cp", "-a", "--reflink=auto", other, partial], stage="copying a build tree", log=log)
            partial.rename(objects)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _Builder:
    """One build tree."""

    def __init__(
        self, tree: Path, objects: Path, options: KernelOptions, apt: Apt, cache: Cache, out: Output, log: Path
    ) -> None:
        self.tree, self.objects, self.options, self.apt = tree, objects, options, apt
        self.cache, self.out, self.log = cache, out, log

    def make(self, *targets: str, stage: str, meter: Meter | None = None, total: float | None = None) -> int:
        """Run make; the number of build steps it took."""
        ccache = shutil.which("ccache")
        wrap = f"{ccache} " if ccache else ""
        command = [
            *("nice", "-n", "5", "make", "-C", str(self.tree), f"O={self.objects}", f"-j{self.options.jobs}"),
            *("ARCH=arm64", f"CROSS_COMPILE={CROSS}", f"CC={wrap}{CROSS}gcc", f"HOSTCC={wrap}gcc"),
            *targets,
        ]
        steps = 0

        def on_line(line: str) -> None:
            nonlocal steps
            if _STEP.match(line):
                steps += 1
                if meter is not None:
                    meter.update(min(steps, total or steps), total, line.split()[-1])

        hint = "read the log; after a compiler crash run it again, it goes on where it stopped"
        try:
            run(command, stage=stage, log=self.log, env=self._environment(), on_line=on_line, hint=hint)
        except KitError as error:
            if "No space left on device" not in error.tail:
                raise
            raise from_os_error(OSError(errno.ENOSPC, "", str(self.objects)), stage) from error
        return steps

    def _environment(self) -> dict[str, str]:
        return {
            "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
            "KBUILD_BUILD_USER": "npulab",
            "KBUILD_BUILD_HOST": "npulab",
            "KBUILD_BUILD_VERSION": "1",
            "LC_ALL": "C",
            "CCACHE_BASEDIR": str(self.cache.root),
            "CCACHE_NOHASHDIR": "1",
        }

    def configure(self) -> None:
        """The base with the fragments, checked line by line."""
        merged = self.objects / "npulab.config"
        merged.write_text(merge(path.read_text() for path in fragment_files(self.options, version_of(self.tree))))
        self.make(f"KCONFIG_ALLCONFIG={merged}", self.options.base, stage="configuring the kernel")
        lost = checks.lost_lines(merged.read_text(), (self.objects / ".config").read_text())
        if lost:
            raise KitError(
                ExitCode.FAILED,
                f"kernel configuration: {len(lost)} lines of the fragments did not survive: {', '.join(lost[:5])}",
                "look at what the symbol depends on in this kernel and add it to the fragment",
                log=self.log,
            )

    def compile(self) -> None:
        """Image, and modules when there are any."""
        counter = self.objects / "npulab.steps"
        fresh = not (self.objects / "arch/arm64/boot/Image").is_file()
        total = float(counter.read_text()) if counter.is_file() else float(self.options.expected_steps)
        targets = ["Image", *(["modules"] if self.options.rocket_module else [])]
        with self.out.stage("build Linux") as meter:
            steps = self.make(*targets, stage="building the kernel", meter=meter, total=total if fresh else None)
        if fresh:
            counter.write_text(str(steps))

    def device_trees(self, target: Path) -> None:
        """Every RK3588 board of the tree and of the kit, with symbols so that overlays apply."""
        boards = sorted((self.tree / "arch/arm64/boot/dts/rockchip").glob("rk3588*.dts"))
        target.mkdir()
        with self.out.stage("build device trees") as meter:
            names = [f"rockchip/{board.stem}.dtb" for board in boards]
            self.make("DTC_FLAGS=-@", *names, stage="building device trees", meter=meter, total=float(len(names)))
            for board in boards:
                built = self.objects / f"arch/arm64/boot/dts/rockchip/{board.stem}.dtb"
                shutil.copyfile(built, target / built.name)
            for own in sorted(DTS.glob("*.dts")):
                self._own_tree(own, target / f"{own.stem}.dtb")

    def _own_tree(self, source: Path, target: Path) -> None:
        includes = [self.tree / "arch/arm64/boot/dts/rockchip", self.tree / "scripts/dtc/include-prefixes"]
        flags = [flag for path in includes for flag in ("-I", str(path))]
        plain = self.objects / f"{source.stem}.plain.dts"
        preprocess = [f"{CROSS}gcc", "-E", "-nostdinc", "-undef", "-D__DTS__", "-x", "assembler-with-cpp", *flags]
        run([*preprocess, "-o", plain, source], stage=f"reading {source.name}", log=self.log)
        dtc = self.objects / "scripts/dtc/dtc"
        run([dtc, "-@", "-O", "dtb", "-o", target, plain], stage=f"compiling {source.name}", log=self.log)

    def collect(self, entry: Path, source: Source) -> None:
        """Copy the results and say what they are."""
        shutil.copyfile(self.objects / "arch/arm64/boot/Image", entry / "Image")
        shutil.copyfile(self.objects / ".config", entry / "config")
        extra = self._for_checks(entry)
        release = (self.objects / "include/config/kernel.release").read_text().strip()
        modules = self._modules(entry / "modules", release) if self.options.rocket_module else []
        with self.out.stage("check device trees"):
            trees = checks.device_trees(entry / "dtbs")
        fragments = fragment_files(self.options, version_of(self.tree))
        component: dict[str, Any] = {
            "flavour": "debug" if self.options.debug else "fast",
            "release": release,
            "version": version_of(self.tree),
            "source": source.origin,
            "patches": patches_manifest(version_of(self.tree), self.options.groups),
            "fragments": [{"name": path.name, "sha256": file_digest(path)} for path in fragments],
            "config_sha256": file_digest(entry / "config"),
            "compiler": compiler(),
            "rocket": "module" if self.options.rocket_module else "builtin",
            "rocket_aliases": checks.builtin_aliases(self.objects / "modules.builtin.modinfo", "rocket"),
            "initrd": None,
            "modules": modules,
            "dtbs": trees,
        }
        names = ["Image", "config", *extra, *(f"dtbs/{path.name}" for path in sorted((entry / "dtbs").iterdir()))]
        if self.options.rocket_module:
            component["rocket_aliases"] = next(m["aliases"] for m in modules if m["name"] == "rocket")
            component["initrd"] = "initrd.img"
            program = initramfs.busybox(self.apt, self.cache, self.out, self.log)
            initramfs.write(entry / "initrd.img", program, release, modules, entry / "modules")
            names += ["initrd.img", *(module["file"] for module in modules)]
        checks.kernel(component, (entry / "config").read_text())
        component["files"] = {name: describe(entry / name) for name in names}
        (entry / "component.json").write_text(json.dumps(component, indent=1))

    def _for_checks(self, entry: Path) -> list[str]:
        """What kmod and the checks read: built-in drivers and their aliases, the interface, what modules may use."""
        wanted = {"modules.builtin": self.objects, "modules.builtin.modinfo": self.objects, uapi.HEADER: self.tree}
        if self.options.rocket_module:
            wanted["Module.symvers"] = self.objects
        names = [name for name, folder in wanted.items() if (folder / name).is_file()]
        for name in names:
            (entry / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(wanted[name] / name, entry / name)
        return names

    def _modules(self, target: Path, release: str) -> list[dict[str, Any]]:
        target.mkdir()
        found = []
        for path in sorted(self.objects.glob("**/*.ko")):
            shutil.copyfile(path, target / path.name)
            found.append({**checks.module(target / path.name), "file": f"modules/{path.name}"})
        checks.vermagic(found, release)
        return found
