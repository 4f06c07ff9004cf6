# SPDX-License-Identifier: MIT
"""``npulab build <board>`` for a real board: kernel, device tree and modules, checked, in a form to install.

The result is a directory: ``Image``, ``config``, ``dtbs/``, ``modules/`` (with a modular driver), ``manifest.json``,
and ``install/``: files to copy below a board's root, an extlinux entry that stands *beside* those that are there, and
the script that does both. ``package`` makes a Debian package of the same files. Loaders are not touched.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import __version__, boards
from lab.assemble import kernel, mirror, requirements, sources
from lab.assemble.apt import Apt
from lab.assemble.artifacts import describe, link
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.kernel import check, fdtree, graph, parts, patches
from lab.output import Output
from lab.process import require, run

MANIFEST = "manifest.json"
INSTALLER = Path(__file__).with_name("install-kernel.sh")
DTB_OF = {"rock-5-itx-plus": "rk3588-rock-5-itx-plus"}
"""Boards for which the kit has a tree of its own, which the loader is told to use."""


@dataclass(frozen=True)
class BoardKernelOptions(kernel.KernelOptions):
    """A kernel for real boards; it boots the virtual board too."""

    fixes: bool = True

    @property
    def base(self) -> str:
        """Defaults, not nothing: workarounds for errata and mitigations are the kernel's business, not a fragment's."""
        return "alldefconfig"

    @property
    def fragments(self) -> tuple[str, ...]:
        """Fragment names in the order they are merged."""
        return ("npu.cfg", "virt.cfg", "board.cfg", *self._last_fragments)

    @property
    def build_tree(self) -> object:
        """What tells build trees of one source apart."""
        return ("board", self.rocket_module, self.debug)

    @property
    def expected_steps(self) -> int:
        """Steps of a first build (7.3.4)."""
        return 2700


@dataclass(frozen=True)
class BoardSet:
    """A board's kernel on disk."""

    root: Path
    manifest: dict[str, Any]

    @property
    def kernel(self) -> Path:
        """The kernel image."""
        return self.root / "Image"

    @property
    def dtb(self) -> Path:
        """The board's own device tree."""
        return self.root / str(self.manifest["dtb"])


def dtb_name(board: str) -> str:
    """The device tree that the kit gives a board, without folder and suffix."""
    return DTB_OF.get(board) or Path(boards.load(board).dtb).stem


def assemble(
    board: str, options: kernel.KernelOptions, source: str | None, out: Output, debian_mirror: str | None = None
) -> BoardSet:
    """The board's set: found in the cache, or built. ``source``: a version, tree, tarball or address; None for 7.3.

    With the options of a kernel for the virtual board the set holds that kernel: it installs like a board's own.
    """
    if boards.load(board).virtual:
        raise KitError(ExitCode.USAGE, f"{board} is a virtual board", "npulab build virt")
    cache = Cache()
    os.environ.setdefault("CCACHE_DIR", str(cache.root / "ccache"))
    log = cache.root / "log" / f"build-{board}.log"
    apt = Apt(cache, mirror.find(debian_mirror), log)
    linux = sources.linux(_spec(source), cache, apt, out, log)
    if not cache.lookup("kernel-fast", kernel.key(linux, options)):
        requirements.check_packages()
        requirements.check_space(cache.root, kernel.SPACE, "a board's kernel")
    built = kernel.build(linux, options, apt, cache, out, log)
    return from_kernel(board, built, fixes=options.groups == patches.WITH_FIXES, cache=cache)


def from_kernel(board: str, built: Path, *, fixes: bool, cache: Cache) -> BoardSet:
    """The board's set of a kernel's cache entry; KitError (failed) when a check of it fails."""
    name = dtb_name(board)
    if not (built / "dtbs" / f"{name}.dtb").is_file():
        message = f"this kernel has no device tree {name}"
        raise KitError(ExitCode.FAILED, message, "take a kernel from 6.18 on")
    key = digest("board set 1", __version__, board, built.name, file_digest(INSTALLER))

    def make(entry: Path) -> None:
        _fill(entry, board, name, built, fixes=fixes)

    return load(cache.entry("board-kernel", key, make))


def _spec(source: str | None) -> str | None:
    """What `sources.linux` takes; a version that Debian does not have ends in the error that names the three ways."""
    if source is None or source == sources.LINUX_BASE:
        return None
    if parts.VERSION.fullmatch(source):
        message = f"Linux {source}: this kit's apt has {sources.LINUX_BASE} only"
        raise KitError(ExitCode.USAGE, message, parts.THREE_WAYS)
    return source


def load(root: Path) -> BoardSet:
    """Read a set; KitError (usage) when the directory is none."""
    try:
        manifest: dict[str, Any] = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise KitError(ExitCode.USAGE, f"{root} is no board's kernel: {error}", "npulab build BOARD") from error
    return BoardSet(root, manifest)


