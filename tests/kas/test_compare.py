# SPDX-License-Identifier: MIT
"""Comparisons of two kernels: each difference is found and gets the right cause."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.cache import Cache, file_digest
from lab.errors import ExitCode, KitError
from lab.kas import build, compare
from lab.kernel import check
from lab.output import Output

TREE = """/dts-v1/;
/ {
    compatible = "xunlong,orangepi-5", "rockchip,rk3588s";
    %s
    supply: regulator { phandle = <%d>; regulator-name = "vdd_npu"; };
    npu { supply = <%d>; status = "%s"; };
};
"""


def kernel_set(
    root: Path,
    config: dict[str, str],
    *,
    fragments: tuple[str, ...] = ("npu.cfg", "board.cfg"),
    compiler: str = "gcc 12",
    flavour: str = "kas",
    tree: tuple[Any, ...] = ("", 1, 1, "okay"),
    symbols: bool = True,
) -> Path:
    (root / "dtbs").mkdir(parents=True)
    lines = [f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in config.items()]
    (root / "config").write_text("\n".join(lines) + "\n")
    command = ["dtc", "-q", "-O", "dtb", *(["-@"] if symbols else []), "-o", str(root / "dtbs/rk3588s-orangepi-5.dtb")]
    subprocess.run([*command, "-"], input=(TREE % tree).encode(), check=True)
    named = [{"name": name, "sha256": file_digest(check.FRAGMENTS / name)} for name in fragments]
    linux = {
        "flavour": flavour,
        "release": "7.3.4-npulab",
        "version": "7.3.4",
        "compiler": compiler,
        "fragments": named,
        "patches": [],
    }
    (root / "manifest.json").write_text(json.dumps({"board": "orangepi-5", "kernel": linux}))
    return root


def differences(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], source: Path | None = None) -> dict[str, str]:
    """What differs, and why."""
    cache = Cache(tmp_path / "cache")
    sides = []
    for name, words in (("a", a), ("b", b)):
        root = kernel_set(tmp_path / name, **{"config": {}, **words})
        sides.append(compare.open_side(str(root), "orangepi-5", cache))
    return {f"{row.kind} {row.name}": row.why for row in compare.compare(sides[0], sides[1], source)}


def test_equal_sets_do_not_differ(tmp_path: Path) -> None:
    config = {"CONFIG_ARM64": "y"}
    assert differences(tmp_path, {"config": config}, {"config": config}) == {}


def test_toolchain(tmp_path: Path) -> None:
    a = {"config": {"CONFIG_CC_VERSION_TEXT": '"gcc 12"', "CONFIG_CC_HAS_AUTO_VAR_INIT": "y"}}
    b = {"config": {"CONFIG_CC_VERSION_TEXT": '"gcc 15"', "CONFIG_GCC_VERSION": "150300"}, "compiler": "gcc 15"}
    found = differences(tmp_path, a, b)
    assert found == dict.fromkeys(
        ["config CC_HAS_AUTO_VAR_INIT", "config CC_VERSION_TEXT", "config GCC_VERSION"], "toolchain: other compilers"
    )


def test_fragment_that_only_one_merges(tmp_path: Path) -> None:
    a = {"config": {"CONFIG_DRM_ACCEL_ROCKET": "y"}, "fragments": ("npu.cfg", "rocket-builtin.cfg")}
    b = {"config": {"CONFIG_DRM_ACCEL_ROCKET": "m"}, "fragments": ("npu.cfg", "rocket-module.cfg")}
    assert differences(tmp_path, a, b) == {
        "config DRM_ACCEL_ROCKET": "fragment: A merges rocket-builtin.cfg, B merges rocket-module.cfg"
    }


def test_defaults_of_another_base(tmp_path: Path) -> None:
    a = {"config": {"CONFIG_ARM64_ERRATUM_1": "n"}, "fragments": ("npu.cfg",)}
    b = {"config": {"CONFIG_ARM64_ERRATUM_1": "y"}}
    found = differences(tmp_path, a, b)
    assert found == {"config ARM64_ERRATUM_1": "defaults: A starts from allnoconfig, B from alldefconfig"}


def test_what_follows_from_another_symbol(tmp_path: Path) -> None:
    source = tmp_path / "linux"
    (source / "drivers").mkdir(parents=True)
    (source / "drivers/Kconfig").write_text(
        "config SOMETHING\n\tbool\n\tdepends on CC_HAS_IT\n\nconfig ANOTHER\n\tbool\n\nconfig CHOOSER\n\tbool\n"
        "\tdepends on SOMETHING\n\tselect ANOTHER\n"
    )
    names = ("CC_HAS_IT", "SOMETHING", "ANOTHER", "CHOOSER", "LONELY")
    b = {"config": {"CONFIG_OF": "y", **{f"CONFIG_{name}": "y" for name in names}}}
    found = differences(tmp_path, {"config": {"CONFIG_OF": "y"}}, b, source)
    assert found["config SOMETHING"] == "follows: CC_HAS_IT"
    assert found["config CHOOSER"] == "follows: SOMETHING"
    assert found["config ANOTHER"] == "follows: CHOOSER"
    assert found["config LONELY"] == compare.NOT_EXPLAINED


def test_device_tree_content(tmp_path: Path) -> None:
    found = differences(tmp_path, {}, {"tree": ('model = "x";', 1, 1, "disabled")})
    assert found == {
        "device tree rk3588s-orangepi-5 / model": compare.NOT_EXPLAINED,
        "device tree rk3588s-orangepi-5 /npu status": compare.NOT_EXPLAINED,
    }


def test_device_tree_numbering_and_symbols(tmp_path: Path) -> None:
    (found,) = differences(tmp_path / "1", {}, {"tree": ("", 7, 7, "okay")}).items()
    assert found[1].startswith("numbering: ")
    (found,) = differences(tmp_path / "2", {}, {"symbols": False}).items()
    assert found[0].endswith("/__symbols__")
    assert found[1].startswith("flags: ")


def test_boards_that_one_side_lacks_are_one_row_for_people(tmp_path: Path) -> None:
    cache, few, many = Cache(tmp_path), kernel_set(tmp_path / "few", {}), kernel_set(tmp_path / "many", {})
    for name in ("rk3588-a", "rk3588-b"):
        (many / f"dtbs/{name}.dtb").write_bytes((few / "dtbs/rk3588s-orangepi-5.dtb").read_bytes())
    a, b = (compare.open_side(str(root), "orangepi-5", cache) for root in (many, few))
    found = compare.compare(a, b)
    assert [row.name for row in found] == ["rk3588-a", "rk3588-b"]
    assert [row.name for row in compare._together(found)] == ["rk3588-a and 1 more boards"]


def test_words_name_the_newest_sets(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for word, told in (("kas", "--with kas"), ("minutes", "npulab build orangepi-5")):
        with pytest.raises(KitError) as caught:
            compare.open_side(word, "orangepi-5", cache)
        assert caught.value.code is ExitCode.USAGE
        assert told in caught.value.hint
    ours = kernel_set(tmp_path / "board-kernel/1", {}, flavour="kas")
    theirs = kernel_set(tmp_path / "board-kernel/2", {}, flavour="fast")
    path = build.newest(cache, "orangepi-5")
    path.parent.mkdir()
    path.write_text(json.dumps({"kernel_set": str(ours), "artifacts": ""}))
    assert compare.open_side("kas", "orangepi-5", cache).root == ours
    assert compare.open_side("minutes", "orangepi-5", cache).root == theirs


def test_directory_without_a_kernel(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(KitError) as caught:
            compare.open_side(str(path), "orangepi-5", Cache(tmp_path))
        assert caught.value.code is ExitCode.USAGE


def test_document_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "cache"))
    sets = [str(kernel_set(tmp_path / name, {"CONFIG_A1_B": value})) for name, value in (("a", "y"), ("b", "m"))]
    found = compare.command("orangepi-5", sets, Output(quiet=True))
    assert found["differences"] == [
        {"kind": "config", "name": "A1_B", "a": "y", "b": "m", "why": compare.NOT_EXPLAINED}
    ]
    assert found["unexplained"] == 1
    assert found["compared"]["dtbs"] == ["rk3588s-orangepi-5"]
