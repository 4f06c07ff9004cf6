# SPDX-License-Identifier: MIT
"""The virtual board as a labgrid driver: power, console, reset.

labgrid has a `QEMUDriver`; this one is made for boards whose NPU is a second process, and differs where that one leaves
a test hanging or wrong (seen with labgrid 26.0.1): it never waits for a QEMU that has died, a crash is an error of the
next call with QEMU's last words, after which ``on()`` starts anew; writes are complete; the console and QEMU's stderr
are kept in files; there is a reset; a guest that switches itself off is off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import attr
from labgrid.driver.common import Driver
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.driver.exception import ExecutionError
from labgrid.factory import target_factory
from labgrid.protocol import ConsoleProtocol, PowerProtocol, ResetProtocol
from labgrid.resource.networkservice import NetworkService
from labgrid.step import step
from labgrid.util import PtxExpect
from pexpect import TIMEOUT

from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.virt.board import BoardConfig, VirtualBoard
from lab.virt.results import new_results_dir
from lab.virt.select import DEFAULT_BOARD, board_config, find_artifacts

_text = attr.validators.instance_of(str)
_number = attr.validators.instance_of(int)


class PoweredOff(ExecutionError):
    """The guest has switched itself off."""


@target_factory.reg_driver
@attr.s(eq=False)
class KitQEMUDriver(ConsoleExpectMixin, Driver, PowerProtocol, ConsoleProtocol, ResetProtocol):
    """Starts and supervises QEMU's rk3588 machine and the NPU model.

    Args:
        artifacts: directory of an artifact set; default ``$NPULAB_ARTIFACTS``, or the cached set, assembled if need be
        kernel: ``fast`` or ``distro``, which cached set; default ``$NPULAB_KERNEL`` or ``fast``
        board: device tree, by its name in the kernel tree or as a path to a .dtb; default ``$NPULAB_DTB`` or the
            Orange Pi 5's
        memory: as QEMU has it; default ``$NPULAB_MEMORY`` or ``1G``
        cpus: 1 to 8
        boot_args: added to the kernel's command line
        ssh_port: port on 127.0.0.1 for the guest's ssh, 0 for any free one
        slot: take the port of the `NetworkService` instead: the board is a place of a farm, which has one for each
        results: directory for logs; default a new one below ``$NPULAB_RESULTS`` or ``results``

    ``$NPULAB_KERNEL_IMAGE`` and ``$NPULAB_INITRD`` replace these files of the set: a job may bring its own kernel.
    A `NetworkService` of the same target gets the address and port at which the guest's ssh is reached.
    """

    bindings: ClassVar = {"network": {NetworkService, None}}

    artifacts: str = attr.ib(default="", validator=_text)
    kernel: str = attr.ib(default="", validator=_text)
    board: str = attr.ib(default="", validator=_text)
    memory: str = attr.ib(default="", validator=_text)
    cpus: int = attr.ib(default=2, validator=_number)
    boot_args: str = attr.ib(default="", validator=_text)
    ssh_port: int = attr.ib(default=0, validator=_number)
    slot: bool = attr.ib(default=False, validator=attr.validators.instance_of(bool))
    strict_supplies: bool = attr.ib(default=False, validator=attr.validators.instance_of(bool))
    results: str = attr.ib(default="", validator=_text)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.txdelay: float | None = None
        self.txchunk: int | None = None
        self.virtual_board: VirtualBoard | None = None
        self.config: BoardConfig | None = None
        self.kernel_patches: list[str] | None = None
        self._results_dir: Path | None = None

    @property
    def results_dir(self) -> Path:
        """Where the logs of this target go."""
        if self._results_dir is None:
            chosen = self._resolve(self.results)
            self._results_dir = Path(chosen) if chosen else new_results_dir("board")
            self._results_dir.mkdir(parents=True, exist_ok=True)
        return self._results_dir

    @property
    def status(self) -> int:
        """1 while QEMU runs, 0 when it does not, for whatever reason."""
        return int(self.virtual_board is not None and self.virtual_board.running)

    @property
    def ssh_key(self) -> Path | None:
        """The private key that the guest accepts."""
        return self.config.ssh_key if self.config else None

    def _resolve(self, path: str) -> str:
        """A path of the environment file, relative to it."""
        if path and self.target.env:
            return str(self.target.env.config.resolve_path(path))
        return path

    def _choose(self, value: str, variable: str, default: str) -> str:
        return value or os.environ.get(variable, "") or default

    def _slot_port(self) -> int:
        if self.network is None or not self.network.port:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                "the place has no NetworkService with a port for the virtual board",
                "npulab farm up makes such places; or leave out `slot` in the environment",
            )
        return int(self.network.port)

    def configure(self) -> BoardConfig:
        """The files and options to start with; assembles the artifact set when it is not there."""
        path = self._resolve(self.artifacts) or os.environ.get("NPULAB_ARTIFACTS", "")
        artifacts = find_artifacts(path, self._choose(self.kernel, "NPULAB_KERNEL", "fast"), Output())
        chosen = {"kernel_image": "NPULAB_KERNEL_IMAGE", "initrd": "NPULAB_INITRD"}
        files = {name: Path(os.environ[variable]) for name, variable in chosen.items() if os.environ.get(variable)}
        config = board_config(
            artifacts,
            self._choose(self.board, "NPULAB_DTB", DEFAULT_BOARD),
            boot_args=self.boot_args,
            memory=self._choose(self.memory, "NPULAB_MEMORY", "1G"),
            cpus=self.cpus,
            ssh_port=self._slot_port() if self.slot else self.ssh_port,
            strict_supplies=self.strict_supplies,
        )
        if "kernel_image" not in files:
            self.kernel_patches = [patch["name"] for patch in artifacts.manifest["kernel"]["patches"]]
        return dataclasses.replace(
            config, kernel=files.get("kernel_image", config.kernel), initrd=files.get("initrd", config.initrd)
        )

    def on_activate(self) -> None:
        if self.config is None:
            self.config = self.configure()

    def on_deactivate(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.virtual_board is not None:
            self.virtual_board.stop()
            self.virtual_board = None

    @Driver.check_active
    @step()
    def on(self) -> None:
        """Start the model and QEMU, connect the console, let the guest run. Nothing when it runs already."""
        if self.status:
            return
        self._stop()
        assert self.config is not None
        board = VirtualBoard(self.config, self.results_dir)
        board.start()
        self.virtual_board = board
        if self.network is not None:
            self.network.address, self.network.port = "127.0.0.1", board.ssh_port
        # what was read from an earlier run of the guest is not part of this one
        self._expect = PtxExpect(self)
        board.power_on()

    @Driver.check_active
    @step()
    def off(self) -> None:
        """Pull the plug. Nothing when it is off already."""
        self._stop()

    @Driver.check_active
    @step()
    def cycle(self) -> None:
        """Off and on again; also after a crash."""
        self.off()
        self.on()

    @Driver.check_active
    @step()
    def reset(self) -> None:
        """The board's reset button: the guest starts again, QEMU and the model go on."""
        self._running().reset()

    def _running(self) -> VirtualBoard:
        if self.virtual_board is None:
            raise ExecutionError("the virtual board is switched off")
        self.virtual_board.check()
        if self.virtual_board.powered_off:
            raise PoweredOff("the guest has switched itself off")
        return self.virtual_board

    @Driver.check_active
    @step(result=True, args=["command", "arguments"])
    def monitor_command(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A command of QEMU's machine protocol, and its result."""
        return self._running().qmp.execute(command, arguments)

    def add_port_forward(
        self, proto: str, local_address: str, local_port: int, remote_address: str, remote_port: int
    ) -> None:
        """Forward a port of the host to the guest, until it is switched off."""
        self._forward("add", f"{proto}:{local_address}:{local_port}-{remote_address}:{remote_port}")

    def remove_port_forward(self, proto: str, local_address: str, local_port: int) -> None:
        """Undo `add_port_forward`."""
        self._forward("remove", f"{proto}:{local_address}:{local_port}")

    def _forward(self, verb: str, what: str) -> None:
        answer = self._running().qmp.human(f"hostfwd_{verb} net0 {what}").strip()
        # the human monitor has no errors, only words
        if answer and not answer.endswith("removed"):
            raise ExecutionError(f"port forward {what}: {answer}")

    def _read(self, size: int = 1, timeout: float = 10.0, max_size: int | None = None) -> bytes:
        board = self._running()
        data = board.read(timeout, min(4096, max_size) if max_size else 4096)
        if data:
            return data
        if board.powered_off:
            raise PoweredOff("the guest has switched itself off")
        raise TIMEOUT(f"Timeout of {timeout:.2f} seconds exceeded")

    def _write(self, data: bytes) -> int:
        return self._running().write(data)

    def wait_powered_off(self, timeout: float = 30.0) -> None:
        """Wait for the guest to switch itself off; its last words go to the console's log."""
        if self.virtual_board is None:
            return
        deadline = time.monotonic() + timeout
        while not self.virtual_board.powered_off:
            if time.monotonic() >= deadline:
                raise ExecutionError(f"the guest has not switched itself off within {timeout:.0f} s")
            # through the console's own read, so that labgrid's reporters see the last words too
            with contextlib.suppress(TIMEOUT, PoweredOff):
                self.read(timeout=0.5)

    def failure(self) -> KitError | None:
        """Why the board is not running, if a program of it has died."""
        if self.virtual_board is None:
            return None
        try:
            self.virtual_board.check()
        except KitError as error:
            return error
        return None
