# SPDX-License-Identifier: MIT
"""Where sources come from: Debian's packages through the private apt, a tarball by hash, or a tree of the user's.

A source is known by its key before anything is unpacked, so that a run that finds its results in the cache unpacks
nothing. Patches of ``kernel-patches/<base>/series`` go onto a copy; a user's own tree is never written to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.assemble import fetch
from lab.assemble.apt import TARGET, Apt, File
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.kernel import patches
from lab.output import Output
from lab.process import require, run

REPOSITORY = Path(__file__).parents[2]

LINUX_BASE = "7.3"
QEMU_BASE = "10.0"

UNNEEDED = (
    # headers of another GPU's driver, documentation and tests: a third of the unpacked size
    "*/drivers/gpu/drm/amd/include/*",
    "*/Documentation/?*/*",
    "*/tools/testing/*",
)


@dataclass(frozen=True)
class Source:
    """A source: ``key`` names its contents, ``origin`` goes into the manifest, ``unpack`` fills a directory.

    ``base``: the kernel series, ``7.3``, where it is known before anything is unpacked.
    """

    key: str
    origin: dict[str, Any]
    unpack: Callable[[Path], None] = field(repr=False)
    user_tree: Path | None = None
    base: str | None = None


def linux(spec: str | Path | None, cache: Cache, apt: Apt, out: Output, log: Path) -> Source:
    """The kernel's source for ``--source``; see BuildOptions."""
    if spec in (None, "apt"):
        (package,) = apt.locate([f"linux-source-{LINUX_BASE}"], TARGET, out)
        origin = {"kind": "debian", "name": package.package, "version": package.version, "sha256": package.sha256}

        def unpack(target: Path) -> None:
            (deb,) = apt.fetch([package], "Linux source", out)
            _unpack_pipe(_inner_tar(deb, package), target, "unpacking Linux", log, UNNEEDED)

        return Source(digest("linux", package.sha256, UNNEEDED), origin, unpack, base=LINUX_BASE)
    return _named(spec, "Linux", ("Kconfig", "arch/arm64"), cache, out, log, UNNEEDED)


def qemu(spec: str | Path | None, cache: Cache, apt: Apt, out: Output, log: Path) -> Source:
    """QEMU's source for ``--qemu-source``; see BuildOptions."""
    if spec in (None, "apt"):
        files = apt.locate_source("qemu", out)
        (tarball,) = (file for file in files if ".orig.tar" in file.name)
        origin = {
            "kind": "debian",
            "name": "qemu",
            "version": tarball.version.split(".orig")[0],
            "sha256": tarball.sha256,
        }

        def unpack(target: Path) -> None:
            (path,) = apt.fetch([tarball], "QEMU source", out)
            _unpack_tar(path, target, "unpacking QEMU", log)

        return Source(digest("qemu", tarball.sha256), origin, unpack)
    return _named(spec, "QEMU", ("meson.build", "hw/arm"), cache, out, log)


def _named(
    spec: str | Path | None,
    what: str,
    landmarks: tuple[str, ...],
    cache: Cache,
    out: Output,
    log: Path,
    exclude: tuple[str, ...] = (),
) -> Source:
    path = Path(str(spec)).expanduser()
    if path.is_dir():
        missing = [name for name in landmarks if not (path / name).exists()]
        if missing:
            raise KitError(ExitCode.USAGE, f"{path} is no {what} source tree: it has no {missing[0]}", "check the path")
        key, origin = _listing_digest(path), {"kind": "tree", "path": str(path.absolute())}
        return Source(key, {**origin, "listing": key}, lambda target: _copy_tree(path, target, log), path.absolute())
    tarball = fetch.parse(str(spec))
    origin = {"kind": "tarball", "name": tarball.where, "sha256": tarball.sha256}

    def unpack(target: Path) -> None:
        _unpack_tar(fetch.fetch(tarball, cache, out), target, f"unpacking {what}", log, exclude)
        missing = [name for name in landmarks if not (target / name).exists()]
        if missing:
            raise KitError(
                ExitCode.USAGE, f"{tarball.where} holds no {what} source: it has no {missing[0]}", "check the tarball"
            )

    return Source(digest(what, tarball.sha256, exclude), origin, unpack)


@contextmanager
def linux_tree(
    source: Source, cache: Cache, out: Output, log: Path, groups: Sequence[str] = patches.STOCK
) -> Iterator[Path]:
    """The source unpacked and patched: once for each content; a user's tree into a copy that follows its edits."""
    if source.user_tree is not None:
        with cache.workdir("linux-tree", digest(str(source.user_tree))) as tree:
            with out.stage("copy the kernel tree"):
                source.unpack(tree)
                patches.apply(tree, version_of(tree), groups, out.note)
            yield tree
        return

    yield _unpacked(source, cache, out, log, groups) / "linux"


