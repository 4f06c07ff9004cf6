# SPDX-License-Identifier: MIT
"""The process that holds a lease: ``python -m lab.farm.keeper``.

It reserves, waits its turn, acquires, runs the command, and gives everything back, whatever happens to the run that
started it: it holds one end of a pipe, and when the other end closes (also by ``kill -9``) it ends the command and all
that the command started, and releases the place. When the keeper itself is killed, the kernel kills the command, and
the lease, whose lock is free then, is ended by the runner, by the farm's sweeper or by the next ``npulab farm``.

stdin: one JSON line, the lease to get (`Wish`); later ``{"run": {...}}`` (`Command`) once, or ``stop``. The end of
stdin is a stop. stdout: one JSON line per event: ``reserved``, ``waiting``, ``acquired``, ``started``, ``exit``,
``timeout``, ``lost``, ``error``, ``released``, ``unreleased``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab.errors import ExitCode, KitError
from lab.farm import processes, state
from lab.farm.client import Client, Place
from lab.virt.supervisor import python_environment

POLL_SECONDS = 0.5
"""Between two questions about a reservation; labgrid's coordinator drops one that nobody asks about for a minute."""
CHECK_SECONDS = 2.0
"""Between two looks at the place while the command runs."""
LOST_SECONDS = 15.0
"""How long an exporter or the coordinator may be away before the run is given up; a restart takes a few seconds."""
ACQUIRE_TRIES = 3
GRACE_SECONDS = 20.0
"""How long a command has after SIGINT, and again after SIGTERM, to put its board away."""
ORPHAN_SECONDS = 10.0
"""What `lab.farm.launch` did not end; it does that itself unless it is killed."""
RELEASE_SECONDS = 20.0


@dataclass(frozen=True)
class Wish:
    """Which place: ``filters`` are tags (``name`` is the place's name); ``wait`` seconds for its turn."""

    coordinator: str
    owner: str
    identity: str
    filters: dict[str, str]
    wait: float
    priority: float = 0.0
    lost_after: float = LOST_SECONDS


@dataclass(frozen=True)
class Command:
    """What to run on the place; its output goes to descriptor ``output``."""

    argv: list[str]
    output: int
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    timeout: float | None = None


class Stopped(Exception):
    """The run is not wanted any more."""


