# SPDX-License-Identifier: MIT
"""An eMMC with a system on it, as a board leaves its first installation: for virtual boards that start from it.

The artifact set's root file system, with a journal as installers make it, in a partition behind the loader's area; its
kernel and device tree below ``/boot/factory``, and an ``extlinux.conf`` with that one entry. No root is needed, and no
loader is in it: `lab.virt.loader` plays one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

from lab.assemble.artifacts import ArtifactSet
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware import gpt
from lab.firmware.flash.extlinux import Config, Label, render
from lab.process import require, run
from lab.virt import chips
from lab.virt.dtb import require_npu
from lab.virt.select import find_dtb, with_console

ROOT_START = 16 << 20
"""Sector 32768: what lies in front belongs to the loader."""
DEFAULT_SIZE = 256 << 20
JOURNAL_MIB = 4
ROOT = "/dev/mmcblk0p1"
"""On boards whose tree has ``mmc0 = &sdhci`` among its aliases."""
GUID = uuid.UUID("6e70756c-6162-4000-8000-00000000e33c")


def make(artifacts: ArtifactSet, board: str, target: Path, log: Path, size: int = DEFAULT_SIZE) -> Path:
    """Write the image of an eMMC of ``size`` bytes (boot partitions included) for a board's device tree.

    KitError: usage when the set needs an initramfs (its kernel may not reach an eMMC without modules) or ``size`` is
    too small.
    """
    if artifacts.initrd is not None:
        raise KitError(
            ExitCode.USAGE, "this kernel needs modules to reach its root file system", "take --kernel fast or debug"
        )
    target = target.expanduser().absolute()
    user = size - 2 * chips.EMMC_BOOT_SIZE
    length = (user - ROOT_START - 33 * gpt.SECTOR) // (1 << 20) * (1 << 20)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with tempfile.TemporaryDirectory(prefix="npulab-emmc-", dir=target.parent) as name:
            root = _root_file_system(artifacts, find_dtb(artifacts, board), Path(name), length, log)
            with partial.open("wb") as image:
                image.truncate(size)
                head, tail = gpt.build(user, [("root", ROOT_START, length)], GUID)
                for at, data in ((0, head), (user - len(tail), tail)):
                    image.seek(2 * chips.EMMC_BOOT_SIZE + at)
                    image.write(data)
                _copy_sparse(root, image.fileno(), 2 * chips.EMMC_BOOT_SIZE + ROOT_START)
        partial.replace(target)
    except OSError as error:
        raise from_os_error(error, f"making {target}") from error
    finally:
        partial.unlink(missing_ok=True)
    return chips.emmc(target)


def _copy_sparse(source: Path, target: int, base: int) -> None:
    with source.open("rb") as stream:
        end, at = stream.seek(0, os.SEEK_END), 0
        while at < end:
            try:
                at = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            stop = os.lseek(stream.fileno(), at, os.SEEK_HOLE)
            while at < stop:
                data = os.pread(stream.fileno(), min(1 << 20, stop - at), at)
                os.pwrite(target, data, base + at)
                at += len(data)


def factory_config(artifacts: ArtifactSet, dtb: Path) -> Config:
    """The configuration that the image starts with."""
    words = [word for word in artifacts.cmdline.split() if not word.startswith("root=")]
    append = with_console(" ".join([f"root={ROOT}", *words]), require_npu(dtb).console)
    release = artifacts.manifest["kernel"]["release"]
    tree = f"/boot/factory/{dtb.name}"
    label = Label("factory", "/boot/factory/Image", append, fdt=tree, menu=f"Linux {release}")
    return Config((label,), default="factory")


def _root_file_system(artifacts: ArtifactSet, dtb: Path, work: Path, length: int, log: Path) -> Path:
    """The set's root file system, grown or shrunk to ``length`` bytes, with what a loader needs."""
    root, conf, script = work / "root.ext4", work / "extlinux.conf", work / "commands"
    run(["cp", "--sparse=always", artifacts.rootfs, root], stage="eMMC image", log=log)
    root.chmod(0o600)
    conf.write_text(render(factory_config(artifacts, dtb)))
    copies = {
        "/boot/factory/Image": artifacts.kernel,
        f"/boot/factory/{dtb.name}": dtb,
        "/boot/extlinux/extlinux.conf": conf,
    }
    lines = ["mkdir /boot", "mkdir /boot/factory", "mkdir /boot/extlinux"]
    for path, file in copies.items():
        plain = work / f"file{len(lines)}"
        shutil.copyfile(file, plain)  # debugfs has no quoting for the source's name
        plain.chmod(0o644)
        lines += [f"write {plain} {path}", f"sif {path} uid 0", f"sif {path} gid 0"]
    script.write_text("\n".join(lines) + "\n")
    tune = require("tune2fs", "e2fsprogs")
    resize: list[str | Path] = [require("resize2fs", "e2fsprogs"), "-f", root, f"{length >> 20}M"]
    hint = f"the root file system needs {artifacts.rootfs.stat().st_size >> 20} MiB and its files a little more"
    run([require("e2fsck", "e2fsprogs"), "-fp", root], stage="eMMC image: checking", log=log)
    run(resize, stage="eMMC image: size", log=log, hint=hint)
    run([tune, "-j", "-J", f"size={JOURNAL_MIB}", root], stage="eMMC image: journal", log=log)
    run([require("debugfs", "e2fsprogs"), "-w", "-f", script, root], stage="eMMC image: files", log=log)
    run([require("e2fsck", "e2fsprogs"), "-fn", root], stage="eMMC image: checking", log=log)
    return root
