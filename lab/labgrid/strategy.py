# SPDX-License-Identifier: MIT
"""The states of a board under test, virtual or real.

``off``, ``maskrom`` and ``loader`` (USB download modes), ``uboot`` (its prompt), ``shell`` (Linux on the console),
``ssh``, and ``flashed``, which writes an image and is entered through the backup gate only.

Differences to labgrid's `ShellStrategy` and `UBootStrategy`: the console is active before power comes, so that no early
byte is lost; everything but power, console and shell is optional; nothing assumes systemd on the board.
"""

from __future__ import annotations

import enum
import time
from typing import Any, ClassVar

import attr
from labgrid.binding import BindingState
from labgrid.factory import target_factory
from labgrid.step import step
from labgrid.strategy.common import Strategy, StrategyError, never_retry
from pexpect import EOF, TIMEOUT

from lab.labgrid.diagnosis import console_trouble


class Status(enum.Enum):
    """States of `KitStrategy`."""

    unknown = 0
    off = 1
    shell = 2
    ssh = 3
    maskrom = 4
    loader = 5
    uboot = 6
    flashed = 7


BUTTON_SECONDS = 2.0
"""How long the mask ROM button is held after power comes; the boot ROM looks at it within milliseconds."""


@target_factory.reg_driver
@attr.s(eq=False)
class KitStrategy(Strategy):
    """Brings a board from any state to the one asked for.

    Optional drivers that share a class are found by their name in the environment: the outputs ``maskrom`` (the mask
    ROM button) and ``recovery``.

    Args:
        image: what ``flashed`` writes
        storage: the medium that it writes to

    ``boot_seconds`` is the time from power to the shell's first prompt in the last boot.
    """

    bindings: ClassVar = {
        "power": "PowerProtocol",
        "console": "ConsoleProtocol",
        "shell": "ShellDriver",
    }

    status: Status = attr.ib(default=Status.unknown)
    image: str = attr.ib(default="", validator=attr.validators.instance_of(str))
    storage: str = attr.ib(default="", validator=attr.validators.instance_of(str))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.boot_seconds: float | None = None

    @property
    def kernel_patches(self) -> list[str] | None:
        """File names of the kit's patches that the kernel has; None where only the board could tell."""
        return getattr(self.power, "kernel_patches", None)

    # what the environment has
    def _optional(self, kind: str, name: str | None = None) -> Any:
        """The target's driver of that class (or protocol) and name; None when it has none."""
        wanted = target_factory.class_from_string(kind)
        found = [d for d in self.target.drivers if isinstance(d, wanted) and (name is None or d.name == name)]
        return found[0] if found else None

    def _needed(self, kind: str, state: Status, name: str | None = None) -> Any:
        driver = self._optional(kind, name)
        if driver is None:
            called = f" called {name}" if name else ""
            raise StrategyError(f"this environment has no {kind}{called}, which the state {state.name} needs")
        return driver

    @property
    def ssh(self) -> Any:
        """The SSHDriver, if there is one."""
        return self._optional("SSHDriver")

    # transitions
    @never_retry
    @step(args=["status"])
    def transition(self, status: Status | str, *, step: Any) -> None:
        """Go to a state; an error on the way breaks the strategy (labgrid's ``never_retry``)."""
        wanted = self._state(status)
        if wanted is self.status:
            step.skip("nothing to do")
            return
        getattr(self, f"_{wanted.name}")()
        self.status = wanted

    @staticmethod
    def _state(status: Status | str) -> Status:
        try:
            wanted = status if isinstance(status, Status) else Status[status]
        except KeyError:
            known = " ".join(state.name for state in Status if state is not Status.unknown)
            raise StrategyError(f"there is no state {status}; states: {known}") from None
        if wanted is Status.unknown:
            raise StrategyError("unknown is no state to go to")
        return wanted

    def _let_go(self) -> None:
        """Deactivate everything that talks to what runs on the board now."""
        for kind in ("KernelLogDriver", "BackupDriver", "SSHDriver", "ShellDriver", "UBootDriver", "RockusbDriver"):
            driver = self._optional(kind)
            if driver is not None and driver.state is BindingState.active:
                self.target.deactivate(driver)

    def _off(self) -> None:
        self._let_go()
        self.target.activate(self.power)
        self.power.off()

    def _on(self) -> None:
        """Power from nothing, with the console read from the first byte."""
        self._off()
        self.target.activate(self.console)
        self.power.on()

    def _shell(self) -> None:
        if self.status is Status.ssh:
            for kind in ("KernelLogDriver", "SSHDriver"):
                driver = self._optional(kind)
                if driver is not None:
                    self.target.deactivate(driver)
            return
        started = time.monotonic()
        if self.status is Status.uboot:
            uboot = self._needed("UBootDriver", Status.uboot)
            uboot.boot("")
            uboot.await_boot()
            self.target.deactivate(uboot)
        else:
            self._on()
        self._prompt(self.shell, "booting to the shell", f"{self.shell.login_prompt}, then {self.shell.prompt}")
        self.boot_seconds = time.monotonic() - started

    def _prompt(self, driver: Any, stage: str, expected: str) -> None:
        """Activate a driver that waits for a prompt; in vain, it is told why."""
        try:
            self.target.activate(driver)
        except (TIMEOUT, EOF) as error:
            raise console_trouble(self.console, stage, expected, error) from error

    def _ssh(self) -> None:
        ssh = self._needed("SSHDriver", Status.ssh)
        if self.status is not Status.shell:
            self._shell()
            self.status = Status.shell
        key = getattr(self.power, "ssh_key", None)
        if key is not None and not ssh.keyfile:
            ssh.keyfile = str(key)
        self.target.activate(ssh)

    def _uboot(self) -> None:
        uboot = self._needed("UBootDriver", Status.uboot)
        self._on()
        self._prompt(uboot, "stopping in U-Boot", uboot.prompt)

    def _maskrom(self) -> None:
        """Power with the button held; without a button, the loader is asked to go there."""
        rockusb = self._needed("RockusbDriver", Status.maskrom)
        button = self._optional("DigitalOutputProtocol", "maskrom")
        if button is None and self.status is Status.loader:
            rockusb.reset(maskrom=True)
        else:
            button = button or self._needed("DigitalOutputProtocol", Status.maskrom, "maskrom")
            self._press(button)
        self.target.activate(rockusb)
        rockusb.wait_for("maskrom")

    def _press(self, button: Any) -> None:
        self.target.activate(button)
        button.set(True)
        try:
            self._on()
            time.sleep(BUTTON_SECONDS)
        finally:
            button.set(False)

    def _loader(self) -> None:
        """From mask ROM by starting the loader; by the ``recovery`` button when there is one."""
        rockusb = self._needed("RockusbDriver", Status.loader)
        recovery = self._optional("DigitalOutputProtocol", "recovery")
        if self.status is not Status.maskrom and recovery is not None:
            self._press(recovery)
            self.target.activate(rockusb)
        else:
            if self.status is not Status.maskrom:
                self._maskrom()
                self.status = Status.maskrom
            rockusb.start_loader()
        rockusb.wait_for("loader")

    def _flashed(self) -> None:
        """Write the image. The gate comes first, while the board is as it was found; then the loader, then power off.

        `BackupDriver.flash` asks the gate again, for exactly what it writes.
        """
        backup = self._needed("BackupDriver", Status.flashed)
        if not self.image or not self.storage:
            raise StrategyError("the state flashed needs `image` and `storage` of the KitStrategy in the environment")
        image = self.target.env.config.resolve_path(self.image) if self.target.env else self.image
        if self.status not in (Status.loader, Status.ssh):
            self._loader()
            self.status = Status.loader
        self.target.activate(backup)
        backup.assert_fresh([self.storage])
        backup.flash(self.storage, str(image))
        # a reset does not take the power from the PMIC: the new image starts from nothing
        self._off()

    @never_retry
    @step(args=["status"])
    def force(self, status: Status | str) -> None:
        """Take the board to be in a state that somebody else brought it to (``--lg-initial-state``)."""
        wanted = self._state(status)
        self.target.activate(self.power)
        if wanted is Status.off:
            self._let_go()
        elif wanted in (Status.maskrom, Status.loader):
            self.target.activate(self._needed("RockusbDriver", wanted))
        elif wanted is Status.uboot:
            self.target.activate(self._needed("UBootDriver", wanted))
        elif wanted is not Status.flashed:
            self.target.activate(self.shell)
            if wanted is Status.ssh:
                self.target.activate(self._needed("SSHDriver", wanted))
        self.status = wanted
