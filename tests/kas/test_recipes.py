# SPDX-License-Identifier: MIT
"""The layer's recipes through BitBake's own parser and through oelint-adv."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LAYER, MACHINES, REPOSITORY

from lab import boards
from lab.kas.request import Request
from lab.kernel import patches

LINT_EXCEPTIONS = {
    "oelint.vars.homepageping": "needs the network",
    "oelint.var.licenseremotefile": "small recipes of the layer's own are under OE-core's MIT text",
    "oelint.vars.mispell": "variables of the kit, of meta-rockchip and of uboot-extlinux-config",
    "oelint.vars.mispell.unknown": "as above",
    "oelint.vars.fileextrapaths": "patches, trees and the library lie beside the layer, once for all build paths",
    "oelint.vars.outofcontext": "as above",
    "oelint.func.specific": "the linter does not know the override that the layer's machines share",
    "oelint.vars.layerconf": "where the repository is, is known in layer.conf only",
    "oelint.vars.specific": "labels of extlinux.conf are overrides in uboot-extlinux-config",
    "oelint.var.badimagefeature": "an image for bring-up logs root in, as SECURITY.md says",
    "oelint.task.noanonpython": "a recipe that is skipped with a reason has no other way to say it",
    "oelint.vars.bbvars.BB_STRICT_CHECKSUM": "one kernel whose hash is the user's to give",
    "oelint.vars.insaneskip": "a published binary is packaged as it is",
}


BOARDS = [name for name in MACHINES if name != "rk3588-virt"]


@functools.cache
def parsed(machine: str, layer: Path = LAYER, **settings: str) -> dict[str, Any]:
    """What the parser says of every recipe."""
    program = [sys.executable, str(Path(__file__).with_name("bbparse.py")), str(layer), machine, json.dumps(settings)]
    answer = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def faults(results: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in results.items() if entry["missing"] or entry["errors"]}


@pytest.mark.parametrize("machine", MACHINES)
def test_recipes_parse_and_their_files_exist(machine: str) -> None:
    results = parsed(machine)
    assert len(results) == len([*LAYER.glob("**/*.bb")])
    assert not faults(results)


@pytest.mark.parametrize("version", ["7.3", "6.18"])
@pytest.mark.parametrize("fixes", ["1", "0"])
def test_kernel_takes_the_patches_that_the_other_build_path_takes(version: str, fixes: str) -> None:
    entry = parsed("orangepi-5", NPULAB_FIXES=fixes)[f"recipes-kernel/linux/linux-rocket_{version}.bb"]
    groups = patches.WITH_FIXES if fixes == "1" else patches.STOCK
    wanted = [patch.path for patch in patches.selected(entry["PV"], groups)]
    assert [REPOSITORY / "kernel-patches" / name for name in entry["NPULAB_PATCHES"].split()] == wanted


def test_kernel_takes_the_fragments_of_its_options() -> None:
    name = "recipes-kernel/linux/linux-rocket_7.3.bb"
    assert {"npu.cfg", "virt.cfg", "board.cfg", "rocket-module.cfg"} <= set(parsed("orangepi-5")[name]["files"])
    assert "linux-6.18.cfg" in parsed("orangepi-5")["recipes-kernel/linux/linux-rocket_6.18.bb"]["files"]
    debug = parsed("orangepi-5", NPULAB_ROCKET="builtin", NPULAB_KERNEL_DEBUG="1")[name]["files"]
    assert "debug.cfg" in debug
    assert "rocket-builtin.cfg" in debug
    assert "rocket-module.cfg" not in debug


def test_nothing_passes_for_independent_of_the_machine() -> None:
    """yocto-check-layer: packages of all machines whose run-time dependencies are a machine's differ by machine."""
    for path in LAYER.glob("**/*.bb"):
        text = path.read_text()
        assert not re.search(r"^inherit .*allarch", text, re.MULTILINE) or "RDEPENDS" not in text, path


def test_the_layer_s_readme_leads_to_the_repository_s() -> None:
    assert "README.md" in (LAYER / "README.md").read_text()


def test_the_virtual_board_s_kernel_is_the_other_path_s() -> None:
    text = (LAYER / "conf/machine/rk3588-virt.conf").read_text()
    settings = dict(re.findall(r'^(NPULAB_DEFAULTS|NPULAB_BOARD_FRAGMENT) = "(.*)"$', text, re.MULTILINE))
    options = Request("virt", image="kernel").kernel_options
    assert settings["NPULAB_DEFAULTS"] == options.base
    files = parsed("rk3588-virt", **settings)["recipes-kernel/linux/linux-rocket_7.3.bb"]["files"]
    assert {name for name in files if name.endswith(".cfg")} == set(options.fragments)
    assert options.groups == patches.WITH_FIXES


