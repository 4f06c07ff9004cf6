# SPDX-License-Identifier: MIT
"""Plays the boot loader for a board that starts from its eMMC: ``python -m lab.virt.loader SPEC``.

At every start, after every reset and whenever the power comes back, the eMMC's image is read anew as U-Boot reads it
(`lab.firmware.flash.extlinux`, `lab.virt.disk`), and QEMU runs with the kernel, initrd, device tree and command line
found there. Two loaders are played: ``stock``, as the mainline configurations of RK3588 boards make it, and
``bootcount``, the same with ``CONFIG_BOOTCOUNT_FS`` (docs/firmware.md has the lines), which counts starts in a file and
takes the ``fallback`` label after one that was not confirmed. No loader code runs; what it would say is in console.log.

Somebody at the board can choose an entry for one start (``setenv pxe_label_override`` at the loader's prompt), or put
in a medium that comes first: two files in the runtime directory stand for that.

QEMU is told to end at a reset. A guest that switches itself off ends this program with 0; QEMU's own failure ends it
with QEMU's code; all else (reset, ``quit`` on the monitor, which takes the power away) starts it again.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.firmware.flash import bootcount, extlinux
from lab.kernel.elf import is_image
from lab.virt.disk import Partition, boot_partitions
from lab.virt.dtb import with_serial
from lab.virt.guard import die_with
from lab.virt.qmp import Qmp, QmpError

LOADERS = ("stock", "bootcount")
FDT_MAGIC = b"\xd0\x0d\xfe\xed"
BOOT_WORD = "@BOOT@"
"""Stands in the argument list for what depends on the entry."""

LABEL, RESCUE = "label", "rescue"
"""Files in the board's runtime directory that the next start looks for: an entry's name; start from another medium."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Boot:
    """What to start; ``fdt`` is None for an entry that leaves the tree to the loader."""

    label: str
    kernel: bytes
    initrd: bytes | None
    fdt: bytes | None
    append: str


def _plain(kernel: bytes) -> bytes:
    """booti unpacks a kernel that is compressed with gzip."""
    if kernel[:2] == b"\x1f\x8b":
        with contextlib.suppress(OSError, EOFError, zlib.error):
            return gzip.decompress(kernel)
    return kernel


def _resolve(path: str, folder: str) -> str:
    """Names that do not begin at the root begin at the configuration's directory (boot/pxe_utils.c, get_relfile)."""
    return path if path.startswith("/") else f"{folder}/{path}"


class Loader:
    """U-Boot's standard boot with extlinux files, on one eMMC."""

    def __init__(self, emmc: Path, kind: str, fdtfile: str, say: Say) -> None:
        self.emmc, self.kind, self.fdtfile, self.say = emmc, kind, fdtfile, say

    def choose(self, override: str = "") -> Boot:
        """The entry that starts; KitError (failed) when U-Boot would end at its prompt."""
        for partition in boot_partitions(self.emmc):
            if not partition.is_ext4():
                self.say(f"partition {partition.number}: no ext4 file system, which is all that is read here")
                continue
            fallback = self.kind == "bootcount" and self._count(partition)
            for place in extlinux.PLACES:
                text = partition.read(place)
                if text is None:
                    continue
                self.say(f"partition {partition.number}: {place}")
                found = self._try(partition, place.rpartition("/")[0], text, fallback, override)
                if found is not None:
                    return found
                break
        raise KitError(
            ExitCode.FAILED,
            f"{self.emmc}: nothing on it starts; a board would stay at its loader's prompt",
            "the loader's words are in console.log; restore the backup from another medium",
        )

    def _count(self, partition: Partition) -> bool:
        """Count this start; whether the fallback is to be taken. drivers/bootcount/bootcount_fs.c, bootcount.h."""
        before = bootcount.parse(partition.read(bootcount.PLACE) or b"")
        counted = before.counted()
        if counted == before:
            return False
        if not partition.overwrite(bootcount.PLACE, counted.encode()):
            partition.create(bootcount.PLACE, counted.encode())
        self.say(f"bootcount {counted.count}, limit {bootcount.LIMIT}")
        if counted.count <= bootcount.LIMIT:
            return False
        self.say(f"Warning: Bootlimit ({bootcount.LIMIT}) exceeded. Using altbootcmd.")
        return True

    def _try(self, partition: Partition, folder: str, text: bytes, fallback: bool, override: str) -> Boot | None:
        if len(text) > extlinux.SIZE_LIMIT:
            self.say("the file is too large")
            return None

        def include(path: str) -> str:
            data = partition.read(_resolve(path, folder))
            if data is None:
                raise KitError(ExitCode.FAILED, f"Couldn't retrieve {path}")
            return data.decode(errors="replace")

        try:
            config = extlinux.parse(text.decode(errors="replace"), include)
        except KitError as error:
            self.say(error.message)
            return None
        if fallback:
            self.say("Setting use of fallback" if config.fallback else "Selected fallback option, but not set")
        if config.waits and not override:
            self.say("Enter choice:   (the menu has no timeout: it waits for a key)")
            return None
        for label in config.attempts(fallback=fallback, override=override):
            found = self._load(partition, folder, label)
            if found is not None:
                self.say(f"append: {found.append}")
                return found
        return None

    def _load(self, partition: Partition, folder: str, label: extlinux.Label) -> Boot | None:
        self.say(f"label {label.name}{f': {label.menu}' if label.menu else ''}")
        files: dict[str, bytes | None] = {"initrd": None, "fdt": None}
        for word, what in (("linux", "kernel"), ("initrd", "initrd"), ("fdt", "FDT")):
            path = getattr(label, word).partition("#")[0]
            if not path:
                continue
            files[word] = partition.read(_resolve(path, folder))
            if files[word] is None:
                self.say(f"Skipping {label.name} for failure retrieving {what}")
                return None
        if not label.linux:
            self.say(f"No kernel given, skipping {label.name}")
            return None
        if not label.fdt and label.fdtdir:
            files["fdt"] = partition.read(_resolve(f"{label.fdtdir.rstrip('/')}/{self.fdtfile}", folder))
        kernel = _plain(files["linux"] or b"")
        if not is_image(kernel):
            self.say("Bad Linux ARM64 Image magic!")
            return None
        tree = files["fdt"]
        if tree is not None and (tree[:4] != FDT_MAGIC or struct.unpack_from(">I", tree, 4)[0] > len(tree)):
            self.say("ERROR: Did not find a cmdline Flattened Device Tree")
            return None
        return Boot(label.name, kernel, files["initrd"], tree, label.append)


