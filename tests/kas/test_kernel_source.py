# SPDX-License-Identifier: MIT
"""What the kernel recipe does, on the real source with the distribution's toolchain: patches, configuration, trees.

Recipe, order of patches, fragments, device trees and tasks come from BitBake's parser; the tasks are run by BitBake's
own code. The source is what the kit's cache has of Linux 7.3, with the files that patches touch as Debian ships them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LAYER, REPOSITORY

from lab.assemble import kernel, mirror, sources
from lab.assemble.apt import Apt
from lab.cache import Cache
from lab.kas.compare import tree_differences
from lab.kas.request import Request
from lab.kernel import dtsource, fdtree, parts, patches
from lab.output import Output

MACHINE = "orangepi-5"
RECIPE = "recipes-kernel/linux/linux-rocket_7.3.bb"
REQUEST = Request("orangepi-5", image="kernel")
TREES = Request("virt").trees
"""All that the kit has."""
SECONDS = 240


class Bench:
    """A pristine kernel tree, and a place to work in.

    The tree is one of links to a patched tree's folders, but for those on the way to a file that patches touch and for
    the folder that gets the kit's own device trees.
    """

    def __init__(self, top: Path, pristine: Path, stock: Path) -> None:
        self.work, self.source = top / "work", top / "linux"
        self.work.mkdir(parents=True)
        touched = {hunk.file for patch in patches.selected("7.3", patches.GROUPS) for hunk in patch.hunks()}
        real = {folder for name in (*touched, f"{dtsource.BOARDS}/x") for folder in Path(name).parents}
        for folder in sorted(real):
            (self.source / folder).mkdir(parents=True, exist_ok=True)
            for entry in (stock / folder).iterdir() if (stock / folder).is_dir() else ():
                name = entry.relative_to(stock)
                if name not in real and str(name) not in touched:
                    (self.source / name).symlink_to(entry)
        for name in touched:
            if (pristine / name).is_file():
                shutil.copyfile(pristine / name, self.source / name)
        # trees of the kit's own are not part of the kernel
        for tree in (REPOSITORY / "dts").glob("*.dts"):
            assert not (self.source / dtsource.BOARDS / tree.name).exists()

    def run(self, *steps: str, ok: bool = True, **settings: str) -> Any:
        """The steps; their document, or what was written on stderr when they are to fail."""
        ccache = shutil.which("ccache")
        wrap = f"{ccache} " if ccache else ""
        tools = {
            "KERNEL_CC": f"{wrap}aarch64-linux-gnu-gcc",
            "BUILD_CC": f"{wrap}gcc",
            "PARALLEL_MAKE": f"-j{os.cpu_count()}",
            # from the machine's file, which itself needs OE-core's to be parsed
            "KERNEL_DEVICETREE": " ".join(f"rockchip/{name}.dtb" for name in TREES),
        }
        spec = {
            "layer": str(LAYER),
            "machine": MACHINE,
            "recipe": RECIPE,
            "work": str(self.work),
            "source": str(self.source),
            "settings": {**tools, **settings},
            "steps": steps,
        }
        answer = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("runrecipe.py"))],
            input=json.dumps(spec),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert (answer.returncode == 0) == ok, answer.stdout[-2000:] + answer.stderr[-4000:]
        return json.loads(answer.stdout) if ok else answer.stderr


@pytest.fixture(scope="module")
def cache() -> Cache:
    cache = Cache()
    os.environ.setdefault("CCACHE_DIR", str(cache.root / "ccache"))
    return cache


OUT = Output(quiet=True)


@pytest.fixture(scope="module")
def log(cache: Cache) -> Path:
    return cache.root / "log" / "test-kas.log"


@pytest.fixture(scope="module")
def apt(cache: Cache, log: Path) -> Apt:
    return Apt(cache, mirror.find(None), log)


@pytest.fixture(scope="module")
def source(cache: Cache, apt: Apt, log: Path) -> sources.Source:
    return sources.linux(None, cache, apt, OUT, log)


@pytest.fixture(scope="module")
def trees(cache: Cache, source: sources.Source, log: Path) -> tuple[Path, Path]:
    """Parts of Linux 7.3 as Debian ships it, and the whole of it with the board's patches."""
    pristine = parts.open_kernel("7.3", cache, OUT).root
    with sources.linux_tree(source, cache, OUT, log) as stock:
        return pristine, stock


@pytest.fixture(scope="module")
def minutes(cache: Cache, source: sources.Source, apt: Apt, log: Path) -> Path:
    """The kernel of the other path."""
    options = kernel.KernelOptions(rocket_module=False, jobs=os.cpu_count() or 1)
    return kernel.build(source, options, apt, cache, OUT, log)


@pytest.fixture(scope="module")
def bench(trees: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kernel"), *trees)


@pytest.fixture(scope="module")
def done(bench: Bench) -> Any:
    """Patched, configured, checked, device trees made."""
    return bench.run("patch", "configure", "check", "trees")


def test_patches_apply_in_order(bench: Bench, done: Any) -> None:
    wanted = [f"{patch.path.parent.name}/{patch.path.name}" for patch in patches.selected("7.3.4", patches.WITH_FIXES)]
    assert done["patches"] == wanted
    for patch in patches.selected("7.3.4", patches.WITH_FIXES):
        assert patch.probe.find(bench.source), patch.name


def test_fragments_are_those_of_the_other_path(done: Any) -> None:
    options = REQUEST.kernel_options
    merged = kernel.merge(path.read_text() for path in kernel.fragment_files(options, "7.3.4"))
    assert done["merged"] == merged


def test_configuration_is_what_the_tasks_ask_for(bench: Bench, done: Any) -> None:
    config = (bench.work / "build/.config").read_text().splitlines()
    assert "CONFIG_DRM_ACCEL_ROCKET=m" in config
    assert "CONFIG_ROCKCHIP_PM_DOMAINS=y" in config


def test_trees_are_those_of_the_other_path(bench: Bench, done: Any, minutes: Path) -> None:
    assert sorted(done["dtbs"]) == sorted(TREES)
    for name, path in done["dtbs"].items():
        ours, theirs = fdtree.load(bench.work / path), fdtree.load(minutes / f"dtbs/{name}.dtb")
        assert ours.has_symbols, name
        assert not [row for row in tree_differences(name, theirs, ours) if not row.why.startswith("numbering")], name


def test_lost_line_of_a_fragment_stops_the_build(bench: Bench, done: Any) -> None:
    fragment = bench.work / "sources/npu.cfg"
    kept = fragment.read_text()
    try:
        fragment.write_text(f"{kept}CONFIG_NO_SUCH_SYMBOL=y\n")
        said = bench.run("configure", "check", ok=False)
    finally:
        fragment.write_text(kept)
    assert "did not survive into .config: CONFIG_NO_SUCH_SYMBOL=y" in said


def test_patch_that_does_not_apply_stops_the_build(bench: Bench, done: Any) -> None:
    patch = patches.selected("7.3.4", patches.WITH_FIXES)[-1]
    file = bench.source / patch.probe.file
    kept = file.read_text()
    try:
        file.write_text("/* another driver */\n")
        said = bench.run("patch", ok=False)
    finally:
        file.write_text(kept)
    assert "Applying patch" in said