def emit(event: str, **values: Any) -> None:
    """Tell the runner; it may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps({"event": event, **values}) + "\n").encode())


def note(text: str) -> None:
    """A line with the time for the keeper's own log, whoever still reads the events."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Orders:
    """What comes from the runner."""

    def __init__(self) -> None:
        self._buffer = b""
        self.closed = False

    def wait(self, timeout: float) -> dict[str, Any] | None:
        """The next order within ``timeout`` seconds; `Stopped` at ``stop``, SIGTERM or the end of stdin."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if self.closed:
                raise Stopped
            if left <= 0:
                return None
            ready, _, _ = select.select([0], [], [], left)
            if ready:
                chunk = os.read(0, 65536)
                self.closed = not chunk
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        if line.strip() == b"stop":
            self.closed = True
            raise Stopped
        order: dict[str, Any] = json.loads(line)
        return order


class Keeper:
    """One lease, from the reservation to the release."""

    def __init__(self, wish: Wish, orders: Orders) -> None:
        self.wish = wish
        self.orders = orders
        self.client = Client(wish.coordinator, wish.owner)
        self.lease = state.Lease(wish.coordinator, wish.owner, keeper=os.getpid())
        self.path = state.lease_path(wish.identity)
        self._away_since: float | None = None
        self._known = False  # whether the coordinator has heard of us

    @contextmanager
    def _leased(self) -> Iterator[None]:
        """The lease's file, locked for as long as this process lives."""
        stream = state.lock(self.path, patience=5.0)
        if stream is None:
            raise KitError(ExitCode.INFRASTRUCTURE, f"the lease {self.path} is somebody else's", "run it again")
        with stream:
            self.lease.save(self.path)
            try:
                yield
            finally:
                self._release()

    def run(self) -> None:
        """Everything."""
        try:
            with self._leased():
                self._use()
        except KitError as error:
            emit("error", code=int(error.code), message=error.message, hint=error.hint)
        finally:
            self.client.close()

    def _use(self) -> None:
        """From the session to the command's end; what went wrong is told before the release."""
        try:
            self.client.start()
            self._known = True
            place = self._acquire(self._wait_turn())
            emit("acquired", place=place.name, tags=dict(place.tags), token=self.lease.token)
            while (order := self.orders.wait(CHECK_SECONDS)) is None:
                self._check_place(place)
            self._command(Command(**order["run"]), place)
        except Stopped:
            note("stopped")
        except KitError as error:
            note(error.message)
            emit("error", code=int(error.code), message=error.message, hint=error.hint)

    # getting the place
    def _check_wish(self) -> None:
        """A wish that no place can ever fulfil is told at once."""
        places = self.client.places()
        wanted = self.wish.filters
        if any(wanted.items() <= {**place.tags, "name": place.name}.items() for place in places):
            return
        words = " ".join(f"{key}={value}" for key, value in wanted.items())
        known = "; ".join(
            f"{place.name} ({' '.join(f'{k}={v}' for k, v in sorted(place.tags.items()))})" for place in places
        )
        raise KitError(ExitCode.NO_DEVICE, f"no place has {words}", f"places: {known or 'none'}")

    def _wait_turn(self) -> str:
        """The name of the place that the reservation got."""
        self._check_wish()
        reservation = self.client.reserve(self.wish.filters, self.wish.priority)
        self.lease.token = reservation.token
        self.lease.save(self.path)
        emit("reserved", token=reservation.token)
        deadline, told = time.monotonic() + self.wish.wait, ""
        while reservation.state != "allocated":
            if reservation.state in ("expired", "invalid"):
                raise KitError(ExitCode.INFRASTRUCTURE, f"the reservation became {reservation.state}", "run it again")
            holders = self._holders()
            if holders != told:
                emit("waiting", holders=holders)
                told = holders
            if time.monotonic() >= deadline:
                raise KitError(
                    ExitCode.INFRASTRUCTURE,
                    f"no turn within {self.wish.wait:.0f} s: {holders or 'the places are reserved'}",
                    "wait longer with --wait SECONDS, or see who has them: npulab farm place list",
                )
            self.orders.wait(min(POLL_SECONDS, max(0.01, deadline - time.monotonic())))
            reservation = self.client.poll(reservation.token)
        return reservation.place

    def _holders(self) -> str:
        wanted = self.wish.filters.items()
        fitting = [place for place in self.client.places() if wanted <= {**place.tags, "name": place.name}.items()]
        return ", ".join(f"{place.name} is held by {place.acquired}" for place in fitting if place.acquired)

    def _acquire(self, name: str) -> Place:
        self.lease.place = name
        self.lease.save(self.path)
        for left in reversed(range(ACQUIRE_TRIES)):
            try:
                self.client.acquire(name)
                break
            except KitError:
                # an exporter may still be letting go of what the last owner had
                if not left:
                    raise
            self.orders.wait(1.0)
        place = self.client.place(name)
        if not place.resources:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"place {name} has no resources: its exporter is not there",
                "start the exporter, or look at the place's matches: labgrid-client -p NAME show",
            )
        return place

    # running
    def _check_place(self, place: Place) -> None:
        """KitError when the place is not ours any more, or an exporter or the coordinator is away for too long."""
        away = ""
        try:
            now = self.client.place(place.name)
        except KitError as error:
            if error.code is not ExitCode.INFRASTRUCTURE:
                raise
            away = error.message
        else:
            if now.acquired != self.wish.owner:
                raise KitError(
                    ExitCode.INFRASTRUCTURE,
                    f"place {place.name} was taken away: {now.acquired or 'nobody'} has it",
                    "somebody released it by hand, or the coordinator was restarted",
                )
            offered = {resource.path for resource in self.client.resources() if resource.avail}
            missing = sorted(set(place.resources) - offered)
            if missing and self.client.connected:
                away = f"the exporter of {missing[0]} is away"
            elif not self.client.connected:
                away = self._reconnect()
        if not away:
            self._away_since = None
            return
        since = self._away_since = self._away_since or time.monotonic()
        if time.monotonic() - since >= self.wish.lost_after:
            raise KitError(ExitCode.INFRASTRUCTURE, f"place {place.name} was lost: {away}", "see the exporter's log")

    def _reconnect(self) -> str:
        """Open the session again; why not, if it cannot be done yet."""
        self.client.close()
        self.client = Client(self.wish.coordinator, self.wish.owner)
        try:
            self.client.start()
        except KitError as error:
            return error.message
        return ""

    def _command(self, command: Command, place: Place) -> None:
        # ssh, when the coordinator is reached through it (LG_PROXY): the release needs it too
        before = frozenset(processes.descendants(os.getpid()))
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.farm.launch", str(os.getpid()), *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=command.output,
            stderr=command.output,
            cwd=command.cwd,
            env={**os.environ, **python_environment(), **command.env},
            start_new_session=True,
        )
        emit("started", pid=process.pid)
        deadline = None if command.timeout is None else time.monotonic() + command.timeout
        next_check = time.monotonic() + CHECK_SECONDS
        try:
            while process.poll() is None:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    emit("timeout", seconds=command.timeout)
                    break
                if now >= next_check:
                    self._check_place(place)
                    next_check = time.monotonic() + CHECK_SECONDS
                self.orders.wait(0.1)
        except KitError as error:
            note(error.message)
            emit("lost", message=error.message, hint=error.hint)
        finally:
            _end(process)
            os.close(command.output)
            killed = processes.end_descendants(ORPHAN_SECONDS, before)
            note(f"the command ended with {process.returncode}, {killed} processes of it were killed")
            emit("exit", code=process.returncode, killed=killed)

    # giving it back
    def _release(self) -> None:
        deadline = time.monotonic() + min(RELEASE_SECONDS, max(1.0, self.wish.lost_after))
        while self._known:
            try:
                places = state.end_lease(self.client, self.lease)
            except KitError as error:
                if time.monotonic() >= deadline:
                    # the file stays, its lock does not: the next sweep tries again
                    emit("unreleased", message=error.message)
                    return
                time.sleep(1.0)
                continue
            self.path.unlink(missing_ok=True)
            note(f"released {', '.join(places) or 'no place'}")
            emit("released", places=places)
            return
        self.path.unlink(missing_ok=True)
        emit("released", places=[])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command: Ctrl-C first, so that pytest puts its boards away and writes its report."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        note(f"{number.name} to the command")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS if number is not signal.SIGKILL else None)
    # members of its group that outlived it; `end_descendants` sees to those that left the group
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)


def main() -> int:
    """Read the wish, keep the lease."""
    processes.adopt_orphans()
    orders = Orders()

    def stop(*_: object) -> None:
        orders.closed = True

    # Ctrl-C is the runner's affair; it tells us. Handlers, because what is ignored stays ignored in the command
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    try:
        wish = orders.wait(60.0)
    except Stopped:
        return 2
    if wish is None:
        return 2
    Keeper(Wish(**wish), orders).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
