# SPDX-License-Identifier: MIT
"""After flashing: power cycle, is it the system that was flashed, does the NPU compute; else back to what was.

For an entry beside the old one the board has to fall back by itself, and this only watches, restarts what has fallen
silent, and says what it saw. Exit codes: 1 when the new system did not pass and the old one runs again, 5 when nothing
answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware.flash.entry import EntrySession, entry_of
from lab.firmware.flash.power import Power
from lab.firmware.flash.target import Survey, survey
from lab.firmware.medium import Transport
from lab.firmware.transports.linux import LinuxTransport
from lab.output import Output

BOOT_SECONDS = 240.0
"""How long a board may take from power to an answer."""
SMOKE = "python3 -m rknpu_userspace.selftest --only int8-matmul --only int8-conv3x3-stride2"
SMOKE_SECONDS = 300.0
AWAY = (ExitCode.LINK, ExitCode.NO_DEVICE)

Reach = Callable[[], Transport]


@dataclass(frozen=True)
class Limits:
    """What a trial may take and what it has to show. An empty ``smoke`` leaves the test out."""

    boot_seconds: float = BOOT_SECONDS
    smoke: str = SMOKE


@dataclass(frozen=True)
class Verdict:
    """What came of it. ``state`` is the journal's."""

    state: str
    found: Survey


def _opened(reach: Reach) -> LinuxTransport:
    transport = reach()
    if not isinstance(transport, LinuxTransport):
        transport.close()
        raise KitError(ExitCode.USAGE, f"{transport.name} shows no running system", "--via ssh:HOST after the start")
    return transport


def wait_for(reach: Reach, before: str, seconds: float) -> tuple[LinuxTransport, Survey] | None:
    """The board after its next start (its boot id is not ``before``); None when nothing answers in time."""
    deadline = time.monotonic() + seconds
    while True:
        transport: LinuxTransport | None = None
        try:
            transport = _opened(reach)
            found = survey(transport)
            if found.boot_id != before:
                return transport, found
            transport.close()
        except BaseException as error:
            if transport is not None:
                transport.close()
            if not (isinstance(error, KitError) and error.code in AWAY):
                raise
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.5)


def smoke(transport: LinuxTransport, command: str) -> str:
    """Run the NPU's test on the board; why it failed, empty when it did not."""
    if not command:
        return ""
    marker = "npulab-smoke-ends-with"
    # a pipe's status would be that of tail
    script = f'out=$({command} 2>&1); code=$?; echo "$out" | tail -n 5; echo {marker} $code'
    try:
        said = transport.remote.run(script, timeout=SMOKE_SECONDS).decode(errors="replace")
    except KitError as error:
        return error.message
    text, _, code = said.rpartition(marker)
    if code.strip() == "0":
        return ""
    last = text.strip().splitlines()[-1:] or ["no word"]
    return f"the smoke test ended with {code.strip() or 'nothing'}: {last[0]}"


