# SPDX-License-Identifier: MIT
"""``npulab build virt``: the artifact set of the virtual board."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from lab import __version__
from lab.assemble import (
    artifacts,
    distro_kernel,
    hostpython,
    kernel,
    kit,
    mirror,
    qemu,
    requirements,
    rootfs,
    sources,
    ssh,
)
from lab.assemble.apt import Apt
from lab.assemble.artifacts import ArtifactSet, link
from lab.cache import Cache, digest
from lab.output import Output
from lab.parallel import run_all

CMDLINE = "root=/dev/vda rw rootwait console=ttyS2,1500000n8 panic=-1 npulab.ip=10.0.2.15/24,10.0.2.2 npulab.host=virt"
"""Root device, console (the debug UART of every RK3588 board), and the address that QEMU's user network hands out."""

SPACE = 4_000_000_000
"""Bytes for a first build (measured: Linux 1.5 GB, QEMU 0.6 GB, downloads and lists 0.4 GB, images 0.4 GB)."""
LOG_LIMIT = 8 << 20


Flavour = Literal["fast", "debug", "distro"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)


@dataclass(frozen=True)
class BuildOptions:
    """What to assemble.

    ``kernel``: ``fast`` is a trimmed mainline kernel for the virtual board, ``debug`` the same with the kernel's own
    checkers, ``distro`` is Debian's own with rocket built against it. ``source`` (not distro): None or ``apt`` for
    Debian's linux-source package, a directory with a kernel tree, a tarball, or an https URL of one followed by
    ``#sha256=<hex>``. ``qemu_source``: the same for QEMU. ``rocket_module`` (not distro): the driver as a module that
    the initramfs loads. ``update``: ask the mirror for newer versions instead of keeping those resolved before.
    """

    kernel: Flavour = "fast"
    source: str | Path | None = None
    qemu_source: str | Path | None = None
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    rocket_module: bool = False
    debian_mirror: str | None = None
    update: bool = False


def assemble(options: BuildOptions, out: Output) -> ArtifactSet:
    """The artifact set for these options: found in the cache, or built.

    Raises KitError; whatever was finished before a failure or an interrupt is found by the next run.
    """
    return _Assembly(options, Cache(), out).run()


def around(parts: dict[str, Path], options: BuildOptions, out: Output) -> ArtifactSet:
    """The set with parts that were made elsewhere (``kernel``, also ``rootfs``): the rest is found or built."""
    return _Assembly(options, Cache(), out).run(parts)


class _Assembly:
    """One run; the parts know nothing of each other."""

    def __init__(self, options: BuildOptions, cache: Cache, out: Output) -> None:
        self.options, self.cache, self.out = options, cache, out
        # compiled objects live and go with the cache, unless the user has a place for them
        os.environ.setdefault("CCACHE_DIR", str(cache.root / "ccache"))
        log = self._log("apt")
        self.apt = Apt(cache, mirror.find(options.debian_mirror), log, update=options.update)
        self.linux = sources.linux(options.source, cache, self.apt, out, self._log("kernel"))
        self.qemu = sources.qemu(options.qemu_source, cache, self.apt, out, self._log("qemu"))

    def _log(self, name: str) -> Path:
        path = self.cache.root / "log" / f"build-{name}.log"
        if path.is_file() and path.stat().st_size > LOG_LIMIT:
            path.unlink()
        return path

    def run(self, given: dict[str, Path] | None = None) -> ArtifactSet:
        """All parts that are not given, then the set."""
        given = given or {}
        image = rootfs.Plan(self.apt, self.cache, self.out, self._log("rootfs"))
        kernel_task, kernel_entry = self._kernel()
        wanted = [kernel_entry, ("qemu", qemu.key(self.qemu)), ("rootfs", image.key)]
        wanted = [entry for entry in wanted if entry[0].split("-")[0] not in given]
        if not all(self.cache.lookup(kind, key) for kind, key in wanted):
            requirements.check_packages()
            requirements.check_space(self.cache.root, SPACE, "a first build")
        jobs = self.options.jobs
        tasks: dict[str, Callable[[], Path]] = {
            "kernel": kernel_task,
            "qemu": partial(qemu.build, self.qemu, self.cache, jobs, self.out),
            "rootfs": partial(rootfs.build, image, jobs),
            "kit": partial(self._kit, image),
        }
        parts: dict[str, Path] = run_all({name: task for name, task in tasks.items() if name not in given}) | given
        parts["ssh"] = ssh.keys(self.cache, self._log("rootfs"))
        return compose(parts, self.cache)

    def _kernel(self) -> tuple[Callable[[], Path], tuple[str, str]]:
        """What makes the kernel, and its place in the cache."""
        log, jobs = self._log("kernel"), self.options.jobs
        if self.options.kernel == "distro":
            found = distro_kernel.find(self.apt, self.out)
            task = partial(distro_kernel.build, found, self.linux, self.apt, self.cache, jobs, self.out, log)
            return task, ("kernel-distro", distro_kernel.key(found, self.linux))
        chosen = kernel.KernelOptions(self.options.rocket_module, jobs, debug=self.options.kernel == "debug")
        task = partial(kernel.build, self.linux, chosen, self.apt, self.cache, self.out, log)
        return task, ("kernel-fast", kernel.key(self.linux, chosen))

    def _kit(self, image: rootfs.Plan) -> Path:
        log = self._log("rootfs")
        python = hostpython.host_python(image.python, self.apt, self.cache, self.out, log)
        return kit.build(python, self.cache, self.options.jobs, self.out, log)


def compose(parts: dict[str, Path], cache: Cache) -> ArtifactSet:
    """Link the parts' files into one directory and write the manifest; nothing is done when it exists."""
    key = digest("set 1", __version__, CMDLINE, sorted((name, str(path.name)) for name, path in parts.items()))

    def make(entry: Path) -> None:
        components = {name: json.loads((parts[name] / "component.json").read_text()) for name in _COMPONENTS}
        files: dict[str, Any] = {}
        for name in _COMPONENTS:
            for file, entry_of in components[name].pop("files").items():
                link(parts[name] / file, entry / file)
                files[file] = entry_of
        for file in (ssh.LOGIN_KEY, f"{ssh.HOST_KEY}.pub"):
            link(parts["ssh"] / file, entry / file)
            files[file] = artifacts.describe(entry / file)
        manifest = _manifest(key, components, files)
        (entry / artifacts.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        artifacts.load(entry)

    return artifacts.load(cache.entry("artifacts", key, make))


_COMPONENTS = ("kernel", "qemu", "rootfs", "kit")


def _manifest(key: str, components: dict[str, dict[str, Any]], files: dict[str, Any]) -> dict[str, Any]:
    linux = components["kernel"]
    trees = linux.pop("dtbs")
    return {
        "schema": 1,
        "board": "virt",
        "kit_version": __version__,
        "key": key,
        "cmdline": CMDLINE,
        "kernel": {"image": "Image", "config": "config", **linux},
        "dtbs": trees,
        "rootfs": components["rootfs"],
        "kit": components["kit"],
        "qemu": components["qemu"],
        "ssh": {"key": ssh.LOGIN_KEY, "host_key": f"{ssh.HOST_KEY}.pub"},
        "files": files,
    }
