# SPDX-License-Identifier: MIT
"""Artifact sets: what `load` refuses, and copies of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lab.assemble import artifacts
from lab.errors import ExitCode, KitError

SHA = "0" * 64
NAMES = (
    "Image",
    "config",
    "rootfs.ext4",
    "kit.ext4",
    "qemu-system-aarch64",
    "ssh_key",
    "ssh_host_key.pub",
    "dtbs/b.dtb",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "dtbs").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(f"contents of {name}")
    origin = {"kind": "debian", "name": "x", "version": "1", "sha256": SHA}
    package = {"name": "x", "version": "1", "sha256": SHA}
    manifest = {
        "schema": 1,
        "board": "virt",
        "kit_version": "0.1.0",
        "key": "0" * 20,
        "cmdline": "root=/dev/vda console=ttyS2",
        "kernel": {
            "image": "Image",
            "config": "config",
            "initrd": None,
            "flavour": "fast",
            "release": "7.3.4-npulab",
            "version": "7.3.4",
            "source": origin,
            "patches": [],
            "fragments": [{"name": "npu.cfg", "sha256": SHA}],
            "config_sha256": SHA,
            "compiler": "gcc",
            "rocket": "builtin",
            "rocket_aliases": ["of:x"],
            "modules": [],
        },
        "dtbs": {
            "b": {"file": "dtbs/b.dtb", "model": "B", "compatible": [], "npu": "enabled", "cores": 3, "problems": []}
        },
        "rootfs": {"image": "rootfs.ext4", "suite": "trixie", "python": "3.13", "packages": [package]},
        "kit": {"image": "kit.ext4", "contents": "x"},
        "qemu": {"binary": "qemu-system-aarch64", "version": "10.0.13", "source": origin, "machine_sources": "x"},
        "ssh": {"key": "ssh_key", "host_key": "ssh_host_key.pub"},
        "files": {name: artifacts.describe(folder / name) for name in NAMES},
    }
    (folder / artifacts.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(artifacts.schema())


def test_good_set(root: Path) -> None:
    found = artifacts.load(root)
    assert found.kernel == root / "Image" and found.initrd is None and found.qemu == root / "qemu-system-aarch64"
    assert found.dtb("b") == found.dtb("rockchip/b.dtb") == root / "dtbs/b.dtb"
    with pytest.raises(KitError, match="no device tree called c") as caught:
        found.dtb("c")
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("name", NAMES)
def test_changed_or_missing_files(root: Path, name: str) -> None:
    original = (root / name).read_text()
    (root / name).write_text(original.replace("c", "k", 1))
    with pytest.raises(KitError, match="was changed") as caught:
        artifacts.load(root)
    assert caught.value.code == ExitCode.MISMATCH
    (root / name).unlink()
    with pytest.raises(KitError, match="is missing"):
        artifacts.load(root, verify=False)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split("/")

    def change(manifest: dict[str, Any]) -> None:
        for parent in parents:
            manifest = manifest[parent]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (_set("schema", 2), "schema"),
        (_set("kernel/rocket", "absent"), "kernel/rocket"),
        (_set("kernel/image", "../../etc/passwd"), "kernel/image"),
        (_set("kernel/image", "/etc/passwd"), "kernel/image"),
        (_set("dtbs", {}), "dtbs"),
        (_set("unknown", 1), "top level"),
        (_set("files/Image/sha256", "12"), "files/Image/sha256"),
    ],
)
def test_bad_manifest_names_the_place(root: Path, change: Callable[[dict[str, Any]], None], place: str) -> None:
    manifest = json.loads((root / artifacts.MANIFEST).read_text())
    change(manifest)
    (root / artifacts.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(KitError) as caught:
        artifacts.load(root)
    assert caught.value.code == ExitCode.USAGE
    assert f": {place}: " in caught.value.message


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="not an artifact set"):
        artifacts.load(tmp_path)
    (tmp_path / artifacts.MANIFEST).write_text("{")
    with pytest.raises(KitError, match="not JSON"):
        artifacts.load(tmp_path)


def test_export(root: Path, tmp_path: Path) -> None:
    (root / "ssh_key").chmod(0o600)
    target = tmp_path / "copy"
    copy = artifacts.export(artifacts.load(root), target)
    assert copy.root == target and artifacts.load(target).manifest == copy.manifest
    assert copy.ssh_key.stat().st_mode & 0o777 == 0o600
    artifacts.export(artifacts.load(root), target)  # over an older set
    assert not list(tmp_path.glob("*.partial"))


def test_export_spares_other_directories(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(KitError, match="holds other files") as caught:
        artifacts.export(artifacts.load(root), other)
    assert caught.value.code == ExitCode.USAGE and (other / "thesis.txt").exists()
