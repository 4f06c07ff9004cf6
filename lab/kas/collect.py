# SPDX-License-Identifier: MIT
"""From BitBake's deploy directory to the kit's own forms: kernel entry, artifact set, a board's kernel set.

A kernel that BitBake built becomes the same cache entry that `lab.assemble.kernel` makes, through the same checks; what
takes such an entry (the virtual board's set, a board's set, packages) takes both.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import boards
from lab.assemble import checks, initramfs, kernel
from lab.assemble.apt import Apt
from lab.assemble.artifacts import describe
from lab.assemble.sources import base_of, patches_manifest
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.kas.drive import Places
from lab.kas.request import Request
from lab.kernel import check, elf, uapi
from lab.output import Output

HINT = "build it again: kas build; its log is named above"
CONFIG_START, CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
"""Around the compressed configuration that a kernel with CONFIG_IKCONFIG carries (linux kernel/configs.c)."""
IMAGE_SUFFIXES = (".wic.zst", ".wic.bmap", ".ext4", ".cpio.gz", ".cpio.zst", ".manifest", ".spdx.json")


@dataclass(frozen=True)
class Deployed:
    """What BitBake left for a kernel. ``extra``: images, by their name in a set."""

    image: Path
    modules: Path | None
    dtbs: dict[str, Path]
    shared: Path
    extra: dict[str, Path]

    def key(self, request: Request) -> str:
        """Cache key: contents, what was asked for, and how it is looked at."""
        files = [self.image, *([self.modules] if self.modules else []), *self.dtbs.values()]
        options = request.kernel_options
        wanted = (request.kernel, options.rocket_module, options.debug, options.fixes)
        recipe = kernel.recipe(Path(__file__))
        return digest("kas kernel 1", recipe, wanted, sorted(self.dtbs), [file_digest(path) for path in files])


def look(request: Request, where: Places) -> Deployed:
    """Find the files; KitError (failed) names what is missing."""
    folder = where.deploy(request.machine)
    image = folder / "Image"
    if not image.is_file():
        raise KitError(ExitCode.FAILED, f"BitBake left no kernel: there is no {image}", HINT, log=where.log)
    dtbs = {name: folder / f"{name}.dtb" for name in request.trees}
    for name, path in dtbs.items():
        if not path.is_file():
            raise KitError(ExitCode.FAILED, f"BitBake left no device tree {name} in {folder}", HINT, log=where.log)
    archive = folder / f"modules-{request.machine}.tgz"
    modules = archive.resolve() if archive.is_file() else None
    shared = where.build / "tmp/work-shared" / request.machine
    return Deployed(image.resolve(), modules, dtbs, shared, _images(folder, request))


def _images(folder: Path, request: Request) -> dict[str, Path]:
    """The image's files under short names, ``npu-bringup-image.wic.zst``."""
    if request.image == "kernel":
        return {}
    found = {}
    for suffix in IMAGE_SUFFIXES:
        for path in (folder / f"{request.target}-{request.machine}{middle}{suffix}" for middle in (".rootfs", "")):
            if path.is_file():
                found[f"{request.target}{suffix}"] = path.resolve()
    if not found:
        raise KitError(ExitCode.FAILED, f"BitBake left no {request.target} in {folder}", HINT)
    return found


def kernel_entry(
    found: Deployed, request: Request, origin: dict[str, Any], apt: Apt, cache: Cache, out: Output, log: Path
) -> Path:
    """The kernel's cache entry, as `lab.assemble.kernel.build` makes it."""

    def make(entry: Path) -> None:
        with out.stage("collect BitBake's kernel"):
            _fill(entry, found, request, origin, apt, cache, out, log)

    return cache.entry("kernel-kas", found.key(request), make)


def _fill(
    entry: Path,
    found: Deployed,
    request: Request,
    origin: dict[str, Any],
    apt: Apt,
    cache: Cache,
    out: Output,
    log: Path,
) -> None:
    options = request.kernel_options
    shutil.copyfile(found.image, entry / "Image")
    release = elf.image(entry / "Image").release
    _expected(release, request)
    config = embedded_config(entry / "Image")
    (entry / "config").write_text(config)
    (entry / "dtbs").mkdir()
    for name, path in found.dtbs.items():
        shutil.copyfile(path, entry / "dtbs" / f"{name}.dtb")
    names = ["Image", "config", *(f"dtbs/{name}.dtb" for name in found.dtbs)]
    modules = _modules(entry, found, release) if found.modules else []
    names += [*_shared(entry, found), *(module["file"] for module in modules)]
    fragments = kernel.fragment_files(options, release)
    lost = checks.lost_lines(kernel.merge(path.read_text() for path in fragments), config)
    if lost:
        message = (
            f"kernel configuration: {len(lost)} lines of the fragments are not in the image: {', '.join(lost[:5])}"
        )
        raise KitError(ExitCode.FAILED, message, "the deploy directory is of another build: run kas build again")
    rocket = next((module for module in modules if module["name"] == checks.DRIVER), None)
    component: dict[str, Any] = {
        "flavour": "kas",
        "release": release,
        "version": _version(release),
        "source": origin,
        "patches": patches_manifest(_version(release), options.groups),
        "fragments": [{"name": path.name, "sha256": file_digest(path)} for path in fragments],
        "config_sha256": file_digest(entry / "config"),
        "compiler": check.read_config(entry / "config").get("CONFIG_CC_VERSION_TEXT", "").strip('"'),
        "rocket": "module" if options.rocket_module else "builtin",
        "rocket_aliases": rocket["aliases"]
        if rocket
        else checks.builtin_aliases(entry / "modules.builtin.modinfo", checks.DRIVER),
        "initrd": None,
        "modules": modules,
        "dtbs": checks.device_trees(entry / "dtbs"),
    }
    if modules:
        component["initrd"] = "initrd.img"
        program = initramfs.busybox(apt, cache, out, log)
        initramfs.write(entry / "initrd.img", program, release, modules, entry / "modules")
        names.append("initrd.img")
    _check(component, config, request.trees)
    component["files"] = {name: describe(entry / name) for name in names}
    (entry / "component.json").write_text(json.dumps(component, indent=1))


