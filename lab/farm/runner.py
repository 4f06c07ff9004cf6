# SPDX-License-Identifier: MIT
"""One job on a place: lease, environment, command, results. The keeper (`lab.farm.keeper`) does what must not fail."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import lab.labgrid
from lab.errors import ExitCode, KitError, from_os_error
from lab.farm import state
from lab.farm.client import full_address
from lab.farm.junit import counts, infrastructure_trouble
from lab.farm.keeper import GRACE_SECONDS, LOST_SECONDS, ORPHAN_SECONDS, RELEASE_SECONDS, Command, Wish
from lab.output import Output
from lab.process import end, tail
from lab.virt.results import new_results_dir
from lab.virt.supervisor import python_environment

ENVIRONMENTS = Path(lab.labgrid.__file__).parent / "env"
PATIENCE = 2 * GRACE_SECONDS + ORPHAN_SECONDS + RELEASE_SECONDS + 10.0
"""How long the keeper may take to put everything away."""


@dataclass(frozen=True)
class Job:
    """What a user asked for. ``command`` runs with the place's labgrid environment, none is the board suite with its
    report; ``filters`` choose the place."""

    coordinator: str
    filters: Mapping[str, str]
    command: Sequence[str]
    environment: Path | None = None
    wait: float = 3600.0
    timeout: float | None = None
    priority: float = 0.0
    lost_after: float = LOST_SECONDS
    results: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Record:
    """What happened, for ``job.json``: times of the stages in seconds, how the command ended, whether all is back."""

    owner: str
    coordinator: str
    command: list[str]
    results: str
    place: str = ""
    token: str = ""
    stage: str = "reserve"
    seconds: dict[str, float] = field(default_factory=dict)
    code: int | None = None
    timed_out: bool = False
    released: bool = False
    killed: int = 0
    trouble: str = ""
    junit: str = ""
    tests: dict[str, int] = field(default_factory=dict)


class Copier(threading.Thread):
    """The command's output, to the log and to the user, until everybody who could write has ended."""

    def __init__(self, source: int, log: Path, screen: IO[bytes] | None) -> None:
        super().__init__(name="job-output", daemon=True)
        self.source, self.screen = source, screen
        self.failure: OSError | None = None
        self._log: IO[bytes] = log.open("ab", buffering=0)

    def run(self) -> None:
        with self._log, os.fdopen(self.source, "rb", buffering=0) as stream:
            while data := stream.read(65536):
                self.write(data)
                if self.screen is not None:
                    with contextlib.suppress(OSError):  # a closed terminal is no reason to lose the log
                        self.screen.write(data)
                        self.screen.flush()

    def write(self, data: bytes) -> None:
        """To the log; the first failure is kept, and the command goes on."""
        try:
            self._log.write(data)
        except OSError as error:
            self.failure = self.failure or error


