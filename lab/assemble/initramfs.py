# SPDX-License-Identifier: MIT
"""A small initramfs: loads modules in order, mounts the root file system, leaves the modules there, and goes on.

The archive is a "newc" cpio (linux Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: it is
handed over in memory, and unpacking would take longer than copying.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from lab.assemble.apt import TARGET, Apt
from lab.cache import Cache
from lab.output import Output
from lab.process import require, run

INIT = """#!/bin/busybox sh
# SPDX-License-Identifier: MIT
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /lib/modules/order); do
    /bin/busybox insmod "/lib/modules/RELEASE/$module" || echo "initramfs: $module did not load"
done
root=/dev/vda
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in root=*) root=${word#root=} ;; esac
done
tries=0
until [ -b "$root" ] || [ $tries -ge 100 ]; do
    /bin/busybox usleep 50000
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o rw "$root" /root || exec /bin/busybox sh
/bin/busybox mount -t tmpfs -o mode=755 tmpfs /root/usr/lib/modules
/bin/busybox cp -a /lib/modules/RELEASE /root/usr/lib/modules/
/bin/busybox mount -o move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /sbin/init
"""


class Archive:
    """Writes a newc archive; every file belongs to root and has time 0, so equal contents give equal archives."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._inode = 0
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        for part in (header, data):
            self._sink.write(part + b"\0" * (-len(part) % 4))

    def _parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents):
            folder = str(parent)
            if folder != "." and folder not in self._folders:
                self._folders.add(folder)
                self._entry(folder, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a file; its folders are added before it."""
        self._parents(name)
        self._entry(name, stat.S_IFREG | permissions, data)

    def close(self) -> None:
        """Write the end mark."""
        self._entry("TRAILER!!!", 0, b"")


def busybox(apt: Apt, cache: Cache, out: Output, log: Path) -> Path:
    """The target's static busybox, from Debian's package."""
    (package,) = apt.locate(["busybox-static"], TARGET, out)

    def make(entry: Path) -> None:
        (deb,) = apt.fetch([package], "busybox", out)
        run([require("dpkg-deb", "dpkg"), "-x", deb, entry], stage=f"unpacking {deb.name}", log=log)

    return cache.entry("busybox", package.sha256[:20], make) / "usr/bin/busybox"


def load_order(modules: Iterable[Mapping[str, Any]]) -> list[str]:
    """Module names, each after those it depends on."""
    by_name = {module["name"]: module for module in modules}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in by_name:
            return
        for dependency in by_name[name]["depends"]:
            add(dependency)
        order.append(name)

    for name in by_name:
        add(name)
    return order


def dependency_table(modules: Iterable[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """``modules.dep`` for modprobe: each module's file and all it needs, nearest first."""
    by_name = {module["name"]: module for module in modules}
    lines = []
    for name in by_name:
        needed = [other for other in reversed(load_order(_closure(name, by_name))) if other != name]
        lines.append(f"{files[name]}: {' '.join(files[other] for other in needed)}".rstrip())
    return "\n".join(lines) + "\n"


def _closure(name: str, by_name: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    seen: dict[str, Mapping[str, Any]] = {}
    pending = [name]
    while pending:
        current = pending.pop()
        if current in seen or current not in by_name:
            continue
        seen[current] = by_name[current]
        pending += by_name[current]["depends"]
    return list(seen.values())


def write(image: Path, program: Path, release: str, modules: list[dict[str, Any]], folder: Path) -> None:
    """Write the initramfs with the modules of ``folder`` (described by ``modules``, see checks.module).

    ``program`` is the target's busybox.
    """
    files = {module["name"]: f"kernel/{Path(module['file']).name}" for module in modules}
    base = f"lib/modules/{release}"
    with image.open("wb") as sink:
        archive = Archive(sink)
        archive.file("init", INIT.replace("RELEASE", release).encode(), 0o755)
        archive.file("bin/busybox", program.read_bytes(), 0o755)
        order = [files[name] for name in load_order(modules)]
        archive.file("lib/modules/order", ("\n".join(order) + "\n").encode())
        archive.file(f"{base}/modules.dep", dependency_table(modules, files).encode())
        aliases = [f"alias {alias} {module['name']}" for module in modules for alias in module["aliases"]]
        archive.file(f"{base}/modules.alias", ("\n".join(aliases) + "\n").encode())
        for module in modules:
            archive.file(f"{base}/{files[module['name']]}", (folder / Path(module["file"]).name).read_bytes())
        archive.close()
