# SPDX-License-Identifier: MIT
"""Media of a running Linux, through a shell on it: over ssh or over the serial console.

The board needs a POSIX shell, dd, head, cat and readlink (busybox has them) and root. Media are found by the device
tree node of their controller; the SPI NOR is read through its character device, so no block cache lies in between.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from lab.boards import Board, Storage
from lab.errors import ExitCode, KitError
from lab.firmware.identity import Identity, clean
from lab.firmware.medium import Medium, StorageInfo, check_range, link_error
from lab.firmware.transports import quiesce, sparse
from lab.firmware.transports.quiesce import Hold
from lab.firmware.transports.sparse import Unpacker


class Remote(Protocol):
    """A shell on the board."""

    name: str
    step: int
    """Bytes that one command should carry."""

    def run(self, script: str, stdin: bytes = b"", *, timeout: float = 30) -> bytes:
        """Standard output of a script; KitError (link) when it fails or takes too long."""

    def stream(self, script: str) -> Iterator[bytes] | None:
        """The output of a long script piece by piece, where the link is fast enough to want that."""

    def close(self) -> None:
        """End the connection."""


DISCOVER = r"""
R=${NPULAB_ROOT:-}
node() { q=$(readlink -f "$1"); while [ -n "$q" ] && [ "$q" != "$R/sys" ]; do
  [ -e "$q/of_node" ] && { readlink -f "$q/of_node"; return; }; q=${q%/*}; done; }
get() { [ -r "$1" ] && tr -d '\n\000|' < "$1"; }
for d in "$R"/sys/class/block/*; do [ -e "$d/size" ] || continue
  p=$(readlink -f "$d"); p=${p%/*}; q=$p/device; [ -e "$d/device" ] && q=$d/device
  part=; [ -e "$d/partition" ] && part=part
  printf '%s|' block "${d##*/}" "$(get "$d/size")" "$part" "${p##*/}" "$(get "$d/dev")" "$(node "$d")"
  echo "$(get "$q/type")|$(get "$q/cid")|$(get "$q/serial")"
done
for d in "$R"/sys/class/mtd/mtd[0-9]*; do case $d in *ro|*\*) continue;; esac
  [ -e "$d/offset" ] && continue
  echo "mtd|${d##*/}|$(get $d/size)|$(get $d/erasesize)|$(get $d/type)|$(node $d)|$(get $d/device/spi-nor/jedec_id)"
done
for f in "$R"/sys/bus/nvmem/devices/rockchip-otp*/nvmem; do [ -r "$f" ] &&
  echo "otp|$(dd if="$f" bs=1 skip=7 count=16 2>/dev/null | od -An -tx1 | tr -d ' \n')"; done
echo "serial|$(get $R/proc/device-tree/serial-number)"
echo "compatible|$(tr '\000' ' ' < $R/proc/device-tree/compatible 2>/dev/null)"
for d in "$R"/sys/class/net/*; do [ -e "$d/device" ] && echo "mac|$(get $d/address)"; done
echo "release|$(uname -r)"
echo "cmdline|$(get $R/proc/cmdline)"
while read -r _ _ dev _ target opts _; do echo "mount|$dev|$target|$opts"; done < "$R/proc/self/mountinfo"
echo "sha256|$(command -v sha256sum)"
echo "python|$(command -v python3)"
for d in /dev/shm /run /tmp; do while read -r _ _ _ _ t rest; do case "$t $rest" in
  "$d "*" - tmpfs "*|"$d "*" - ramfs "*) [ -w "$d" ] && echo "memory|$d";; esac; done < "$R/proc/self/mountinfo"; done
echo "end|"
"""


def _addresses(node: str) -> list[int]:
    return [int(found, 16) for found in re.findall(r"@([0-9a-f]{7,9})(?:/|$)", node)]


def discover(remote: Remote) -> list[list[str]]:
    """What `DISCOVER` prints, as rows of fields."""
    rows = [line.split("|") for line in remote.run(DISCOVER, timeout=90).decode(errors="replace").splitlines()]
    if not rows or rows[-1][0] != "end":
        raise link_error(f"{remote.name}: the answer is incomplete", "is there a root shell?")
    return rows


def mount_points(rows: list[list[str]], disk: str, *, read_only: bool = False) -> tuple[str, ...]:
    """Where file systems of a disk and of its partitions are mounted read-write, or at all."""
    devices = {row[5] for row in rows if row[0] == "block" and len(row) == 10 and disk in (row[1], row[3] and row[4])}
    mounts = [row for row in rows if row[0] == "mount" and len(row) > 3]
    return tuple(row[2] for row in mounts if row[1] in devices and (read_only or "rw" in row[3].split(",")))


class Machine(Protocol):
    """What a medium needs of the Linux that it is in."""

    remote: Remote
    has_sha256: bool
    has_python: bool

    def beat(self) -> None:
        """A sign of life for whatever waits for one."""

    def drop_caches(self, path: str) -> None:
        """The next read comes from the medium."""


def drop_caches(remote: Remote, path: str) -> None:
    """The next read of a device comes from its medium."""
    remote.run(
        'sync; f="$NPULAB_ROOT"/proc/sys/vm/drop_caches; [ ! -w "$f" ] || echo 3 > "$f"; '
        f"command -v blockdev >/dev/null && [ -b {path} ] && blockdev --flushbufs {path}; true",
        timeout=120,
    )


class LinuxMedium:
    """A block device or an MTD character device of a running Linux."""

    def __init__(self, transport: Machine, info: StorageInfo, device: str, *, write: bool) -> None:
        self.info, self._transport, self.device = info, transport, device
        self._remote = transport.remote
        self._path = f'"$NPULAB_ROOT"/dev/{device}'
        self._nor = info.kind == "spi-nor"
        self._stream: Unpacker | None = None
        self._at = self._last = -1
        self._unlocked = False
        if write and "boot" in device:
            self._force_read_only(False)

    def _force_read_only(self, on: bool) -> None:
        """The eMMC's boot partitions are locked except while they are written."""
        self._remote.run(f'echo {int(on)} > "$NPULAB_ROOT"/sys/class/block/{self.device}/force_ro')
        self._unlocked = not on

    def _dd(self, offset: int, length: int) -> str:
        """A command that prints ``length`` bytes from ``offset``; both must be multiples of 512 for devices."""
        block = 1 << 20
        while offset % block:
            block >>= 1
        count = -(-length // block)
        return f"dd if={self._path} bs={block} skip={offset // block} count={count} 2>/dev/null | head -c {length}"

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.info, offset, length, write=False)
        first, last = offset // 512 * 512, -(-(offset + length) // 512) * 512
        parts = []
        for at in range(first, last, self._remote.step):
            parts.append(self._exact(at, min(self._remote.step, last - at)))
        whole = b"".join(parts)
        return whole[offset - first : offset - first + length]

    def _exact(self, offset: int, length: int) -> bytes:
        """One request: from the running stream, a new stream for the second read in a row, else a command."""
        if self._stream is None and offset == self._last and offset:
            self._stream, self._at = self._packed(offset), offset
        self._last = offset + length
        self._transport.beat()
        if self._stream is None or offset != self._at:
            data = self._remote.run(self._dd(offset, length))
        else:
            data = self._stream.take(length)
            self._at += length
        if len(data) != length:
            raise link_error(
                f"{self._remote.name}: {self.device} ended at byte {offset + len(data)}: did the board restart?"
            )
        return data

    def _packed(self, start: int) -> Unpacker | None:
        """The rest of the medium as a stream without its zeros, where the link is fast enough to want one."""
        has_python, end = self._transport.has_python, self.info.size
        script = (sparse.python_script if has_python else sparse.shell_script)(self._path, start, end)
        source = self._remote.stream(script)
        piece = sparse.PIECE if has_python else sparse.SHELL_PIECE
        return None if source is None else Unpacker(source, end - start, piece, self._remote.name)

    def _stop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._at = -1

    def write(self, offset: int, data: bytes) -> None:
        check_range(self.info, offset, len(data), write=True)
        self._stop()
        if self._nor:
            self.erase(offset, len(data))
        step = min(self._remote.step, 1 << 20)
        for at in range(0, len(data), step):
            part = data[at : at + step]
            block = 4096
            while (offset + at) % block or len(part) % block:
                block >>= 1
            self._remote.run(
                f"dd of={self._path} bs={block} seek={(offset + at) // block} conv=notrunc iflag=fullblock 2>/dev/null",
                part,
            )

    def erase(self, offset: int, length: int) -> None:
        check_range(self.info, offset, length, write=True)
        self._stop()
        if not self._nor:
            for at in range(offset, offset + length, self._remote.step):
                self.write(at, bytes(min(self._remote.step, offset + length - at)))
            return
        count = length // self.info.block
        # mtd-utils where they are installed, else the same ioctl (MEMERASE, linux/mtd/mtd-abi.h) from Python.
        python = (
            "import fcntl,struct,sys;f=open(sys.argv[1],'r+b',0);"
            f"[fcntl.ioctl(f,0x40084d02,struct.pack('II',a,{self.info.block})) "
            f"for a in range({offset},{offset + length},{self.info.block})]"
        )
        self._remote.run(
            f"if command -v flash_erase >/dev/null; then flash_erase -q {self._path} {offset} {count} >/dev/null; "
            f'else python3 -c "{python}" {self._path}; fi',
            timeout=120,
        )

    def flush(self) -> None:
        self._remote.run("sync", timeout=120)

    def reopen(self) -> None:
        self._stop()
        self._transport.drop_caches(self._path)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        if start < end:
            yield start, end

    def digest(self, offset: int, length: int) -> str | None:
        if not self._transport.has_sha256:
            return None
        self._stop()
        self._transport.beat()
        answer = self._remote.run(f"{self._dd(offset, length)} | sha256sum", timeout=120).decode(errors="replace")
        return answer.split()[0] if re.match(r"[0-9a-f]{64}\b", answer) else None

    def close(self) -> None:
        self._stop()
        if self._unlocked:
            self._force_read_only(True)


def open_linux(board: Board, remote: Remote) -> LinuxTransport:
    """The board behind ``remote``; that is closed when nothing comes of it."""
    try:
        return LinuxTransport(board, remote)
    except BaseException:
        remote.close()
        raise


class LinuxTransport:
    """A board that runs Linux."""

    def __init__(self, board: Board, remote: Remote) -> None:
        self.board, self.remote, self.name = board, remote, remote.name
        self._rows = discover(remote)
        self.has_sha256 = bool(self._value("sha256"))
        self.has_python = bool(self._value("python"))
        self._hold: Hold | None = None
        compatible = self._value("compatible").split()
        if compatible and board.compatible[0] not in compatible and not board.virtual:
            raise KitError(
                ExitCode.REFUSED,
                f"{self.name} is a {compatible[0]}, not a {board.title}",
                f"name its board instead of {board.name}",
            )
        self._devices: dict[str, str] = {}
        self._media = {info.name: info for info in self._find()}

    def _value(self, key: str) -> str:
        return next((row[1] for row in self._rows if row[0] == key and len(row) > 1), "")

    @property
    def context(self) -> dict[str, str]:
        """What else a backup records: kernel and its command line."""
        return {key: self._value(key) for key in ("release", "cmdline") if self._value(key)}

    def _find(self) -> Iterator[StorageInfo]:
        blocks = [row for row in self._rows if row[0] == "block" and len(row) == 10]
        for row in self._rows:
            if row[0] == "mtd" and len(row) == 7 and row[4] == "nor":
                storage = self._storage(row[5])
                if storage:
                    self._devices[storage.name] = row[1]
                    detail = {"jedec": row[6]} if row[6] else {}
                    yield StorageInfo(
                        storage.name, "spi-nor", int(row[2]), int(row[3]), storage.controller, detail=detail
                    )
        for row in blocks:
            _, name, sectors, part, _, _, node, kind, *_ = row
            storage = self._storage(node)
            if part or not storage or not int(sectors or 0) or (kind == "SD") != (storage.kind == "sd"):
                continue
            if storage.kind == "spi-nor":  # mtdblock, where the kernel has it: the character device is the medium
                continue
            hardware = re.search(r"(boot[01])$", name) if storage.kind == "emmc" else None
            full = f"{storage.name}.{hardware[1]}" if hardware else storage.name
            mounted = mount_points(self._rows, name)
            self._devices[full] = name
            yield StorageInfo(full, storage.kind, int(sectors) * 512, 512, storage.controller, mounted=mounted)

    def _storage(self, node: str) -> Storage | None:
        return next((s for s in map(self.board.storage_at, _addresses(node)) if s), None)

    def identify(self) -> Identity:
        values: dict[str, str | None] = {"cpu-id": self._value("otp"), "dt-serial": self._value("serial")}
        values["compatible"] = (self._value("compatible").split() or [""])[0]
        for row in self._rows:
            # Locally administered addresses are made up by software and repeat from board to board.
            if row[0] == "mac" and re.match(r"[0-9a-f][048c]:", row[1]):
                values.setdefault("mac", row[1])
        keys = {"emmc": ("emmc-cid", 8), "sd": ("sd-cid", 8), "nvme": ("nvme-serial", 9), "virtio": ("disk-serial", 9)}
        for name, device in self._devices.items():
            rows = [r for r in self._rows if r[0] == "block" and r[1] == device]
            if rows and "." not in name:
                key, column = keys[self._media[name].kind]
                values[f"{key}:{name}"] = rows[0][column]
        return clean(values)

    def located(self, number: str) -> tuple[str, str] | None:
        """The medium and the block device behind a device number (``179:1``); None when it is on no known medium."""
        for row in self._rows:
            if row[0] == "block" and len(row) == 10 and row[5] == number:
                disk = row[4] if row[3] else row[1]
                names = [name for name, device in self._devices.items() if device == disk]
                return (names[0], row[1]) if names else None
        return None

    def storages(self) -> list[StorageInfo]:
        order = [storage.name for storage in self.board.storage]
        return sorted(self._media.values(), key=lambda info: (order.index(info.name.partition(".")[0]), info.name))

    def open(self, storage: str, *, write: bool = False) -> Medium:
        if storage not in self._media:
            raise KitError(ExitCode.NO_DEVICE, f"{self.name} has no {storage}", f"it has: {', '.join(self._media)}")
        return LinuxMedium(self, self._media[storage], self._devices[storage], write=write)

    @contextlib.contextmanager
    def quiesce(self, storages: Sequence[str]) -> Iterator[Hold | None]:
        """Hold the file systems of these media still; None when nothing is mounted, or the board has no tmpfs."""
        mounts = [target for info in self._media.values() if info.name in storages for target in info.mounted]
        memory = self._value("memory")
        if not mounts or not memory:
            yield None
            return
        run = self._run_within_guard
        with quiesce.hold(run, memory, list(dict.fromkeys(mounts))) as held:
            self._hold = held
            try:
                # What the block cache read of the disk before the file system wrote its files there is old by now.
                for name in storages:
                    self.drop_caches(f'"$NPULAB_ROOT"/dev/{self._devices[name]}')
                yield held
            finally:
                self._hold = None

    def _run_within_guard(self, script: str) -> bytes:
        return self.remote.run(script, timeout=quiesce.GUARD_SECONDS)

    def beat(self) -> None:
        """A sign of life for the guard of frozen file systems."""
        if self._hold is not None:
            self._hold.beat()

    def drop_caches(self, path: str) -> None:
        drop_caches(self.remote, path)

    def reset(self) -> None:
        with contextlib.suppress(KitError):  # the answer may be lost with the connection
            self.remote.run("sync; (sleep 1; reboot) >/dev/null 2>&1 &")

    def close(self) -> None:
        self.remote.close()
