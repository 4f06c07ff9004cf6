# SPDX-License-Identifier: MIT
"""Checks of kernels: fragments that did not survive, modules of another kernel, drivers that match no device tree."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from lab.assemble import checks, initramfs, trees
from lab.errors import KitError


def make_module(path: Path, *, machine: int = 183, release: str = "7.3.4-npulab", **fields: str) -> Path:
    """An ELF object with ``.modinfo``, an empty symbol table and nothing else. 183 is EM_AARCH64 (elf(5))."""
    items = {"vermagic": f"{release} SMP preempt mod_unload aarch64", "name": path.stem, **fields}
    info = b"".join(f"{key}={value}".encode() + b"\0" for key, value in items.items() if value)
    names = b"\0.modinfo\0.shstrtab\0.symtab\0"
    symbols = b"\0" * 24
    places, offset = [], 64
    for part in (info, names, symbols):
        places.append((offset, len(part)))
        offset += len(part)
    magic = b"\x7fELF\x02\x01\x01"
    header = struct.pack("<16sHHIQQQIHHHHHH", magic, 1, machine, 1, 0, 0, offset, 0, 64, 0, 0, 64, 4, 2)
    # (name, type, link, size of an entry): .modinfo, .shstrtab, .symtab with the null symbol
    kinds = ((1, 1, 0, 0), (10, 3, 0, 0), (20, 2, 2, 24))
    sections = b"\0" * 64
    for (name, kind, link, entry), place in zip(kinds, places, strict=True):
        sections += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, *place, link, 0, 1, entry)
    path.write_bytes(header + info + names + symbols + sections)
    return path


def test_lost_lines() -> None:
    config = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_NAME="x"\n'
    assert checks.lost_lines('# words\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_D=n\nCONFIG_NAME="x"\n', config) == []
    lost = ["CONFIG_C=y", "CONFIG_D=y", "CONFIG_A=n", "# CONFIG_C is not set", 'CONFIG_NAME="y"']
    assert checks.lost_lines("\n".join(lost), config) == lost


def test_symbols_may_be_modules() -> None:
    checks.symbols("CONFIG_A=y\nCONFIG_C=y\n# words\n", "CONFIG_A=y\nCONFIG_C=m\n")
    with pytest.raises(KitError, match="CONFIG_B"):
        checks.symbols("CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_A=y\n# CONFIG_B is not set\n")


def test_module(tmp_path: Path) -> None:
    path = make_module(tmp_path / "rocket.ko", alias="of:N*T*Crockchip,rk3588-rknn-core", depends="drm,gpu-sched")
    found = checks.module(path)
    assert found == {
        "name": "rocket",
        "file": "rocket.ko",
        "vermagic": "7.3.4-npulab SMP preempt mod_unload aarch64",
        "aliases": ["of:N*T*Crockchip,rk3588-rknn-core"],
        "depends": ["drm", "gpu_sched"],
    }
    checks.vermagic([found], "7.3.4-npulab")
    with pytest.raises(KitError, match=r"rocket is for kernel 7\.3\.4-npulab, the image is 7\.3\.4"):
        checks.vermagic([found], "7.3.4")


def test_modules_load_after_what_they_name_in_either_spelling(tmp_path: Path) -> None:
    rocket = checks.module(make_module(tmp_path / "rocket.ko", depends="gpu-sched"))
    scheduler = checks.module(make_module(tmp_path / "gpu-sched.ko", name="gpu_sched"))
    assert initramfs.load_order([rocket, scheduler]) == ["gpu_sched", "rocket"]


@pytest.mark.parametrize("kind", ["text", "x86", "no vermagic", "cut"])
def test_no_module(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rocket.ko"
    if kind == "text":
        path.write_text("not an object")
    elif kind == "x86":
        make_module(path, machine=62)
    elif kind == "no vermagic":
        make_module(path, vermagic="")
    else:
        path.write_bytes(make_module(path).read_bytes()[:40])
    with pytest.raises(KitError, match=r"rocket\.ko"):
        checks.module(path)


def test_built_in_aliases(tmp_path: Path) -> None:
    info = tmp_path / "modules.builtin.modinfo"
    info.write_bytes(b"rocket.alias=of:N*T*Cone\0other.alias=of:x\0rocket.alias=of:N*T*Ctwo\0rocket.license=GPL\0")
    assert checks.builtin_aliases(info, "rocket") == ["of:N*T*Cone", "of:N*T*Ctwo"]
    assert checks.builtin_aliases(tmp_path / "none", "rocket") == []


def test_alias_and_compatible() -> None:
    assert checks.alias_matches(["of:N*T*Crockchip,rk3588-rknn-core"], trees.CORE)
    assert checks.alias_matches(["of:N*T*Cother", "of:N*T*Crockchip,rk3588-rknn-coreC*", "of:N*T*C*"], trees.CORE)
    assert not checks.alias_matches(["of:N*T*Crockchip,rk3576-rknn-core"], trees.CORE)
    assert not checks.alias_matches([], trees.CORE)


def _component(**changes: Any) -> dict[str, Any]:
    tree = {"npu": "enabled", "problems": [], **changes.pop("tree", {})}
    return {
        "flavour": "fast",
        "rocket": "builtin",
        "rocket_aliases": ["of:N*T*Crockchip,rk3588-rknn-core"],
        "dtbs": {"rk3588s-orangepi-5": tree},
        **changes,
    }


GOOD = "CONFIG_DRM_ACCEL_ROCKET=y\n"


def test_good_kernel() -> None:
    checks.kernel(_component(), GOOD)
    checks.kernel(_component(rocket="module"), "CONFIG_DRM_ACCEL_ROCKET=m\n")


@pytest.mark.parametrize(
    ("changes", "config", "expect"),
    [
        ({}, "# CONFIG_DRM_ACCEL_ROCKET is not set\n", "no rocket driver"),
        ({"rocket_aliases": ["of:N*T*Crockchip,rk3576-rknn-core"]}, GOOD, "do not match"),
        ({"dtbs": {}}, GOOD, "no device tree rk3588s-orangepi-5"),
        ({"tree": {"npu": "disabled"}}, GOOD, "the NPU is disabled"),
        ({"tree": {"problems": ["/npu has no npu-supply"]}}, GOOD, "/npu has no npu-supply"),
    ],
)
def test_bad_kernel(changes: dict[str, Any], config: str, expect: str) -> None:
    with pytest.raises(KitError, match=expect):
        checks.kernel(_component(**changes), config)


@pytest.mark.parametrize("data", [b"", b"not a device tree" * 9, b"\xd0\x0d\xfe\xed" + b"\0" * 60])
def test_no_device_tree(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rk3588-board.dtb").write_bytes(data)
    with pytest.raises(KitError, match=r"rk3588-board\.dtb"):
        checks.device_trees(tmp_path)
