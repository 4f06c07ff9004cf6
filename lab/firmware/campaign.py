# SPDX-License-Identifier: MIT
"""A whole sweep of power cuts on virtual boards: which cuts, on several boards at a time, kept so that it can go on.

Each board is driven by a process of its own (`main`): the power cut of the host is a hook of the process. The process
that runs the sweep hands out cases and writes what came of each to a file before the next; stopped at any instant, the
same sweep with the same file goes on with the cases that are left.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lab import process
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.boardsweep import KINDS, Case, CutLab, Form, Outcome
from lab.firmware.sweep import Sweep, chosen_cuts
from lab.output import Meter
from lab.virt.board import BoardConfig
from lab.virt.supervisor import python_environment

BOARDS = max(1, min(2, os.cpu_count() or 1))
"""Boards at a time: one emulated processor each."""
COLUMNS = ("power cut", "then", "cuts", "operations", "boots", "begun anew", "losses", "seconds a cut")


@dataclass
class BoardSweep(Sweep):
    """Outcomes so far, and the seconds that this took, pauses left out."""

    outcomes: list[Outcome] = field(default_factory=list)
    planned: int = 0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count a case."""
        self.outcomes.append(outcome)
        self.judge(not outcome.problem, f"{outcome.case.kind} {outcome.case.number}: {outcome.problem}")

    def total(self, what: str) -> int:
        """The sum of ``boots``, ``operations`` or ``repeats``."""
        return sum(getattr(outcome, what) for outcome in self.outcomes)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The table: a row per kind, and the sum."""
        for kind, (cut, then) in KINDS.items():
            yield self._row(cut, then, [outcome for outcome in self.outcomes if outcome.case.kind == kind])
        yield self._row("all", "", self.outcomes)

    def _row(self, cut: str, then: str, found: Sequence[Outcome]) -> tuple[object, ...]:
        sums = [sum(getattr(outcome, name) for outcome in found) for name in ("operations", "boots", "repeats")]
        mean = sum(outcome.seconds for outcome in found) / max(1, len(found))
        return cut, then, len(found), *sums, sum(bool(outcome.problem) for outcome in found), round(mean, 1)

    def words(self) -> str:
        """One line of what ran."""
        resumed = sum(outcome.case.kind in ("flash-resume", "backup-board", "backup-host") for outcome in self.outcomes)
        text = (
            f"{self.cases} of {self.planned} cuts, {self.total('operations')} operations, {self.total('boots')} boots"
        )
        return f"{text}, {resumed} resumed, {self.cases - resumed} rolled back, {self.seconds:.0f} s"


class State:
    """The file that keeps a sweep: what it is, how many accesses there are, then a line per case."""

    def __init__(self, path: Path, form: Form) -> None:
        self.path, self._head = path, {"form": json.loads(json.dumps(asdict(form)))}
        self.steps: dict[str, int] = {}
        self.outcomes: list[Outcome] = []
        self.spent = 0.0
        self._sessions: list[float] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise from_os_error(error, f"{path}") from error
        self._load([line for line in lines if line.endswith(b"\n")])
        if lines and not lines[-1].endswith(b"\n"):  # a run that was ended in the middle of a line
            os.truncate(path, sum(map(len, lines[:-1])))
        if not self._sessions:
            self._append(self._head)
        self.spent = sum(self._sessions)
        self._append({"session": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        self._start = time.monotonic()

    def _load(self, lines: Sequence[bytes]) -> None:
        try:
            records = [json.loads(line) for line in lines]
            if records and records[0] != self._head:
                raise KitError(
                    ExitCode.USAGE, f"{self.path} is of another sweep", "name another place, or remove it to begin anew"
                )
            for record in records:
                if "session" in record or "form" in record:
                    self._sessions.append(0.0)
                elif "steps" in record:
                    self.steps = record["steps"]
                else:
                    self._sessions[-1] = float(record.pop("clock"))
                    self.outcomes.append(Outcome(Case(**record.pop("case")), **record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KitError(ExitCode.USAGE, f"{self.path} is no sweep's file ({error})", "name another place") from error

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("ab") as stream:
            stream.write(json.dumps(record).encode() + b"\n")

    @property
    def seconds(self) -> float:
        """Time spent in all runs of this sweep."""
        return self.spent + time.monotonic() - self._start

    def measured(self, steps: dict[str, int]) -> None:
        """Keep the numbers of accesses."""
        self.steps = steps
        self._append({"steps": steps})

    def add(self, outcome: Outcome) -> None:
        """Keep a case."""
        self.outcomes.append(outcome)
        self._append({**asdict(outcome), "clock": round(time.monotonic() - self._start, 2)})


def units(form: Form, steps: dict[str, int]) -> list[list[Case]]:
    """All cases of a sweep, always the same. The cases of a unit go well after each other on one board.

    A flash that was resumed leaves the new image, from which a rollback can be cut: no writing between the two. Writes
    first, then backups; within them in no order, so that a sweep that was stopped has seen a bit of everything.
    """
    writes = {"flash-resume": steps["flash"], "flash-rollback": steps["flash"], "rollback": steps["rollback"]}
    chosen: dict[str, list[int]] = {}
    left = form.cuts or 0
    for position, (kind, count) in enumerate(writes.items()):
        share = count if form.cuts is None else -(-left // (len(writes) - position))
        left -= share
        chosen[kind] = [number + 1 for number in chosen_cuts(count, share, form.seed + position)]
    tenth = max(1, sum(map(len, chosen.values())) // 10)
    changes = steps["changes"] if form.cuts is None else tenth
    chosen["backup-host"] = [number + 1 for number in chosen_cuts(steps["changes"], changes, form.seed)]
    # a read or two more or less from run to run: not the very last ones
    chosen["backup-board"] = [number + 1 for number in chosen_cuts(steps["reads"] * 9 // 10, tenth, form.seed)]
    cases = {kind: [Case(kind, number) for number in numbers] for kind, numbers in chosen.items()}
    pairs = itertools.zip_longest(cases.pop("flash-resume"), cases.pop("rollback"))
    found = [[case for case in pair if case] for pair in pairs]
    found += [[case] for several in cases.values() for case in several]
    random.Random(form.seed).shuffle(found)
    return sorted(found, key=lambda unit: unit[0].kind.startswith("backup"))


class _Worker:
    """Our side of a process that drives a board."""

    def __init__(self, root: Path, config: BoardConfig, form: Form) -> None:
        root.mkdir()
        self.log = root / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lab.firmware.campaign"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **python_environment()},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        pickle.dump((root, config, form), self._process.stdin)
        self._process.stdin.flush()

    def ask(self, question: object) -> Iterator[dict[str, Any]]:
        """The answers to a question, as they come; KitError when the process fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                error = answer["error"]
                raise KitError(ExitCode(error["code"]), error["message"], error["hint"], tail=error["tail"])
            if "done" in answer:
                return
            yield answer
        raise KitError(
            ExitCode.INFRASTRUCTURE, "a process that drives a virtual board ended", tail=process.tail(self.log)
        )

    def end(self) -> None:
        """End it: it switches its board off."""
        assert self._process.stdin is not None and self._process.stdout is not None
        process.end(self._process, 20)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