def _check(component: dict[str, Any], config: str, trees: list[str]) -> None:
    """The checks of the minutes path, with the machine's own trees in the place of the virtual board's."""
    for name in trees:
        entry = component["dtbs"][name]
        if entry["npu"] != "enabled" or entry["problems"]:
            what = entry["problems"][0] if entry["problems"] else f"the NPU is {entry['npu']}"
            raise KitError(ExitCode.FAILED, f"device tree {name}: {what}", "correct the tree")
    default = Path(boards.load("virt").dtb).stem
    checks.kernel({**component, "dtbs": {default: component["dtbs"][trees[0]]}}, config)


def _version(release: str) -> str:
    found = re.match(r"\d+\.\d+(\.\d+)?", release)
    return found[0] if found else release


def _expected(release: str, request: Request) -> None:
    if not release or base_of(release) != request.kernel:
        message = f"the deployed kernel is {release or 'not an arm64 Image'}, asked for was {request.kernel}"
        raise KitError(ExitCode.FAILED, message, "the deploy directory is of another build: run kas build again")


def embedded_config(image: Path) -> str:
    """The configuration that an Image carries; KitError (failed) when it has none."""
    data = image.read_bytes()
    start, end = data.find(CONFIG_START), data.find(CONFIG_END)
    try:
        return zlib.decompress(data[start + len(CONFIG_START) : end], wbits=31).decode() if 0 <= start < end else ""
    except zlib.error as error:
        raise KitError(ExitCode.FAILED, f"{image}: its configuration is damaged ({error})", HINT) from error


def _modules(entry: Path, found: Deployed, release: str) -> list[dict[str, Any]]:
    """Unpack the modules and what kmod reads of built-in drivers, and describe each module."""
    assert found.modules is not None
    folder = entry / "modules"
    folder.mkdir()
    with tarfile.open(found.modules) as archive:
        for member in archive:
            path = Path(member.name)
            if not member.isfile():
                continue
            data = archive.extractfile(member)
            assert data is not None
            if path.suffix == ".ko":
                (folder / path.name).write_bytes(data.read())
            elif path.name in ("modules.builtin", "modules.builtin.modinfo"):
                (entry / path.name).write_bytes(data.read())
    described = [{**checks.module(path), "file": f"modules/{path.name}"} for path in sorted(folder.glob("*.ko"))]
    checks.vermagic(described, release)
    return described


def _shared(entry: Path, found: Deployed) -> list[str]:
    """What the checks read besides: built-in drivers, symbols for modules, and the interface's header."""
    build, source = found.shared / "kernel-build-artifacts", found.shared / "kernel-source"
    for path, name in ((build / "Module.symvers", "Module.symvers"), (source / uapi.HEADER, uapi.HEADER)):
        if path.is_file():
            (entry / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, entry / name)
    names = ("modules.builtin", "modules.builtin.modinfo", "Module.symvers", uapi.HEADER)
    return [name for name in names if (entry / name).is_file()]


# --- images ----------------------------------------------------------------------------------------------------------


def image_rootfs(found: Deployed, request: Request, cache: Cache) -> Path | None:
    """A root file system entry of the image's ext4, in the form of `lab.assemble.rootfs`; None without one."""
    ext4 = found.extra.get(f"{request.target}.ext4")
    listing = found.extra.get(f"{request.target}.manifest")
    if ext4 is None or listing is None:
        return None
    rows = [line.split() for line in listing.read_text().splitlines() if len(line.split()) == 3]
    packages = [{"name": name, "version": version} for name, _, version in rows]
    python = next((entry["version"] for entry in packages if entry["name"] == "python3-core"), "")
    component = {
        "image": "rootfs.ext4",
        "suite": "OE-core wrynose, nodistro",
        "python": ".".join(python.split(".")[:2]),
        "packages": packages,
    }

    def make(entry: Path) -> None:
        shutil.copyfile(ext4, entry / "rootfs.ext4")
        files = {"rootfs.ext4": describe(entry / "rootfs.ext4")}
        (entry / "component.json").write_text(json.dumps({**component, "files": files}, indent=1))

    return cache.entry("rootfs-kas", digest("kas rootfs 1", component, file_digest(ext4)), make)