class Runner:
    """Runs one job. `stage` names what it is doing, for errors."""

    def __init__(self, job: Job, out: Output) -> None:
        self.job = job
        self.out = out
        identity = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.host, self.user = socket.gethostname(), f"{getpass.getuser()}.{identity}"
        results = job.results.absolute() if job.results else new_results_dir("farm")
        results.mkdir(parents=True, exist_ok=True)
        self.results = results
        self.log = results / "log.txt"
        address = full_address(job.coordinator)
        self.record = Record(f"{self.host}/{self.user}", address, list(job.command), str(results))
        self.wish = Wish(
            address,
            self.record.owner,
            identity,
            dict(job.filters),
            job.wait,
            priority=job.priority,
            lost_after=job.lost_after,
        )
        self._keeper: subprocess.Popen[bytes] | None = None
        self._error: KitError | None = None
        self._failed_in = ""
        self._since = time.monotonic()

    def run(self) -> Record:
        """The whole job; KitError (infrastructure) when it was not the command that failed."""
        freed = state.sweep(self.wish.coordinator)
        if freed:
            self.out.note(f"released what a killed run had left: {', '.join(freed)}")
        read, write = os.pipe()
        copier = Copier(read, self.log, None if self.out.quiet else _screen(self.out))
        copier.start()
        try:
            try:
                self._start_keeper(write)
            finally:
                os.close(write)
            self._follow(write)
        finally:
            self._stop_keeper()
            copier.join(ORPHAN_SECONDS)
            self._enter("done")
            self._collect()
            self._save()
        if copier.failure is not None:
            self._fail(from_os_error(copier.failure, f"writing {self.log}"))
        if self._error is not None:
            raise self._explained(self._error)
        return self.record

    def _fail(self, error: KitError) -> None:
        """Keep the first trouble, and the stage it came in."""
        if self._error is None:
            self._error, self._failed_in = error, self.record.stage

    def _collect(self) -> None:
        """Read the command's report; what it says of the infrastructure is the job's trouble."""
        record = self.record
        if record.junit:
            record.tests = counts(Path(record.junit))
        if record.code is not None and not self._error:
            why = infrastructure_trouble(record.code, record.tests, is_pytest=is_pytest(record.command))
            if why:
                record.stage = "run"
                self._fail(KitError(ExitCode.INFRASTRUCTURE, why, "the log has the first of them"))

    def _start_keeper(self, output: int) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "lab.farm.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.results / "keeper.log").open("ab"),
            env={**os.environ, **python_environment(), "GRPC_ENABLE_FORK_SUPPORT": "0"},
            pass_fds=[output],
            start_new_session=True,
        )
        self._tell(asdict(self.wish))

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
            self._keeper.stdin.flush()

    def _enter(self, stage: str) -> None:
        now = time.monotonic()
        spent = self.record.seconds
        spent[self.record.stage] = round(spent.get(self.record.stage, 0.0) + now - self._since, 3)
        self.record.stage, self._since = stage, now
        self._save()

    def _say(self, text: str) -> None:
        """A line about the lease, in the log too; the log's own failure is the copier's to report."""
        self.out.note(text)
        with contextlib.suppress(OSError), self.log.open("ab") as stream:
            stream.write(f"[farm] {text}\n".encode())

    def _save(self) -> None:
        try:
            state.write(self.results / "job.json", asdict(self.record))
        except OSError as error:
            self._fail(from_os_error(error, "writing the job's record"))

    # the keeper's events
    def _follow(self, output: int) -> None:
        assert self._keeper is not None and self._keeper.stdout is not None
        for line in self._keeper.stdout:
            event = json.loads(line)
            name = event.pop("event")
            getattr(self, f"_on_{name}")(event, output)

    def _on_reserved(self, event: dict[str, Any], output: int) -> None:
        self.record.token = event["token"]
        self._enter("wait")

    def _on_waiting(self, event: dict[str, Any], output: int) -> None:
        self._say(f"waiting for a turn: {event['holders'] or 'reserved by others'}")

    def _on_acquired(self, event: dict[str, Any], output: int) -> None:
        self.record.place = event["place"]
        self._say(f"place {event['place']} is ours, as {self.record.owner}")
        try:
            command = self._command(event["tags"], output)
        except KitError as error:
            self._fail(error)
            self._close_orders()
            return
        self._enter("run")
        self._tell({"run": asdict(command)})

    def _on_started(self, event: dict[str, Any], output: int) -> None:
        self._say(f"running {shlex.join(self.record.command)}")

    def _on_timeout(self, event: dict[str, Any], output: int) -> None:
        self.record.timed_out = True
        limit = f"{event['seconds']:g}"
        self._fail(KitError(ExitCode.INFRASTRUCTURE, f"no end after {limit} s", "allow more with --timeout SECONDS"))

    def _on_lost(self, event: dict[str, Any], output: int) -> None:
        self._fail(KitError(ExitCode.INFRASTRUCTURE, event["message"], event["hint"]))

    def _on_error(self, event: dict[str, Any], output: int) -> None:
        self._fail(KitError(ExitCode(event["code"]), event["message"], event["hint"]))

    def _on_exit(self, event: dict[str, Any], output: int) -> None:
        self.record.code, self.record.killed = event["code"], event["killed"]
        self._enter("release")

    def _on_released(self, event: dict[str, Any], output: int) -> None:
        self.record.released = True
        if event["places"]:
            self._say(f"released {', '.join(event['places'])}")

    def _on_unreleased(self, event: dict[str, Any], output: int) -> None:
        hint = "npulab farm sweep releases it once the coordinator is back"
        self._fail(KitError(ExitCode.INFRASTRUCTURE, f"not released: {event['message']}", hint))

    # the command
    def _command(self, tags: Mapping[str, str], output: int) -> Command:
        environment = self._environment(tags)
        self.record.command, self.record.junit = self._completed(environment)
        variables = {
            **self.job.variables,
            "LG_COORDINATOR": self.record.coordinator,
            "LG_PLACE": self.record.place,
            "LG_TOKEN": self.record.token,
            "LG_HOSTNAME": self.host,
            "LG_USERNAME": self.user,
            "NPULAB_PLACE": self.record.place,
            "NPULAB_RESULTS": str(self.results),
        }
        if environment is not None:
            variables["LG_ENV"] = str(environment)
        return Command(self.record.command, output, variables, timeout=self.job.timeout)

    def _environment(self, tags: Mapping[str, str]) -> Path | None:
        """The labgrid environment: the one that was named, or the kit's for the place's ``board`` tag."""
        if self.job.environment is not None:
            return self.job.environment.absolute()
        board = tags.get("board")
        path = ENVIRONMENTS / f"{board}-place.yaml"
        return path if board and path.is_file() else None

    def _completed(self, environment: Path | None) -> tuple[list[str], str]:
        """A pytest command with its reports in the results directory; any other command as it is."""
        command = list(self.job.command)
        if not command:
            report = self.results / "report"
            return self._suite(environment, report), str(report / "junit-board.xml")
        if not is_pytest(command):
            return command, ""
        if command[0] == "pytest":
            command[:1] = [sys.executable, "-m", "pytest"]
        junit = next((word.partition("=")[2] for word in command if word.startswith("--junitxml=")), "")
        if not junit and "--junitxml" not in command:
            junit = str(self.results / "junit.xml")
            command.append(f"--junitxml={junit}")
        if environment is not None and "--lg-log" not in command:
            command += ["--lg-log", str(self.results)]
        return command, junit

    def _suite(self, environment: Path | None, report: Path) -> list[str]:
        """The board suite with its report: what runs when no command is given."""
        if environment is None:
            raise KitError(
                ExitCode.USAGE,
                f"place {self.record.place} has no tag `board` that the kit has an environment for",
                "name one with --env FILE, or give a command after --",
            )
        words = [sys.executable, "-m", "lab", "test", "board", "--env", str(environment), "--report", str(report)]
        options = {"--artifacts": "NPULAB_ARTIFACTS", "--dtb": "NPULAB_DTB", "--memory": "NPULAB_MEMORY"}
        for option, variable in options.items():
            if variable in self.job.variables:
                words += [option, self.job.variables[variable]]
        return words

    # the end
    def _close_orders(self) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()

    def _stop_keeper(self) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        self._close_orders()
        try:
            # what it still says fits into the pipe
            keeper.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end(keeper)
        assert keeper.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in keeper.stdout:
                event = json.loads(line)
                getattr(self, f"_on_{event.pop('event')}")(event, -1)
        keeper.stdout.close()
        if self.record.released:
            return
        how = f"the process that keeps the lease ended with {keeper.returncode}"
        self._fail(KitError(ExitCode.INFRASTRUCTURE, how, "run it again", tail=tail(self.results / "keeper.log")))
        # it was killed: its command died with it, and what it held is given back here
        with contextlib.suppress(KitError):
            state.sweep(self.wish.coordinator)
            self.record.released = not state.lease_path(self.wish.identity).exists()

    def _explained(self, error: KitError) -> KitError:
        """The error with the stage it happened in and the last lines of the job."""
        stage = self._failed_in
        place = f"{self.record.place}, " if self.record.place else ""
        self.record.trouble = f"{place}{stage}: {error.message}"
        self._save()
        last = error.tail or tail(self.log)
        return KitError(
            error.code, f"farm job ({place}stage {stage}): {error.message}", error.hint, tail=last, log=self.log
        )


def _screen(out: Output) -> IO[bytes]:
    return sys.stderr.buffer if out.as_json else sys.stdout.buffer


def is_pytest(command: Sequence[str]) -> bool:
    """Whether a command line is pytest's."""
    program = Path(command[0]).name if command else ""
    return program in ("pytest", "labgrid-pytest") or (
        program.startswith("python") and list(command[1:3]) == ["-m", "pytest"]
    )


def check_command(command: Sequence[str]) -> None:
    """KitError (usage) when there is no such program."""
    if shutil.which(command[0]) is None and not is_pytest(command):
        raise KitError(ExitCode.USAGE, f"there is no program {command[0]}", "npulab farm run ... -- PROGRAM ARGUMENTS")