def _serve(worker: _Worker, todo: queue.SimpleQueue[list[Case]], done: queue.SimpleQueue[Outcome | Exception]) -> None:
    """Let a worker do what is to do, until nothing is."""
    try:
        while True:
            cases = todo.get_nowait()
            for answer in worker.ask([asdict(case) for case in cases]):
                done.put(Outcome(Case(**answer.pop("case")), **answer))
    except queue.Empty:
        return
    except (KitError, OSError, ValueError, KeyError, TypeError) as error:  # the main thread raises it
        done.put(error)


def power_cuts(
    root: Path, config: BoardConfig, meter: Meter, form: Form, *, state: Path | None = None, at_a_time: int = BOARDS
) -> BoardSweep:
    """Run a sweep, or what is left of the one in the file ``state``. ``root`` is an empty directory to work in."""
    kept = State(state or root / "state.jsonl", form)
    workers: list[_Worker] = []
    try:
        if not kept.steps:
            meter.update(0, None, "counting the accesses")
            workers.append(_Worker(root / "board-0", config, form))
            (steps,) = workers[0].ask("measure")
            kept.measured(steps)
        known = {outcome.case for outcome in kept.outcomes}
        wanted = units(form, kept.steps)
        result = BoardSweep(planned=sum(map(len, wanted)))
        for outcome in kept.outcomes:
            result.add(outcome)
        left = [rest for unit in wanted if (rest := [case for case in unit if case not in known])]
        todo: queue.SimpleQueue[list[Case]] = queue.SimpleQueue()
        done: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        for unit in left:
            todo.put(unit)
        while len(workers) < min(at_a_time, len(left)):
            workers.append(_Worker(root / f"board-{len(workers)}", config, form))
        for worker in workers:
            threading.Thread(target=_serve, args=(worker, todo, done), daemon=True).start()
        while result.cases < result.planned:
            got = done.get()
            if isinstance(got, Exception):
                raise got
            kept.add(got)
            result.add(got)
            meter.update(result.cases, result.planned, f"{result.total('boots')} boots, {result.lost} losses")
        result.seconds = kept.seconds
        return result
    finally:
        for worker in workers:
            worker.end()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Drive a board: what to make comes pickled, then a line of JSON per question, until the end of input."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(int(ExitCode.ABORTED))

    signal.signal(signal.SIGTERM, leave)
    root, config, form = pickle.load(sys.stdin.buffer)
    try:
        board = CutLab(root, config, form)
        try:
            for line in iter(sys.stdin.buffer.readline, b""):
                question = json.loads(line)
                if question == "measure":
                    _say(dict(board.measure()))
                else:
                    for case in question:
                        _say(asdict(board.run(Case(**case))))
                _say({"done": True})
        finally:
            board.close()
    except KitError as error:
        parts = {"code": int(error.code), "message": error.message, "hint": error.hint, "tail": error.tail}
        _say({"error": parts})


if __name__ == "__main__":
    main()