def test_results_are_shared_by_checkouts_in_different_places(tmp_path: Path) -> None:
    shutil.copytree(LAYER, tmp_path / "recipes")
    for name in ("kernel-patches", "dts", "lab", "LICENSES", "rknpu_userspace"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    here, there = parsed("rk3588-virt"), parsed("rk3588-virt", tmp_path / "recipes")
    for name, entry in here.items():
        assert entry.get("hashes") == there[name].get("hashes"), name
    kernel = "recipes-kernel/linux/linux-rocket_7.3.bb"
    assert {"do_patch", "do_configure", "do_npulab_check_config"} <= set(here[kernel]["hashes"])


def test_loader_without_a_blob_is_refused_with_the_reason() -> None:
    entry = parsed("orangepi-5", NPULAB_LOADER="1")[
        "dynamic-layers/rockchip/recipes-bsp/npulab-ddr-blob/npulab-ddr-blob_1.0.bb"
    ]
    assert "NPULAB_DDR_BLOB" in entry["skipped"]


def broken(tmp_path: Path, recipe: str, old: str, new: str) -> dict[str, Any]:
    """What the parser says of a copy of the layer with one change."""
    for folder in ("recipes", "kernel-patches", "dts", "LICENSES"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    (tmp_path / "rknpu_userspace").mkdir()
    path = tmp_path / "recipes" / recipe
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return faults(parsed("orangepi-5", tmp_path / "recipes"))


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [
        ("recipes-core/npulab-rescue-init/npulab-rescue-init_1.0.bb", "file://init", "file://inti"),
        ("recipes-core/npulab-rescue-init/npulab-rescue-init_1.0.bb", 'SECTION = "base"', 'SECTION = "base'),
        (
            "classes-recipe/npulab_kernel.bbclass",
            "import re\n    with open(d.expand",
            "import re\n     with open(d.expand",
        ),
        ("classes-recipe/npulab_kernel.bbclass", 'NPULAB_FRAGMENTS = "npu.cfg', 'NPULAB_FRAGMENTS = "nup.cfg'),
    ],
)
def test_parser_catches_what_is_broken(tmp_path: Path, recipe: str, old: str, new: str) -> None:
    assert broken(tmp_path, recipe, old, new)


def partitions(layout: str) -> list[dict[str, str]]:
    """The ``part`` lines of an image's layout: what stands behind each option, and the mount point as ``part``."""
    lines = (LAYER / "files/wic" / layout).read_text().splitlines()
    rows = [shlex.split(line) for line in lines if line.startswith("part ")]
    return [dict(zip(words, [*words[1:], ""], strict=True)) for words in rows]


def place(partition: dict[str, str]) -> tuple[int, int]:
    """Start and end in bytes of a partition whose place is fixed."""
    start = int(partition["--offset"].removesuffix("s")) * 512
    return start, start + int(partition["--fixed-size"].removesuffix("K")) * 1024


def test_images_leave_the_loader_s_place_alone() -> None:
    """No partition begins before the board files' payload, where flashing goes on; the loader's own lie before it."""
    payloads = {
        region.start
        for name in BOARDS
        for storage in boards.load(name).storage
        for region in storage.regions
        if region.name == "payload"
    }
    (payload,) = payloads
    (root,) = partitions("npulab.wks.in")
    assert int(root["--align"]) * 1024 == payload and "--active" in root and "--offset" not in root
    *loaders, other = partitions("npulab-loader.wks.in")
    assert other == root
    (first, end), (second, last) = map(place, loaders)
    assert (first, second) == (0x8000, 8 << 20) and end <= second and last <= payload


def test_boot_entries_find_the_image_s_root_partition() -> None:
    (root,) = partitions("npulab.wks.in")
    recipe = next(LAYER.glob("recipes-core/npulab-extlinux/*.bb")).read_text()
    assert f'UBOOT_EXTLINUX_ROOT = "root=PARTLABEL={root["--part-name"]}"' in recipe
    for machine in BOARDS:
        text = (LAYER / f"conf/machine/{machine}.conf").read_text()
        tree = re.search(r'^KERNEL_DEVICETREE = "([^\s"]+)', text, re.MULTILINE)
        assert tree and tree[1] == f"rockchip/{Request(machine).trees[0]}.dtb", (
            "the first tree is what the entries name"
        )


def test_lint(programs: Path) -> None:
    kinds = {".bb", ".bbappend", ".bbclass", ".inc", ".conf"}
    files = [str(path) for path in sorted(LAYER.rglob("*")) if path.suffix in kinds]
    command = [str(programs / "oelint-adv"), "--release", "wrynose", "--quiet", *files]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if ":error:" in line or ":warning:" in line]
    found = [line for line in lines if not any(f":{rule}" in line for rule in LINT_EXCEPTIONS)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "kernel-patches").glob("*/*.patch")), ids=lambda path: path.name[:4]
)
def test_upstream_status_is_as_the_kernel_recipe_s_checks_want_it(path: Path) -> None:
    kinds = "Pending|Submitted|Denied|Inappropriate|Backport|Inactive-Upstream"
    assert re.search(rf"^Upstream-Status: ({kinds})( .+)?$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("machine", BOARDS)
def test_boards_refuse_a_fit_image_before_the_include_that_would_ask_for_it(machine: str) -> None:
    text = (LAYER / f"conf/machine/{machine}.conf").read_text()
    assert 0 <= text.find('RK_KERNEL_FITIMAGE = "False"') < text.find("require conf/machine/include/rk3588")


def test_every_machine_asks_for_the_virtual_board_s_qemu() -> None:
    for name in ("rk3588-virt.conf", "include/npulab-board.inc"):
        assert 'NPULAB_QEMU = "1"' in (LAYER / "conf/machine" / name).read_text()
    append = next(LAYER.glob("recipes-devtools/qemu/*.bbappend")).read_text()
    # recipes for the build machine see no machine's overrides: without this line nothing of the append would apply
    assert re.search(r"^MACHINEOVERRIDES:append = .*':npulab' if .*NPULAB_QEMU", append, re.MULTILINE)
