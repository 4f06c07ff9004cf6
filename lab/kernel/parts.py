# SPDX-License-Identifier: MIT
"""Kernels to look at: a source tree, a tarball, a Debian package, or a version that Debian has the source of.

Of a source only the parts are unpacked that the checks read (device trees, bindings, driver, headers: 80 MB instead of
1.6 GB), once for each content. A package of a built kernel gives its configuration, device trees and modules.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.cache import Cache, digest, file_digest, tree_digest
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require

PARTS = (
    "Makefile",
    "MAINTAINERS",
    "arch/arm/boot/dts",
    "arch/arm64/boot/dts",
    "arch/arm64/configs",
    "drivers/accel",
    "drivers/clk/rockchip",
    "drivers/iommu",
    "drivers/pmdomain/rockchip",
    "include/dt-bindings",
    "include/uapi",
    "Documentation/devicetree",
    "scripts",
)
"""Relative to the top of a kernel source."""

BUILT = (
    "*/rk3588*.dtb",
    "*/boot/config-*",
    "*/modules/*/config",
    "*/config.arm64*",
    "*/vmlinuz*",
    "*/System.map*",
    "*/modules.builtin.modinfo",
    "*/drivers/accel/rocket/*",
    "*/drivers/gpu/drm/drm*.ko*",
    "*/drivers/gpu/drm/scheduler/*.ko*",
)
"""Members of a package with a built kernel."""

_DECOMPRESS = {"xz": "-J", "gz": "-z", "tgz": "-z", "bz2": "-j", "zst": "--zstd"}

LANDMARKS = ("Makefile", "arch/arm64/boot/dts/rockchip")

THREE_WAYS = (
    "give its source one of three ways: a directory with the kernel tree, a tarball "
    "(PATH.tar.xz, or https://cdn.kernel.org/...#sha256=HEX), or the name of a version that Debian's apt has "
    "(linux-source-VERSION)"
)
VERSION = re.compile(r"\d+\.\d+(\.\d+)?")


@dataclass(frozen=True)
class Kernel:
    """A kernel to look at. ``root`` holds the parts of its source, or of its built package (``built``)."""

    label: str
    version: str
    root: Path
    origin: dict[str, Any]
    built: bool = False

    def text(self, name: str) -> str | None:
        """A file's text; None when the kernel does not have it."""
        try:
            return (self.root / name).read_text(errors="replace")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def version_of(root: Path) -> str:
    """``7.3.4`` from the Makefile of a kernel tree; KitError (usage) when it is none."""
    try:
        text = (root / "Makefile").read_text(errors="replace")
    except OSError:
        text = ""
    parts = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text, re.MULTILINE))
    missing = [name for name in LANDMARKS if not (root / name).exists()]
    if missing or not parts.get("VERSION") or not parts.get("PATCHLEVEL"):
        what = f"it has no {missing[0]}" if missing else "its Makefile names no version"
        raise KitError(ExitCode.USAGE, f"{root} is no Linux source tree: {what}", THREE_WAYS)
    return f"{parts['VERSION']}.{parts['PATCHLEVEL']}.{parts.get('SUBLEVEL') or 0}{parts.get('EXTRAVERSION', '')}"


def base_of(version: str) -> str:
    """``7.3`` of ``7.3.4``."""
    return ".".join(version.split(".")[:2])


def open_kernel(spec: str, cache: Cache, out: Output, *, mirror: str | None = None) -> Kernel:
    """The kernel that a user names: see the module's first lines."""
    path = Path(spec).expanduser()
    if path.is_dir():
        version = version_of(path)
        return Kernel(base_of(version), version, path.absolute(), _tree_origin(path.absolute()))
    if spec.endswith(".deb"):
        return _package(path, cache, out)
    if VERSION.fullmatch(spec):
        return _debian(spec, cache, out, mirror)
    return _tarball(spec, cache, out)


