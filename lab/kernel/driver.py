# SPDX-License-Identifier: MIT
"""rocket as modules for the virtual board's modular kernel: as mainline has it and with the kit's fixes.

Both are built against one kernel, so that a test of a fix compares nothing but the driver; a change of the driver
alone is rebuilt in seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.assemble import kernel, mirror, sources
from lab.assemble.apt import Apt
from lab.cache import Cache, digest, tree_digest
from lab.errors import ExitCode, KitError
from lab.kernel import patches
from lab.output import Output
from lab.process import run

DRIVER = "drivers/accel/rocket"
DEPENDENCIES = ("drm_shmem_helper.ko", "gpu-sched.ko")
"""What rocket needs loaded first when the DRM core is built in."""


@dataclass(frozen=True)
class Variants:
    """Modules of one kernel: the kit's own, ``stock/rocket.ko``, ``fixed/rocket.ko`` and the helpers of tests."""

    root: Path

    def modules(self, variant: str, extra: Sequence[str] = ()) -> list[Path]:
        """Modules in the order in which they are loaded, rocket last."""
        names = [*(self.root / "base" / name for name in DEPENDENCIES), *(self.root / name for name in extra)]
        return [path for path in [*names, self.root / variant / "rocket.ko"] if path.is_file()]


def build(cache: Cache, out: Output, jobs: int, helpers: Path | None = None) -> Variants:
    """Build both variants, and the modules in ``helpers`` (a directory with C sources and a Kbuild file)."""
    log = cache.root / "log" / "build-driver.log"
    apt = Apt(cache, mirror.find(None), log)
    source = sources.linux(None, cache, apt, out, log)
    options = kernel.KernelOptions(rocket_module=True, jobs=jobs)
    built = kernel.build(source, options, apt, cache, out, log)
    fixes = patches.selected(sources.LINUX_BASE, patches.WITH_FIXES)
    texts = [patch.path.read_text() for patch in fixes]
    key = digest("driver 1", built.name, texts, tree_digest(helpers) if helpers else "")

    def make(entry: Path) -> None:
        with (
            sources.linux_tree(source, cache, out, log) as tree,
            kernel.workdir(tree, options, cache) as objects,
        ):
            if not (objects / "Module.symvers").is_file():
                message = f"the build tree {objects} is not complete"
                raise KitError(
                    ExitCode.INFRASTRUCTURE, message, "remove the cache's kernel-fast entries and build again"
                )
            (entry / "base").mkdir()
            for name in DEPENDENCIES:
                for path in objects.rglob(name):
                    shutil.copyfile(path, entry / "base" / name)
            for variant, groups in (("stock", patches.STOCK), ("fixed", patches.WITH_FIXES)):
                work = entry / "work" / variant
                shutil.copytree(tree / DRIVER, work / DRIVER)
                shutil.copytree(tree / "drivers/iommu", work / "drivers/iommu")
                with out.stage(f"build rocket, {variant}"):
                    patches.apply(work, sources.version_of(tree), groups, out.note)
                    _module(tree, objects, work / DRIVER, log)
                (entry / variant).mkdir()
                shutil.copyfile(work / DRIVER / "rocket.ko", entry / variant / "rocket.ko")
            if helpers is not None:
                shutil.copytree(helpers, entry / "work/helpers")
                _module(tree, objects, entry / "work/helpers", log)
                for path in (entry / "work/helpers").glob("*.ko"):
                    shutil.copyfile(path, entry / path.name)
            shutil.rmtree(entry / "work")

    return Variants(cache.entry("rocket-driver", key, make))


def _module(tree: Path, objects: Path, folder: Path, log: Path) -> None:
    """Build a directory's modules against a kernel's build tree, symbols stripped to what loading needs."""
    command = ["nice", "make", "-C", str(tree), f"O={objects}", f"M={folder}", "ARCH=arm64"]
    command += [f"CROSS_COMPILE={kernel.CROSS}", "CONFIG_DRM_ACCEL_ROCKET=m", "modules"]
    run(command, stage=f"building {folder.name}", log=log)
    strip = [f"{kernel.CROSS}strip", "--strip-debug", *map(str, folder.glob("*.ko"))]
    run(strip, stage=f"stripping {folder.name}", log=log)
