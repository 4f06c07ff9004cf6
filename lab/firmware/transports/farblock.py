# SPDX-License-Identifier: MIT
"""A medium of a board in a reader of another host: an SD mux of an exporter, a disk of U-Boot's ``ums``.

What `block.BlockTransport` does on this host, with the shell of that one; as root, or a user who may use the device.
"""

from __future__ import annotations

import re

from lab.errors import ExitCode, KitError
from lab.firmware.identity import Identity, clean
from lab.firmware.medium import Medium, StorageInfo
from lab.firmware.transports.block import InReader
from lab.firmware.transports.linux import LinuxMedium, Remote, discover, drop_caches, mount_points


class FarBlockTransport(InReader):
    """The block device ``path`` of the host behind ``remote``, which holds the board's ``storage``."""

    def __init__(self, remote: Remote, path: str, storage: str, kind: str) -> None:
        self.remote, self.path, self.name = remote, path, f"block+{remote.name},{path}"
        if not re.fullmatch(r"/dev/[A-Za-z0-9_.:+/-]+", path):
            raise KitError(ExitCode.USAGE, f"{path} is not a path of a device", "such as /dev/sda, or one in /dev/disk")
        rows = discover(remote)
        self.has_sha256, self.has_python = (
            any(row[0] == key and len(row) > 1 and row[1] for row in rows) for key in ("sha256", "python")
        )
        self._device = self._resolve()
        found = [row for row in rows if row[0] == "block" and len(row) == 10 and row[1] == self._device]
        if not found or not int(found[0][2] or 0):
            raise KitError(
                ExitCode.NO_DEVICE,
                f"{self.name} is not there, or has no medium",
                "is the medium in the reader, or the mux set to host?",
            )
        size, mounted = int(found[0][2]) * 512, mount_points(rows, self._device, read_only=True)
        self._info = StorageInfo(storage, kind, size, 4096 if kind == "spi-nor" else 512, mounted=mounted)
        self._cid, self._serial = found[0][8], found[0][9]

    def _resolve(self) -> str:
        """The kernel's name of the device, such as ``sda``."""
        script = f'f="${{NPULAB_ROOT:-}}{self.path}"; n=${{f##*/}}; [ -e "$NPULAB_ROOT/sys/class/block/$n" ] || '
        script += 'n=$(readlink -f "$f"); echo "${n##*/}"'
        name = self.remote.run(script).decode(errors="replace").strip()
        if not re.fullmatch(r"[A-Za-z0-9_.:+-]+", name):
            raise KitError(ExitCode.NO_DEVICE, f"{self.name} is not there")
        return name

    def identify(self) -> Identity:
        storage = self._info.name
        wwid = self.remote.run(f'cat "$NPULAB_ROOT"/sys/class/block/{self._device}/device/wwid 2>/dev/null || true')
        values: dict[str, str | None] = {f"sd-cid:{storage}": self._cid, f"nvme-serial:{storage}": self._serial}
        values[f"disk-serial:{storage}"] = wwid.decode(errors="replace")
        return clean(values)

    def open(self, storage: str, *, write: bool = False) -> Medium:
        self._expect(storage)
        if write:
            self._check_unused()
        return LinuxMedium(self, self._info, self._device, write=write)

    def _check_unused(self) -> None:
        """KitError (refused) when anything on that host uses the device: its kernel says so (O_EXCL)."""
        mounted = mount_points(discover(self.remote), self._device, read_only=True)
        if mounted:
            raise KitError(ExitCode.REFUSED, f"{self.name} is mounted at {mounted[0]}", "unmount it first")
        if not self.has_python:
            raise KitError(ExitCode.INFRASTRUCTURE, f"{self.name}: no python3 there", "writing needs it on that host")
        check = "import os,sys;os.close(os.open(sys.argv[1],os.O_RDWR|os.O_EXCL))"
        script = f'python3 -c "{check}" "${{NPULAB_ROOT:-}}/dev/{self._device}" 2>&1 || true'
        said = self.remote.run(script).decode(errors="replace").strip()
        if "busy" in said:
            raise KitError(ExitCode.REFUSED, f"{self.name} is in use", "unmount it, and end what holds it, first")
        if said:
            raise KitError(ExitCode.LINK, f"{self.name}: {said.splitlines()[-1]}", "may you write to it?")

    def beat(self) -> None:
        return  # nothing waits for it

    def drop_caches(self, path: str) -> None:
        drop_caches(self.remote, path)

    def close(self) -> None:
        self.remote.close()