def _tree_origin(path: Path) -> dict[str, Any]:
    """What a tree is: its commit, or without a history a key over what the audit reads of the NPU."""
    origin = {"kind": "tree", "path": str(path)}
    if (path / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(path), "rev-parse", "--short=12", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return {**origin, "commit": answer.stdout.strip()}
    trees = ("drivers/accel/rocket", "drivers/iommu", "drivers/pmdomain/rockchip", "arch/arm64/boot/dts/rockchip")
    return {**origin, "contents": digest([tree_digest(path / name) for name in trees])}


def _tarball(spec: str, cache: Cache, out: Output) -> Kernel:
    from lab.assemble import fetch

    try:
        tarball = fetch.parse(spec)
    except KitError as error:
        raise KitError(error.code, error.message, THREE_WAYS) from error
    path = fetch.fetch(tarball, cache, out)
    suffix = path.suffix.removeprefix(".")
    return _source(f"cat {_quoted(path)}", suffix, tarball.sha256, {"kind": "tarball", "name": spec}, cache, out)


def _debian(version: str, cache: Cache, out: Output, mirror: str | None) -> Kernel:
    from lab.assemble import mirror as mirrors
    from lab.assemble.apt import TARGET, Apt

    base = base_of(version)
    log = cache.root / "log" / "kernel-parts.log"
    apt = Apt(cache, mirrors.find(mirror), log)
    try:
        (package,) = apt.locate([f"linux-source-{base}"], TARGET, out)
    except KitError as error:
        message = f"Linux {version}: Debian's apt has no source of it here"
        raise KitError(ExitCode.INFRASTRUCTURE, message, THREE_WAYS, tail=error.tail) from error
    if version != base and not package.version.startswith(version):
        message = f"Linux {version}: Debian has {package.version} of this series"
        raise KitError(ExitCode.INFRASTRUCTURE, message, f"ask for {base}, or {THREE_WAYS}")
    (deb,) = apt.fetch([package], f"Linux {base} source", out)
    return _package(deb, cache, out)


# --- packages --------------------------------------------------------------------------------------------------------


def _package(deb: Path, cache: Cache, out: Output) -> Kernel:
    require("dpkg-deb", "dpkg")
    answer = subprocess.run(
        ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", deb], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise KitError(
            ExitCode.USAGE, f"{deb} is no Debian package that can be read", "check the path", tail=answer.stderr
        )
    name, version = answer.stdout.split()
    origin = {"kind": "debian", "name": name, "version": version, "sha256": file_digest(deb)}
    if name.startswith("linux-source-"):
        producer = f"dpkg-deb --fsys-tarfile {_quoted(deb)} | tar -xO --wildcards './usr/src/linux-source-*.tar.xz'"
        return _source(producer, "xz", origin["sha256"], origin, cache, out)
    if not re.match(r"linux-(image|binary|modules|config|base)", name):
        raise KitError(ExitCode.USAGE, f"{deb}: {name} is no kernel package", "give linux-source, -image or -modules")
    return _built(deb, name, version, origin, cache, out)


def _built(deb: Path, name: str, version: str, origin: dict[str, Any], cache: Cache, out: Output) -> Kernel:
    def make(entry: Path) -> None:
        with out.stage(f"unpack {name}"):
            _extract(f"dpkg-deb --fsys-tarfile {_quoted(deb)}", "", BUILT, entry, name)

    root = cache.entry("kernel-package", digest("package 2", origin["sha256"], BUILT), make)
    release = re.search(r"\d+\.\d+\.\d+\S*$", name)
    return Kernel(f"{base_of(version)} ({name})", release[0] if release else version, root, origin, built=True)


# --- sources ---------------------------------------------------------------------------------------------------------


def _source(producer: str, suffix: str, sha256: str, origin: dict[str, Any], cache: Cache, out: Output) -> Kernel:
    """Unpack PARTS from what the shell command ``producer`` writes: a tar compressed as ``suffix``."""

    def make(entry: Path) -> None:
        with out.stage(f"unpack parts of {origin['name']}"):
            flag = _DECOMPRESS.get(suffix, "")
            wanted = [f"*/{part}" for part in PARTS]
            _extract(producer, f"{flag} --strip-components=1 --no-wildcards-match-slash", wanted, entry, origin["name"])
        version_of(entry)

    root = cache.entry("kernel-parts", digest("parts 1", sha256, PARTS), make)
    version = version_of(root)
    return Kernel(base_of(version), version, root, origin)


def _extract(producer: str, options: str, wanted: Sequence[str], target: Path, name: str) -> None:
    """Unpack the members that match; one that an archive does not have is no error, anything else is."""
    patterns = " ".join(_quoted(pattern) for pattern in wanted)
    script = f"set -o pipefail; {producer} | tar -x {options} --wildcards -C {_quoted(target)} {patterns}"
    answer = subprocess.run(
        ["nice", "bash", "-c", script], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    known = re.compile(r"Not found in archive|Exiting with failure status|unable to write|Broken pipe")
    trouble = [line for line in answer.stderr.splitlines() if line.strip() and not known.search(line)]
    if any("No space left" in line for line in trouble):
        raise KitError(
            ExitCode.INFRASTRUCTURE, f"unpacking {name}: the disk is full", "free space, or set NPULAB_CACHE"
        )
    if trouble:
        message = f"{name} cannot be unpacked: {trouble[0]}"
        raise KitError(ExitCode.USAGE, message, THREE_WAYS, tail="\n".join(trouble[-5:]))


def _quoted(word: str | Path) -> str:
    return shlex.quote(str(word))
