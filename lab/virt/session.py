# SPDX-License-Identifier: MIT
"""A virtual board under labgrid, for commands: the shipped environment, its errors turned into the kit's."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pexpect
from labgrid import Environment
from labgrid.strategy.common import StrategyError

import lab.labgrid
from lab.errors import ExitCode, KitError
from lab.process import tail
from lab.virt.board import BoardConfig, VirtualBoard

ENVIRONMENT = Path(lab.labgrid.__file__).parent / "env" / "virt.yaml"


class BoardSession:
    """``with BoardSession(config, results) as session: session.to("shell"); session.run("uname -r")``.

    The objects are labgrid's own: environment, target, strategy, drivers; so what works here works in a test.
    Raises KitError: infrastructure when a program or the boot fails, with the last lines of what explains it.
    """

    def __init__(self, config: BoardConfig, results: Path) -> None:
        self.config = config
        self.results = results
        self.environment: Any = None
        self.target: Any = None
        self.strategy: Any = None
        self.driver: Any = None

    def __enter__(self) -> Self:
        self.environment = Environment(str(ENVIRONMENT))
        self.target = self.environment.get_target()
        self.strategy = self.target.get_driver("KitStrategy", activate=False)
        self.driver = self.target.get_driver("KitQEMUDriver", activate=False)
        self.driver.config = self.config
        self.driver.results = str(self.results)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.environment.cleanup()

    @property
    def board(self) -> VirtualBoard:
        """The board behind the driver."""
        board: VirtualBoard | None = self.driver.virtual_board
        if board is None:
            raise KitError(ExitCode.INFRASTRUCTURE, "the virtual board is not running")
        return board

    def to(self, state: str) -> None:
        """Bring the board to a state of `lab.labgrid.KitStrategy`."""
        try:
            self.strategy.transition(state)
        except StrategyError as error:
            raise self._explain(self.strategy.broken or error, f"going to {state}") from error

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        """Run a command in the console's shell: its lines and exit code."""
        shell = self.target.get_active_driver("ShellDriver")
        try:
            lines, _, code = shell.run(command, timeout=timeout)
        except (pexpect.TIMEOUT, pexpect.EOF, KitError) as error:
            raise self._explain(error, f"running `{command}`") from error
        return lines, code

    def _explain(self, error: Exception, doing: str) -> KitError:
        """The kit's error for what went wrong on the board."""
        if isinstance(error, KitError):
            return error
        if self.driver.virtual_board is not None and (failure := self.driver.failure()) is not None:
            return KitError(failure.code, failure.message, failure.hint, tail=failure.tail, log=failure.log)
        log = self.results / "console.log"
        last = tail(log)
        what = "no answer in time" if isinstance(error, pexpect.TIMEOUT) else str(error).splitlines()[0]
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"the virtual board, {doing}: {what}",
            "the console's log has the whole boot; machine.log beside it has what the board would have punished",
            tail=last,
            log=log,
        )
