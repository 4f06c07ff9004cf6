# SPDX-License-Identifier: MIT
"""A running Linux whose boot entries are changed: what it shows, and file operations that a power cut cannot spoil.

The board needs a POSIX shell, root, ``sha256sum`` and the usual small tools (busybox has them). Files are written under
another name, brought to the medium, read back from it and compared there, then renamed. What a loader reads is then
also brought out of the file system's journal, which U-Boot does not look at when it reads (fs/ext4): ``fsfreeze`` does
that.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.firmware.flash import bootcount
from lab.firmware.medium import link_error
from lab.firmware.transports.linux import LinuxTransport

CONF = "/boot/extlinux/extlinux.conf"
PART = ".npulab-part"
SURVEY_SECONDS = 90.0
"""Seen: 0.3 s; a board whose processors are busy takes its time."""

SURVEY = r"""
R=${NPULAB_ROOT:-}
get() { [ -r "$1" ] && tr -d '\n\000' < "$1"; }
echo "release|$(get "$R/proc/sys/kernel/osrelease")"
echo "boot-id|$(get "$R/proc/sys/kernel/random/boot_id")"
echo "cmdline|$(get "$R/proc/cmdline")"
echo "version|$(get "$R/proc/version")"
echo "model|$(get "$R/proc/device-tree/model")"
while read -r line; do echo "mount|$line"; done < "$R/proc/self/mountinfo"
for d in "$R"/sys/class/block/*; do [ -e "$d/partition" ] || continue
  u=$(sed -n 's/^PARTUUID=//p' "$d/uevent" 2>/dev/null)
  echo "block|${d##*/}|$(get "$d/dev")|$(get "$d/start")|$(get "$d/size")|$u"
done
for d in boot ""; do [ -d "$R/$d" ] && echo "space|/$d|$(df -Pk "$R/$d" | awk 'END { print $(NF - 2) }')"; done
for t in sha256sum fsfreeze depmod python3; do command -v $t >/dev/null && echo "tool|$t"; done
[ -f "$R/boot/failures" ] && echo "count|$(od -An -tx1 "$R/boot/failures" | tr -d ' \n')"
[ -f "$R/boot/extlinux/extlinux.conf" ] && echo "conf|there"
echo "end|"
"""


@dataclass(frozen=True)
class Mount:
    """A mounted file system; ``number`` is its device's."""

    number: str
    point: str
    kind: str
    source: str
    writable: bool


@dataclass(frozen=True)
class Survey:
    """What a board shows of itself. ``free`` bytes below ``/boot`` and ``/``."""

    release: str
    boot_id: str
    cmdline: str
    version: str
    model: str
    mounts: tuple[Mount, ...]
    blocks: dict[str, tuple[str, int, int, str]]
    free: dict[str, int]
    tools: frozenset[str]
    count: bootcount.Count
    has_conf: bool

    def mount_of(self, path: str) -> Mount:
        """The file system that a path is on."""
        fitting = [m for m in self.mounts if path == m.point or path.startswith(m.point.rstrip("/") + "/")]
        if not fitting:
            raise KitError(ExitCode.REFUSED, f"the board does not say what is mounted at {path}", "is /proc mounted?")
        return max(reversed(fitting), key=lambda mount: len(mount.point))

    def device_of(self, mount: Mount) -> tuple[str, int, int, str] | None:
        """Name, first byte, length and PARTUUID of the partition that a file system is on."""
        return self.blocks.get(mount.number)


def _mount(line: str) -> Mount | None:
    words = line.split()
    if "-" not in words[6:]:
        return None
    kind, source = words[words.index("-", 6) + 1 :][:2]
    return Mount(
        words[2],
        re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[4]),
        kind,
        source,
        "rw" in words[5].split(","),
    )


def survey(transport: LinuxTransport) -> Survey:
    """Look at the board; KitError (link) when its answer is not complete."""
    rows = [
        line.split("|")
        for line in transport.remote.run(SURVEY, timeout=SURVEY_SECONDS).decode(errors="replace").splitlines()
    ]
    if not rows or rows[-1][0] != "end":
        raise link_error(f"{transport.name}: the board's answer is incomplete", "is there a root shell?")
    one = {row[0]: "|".join(row[1:]) for row in rows}
    blocks = {
        row[2]: (row[1], int(row[3] or 0) * 512, int(row[4] or 0) * 512, row[5])
        for row in rows
        if row[0] == "block" and len(row) == 6
    }
    return Survey(
        one.get("release", ""),
        one.get("boot-id", ""),
        one.get("cmdline", ""),
        one.get("version", ""),
        one.get("model", ""),
        tuple(m for row in rows if row[0] == "mount" and (m := _mount("|".join(row[1:])))),
        blocks,
        {row[1].rstrip("/") or "/": int(row[2] or 0) * 1024 for row in rows if row[0] == "space"},
        frozenset(row[1] for row in rows if row[0] == "tool"),
        bootcount.parse(bytes.fromhex(one.get("count", ""))),
        "conf" in one,
    )


def _q(path: str) -> str:
    """A path of the board for its shell."""
    return f'"${{NPULAB_ROOT:-}}"{shlex.quote(path)}'


