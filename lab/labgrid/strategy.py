# SPDX-License-Identifier: MIT
"""The states of a board under test, virtual or real: off, shell (on its console), ssh.

Differences to labgrid's `ShellStrategy`: the console is active before power comes, so that no early byte is lost; ssh
is a state of its own and optional; nothing assumes systemd on the board.
"""

from __future__ import annotations

import enum
import time
from typing import Any, ClassVar

import attr
from labgrid.factory import target_factory
from labgrid.step import step
from labgrid.strategy.common import Strategy, StrategyError, never_retry


class Status(enum.Enum):
    """States of `KitStrategy`."""

    unknown = 0
    off = 1
    shell = 2
    ssh = 3


@target_factory.reg_driver
@attr.s(eq=False)
class KitStrategy(Strategy):
    """Brings a board from any state to the one asked for.

    ``boot_seconds`` is the time from power to the shell's first prompt in the last boot.
    """

    bindings: ClassVar = {
        "power": "PowerProtocol",
        "console": "ConsoleProtocol",
        "shell": "ShellDriver",
        "ssh": {"SSHDriver", None},
    }

    status: Status = attr.ib(default=Status.unknown)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.boot_seconds: float | None = None

    @never_retry
    @step(args=["status"])
    def transition(self, status: Status | str, *, step: Any) -> None:
        """Go to a state; an error on the way breaks the strategy (labgrid's ``never_retry``)."""
        wanted = status if isinstance(status, Status) else Status[status]
        if wanted is Status.unknown:
            raise StrategyError(f"can not transition to {wanted}")
        if wanted is self.status:
            step.skip("nothing to do")
            return
        if wanted is Status.off:
            self._off()
        elif wanted is Status.shell:
            self._shell()
        else:
            self._ssh()
        self.status = wanted

    def _off(self) -> None:
        for driver in (self.ssh, self.shell):
            if driver is not None:
                self.target.deactivate(driver)
        self.target.activate(self.power)
        self.power.off()

    def _shell(self) -> None:
        if self.status is Status.ssh:
            self.target.deactivate(self.ssh)
            return
        self._off()
        self.target.activate(self.console)
        started = time.monotonic()
        self.power.on()
        self.target.activate(self.shell)
        self.boot_seconds = time.monotonic() - started

    def _ssh(self) -> None:
        if self.ssh is None:
            raise StrategyError("this environment has no SSHDriver")
        if self.status is not Status.shell:
            self._shell()
            self.status = Status.shell
        key = getattr(self.power, "ssh_key", None)
        if key is not None and not self.ssh.keyfile:
            self.ssh.keyfile = str(key)
        self.target.activate(self.ssh)

    @never_retry
    @step(args=["status"])
    def force(self, status: Status | str) -> None:
        """Take the board to be in a state that somebody else brought it to (``--lg-initial-state``)."""
        wanted = status if isinstance(status, Status) else Status[status]
        if wanted is Status.unknown:
            raise StrategyError(f"can not force state {wanted}")
        self.target.activate(self.power)
        if wanted is Status.off:
            for driver in (self.ssh, self.shell):
                if driver is not None:
                    self.target.deactivate(driver)
        else:
            self.target.activate(self.shell)
            if wanted is Status.ssh:
                self.target.activate(self.ssh)
        self.status = wanted
