# SPDX-License-Identifier: MIT
"""The distro kernel: Debian's own arm64 kernel from trixie-backports, with rocket built as a module against it.

Debian's configuration has everything that the NPU needs but the driver itself, so this also serves Debian on a real
board: ``modules/rocket.ko`` of the artifact set loads there. The driver's source is that of Debian's linux-source with
the kit's patches; headers and kbuild come from Debian's packages. Two things stand between them and an older host:
kbuild's programs need a newer C library (they run through their own loader), and a flag that compilers before gcc 13
lack (a wrapper translates it).
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.assemble import checks, initramfs, loader
from lab.assemble.apt import TARGET, Apt, File
from lab.assemble.artifacts import describe
from lab.assemble.kernel import CROSS, FRAGMENTS, compiler, recipe
from lab.assemble.sources import LINUX_BASE, Source, base_of, linux_tree, patches_digest, patches_manifest
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.kernel.elf import is_image
from lab.output import Output
from lab.process import require, run

NEEDED = ("fixed", "virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "ext4", "gpu-sched", "drm_shmem_helper")
"""Modules, with all they depend on, between Debian's kernel and the virtual board's disk, network and NPU driver."""

WRAPPER = """#!/bin/sh
# gcc before 13 lacks the first flag; the second asks for the same of functions
count=$#
for word in "$@"; do
    case $word in -fmin-function-alignment=*) word=-falign-functions=${word#*=} ;; esac
    set -- "$@" "$word"
done
shift $count
exec COMPILER "$@"
"""


@dataclass(frozen=True)
class Packages:
    """The packages that the kernel is made of."""

    release: str
    image: File
    base: File
    modules: File
    headers: tuple[File, ...]
    host: tuple[File, ...]

    @property
    def all(self) -> list[File]:
        """Every package."""
        return [self.image, self.base, self.modules, *self.headers, *self.host]


def find(apt: Apt, out: Output) -> Packages:
    """Debian's newest kernel of the base, flavour arm64; KitError when the mirror has none."""
    names = apt.names(f"linux-binary-unsigned-{LINUX_BASE}", TARGET, out)
    releases = [name.removeprefix("linux-binary-unsigned-") for name in names if _plain_flavour(name)]
    if not releases:
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"{apt.mirror.uri} has no {LINUX_BASE} kernel for arm64",
            "try --update, or --kernel fast with --source",
        )
    release = max(releases, key=lambda name: [int(part) for part in name.split("+")[0].split(".")])
    version = release.removesuffix("-arm64")
    wanted = [f"linux-{part}-{release}" for part in ("binary-unsigned", "base", "modules", "headers")]
    image, base, modules, headers = apt.locate(wanted, TARGET, out)
    (common,) = apt.locate([f"linux-headers-{version}-common"], TARGET, out)
    host = apt.locate([f"linux-kbuild-{version}", "libc6"], apt.host_architecture(), out)
    return Packages(release, image, base, modules, (headers, common), tuple(host))


def _plain_flavour(name: str) -> bool:
    rest = name.removeprefix("linux-binary-unsigned-")
    return rest.endswith("-arm64") and rest.count("-") == 1


def key(packages: Packages, source: Source) -> str:
    """Cache key: packages, driver source, patches, compiler."""
    hashes = [file.sha256 for file in packages.all]
    return digest("distro kernel 1", hashes, source.key, patches_digest(source), compiler(), recipe(Path(__file__)))


def build(packages: Packages, source: Source, apt: Apt, cache: Cache, jobs: int, out: Output, log: Path) -> Path:
    """The kernel's cache entry: ``Image``, ``config``, ``dtbs/``, ``modules/``, ``initrd.img``, ``component.json``."""

    def make(entry: Path) -> None:
        apt.fetch(packages.all, "Debian's kernel", out)
        with cache.workdir("kernel-distro", digest(packages.release)) as work:
            builder = _Builder(packages, apt, work, out, log)
            with out.stage("unpack Debian's kernel"):
                builder.unpack(entry)
            with linux_tree(source, cache, out, log) as tree, out.stage("build rocket for Debian's kernel"):
                builder.driver(tree, entry / "modules", jobs)
            builder.collect(entry, source)
            shutil.rmtree(work, ignore_errors=True)

    return cache.entry("kernel-distro", key(packages, source), make)