class Target:
    """File operations on the board. Paths are absolute on it."""

    def __init__(self, transport: LinuxTransport) -> None:
        self.transport, self.remote = transport, transport.remote
        self._gzip = self._run("command -v gzip || true") != ""

    def _run(self, script: str, stdin: bytes = b"", timeout: float = 120) -> str:
        try:
            return self.remote.run(script, stdin, timeout=timeout).decode(errors="replace").strip()
        except KitError as error:
            if "No space left" in error.message:
                raise KitError(
                    ExitCode.INFRASTRUCTURE, f"{error.message}", "free space on the board; nothing of it has changed"
                ) from error
            raise

    def read(self, path: str) -> bytes | None:
        """A file's content; None when it is not there."""
        data = self.remote.run(f"if [ -f {_q(path)} ]; then echo y; cat {_q(path)}; fi")
        return data[2:] if data.startswith(b"y\n") else None

    def digest(self, path: str) -> str:
        """SHA-256 of a file as it is on the medium; empty when it is not there."""
        self.transport.drop_caches(_q(path))
        return self._run(f"[ ! -f {_q(path)} ] || sha256sum < {_q(path)}")[:64]

    def existing(self, paths: list[str]) -> list[str]:
        """Those of the files that are there."""
        checks = "; ".join(f"[ ! -e {_q(path)} ] || echo {shlex.quote(path)}" for path in paths)
        return self._run(checks).splitlines()

    def put(self, path: str, source: Path, sha256: str, mode: int, advance: Callable[[int], None]) -> bool:
        """Bring a file to the board; False when it was there already.

        What an interrupted run left is gone on with, if it is the beginning of this file. KitError: refused when
        another file has that name, mismatch when it does not read back.
        """
        size = source.stat().st_size
        there = self._run(
            f"mkdir -p {_q(str(Path(path).parent))}; if [ -f {_q(path)} ]; then sha256sum < {_q(path)}; else "
            f"echo; wc -c < {_q(path + PART)} 2>/dev/null || echo 0; fi"
        ).split()
        if there and len(there[0]) == 64:
            if there[0] != sha256:
                raise KitError(
                    ExitCode.REFUSED,
                    f"the board has another file called {path}",
                    "nothing is replaced: build with another release name (CONFIG_LOCALVERSION), or remove it",
                )
            advance(size)
            return False
        at = self._continue(path, source, min(int(there[0]) if there else 0, size))
        advance(at)
        # a board's ciphers and consoles are slower than its gzip
        unpack, step = "gzip -dc | " if self._gzip else "", self.remote.step
        with source.open("rb") as stream:
            stream.seek(at)
            while at < size:
                data = stream.read(min(step, size - at))
                if not data:
                    raise KitError(ExitCode.MISMATCH, f"{source} changed while it was read", "plan again")
                self._run(
                    f"{unpack}dd of={_q(path + PART)} bs=4096 seek={at // 4096} conv=notrunc iflag=fullblock",
                    gzip.compress(data, 1) if unpack else data,
                )
                at += len(data)
                advance(len(data))
        self._settle(path, sha256, mode)
        return True

    def _continue(self, path: str, source: Path, have: int) -> int:
        """How many bytes of an interrupted copy are this file's."""
        part, have = _q(path + PART), have // 4096 * 4096
        if have:
            with source.open("rb") as stream:
                digest = hashlib.sha256(stream.read(have)).hexdigest()
            if not self._run(f"head -c {have} < {part} | sha256sum").startswith(digest):
                have = 0
        self._run(f": >> {part}; dd if=/dev/null of={part} bs=4096 seek={have // 4096}")
        return have

    def _settle(self, path: str, sha256: str, mode: int) -> None:
        """Bring a complete copy to the medium, read it back there, and give it its name."""
        part = _q(path + PART)
        self._run(f"chmod {mode:o} {part}; sync {part}")
        found = self.digest(path + PART)
        if found != sha256:
            self._run(f"rm -f {part}")
            raise KitError(
                ExitCode.MISMATCH,
                f"{path} does not read back from the medium as it was written",
                "run it again; if it repeats, the medium or the memory is bad",
            )
        self._run(f"mv {part} {_q(path)}; sync {_q(path)} {_q(str(Path(path).parent))}")

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Give a small file new content, atomically, read back before it gets its name."""
        part = _q(path + PART)
        keep = f"[ ! -f {_q(path)} ] || cp -p {_q(path)} {part}"
        self._run(f"mkdir -p {_q(str(Path(path).parent))}; {keep}; cat > {part}", data)
        self._settle(path, hashlib.sha256(data).hexdigest(), mode)

    def overwrite(self, path: str, data: bytes) -> None:
        """Change a file of the same length in its place: one block, so all or nothing."""
        self._run(f"dd of={_q(path)} bs={len(data)} conv=notrunc; sync {_q(path)}", data)

    def checkpoint(self, points: list[str]) -> bool:
        """Bring file systems out of their journals; False where the board has no tool for it."""
        quoted = " ".join(_q(point) for point in points)
        each = f"for m in {quoted}; do fsfreeze -f $m || exit 0; fsfreeze -u $m; done"
        # below another root (a board made of files) they are this machine's own
        return self._run(f"sync; trap '' HUP INT TERM; [ -n \"$NPULAB_ROOT\" ] || {{ {each}; }}; echo done").endswith(
            "done"
        )

    def remove(self, paths: list[str], folders: list[str]) -> None:
        """Remove files, then directories as far as they are empty."""
        for at in range(0, len(paths), 50):
            self._run("rm -f " + " ".join(_q(path) for path in paths[at : at + 50]))
        for folder in folders:
            self._run(f"rmdir {_q(folder)} 2>/dev/null || :")
        self._run("sync")
