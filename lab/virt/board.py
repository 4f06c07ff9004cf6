# SPDX-License-Identifier: MIT
"""One virtual board: the model process and QEMU, started together, watched, ended together.

The guest stands still (``-S``) until `VirtualBoard.power_on`: whoever reads the console is connected by then, so that
no byte is lost. The console is also kept in ``console.log``, whether or not anybody reads it.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.errors import ExitCode, KitError
from lab.process import tail
from lab.virt import chips, usb
from lab.virt.dtb import BoardTree, require_npu, with_serial
from lab.virt.loader import BOOT_WORD, LOADERS, RESCUE
from lab.virt.qmp import Qmp, QmpError
from lab.virt.runtime import Runtime, create_runtime, parse_size
from lab.virt.supervisor import Program, Supervisor

NPU_CORES = 3
PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)\r?\n")
"""linux kernel/panic.c"""
START_SECONDS = 30.0
"""How long each program may take to start; seen: model 0.5 s, QEMU 0.2 s; a busy machine is ten times slower."""


@dataclass(frozen=True)
class BoardConfig:
    """What to boot and how. Paths are absolute.

    ``memory`` as QEMU has it (``1G``); ``ssh_port`` on 127.0.0.1, 0 for any free one; ``model`` is the model's command
    without its ``--socket`` and ``--ram`` options, empty for a board whose NPU never completes a job; ``disks`` are raw
    images, the root file system first, never written to; ``nor`` (16 MiB) and ``emmc`` (boot partitions of 4 MiB each,
    then the user area, together a power of two) are raw images of the flash chips, which the guest does write to;
    ``usb`` are the sockets (paths, or ports of this machine) of devices in USB ports, as `lab.virt.usb` has them.
    ``loader`` (``stock`` or ``bootcount``, `lab.virt.loader`): the board starts from its eMMC; kernel, initrd and
    command line are then found there at each start, and ``dtb`` is the loader's own tree; with ``rescue`` the first
    start is from the disks, as from a card. ``extra`` are further QEMU arguments.
    """

    qemu: Path
    kernel: Path
    dtb: Path
    cmdline: str
    disks: Sequence[Path] = ()
    nor: Path | None = None
    emmc: Path | None = None
    usb: Sequence[Path | int] = ()
    initrd: Path | None = None
    ssh_key: Path | None = None
    memory: str = "1G"
    cpus: int = 2
    ssh_port: int = 0
    strict_supplies: bool = False
    model: Sequence[str] = (sys.executable, "-m", "rknpu_userspace.model.server")
    quirks: Path | None = None
    loader: str = ""
    rescue: bool = False
    extra: Sequence[str] = field(default_factory=tuple)


def _quoted(path: Path) -> str:
    """A path inside one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")