class Player:
    """The loop of starts."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.argv: list[str] = spec["argv"]
        self.runtime, self.log = Path(spec["runtime"]), Path(spec["console_log"])
        self.machine_log, self.dtb = Path(spec["machine_log"]), str(spec["dtb"])
        self.loader = Loader(Path(spec["emmc"]), spec["loader"], spec["fdtfile"], self.say)
        self.rescue: list[str] = spec["rescue"]
        self.serial = str(spec["serial"])
        self.child: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def say(self, text: str) -> None:
        """What the loader prints."""
        with self.log.open("a") as stream:
            stream.write(f"loader: {text}\n")

    def _boot_words(self) -> list[str]:
        rescue = self.runtime / RESCUE
        if rescue.exists():
            rescue.unlink()
            self.say(f"start {self.starts + 1}: from another medium")
            return self.rescue
        override = self.runtime / LABEL
        wanted = override.read_text().strip() if override.exists() else ""
        override.unlink(missing_ok=True)
        self.say(f"start {self.starts + 1}: this is not U-Boot, but what it would do with this eMMC")
        boot = self.loader.choose(wanted)
        words = ["-kernel", self._keep("kernel", boot.kernel), "-append", boot.append]
        tree = None if boot.fdt is None else with_serial(boot.fdt, self.serial)
        words += ["-dtb", self.dtb if tree is None else self._keep("dtb", tree)]
        if boot.initrd is not None:
            words += ["-initrd", self._keep("initrd", boot.initrd)]
        return words

    def _keep(self, name: str, data: bytes) -> str:
        path = self.runtime / f"loaded-{name}"
        path.write_bytes(data)
        return str(path)

    def start(self) -> None:
        """Start QEMU with the entry of the moment; only the first time the guest waits for ``cont``."""
        words = self._boot_words()
        argv = []
        for word in self.argv:
            argv += words if word == BOOT_WORD else [word] if word != "-S" or not self.starts else []
        if self.starts and self.machine_log.exists():
            self.machine_log.rename(self.machine_log.with_name(f"machine-{self.starts}.log"))
        for name in ("console", "monitor", "loader"):
            (self.runtime / f"{name}.sock").unlink(missing_ok=True)
        me = os.getpid()
        self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with(me))
        self.starts += 1

    def reason(self) -> str:
        """Why the guest ended, in QEMU's words (qapi/run-state.json, ShutdownCause); empty when it did not say."""
        assert self.child is not None
        path = str(self.runtime / "loader.sock")
        while self.child.poll() is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(path)
                monitor = Qmp(connection)
            except (OSError, QmpError):
                connection.close()
                time.sleep(0.01)
                continue
            with connection:
                return self._listen(monitor)
        return ""

    def _listen(self, monitor: Qmp) -> str:
        assert self.child is not None
        while True:
            for event in monitor.events:
                if event["event"] == "SHUTDOWN":
                    return str(event["data"].get("reason", ""))
            try:
                monitor.wait()
            except QmpError:
                return ""

    def end(self) -> None:
        """Take the power away for good."""
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def run(self) -> int:
        """Until the guest is switched off, or QEMU fails."""
        while True:
            self.start()
            reason = self.reason()
            assert self.child is not None
            code = self.child.wait()
            if code or reason == "guest-shutdown":
                return code if code >= 0 else 128 - code
            self.say(f"power or reset: {reason or 'QEMU ended'}")


def main(arguments: list[str]) -> int:
    """Run what the file says."""
    player = Player(json.loads(Path(arguments[0]).read_text()))

    def stop(number: int, frame: object) -> None:
        player.end()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return player.run()
    except (KitError, OSError, subprocess.SubprocessError) as error:
        message = f"{error.message}. {error.hint}" if isinstance(error, KitError) else str(error)
        player.say(message)
        print(f"boot loader: {message}", file=sys.stderr)
        return 1
    finally:
        player.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