class Trial:
    """One entry's way from armed to committed, or back."""

    def __init__(self, session: EntrySession, reach: Reach, power: Power, limits: Limits, out: Output) -> None:
        self.session, self.reach, self.power, self.limits, self.out = session, reach, power, limits, out

    def _is_new(self, found: Survey) -> bool:
        return entry_of(found.cmdline) == self.session.plan.payload.name

    def start(self, transport: LinuxTransport) -> tuple[LinuxTransport, Survey]:
        """Power cycle and wait; a board that stays silent is power cycled once more if there is a real switch."""
        before = survey(transport).boot_id
        self.power.cycle(transport)
        transport.close()
        with self.out.stage("starting the new entry") as meter:
            meter.update(0, None, f"by {self.power.name}")
            answer = wait_for(self.reach, before, self.limits.boot_seconds)
        if answer is not None:
            return answer
        self.session.journal.add("silent")
        seconds = f"{self.limits.boot_seconds:.0f} s"
        if self.power.real:
            self.out.note(f"no answer within {seconds}: power cycle once more")
            self.power.cycle(None)
            with self.out.stage("starting again"):
                answer = wait_for(self.reach, before, self.limits.boot_seconds)
            if answer is not None:
                return answer
        raise KitError(
            ExitCode.LINK,
            f"{self.session.plan.id}: the board has not answered within {seconds} after its restart",
            "take its power away and give it back, then run this again; if it stays silent, choose the old entry at "
            "the loader's console (setenv pxe_label_override), or restore the backup over USB or from another medium",
        )

    def judge(self, transport: LinuxTransport, found: Survey) -> list[str]:
        """What is wrong with the system that runs; empty when it is the flashed one and passes."""
        payload, wrong = self.session.plan.payload, []
        if found.release != payload.release:
            wrong.append(f"kernel {found.release} runs, not {payload.release}")
        if payload.banner and found.version != payload.banner:
            wrong.append(f"another build runs: {found.version}")
        if payload.model and found.model != payload.model:
            wrong.append(f"the device tree calls the board {found.model}, not {payload.model}")
        if wrong:
            return wrong
        with self.out.stage("smoke test"):
            failed = smoke(transport, self.limits.smoke)
        return [failed] if failed else []

    def flash(self, transport: LinuxTransport, *, commit: bool = True) -> Verdict:
        """Everything, or what is left of it after an interruption; KitError (failed) when the old system runs again.

        Without a way to restart the board it ends armed; the next call goes on. The transport is closed.
        """
        session = self.session
        try:
            session.check_open()
            session.check_board(transport)
            found = survey(transport)
            if session.journal.state == "committed":
                return Verdict("committed", found)
            armed: dict[str, Any] = next(
                (e for e in reversed(session.journal.entries()) if e["state"] in ("armed", "fell-back")), {}
            )
            if self._is_new(found):
                return self.run(transport, commit=commit)
            if armed.get("state") == "armed" and armed["boot"] != found.boot_id:
                raise self._fell_back(transport, ["it did not come up"])
            self._bring(transport)
            if not self.power.available:
                return Verdict("armed", found)
            return self.run(transport, commit=commit)
        finally:
            transport.close()

    def _bring(self, transport: LinuxTransport) -> None:
        """Stage and arm; an error says how to go on."""
        plan = self.session.plan
        go_on = f"go on with `npulab flash run {plan.id}` or back with `npulab flash rollback {plan.id}`"
        try:
            with self.out.stage("bringing the files over") as meter:
                self.session.stage(transport, meter)
            self.session.arm(transport)
        except KeyboardInterrupt:
            what = f"{plan.id} was interrupted; the board starts {plan.old_default} as before"
            raise KitError(ExitCode.ABORTED, what, go_on) from None
        except KitError as error:
            if error.code is ExitCode.LINK:
                raise KitError(error.code, f"{plan.id}: {error.message}", go_on) from error
            raise

    def run(self, transport: LinuxTransport, *, commit: bool = True) -> Verdict:
        """From an armed board to the verdict; a board that runs the new entry is judged as it is."""
        found = survey(transport)
        try:
            if not self._is_new(found):
                transport, found = self.start(transport)
            if not self._is_new(found):
                raise self._fell_back(transport, ["it did not come up"])
            wrong = self.judge(transport, found)
            if wrong:
                raise self._give_up(transport, found, wrong)
            self.session.vouch(transport)
            self.session.journal.add("verified")
            if commit:
                self.session.commit(transport)
            return Verdict(self.session.journal.state, found)
        finally:
            transport.close()

    def _give_up(self, transport: LinuxTransport, found: Survey, wrong: list[str]) -> KitError:
        """Restart a board whose new system did not pass; the old entry is its default again."""
        self.power.cycle(transport)
        with self.out.stage("back to the old entry"):
            answer = wait_for(self.reach, found.boot_id, self.limits.boot_seconds)
        if answer is None:
            return KitError(
                ExitCode.LINK, f"{'; '.join(wrong)}; and the board does not come back", "look at its console"
            )
        try:
            if self._is_new(answer[1]):
                return KitError(ExitCode.FAILED, f"{'; '.join(wrong)}; and the new entry started again", "roll back")
            return self._fell_back(answer[0], wrong)
        finally:
            answer[0].close()

    def _fell_back(self, transport: LinuxTransport, wrong: list[str]) -> KitError:
        """The old system runs: make that certain, and say so."""
        with contextlib.suppress(KitError):
            self.session.restore_conf(transport)
        self.session.journal.add("fell-back", why="; ".join(wrong))
        plan = self.session.plan
        runs = entry_of(survey(transport).cmdline) or plan.old_default
        return KitError(
            ExitCode.FAILED,
            f"{plan.payload.name} was given up: {'; '.join(wrong)}; the board runs {runs} again",
            f"its files are still there: look for the cause, run {plan.id} again, or npulab flash rollback {plan.id}",
        )


def prove_image(board: Board, transport: Transport, reach: Reach, power: Power, limits: Limits, out: Output) -> Survey:
    """After an image was written: power cycle, does a system answer on this board, does the NPU compute.

    The transport is closed. KitError: link when nothing answers, failed when the smoke test fails.
    """
    try:
        before = survey(transport).boot_id if isinstance(transport, LinuxTransport) else ""
        power.cycle(transport)
    finally:
        transport.close()
    with out.stage("starting from the new image"):
        answer = wait_for(reach, before, limits.boot_seconds)
    if answer is None:
        message = f"{board.title} does not answer within {limits.boot_seconds:.0f} s after its restart"
        raise KitError(ExitCode.LINK, message, "look at its console; npulab flash rollback brings the backup back")
    with contextlib.closing(answer[0]) as system, out.stage("smoke test"):
        failed = smoke(system, limits.smoke)
    if failed:
        raise KitError(ExitCode.FAILED, failed, "npulab flash rollback brings the backup back")
    return answer[1]


def rollback(session: EntrySession, reach: Reach, power: Power, limits: Limits, out: Output) -> int:
    """Back to the old entry, then take the run's files away; returns how many."""
    if session.journal.state == "planned":
        raise KitError(ExitCode.USAGE, f"{session.plan.id} has written nothing", "there is nothing to roll back")
    transport = _opened(reach)
    try:
        session.check_board(transport)
        session.journal.add("rolling-back")
        session.restore_conf(transport)
        found = survey(transport)
        if entry_of(found.cmdline) == session.plan.payload.name:
            power.cycle(transport)
            transport.close()
            with out.stage("starting the old entry"):
                answer = wait_for(reach, found.boot_id, limits.boot_seconds)
            if answer is None:
                raise KitError(ExitCode.LINK, f"{session.plan.id}: the board does not come back", "look at its console")
            transport = answer[0]
        count = session.clear(transport)
        session.journal.add("rolled-back")
        return count
    finally:
        transport.close()
