# SPDX-License-Identifier: MIT
"""Artifact sets: a directory with ``manifest.json``; every later step takes a set, never loose files.

Layout of a set: ``Image``, ``config``, ``dtbs/<board>.dtb``, ``rootfs.ext4``, ``kit.ext4``, ``qemu-system-aarch64``,
``ssh_key`` (0600), ``ssh_host_key.pub``, and with a modular kernel ``initrd.img``. The manifest names each file with
its SHA-256 and size and says what it was made from; its JSON schema is ``manifest.schema.json`` beside this module.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from lab.cache import file_digest
from lab.errors import ExitCode, KitError

MANIFEST = "manifest.json"
SCHEMA = Path(__file__).with_name("manifest.schema.json")


@dataclass(frozen=True)
class ArtifactSet:
    """An artifact set on disk; made by `load` only, so its manifest is valid."""

    root: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """Absolute path of a file that the manifest lists."""
        return self.root / name

    @property
    def kernel(self) -> Path:
        """The kernel, an arm64 ``Image``."""
        return self.file(self.manifest["kernel"]["image"])

    @property
    def initrd(self) -> Path | None:
        """The initramfs, when the kernel needs modules to reach its root file system."""
        name = self.manifest["kernel"]["initrd"]
        return self.file(name) if name else None

    @property
    def rootfs(self) -> Path:
        """The root file system, an ext4 image; attach it as the first virtio disk."""
        return self.file(self.manifest["rootfs"]["image"])

    @property
    def kit(self) -> Path:
        """The kit layer, a small ext4 image with ``rknpu_userspace``; found by its label, attach it anywhere."""
        return self.file(self.manifest["kit"]["image"])

    @property
    def qemu(self) -> Path:
        """The QEMU binary with the rk3588 machine, for the host that built the set."""
        return self.file(self.manifest["qemu"]["binary"])

    @property
    def ssh_key(self) -> Path:
        """Private key that root's account on the board accepts (mode 0600)."""
        return self.file(self.manifest["ssh"]["key"])

    @property
    def ssh_host_key(self) -> Path:
        """Public host key of the board's SSH server."""
        return self.file(self.manifest["ssh"]["host_key"])

    @property
    def cmdline(self) -> str:
        """Kernel command line: root device and console."""
        text: str = self.manifest["cmdline"]
        return text

    @property
    def boards(self) -> list[str]:
        """Names that `dtb` knows, sorted."""
        return sorted(self.manifest["dtbs"])

    def dtb(self, board: str) -> Path:
        """The device tree blob of a board, named as in the kernel tree, e.g. ``rk3588s-orangepi-5``."""
        entry = self.manifest["dtbs"].get(board.removesuffix(".dtb").removeprefix("rockchip/"))
        if entry is None:
            close = " ".join(difflib.get_close_matches(board, self.boards, 6, 0.3)) or "nothing"
            raise KitError(
                ExitCode.USAGE,
                f"the artifact set has no device tree called {board}",
                f"close to it: {close}; all of its {len(self.boards)} are in {self.root / 'manifest.json'}",
            )
        return self.file(entry["file"])


def schema() -> dict[str, Any]:
    """The JSON schema of manifests."""
    document: dict[str, Any] = json.loads(SCHEMA.read_text())
    return document


def load(path: Path, *, verify: bool = True) -> ArtifactSet:
    """The artifact set in a directory.

    Raises KitError: usage when there is no valid manifest, mismatch when a file is missing or (with ``verify``) has
    other contents than the manifest says.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise KitError(ExitCode.MISMATCH, f"{path}: {name} is missing", "build it again: npulab build virt")
        if file.stat().st_size != expected["size"] or (verify and file_digest(file) != expected["sha256"]):
            raise KitError(ExitCode.MISMATCH, f"{path}: {name} was changed", "build it again: npulab build virt")
    return ArtifactSet(path.absolute(), manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        # the validator itself, not jsonschema.validate: that checks the schema too, each time (a test does it once)
        error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(manifest))
    except FileNotFoundError:
        raise KitError(
            ExitCode.USAGE, f"{path} is not an artifact set: it has no {MANIFEST}", "make one: npulab build virt"
        ) from None
    except ValueError as broken:
        raise KitError(ExitCode.USAGE, f"{path / MANIFEST}: not JSON: {broken}", "build the set again") from broken
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "top level"
        raise KitError(ExitCode.USAGE, f"{path / MANIFEST}: {place}: {error.message}", "build the set again")
    return manifest


def describe(path: Path) -> dict[str, Any]:
    """The manifest's entry of one file."""
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def link(source: Path, target: Path) -> None:
    """Put a file at ``target`` without copying where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def export(artifacts: ArtifactSet, target: Path) -> ArtifactSet:
    """Copy a set to a directory of the user's; the directory must be new, empty or an older set."""
    target = target.absolute()
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise KitError(ExitCode.USAGE, f"{target} holds other files", "name an empty or new directory")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name in [*artifacts.manifest["files"], MANIFEST]:
            copy = partial / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(artifacts.file(name), copy)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load(target, verify=False)
