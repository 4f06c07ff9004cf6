# SPDX-License-Identifier: MIT
"""How the power of a board is taken away and given back, after flashing and when it has fallen silent.

virt            the virtual board of ``--via virt:NAME`` (the default there)
lg:FILE         the power driver of a labgrid environment
command:TEXT    a command of this host that takes the power away and gives it back
reboot          no switch: the running system is told to restart (the default elsewhere)
none            nothing: somebody does it by hand, and runs the command again
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.firmware.medium import Transport
from lab.virt.background import find_board, power_cycle

FORMS = "virt, lg:FILE, command:TEXT, reboot, none"
COMMAND_SECONDS = 120.0


class Power:
    """One way. ``real``: the power really goes, whatever the board does."""

    def __init__(self, name: str, cycle: Callable[[Transport | None], None] | None, *, real: bool) -> None:
        self.name, self._cycle, self.real = name, cycle, real

    @property
    def available(self) -> bool:
        """Whether there is any."""
        return self._cycle is not None

    def cycle(self, transport: Transport | None) -> None:
        """Off and on; ``transport`` is the connection to the running system, if there is one."""
        if self._cycle is None:
            raise KitError(ExitCode.USAGE, "there is no way to restart the board", f"--power {FORMS}")
        self._cycle(transport)


def _restart(transport: Transport | None) -> None:
    if transport is None:
        raise KitError(
            ExitCode.LINK,
            "the board does not answer, and there is no switch for its power",
            "take its power away and give it back by hand; name a switch with --power",
        )
    transport.reset()


def _command(text: str) -> Callable[[Transport | None], None]:
    def cycle(_: Transport | None) -> None:
        try:
            done = subprocess.run(
                ["sh", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise KitError(ExitCode.INFRASTRUCTURE, f"`{text}` did not end within {COMMAND_SECONDS:.0f} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            message = f"`{text}` ended with {done.returncode}{f': {said[-1]}' if said else ''}"
            raise KitError(ExitCode.INFRASTRUCTURE, message, "it has to take the board's power away and give it back")

    return cycle


def _labgrid(path: Path) -> Callable[[Transport | None], None]:
    if not path.is_file():
        raise KitError(ExitCode.USAGE, f"there is no labgrid environment {path}", "lg:FILE")

    def cycle(_: Transport | None) -> None:
        from labgrid import Environment

        environment = Environment(str(path))
        try:
            target = environment.get_target()
            target.get_driver("PowerProtocol").cycle()
        finally:
            environment.cleanup()

    return cycle


def choose(text: str | None, via: str) -> Power:
    """The way that ``--power`` names, or the best there is for a transport."""
    kind, _, rest = via.partition(":")
    if kind == "virt" and text in (None, "virt"):
        name = rest or None
        if find_board(name).loader:
            return Power("the virtual board's power", lambda _: power_cycle(find_board(name)), real=True)
    if text in (None, "reboot"):
        # after a restart a serial console asks for a log-in first
        linux = kind in ("ssh", "virt")
        return Power("a restart by its own system", _restart if linux else None, real=False)
    word, _, rest = text.partition(":")
    if word == "none":
        return Power("nothing", None, real=False)
    if word == "lg" and rest:
        return Power(f"labgrid, {rest}", _labgrid(Path(rest).expanduser()), real=True)
    if word == "command" and rest:
        return Power(f"`{rest}`", _command(rest), real=True)
    raise KitError(ExitCode.USAGE, f"--power {text}: not a way to restart a board", f"one of {FORMS}")