class _Builder:
    """One run; ``work`` has the unpacked packages."""

    def __init__(self, packages: Packages, apt: Apt, work: Path, out: Output, log: Path) -> None:
        self.packages, self.apt, self.work, self.out, self.log = packages, apt, work, out, log
        self.release = packages.release
        self.headers = work / "headers"

    def _extract(self, files: Sequence[File], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for deb in self.apt.fetch(files, "Debian's kernel", self.out):
            run([require("dpkg-deb", "dpkg"), "-x", deb, target], stage=f"unpacking {deb.name}", log=self.log)

    def unpack(self, entry: Path) -> None:
        """Image, configuration and device trees into the entry; modules and headers into the work directory."""
        shutil.rmtree(self.work / "kernel", ignore_errors=True)
        shutil.rmtree(self.headers, ignore_errors=True)
        self._extract([self.packages.image, self.packages.base, self.packages.modules], self.work / "kernel")
        self._extract([*self.packages.headers, *self.packages.host], self.headers)
        folder = self.work / "kernel/usr/lib/modules" / self.release
        shutil.copyfile(folder / "vmlinuz.unsigned", entry / "Image")
        if not is_image((entry / "Image").read_bytes()):
            raise KitError(ExitCode.INFRASTRUCTURE, "Debian's kernel is no arm64 Image", "report it; try --kernel fast")
        shutil.copyfile(folder / "config", entry / "config")
        (entry / "dtbs").mkdir()
        for dtb in (folder / "dtb/rockchip").glob("rk3588*.dtb"):
            shutil.copyfile(dtb, entry / "dtbs" / dtb.name)

    def driver(self, tree: Path, target: Path, jobs: int) -> None:
        """Build rocket against the headers, and put it with the modules it needs into ``target``."""
        build = self._prepare_headers()
        source = self.work / "rocket"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(tree / "drivers/accel/rocket", source)
        command: list[str | Path] = ["make", "-C", build, f"M={source}", f"-j{jobs}", "ARCH=arm64"]
        command += [f"CROSS_COMPILE={CROSS}", f"CC={self._compiler()}", "CONFIG_DRM_ACCEL_ROCKET=m"]
        # the host's pahole is older than the one that Debian used; the module needs no type information
        command += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
        run(command, stage="building rocket for Debian's kernel", log=self.log, env={"LC_ALL": "C"})
        target.mkdir()
        strip: list[str | Path] = [f"{CROSS}strip", "--strip-debug", "-o", target / "rocket.ko", source / "rocket.ko"]
        run(strip, stage="stripping rocket", log=self.log)
        self._collect_modules(target)

    def _prepare_headers(self) -> Path:
        build = self.headers / "usr/src" / f"linux-headers-{self.release}"
        makefile = build / "Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/src", f"{self.headers}/usr/src"))
        (kbuild,) = self.headers.glob("usr/lib/linux-kbuild-*")
        architecture = self.apt.host_architecture()
        fixdep = kbuild / "scripts/basic/fixdep"
        real = fixdep.with_name("fixdep.real")
        shutil.copy2(fixdep, real)
        loader.wrap(fixdep, real, self.headers, architecture)
        modpost = kbuild / "scripts/mod/modpost"
        loader.wrap(modpost, modpost.with_name("modpost.real-lsb-64"), self.headers, architecture)
        return build

    def _compiler(self) -> Path:
        wrapper = self.work / "cc"
        wrapper.write_text(WRAPPER.replace("COMPILER", require(f"{CROSS}gcc", "gcc-aarch64-linux-gnu")))
        wrapper.chmod(0o755)
        return wrapper

    def _collect_modules(self, target: Path) -> None:
        folder = self.work / "kernel/usr/lib/modules" / self.release / "kernel"
        shipped = {path.name.split(".ko")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
        built_in = (folder.parent / "modules.builtin").read_text()
        pending = [*NEEDED, *checks.module(target / "rocket.ko")["depends"]]
        seen: set[str] = set()
        while pending:
            name = pending.pop().replace("-", "_")
            if name in seen or f"/{name}.ko" in built_in.replace("-", "_"):
                continue
            seen.add(name)
            if name not in shipped:
                raise KitError(ExitCode.INFRASTRUCTURE, f"Debian's kernel has no module {name}", "try --kernel fast")
            plain = target / shipped[name].name.removesuffix(".xz")
            data = shipped[name].read_bytes()
            plain.write_bytes(lzma.decompress(data) if shipped[name].suffix == ".xz" else data)
            pending += checks.module(plain)["depends"]

    def collect(self, entry: Path, source: Source) -> None:
        """The initramfs, the checks, and what it all is."""
        modules: list[dict[str, Any]] = []
        for path in sorted((entry / "modules").glob("*.ko")):
            modules.append({**checks.module(path), "file": f"modules/{path.name}"})
        checks.vermagic(modules, self.release)
        config = (entry / "config").read_text()
        checks.symbols((FRAGMENTS / "npu.cfg").read_text(), config)
        program = initramfs.busybox(self.apt, self.apt.cache, self.out, self.log)
        initramfs.write(entry / "initrd.img", program, self.release, modules, entry / "modules")
        version = self.release.split("+")[0]
        with self.out.stage("check device trees"):
            trees = checks.device_trees(entry / "dtbs")
        component: dict[str, Any] = {
            "flavour": "distro",
            "release": self.release,
            "version": version,
            "initrd": "initrd.img",
            "source": source.origin,
            "patches": patches_manifest(base_of(version)),
            "fragments": [],
            "config_sha256": file_digest(entry / "config"),
            "compiler": compiler(),
            "rocket": "module",
            "rocket_aliases": next(module["aliases"] for module in modules if module["name"] == "rocket"),
            "packages": [{"name": p.package, "version": p.version, "sha256": p.sha256} for p in self.packages.all],
            "modules": modules,
            "dtbs": trees,
        }
        checks.kernel(component, config)
        names = ["Image", "config", "initrd.img"]
        for part in ("dtbs", "modules"):
            names += [f"{part}/{path.name}" for path in sorted((entry / part).iterdir())]
        component["files"] = {name: describe(entry / name) for name in names}
        (entry / "component.json").write_text(json.dumps(component, indent=1))