def check_port(port: int) -> None:
    """KitError (usage) when something listens on that port of 127.0.0.1 already; 0 is always free."""
    if not 0 <= port <= 65535:
        raise KitError(ExitCode.USAGE, f"port {port} does not exist", "give 1024 to 65535, or 0 for any free port")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise KitError(
                ExitCode.USAGE,
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}",
                "choose another one, or 0 for any free port",
            ) from error


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class VirtualBoard:
    """A context manager: ``with VirtualBoard(config, results) as board: board.power_on() ...``.

    Raises KitError (infrastructure) from any method as soon as a program has died, with its last lines. After the
    block nothing is left: no process, socket or RAM file; the logs stay in ``results``.
    """

    def __init__(self, config: BoardConfig, results: Path) -> None:
        self.config = config
        self.results = results
        self.tree: BoardTree | None = None
        self.ssh_port = 0
        self.powered_off = False
        self._port = config.ssh_port
        self._runtime: Runtime | None = None
        self._supervisor: Supervisor | None = None
        self._console: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._recent = b""
        self._serial = chips.board_serial(config.nor, config.emmc)

    # logs
    @property
    def console_log(self) -> Path:
        """Everything the guest printed on its console."""
        return self.results / "console.log"

    @property
    def machine_log(self) -> Path:
        """QEMU's ``-d guest_errors,unimp``: accesses that the real board would punish."""
        return self.results / "machine.log"

    @property
    def stats(self) -> Path:
        """The model's JSON line per finished task."""
        return self.results / "model-stats.jsonl"

    @property
    def model_log(self) -> Path:
        """The model's own words: rejected registers, hangs, faults."""
        return self.results / "model.log"

    def programs(self, runtime: Runtime) -> list[Program]:
        """The model and QEMU, in the order of their start."""
        if self._serial:
            self._tree(runtime).write_bytes(with_serial(self.config.dtb.read_bytes(), self._serial))
        qemu_log, model_out = self.results / "qemu.log", self.results / "model-stderr.log"
        argv = self._loader_argv(runtime) if self.config.loader else self.qemu_argv(runtime)
        programs = [Program("qemu", "QEMU", argv, qemu_log, logs=(self.machine_log,))]
        if self.config.model:
            argv = [*self.config.model, "--socket", str(runtime.socket("model")), "--ram", str(runtime.ram)]
            argv += ["--stats", str(self.stats), "--log", str(self.model_log)]
            if self.config.quirks:
                argv += ["--quirks", str(self.config.quirks)]
            model = Program(
                "model",
                "the NPU model",
                argv,
                model_out,
                ready="ready",
                ready_timeout=START_SECONDS,
                logs=(self.model_log,),
            )
            programs.insert(0, model)
        return programs

    def _tree(self, runtime: Runtime) -> Path:
        """The board's tree as a boot loader hands it over: with a serial number, if it has a chip to keep one."""
        return runtime.path / "board.dtb" if self._serial else self.config.dtb

    def _loader_argv(self, runtime: Runtime) -> list[str]:
        """The boot loader's player, which runs QEMU; its port must outlast each QEMU, so it is chosen here."""
        config = self.config
        assert config.emmc is not None
        spec = {
            "argv": self.qemu_argv(runtime),
            "loader": config.loader,
            "emmc": str(config.emmc),
            "rescue": self._kernel_argv(runtime),
            "dtb": str(self._tree(runtime)),
            "serial": self._serial,
            "fdtfile": f"rockchip/{config.dtb.name}",
            "runtime": str(runtime.path),
            "console_log": str(self.console_log),
            "machine_log": str(self.machine_log),
        }
        path = runtime.path / "loader.json"
        path.write_text(json.dumps(spec))
        if config.rescue:
            (runtime.path / RESCUE).touch()
        return [sys.executable, "-m", "lab.virt.loader", str(path)]

    def _boot_argv(self, runtime: Runtime) -> list[str]:
        """What is booted."""
        config = self.config
        if config.loader:
            monitor = f"unix:{_quoted(runtime.socket('loader'))},server=on,wait=off"
            return [BOOT_WORD, "-qmp", monitor, "-action", "reboot=shutdown"]
        return self._kernel_argv(runtime)

    def _kernel_argv(self, runtime: Runtime) -> list[str]:
        """The configuration's own kernel and root file system."""
        config = self.config
        argv = ["-kernel", str(config.kernel), "-dtb", str(self._tree(runtime)), "-append", config.cmdline]
        return [*argv, "-initrd", str(config.initrd)] if config.initrd else argv

    def qemu_argv(self, runtime: Runtime) -> list[str]:
        """QEMU's command line (docs/npu-link.md has the chardevs' meaning)."""
        config, size = self.config, parse_size(self.config.memory)
        machine = f"rk3588,memory-backend=ram0,dt-report={_quoted(self.results / 'dt-report.txt')}"
        if config.strict_supplies:
            machine += ",strict-supplies=on"
        ram = f"memory-backend-file,id=ram0,mem-path={_quoted(runtime.ram)},size={size},share=on"
        serial = f"socket,id=serial0,path={_quoted(runtime.socket('console'))},server=on,wait=off"
        argv = [str(config.qemu), "-nodefaults", "-no-user-config", "-display", "none", "-S"]
        argv += ["-M", machine, "-m", str(size >> 20), "-object", ram, "-smp", str(config.cpus)]
        argv += self._boot_argv(runtime)
        if config.loader:
            serial += ",logappend=on"
        argv += ["-chardev", f"{serial},logfile={_quoted(self.console_log)}", "-serial", "chardev:serial0"]
        argv += ["-qmp", f"unix:{_quoted(runtime.socket('monitor'))},server=on,wait=off"]
        if config.model:
            for core in range(NPU_CORES):
                argv += ["-chardev", f"socket,id=npu{core},path={_quoted(runtime.socket('model'))}"]
        for number, disk in enumerate(config.disks):
            argv += ["-drive", f"if=none,id=disk{number},file={_quoted(disk)},format=raw,snapshot=on"]
            argv += ["-device", f"virtio-blk-device,drive=disk{number}"]
        for chip, bus in ((config.nor, "mtd"), (config.emmc, "sd")):
            if chip:
                argv += ["-drive", f"if={bus},index=0,file={_quoted(chip)},format=raw"]
        if config.emmc:
            argv += ["-global", f"emmc.product-serial={chips.serial(config.emmc)}"]
        if config.usb:
            argv += usb.arguments(config.usb, self.tree or require_npu(config.dtb))
        argv += ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        argv += ["-device", "virtio-net-device,netdev=net0", "-device", "virtio-rng-device"]
        argv += ["-d", "guest_errors,unimp", "-D", str(self.machine_log)]
        return [*argv, *config.extra]

    def _check_inputs(self) -> None:
        self.tree = require_npu(self.config.dtb)
        if self.config.loader and (self.config.loader not in LOADERS or self.config.emmc is None):
            raise KitError(ExitCode.USAGE, "a board that starts from its eMMC needs one", "name its file with --emmc")
        parse_size(self.config.memory)
        check_port(self.config.ssh_port)
        if not 1 <= self.config.cpus <= 8:
            raise KitError(ExitCode.USAGE, f"{self.config.cpus} CPUs cannot be had", "an RK3588 has 1 to 8")
        files = [("QEMU", self.config.qemu), ("kernel", self.config.kernel)]
        files += [("initrd", self.config.initrd)] if self.config.initrd else []
        files += [("disk", disk) for disk in self.config.disks]
        files += [("flash chip", chip) for chip in (self.config.nor, self.config.emmc) if chip]
        for what, path in files:
            if not path.is_file():
                raise KitError(ExitCode.USAGE, f"the virtual board's {what} is not there: {path}", "npulab build virt")

    def start(self) -> None:
        """Start the model and QEMU; returns with the guest standing still and its console connected."""
        self._check_inputs()
        if self.config.loader and not self._port:
            self._port = free_port()
        self._runtime = create_runtime(parse_size(self.config.memory))
        try:
            self._supervisor = Supervisor(
                self.programs(self._runtime),
                remove=[self._runtime.path],
                log=self.results / "guard.log",
                keep_fds=[self._runtime.lock.fileno()],
            )
            self._supervisor.start()
            if self.config.model:
                self._supervisor.wait_for("ready", "model", START_SECONDS + 5)
            self._supervisor.wait_for("started", "qemu", START_SECONDS)
            self._qmp = Qmp(self._connect("monitor"))
            self._console = self._connect("console")
            self.ssh_port = self._find_ssh_port()
        except QmpError as error:
            failure = self._late_failure()
            self.stop()
            raise failure or error from error
        except BaseException:
            self.stop()
            raise

    def _late_failure(self, patience: float = 2.0) -> KitError | None:
        """A closed connection is seen a little before the end of the program that closed it: why it ended."""
        deadline = time.monotonic() + patience
        while self._supervisor is not None and time.monotonic() < deadline:
            failure = self._supervisor.failure()
            if failure is not None:
                return failure
            time.sleep(0.01)
        return None

    def _connect(self, name: str) -> socket.socket:
        """Connect to one of QEMU's sockets as soon as it is there."""
        assert self._runtime is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._runtime.socket(name)))
            except OSError:
                connection.close()
                self.check()
                if time.monotonic() >= deadline:
                    raise KitError(
                        ExitCode.INFRASTRUCTURE,
                        f"QEMU did not open its {name} within {START_SECONDS:.0f} s",
                        "the machine may be overloaded; run it again",
                        tail=tail(self.results / "qemu.log"),
                    ) from None
                time.sleep(0.01)
            else:
                return connection

    def _find_ssh_port(self) -> int:
        """The host port of the guest's port 22; QEMU chose it when the configuration says 0."""
        text = self.qmp.human("info usernet")
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b", text)
        if found is None:
            raise KitError(ExitCode.INFRASTRUCTURE, "QEMU does not forward a port to the guest's ssh", tail=text)
        return int(found[1])

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        if self._qmp is None:
            raise KitError(ExitCode.INFRASTRUCTURE, "the virtual board is not running")
        return self._qmp

    @property
    def running(self) -> bool:
        """Whether both programs are alive (the guest may stand still)."""
        return self._supervisor is not None and self._supervisor.running

    def check(self) -> None:
        """KitError if a program has died; ``powered_off`` is set when the guest switched itself off."""
        if self._supervisor is None or self.powered_off:
            return
        if self._supervisor.exit_code("qemu") == 0 and (self.config.loader or self._guest_shut_down()):
            self.powered_off = True
            return
        failure = self._supervisor.failure()
        if failure is None:
            return
        last = tail(self.console_log, 5)
        if last:
            failure.tail += f"\nlast lines of the guest's console:\n{last}"
        raise failure

    def power_on(self) -> None:
        """Let the guest run."""
        self.qmp.execute("cont")

    def reset(self) -> None:
        """The board's reset button."""
        self.qmp.execute("system_reset")

    def _guest_shut_down(self) -> bool:
        return any(event["event"] == "SHUTDOWN" and event["data"].get("guest") for event in self.events())

    def events(self) -> list[dict[str, Any]]:
        """QEMU's events so far (RESET, SHUTDOWN, GUEST_PANICKED, ...), oldest first."""
        if self._qmp is not None:
            with contextlib.suppress(QmpError):  # QEMU may be gone; what it said before stays
                self._qmp.poll()
            return list(self._qmp.events)
        return []

    def read(self, timeout: float, size: int = 4096) -> bytes:
        """Bytes of the console; empty when none came within ``timeout`` seconds, or the guest is switched off."""
        assert self._console is not None
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._console], [], [], min(left, 1.0))
            if ready:
                try:
                    data = self._console.recv(size)
                except ConnectionError:
                    data = b""
                if not data:
                    self._console_closed()
                if not self.config.loader:  # after a panic the loader starts the board again
                    self._look_for_panic(data)
                return data
            self.check()
            if left <= 0 or self.powered_off:
                return b""

    def _look_for_panic(self, data: bytes) -> None:
        """After a panic nobody should wait for an answer: the kernel stands still, or starts again and panics again."""
        self._recent = (self._recent + data)[-8192:]
        found = PANIC.search(self._recent)
        if found is not None:
            assert self._console is not None
            # the trace that follows the line
            while select.select([self._console], [], [], 0.3)[0] and len(self._recent) < 32768:
                more = self._console.recv(4096)
                self._recent += more
                if not more or b"end Kernel panic" in more or b"Booting Linux" in more:
                    break
            last = "\n".join(self._recent.decode(errors="replace").splitlines()[-15:])
            self._recent = b""
            what = f"the guest's kernel panicked: {found[1].decode(errors='replace')}"
            hint = "the console's log has the whole boot"
            raise KitError(ExitCode.INFRASTRUCTURE, what, hint, tail=last, log=self.console_log)

    def _console_closed(self) -> None:
        """The console's end is QEMU's end: give the guard a moment to say which."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            self.check()
            if self.powered_off or (self.config.loader and self._reconnect()):
                return
            time.sleep(0.01)
        raise KitError(ExitCode.INFRASTRUCTURE, "QEMU closed the console", log=self.results / "qemu.log")

    def _reconnect(self) -> bool:
        """After a reset or power cycle: take hold of the new QEMU, if it is there yet."""
        assert self._runtime is not None
        found: list[socket.socket] = []
        for name in ("console", "monitor"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._runtime.socket(name)))
            except OSError:
                for one in (connection, *found):
                    one.close()
                return False
            found.append(connection)
        try:
            qmp = Qmp(found[1])
        except QmpError:
            for one in found:
                one.close()
            return False
        if self._console is not None:
            self._console.close()
        if self._qmp is not None:
            self._qmp.close()
        self._console, self._qmp = found[0], qmp
        return True

    def write(self, data: bytes, timeout: float = 30.0) -> int:
        """Write all of ``data`` to the console; KitError if the guest does not take it in time."""
        assert self._console is not None
        self._console.settimeout(timeout)
        try:
            self._console.sendall(data)
        except OSError as error:
            self.check()
            raise KitError(ExitCode.INFRASTRUCTURE, f"the guest's console takes nothing: {error}") from error
        return len(data)

    def detach(self, state: dict[str, Any]) -> None:
        """Let the board live on without us; ``state`` is what ``npulab virt list`` shows."""
        assert self._runtime is not None and self._supervisor is not None
        self._runtime.write_state({**state, "guard": self._supervisor.pid, "ssh_port": self.ssh_port})
        self._supervisor.detach()
        self._release()
        self._supervisor = self._runtime = None

    def _release(self) -> None:
        """Close our ends."""
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        if self._runtime is not None:
            self._runtime.close()

    def stop(self) -> None:
        """End both programs and remove the RAM file and the sockets; safe at any time, any number of times."""
        if self._supervisor is not None:
            self._supervisor.stop()
        self._release()
        if self._runtime is not None:
            self._runtime.discard()
            self._runtime = None
        self._supervisor = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