def _unpacked(source: Source, cache: Cache, out: Output, log: Path, groups: Sequence[str]) -> Path:
    """The cache's entry of a source with these patches; all share the files that no patch touches."""

    def make(entry: Path) -> None:
        tree = entry / "linux"
        if groups == patches.STOCK:
            with out.stage("unpack Linux"):
                tree.mkdir()
                source.unpack(tree)
                patches.apply(tree, version_of(tree), groups, out.note)
            return
        stock = _unpacked(source, cache, out, log, patches.STOCK) / "linux"
        with out.stage("patch Linux"):
            # patch writes a new file and renames it, so the stock tree keeps its own
            run(["cp", "-al", stock, tree], stage="linking Linux", log=log)
            patches.apply(tree, version_of(tree), groups, out.note)

    return cache.entry("linux-source", digest(source.key, patches_digest(source, groups)), make)


# --- patches ---------------------------------------------------------------------------------------------------------


def patches_digest(source: Source, groups: Sequence[str] = patches.STOCK) -> str:
    """Key over the patches of these groups that the source may get: those of its series, or all."""
    bases = [source.base] if source.base else sorted(path.parent.name for path in patches.FOLDER.glob("*/series"))
    return digest([(base, [_hashed(patch) for patch in patches.selected(base, groups)]) for base in bases])


def _hashed(patch: patches.Patch) -> tuple[str, str]:
    return patch.path.name, file_digest(patch.path)


def patches_manifest(version: str, groups: Sequence[str] = patches.STOCK) -> list[dict[str, str]]:
    """Name and hash of each patch that a kernel of this version gets unless it has it already."""
    chosen = patches.selected(version, groups)
    return [{"name": patch.path.name, "sha256": file_digest(patch.path)} for patch in chosen]


def version_of(tree: Path) -> str:
    """Version of a kernel tree, ``7.3.4``, from its Makefile."""
    try:
        text = (tree / "Makefile").read_text()
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"{tree} has no Makefile", "give a Linux source tree") from error
    parts = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) *= *(\d+)$", text, re.MULTILINE))
    if "VERSION" not in parts or "PATCHLEVEL" not in parts:
        raise KitError(ExitCode.USAGE, f"{tree}/Makefile names no kernel version", "give a Linux source tree")
    return f"{parts['VERSION']}.{parts['PATCHLEVEL']}.{parts.get('SUBLEVEL', '0')}"


def base_of(version: str) -> str:
    """``7.3`` of ``7.3.4``."""
    return ".".join(version.split(".")[:2])


# --- unpacking -------------------------------------------------------------------------------------------------------


def _inner_tar(deb: Path, package: File) -> str:
    inner = f"./usr/src/{package.package}.tar.xz"
    return f"dpkg-deb --fsys-tarfile '{deb}' | tar -xO {inner}"


def _unpack_pipe(producer: str, target: Path, stage: str, log: Path, exclude: tuple[str, ...]) -> None:
    require("dpkg-deb", "dpkg")
    excludes = " ".join(f"--exclude='{pattern}'" for pattern in exclude)
    script = f"set -o pipefail; {producer} | tar -xJ --strip-components=1 -C '{target}' {excludes}"
    run(["bash", "-c", script], stage=stage, log=log)


def _unpack_tar(tarball: Path, target: Path, stage: str, log: Path, exclude: tuple[str, ...] = ()) -> None:
    options = [f"--exclude={pattern}" for pattern in exclude]
    run(["tar", "-xf", tarball, "--strip-components=1", "-C", target, *options], stage=stage, log=log)


def _copy_tree(tree: Path, target: Path, log: Path) -> None:
    if (tree / ".config").exists():
        raise KitError(
            ExitCode.USAGE, f"{tree} has been built in place", "run `make mrproper` in it, or build with O= elsewhere"
        )
    # times to the nanosecond: an edit within the second of the last copy is one too
    options = ["-a", "--delete", "--modify-window=-1", "--exclude=/.git"]
    command = [require("rsync", "rsync"), *options, f"{tree}/", f"{target}/"]
    run(command, stage=f"copying {tree}", log=log)


def _listing_digest(tree: Path) -> str:
    """Key over names, sizes and times of a tree: content enough to see an edit, and quick."""
    rows: list[tuple[str, int, int]] = []
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - ten times as quick as Path over 90,000 files
            status = os.lstat(path)
            rows.append((os.path.relpath(path, tree), status.st_size, status.st_mtime_ns))
    return digest("tree", sorted(rows))