def _fill(entry: Path, board: str, name: str, built: Path, *, fixes: bool) -> None:
    component = json.loads((built / "component.json").read_text())
    for path in sorted(built.rglob("*")):
        if path.is_file() and path.name != "component.json":
            link(path, entry / path.relative_to(built))
    results = check.run(check.collect(entry), [name], release=component["release"])
    if not check.verdict(results):
        first = next(result for result in results if result.state == check.BAD)
        raise KitError(ExitCode.FAILED, f"{first.name}: {first.found}", first.why)
    found = graph.examine(fdtree.load_rk3588(entry / "dtbs" / f"{name}.dtb"))
    if found.findings:
        first_finding = found.findings[0]
        message = f"{name}: {first_finding.path}: {first_finding.what}"
        raise KitError(ExitCode.FAILED, message, first_finding.why)
    _install_tree(entry, board, name, component["release"])
    files = {str(path.relative_to(entry)): describe(path) for path in sorted(entry.rglob("*")) if path.is_file()}
    manifest = {
        "schema": 1,
        "kind": "board-kernel",
        "board": board,
        "kit_version": __version__,
        "dtb": f"dtbs/{name}.dtb",
        "fixes": fixes,
        "kernel": {key: value for key, value in component.items() if key not in ("files", "dtbs")},
        "checks": check.document(results),
        "files": files,
    }
    (entry / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _install_tree(entry: Path, board: str, name: str, release: str) -> None:
    """``install/``: what goes below the board's root, the entry for its loader, and the script."""
    folder = entry / "install"
    boot = folder / "root/boot/npulab" / release
    link(entry / "Image", boot / "Image")
    link(entry / "dtbs" / f"{name}.dtb", boot / f"{name}.dtb")
    link(entry / "config", boot / "config")
    target = folder / "root/usr/lib/modules" / release
    for path in sorted(entry.glob("modules.builtin*")):
        link(path, target / path.name)
    for path in sorted(entry.glob("modules/*.ko")):
        link(path, target / "npulab" / path.name)
    console = boards.load(board).console
    lines = [
        f"label npulab-{release}",
        f"\tmenu label Linux {release} with the NPU (npulab, {board})",
        f"\tlinux /boot/npulab/{release}/Image",
        f"\tfdt /boot/npulab/{release}/{name}.dtb",
        f"\tappend root=@ROOT@ rw rootwait console={console.device},{console.baud}n8",
    ]
    (folder / "extlinux-entry.conf").write_text("\n".join(lines) + "\n")
    shutil.copyfile(INSTALLER, folder / "install.sh")
    (folder / "install.sh").chmod(0o755)


def package(built: BoardSet, target: Path, log: Path) -> Path:
    """A Debian package of the install tree below ``target``; its removal takes nothing else with it."""
    require("dpkg-deb", "dpkg")
    release = built.manifest["kernel"]["release"]
    name = f"linux-npulab-{built.manifest['board']}"
    version = f"{release.replace('_', '-')}-1"
    final = target / f"{name}_{version}_arm64.deb"
    folder, partial = target / f".{name}.partial", target / f".{final.name}.partial"
    try:
        shutil.copytree(built.root / "install/root", folder)
        for file in ("install.sh", "extlinux-entry.conf"):
            shutil.copy2(built.root / "install" / file, folder / f"boot/npulab/{release}/{file}")
        (folder / "DEBIAN").mkdir()
        (folder / "DEBIAN/control").write_text(_control(built, name, version))
        for script, text in _scripts(release).items():
            (folder / "DEBIAN" / script).write_text(text)
            (folder / "DEBIAN" / script).chmod(0o755)
        run(["dpkg-deb", "--root-owner-group", "--build", folder, partial], stage="making the package", log=log)
        partial.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return final


def _control(built: BoardSet, name: str, version: str) -> str:
    """The package's description; the packages of two boards own the same kernel image and exclude each other."""
    title = boards.load(built.manifest["board"]).title
    lines = [
        f"Package: {name}",
        f"Version: {version}",
        "Architecture: arm64",
        "Maintainer: RK3588 NPU bring-up kit <maintainers@rk3588-npu-bringup.invalid>",
        "Section: kernel",
        "Priority: optional",
        "Provides: linux-npulab",
        "Conflicts: linux-npulab",
        f"Description: Linux {built.manifest['kernel']['release']} with the NPU driver for {title}",
        " Adds a boot entry beside those that are there; the default stays as it is.",
    ]
    return "\n".join(lines) + "\n"


def _scripts(release: str) -> dict[str, str]:
    """The package's scripts: the entry comes and goes with it; what depmod leaves is in no package's list."""
    # DPKG_ROOT is set where dpkg --root installs into another system's tree without entering it
    start = "#!/bin/sh\nset -e\nroot=${DPKG_ROOT:-}\n"
    installer = f'exec sh "$root/boot/npulab/{release}/install.sh"'
    modules = f'"$root/usr/lib/modules/{release}"'
    return {
        "postinst": f'{start}{installer} --entry-only "$root/"\n',
        "prerm": f'{start}{installer} --remove-entry "$root/"\n',
        "postrm": f'{start}[ "$1" != remove ] || rm -f {modules}/modules.*\nrmdir {modules} 2>/dev/null || :\n',
    }
