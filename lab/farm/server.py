# SPDX-License-Identifier: MIT
"""The local farm: labgrid's own coordinator and exporter on 127.0.0.1, with virtual boards as places.

What the exporter offers for a virtual board is a slot: a `NetworkService` with the port of the board's ssh. Whoever
acquires the place starts QEMU and the model on that slot (`lab.labgrid.KitQEMUDriver`) and ends them. labgrid has
neither encryption nor passwords: the farm listens on the loopback address alone; other hosts come through ssh.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.errors import ExitCode, KitError
from lab.farm import state
from lab.farm.client import DEFAULT_PORT, Client, full_address
from lab.farm.state import Farm
from lab.process import tail
from lab.virt.board import check_port
from lab.virt.results import new_results_dir
from lab.virt.supervisor import Program, Supervisor

EXPORTER = "npulab"
READY_SECONDS = 30.0
SWEEP_SECONDS = 10.0
MAX_BOARDS = 64


@dataclass(frozen=True)
class Slot:
    """A virtual board's place: name and ssh port."""

    place: str
    port: int


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, outside the range that the kernel gives to connections."""
    low, high = _ephemeral_range()
    found: list[int] = []
    for port in [*range(22000, low), *range(high + 1, 65536)]:
        if len(found) == count:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    if len(found) < count:
        raise KitError(ExitCode.INFRASTRUCTURE, f"this host has no {count} free ports", "end what listens on them")
    return found


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return 32768, 60999
    return int(low), int(high)


def exporter_config(slots: list[Slot]) -> dict[str, object]:
    """The exporter's file: a group per board."""
    return {
        slot.place: {"NetworkService": {"address": "127.0.0.1", "username": "root", "port": slot.port}}
        for slot in slots
    }


def _script(name: str) -> str:
    """One of labgrid's programs: beside our Python, else on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise KitError(ExitCode.INFRASTRUCTURE, f"labgrid's program {name} is not installed", "pip install labgrid")
    return found


class LocalFarm:
    """``with LocalFarm(boards=2) as farm: ...``; after the block no process is left. `detach` lets it live on."""

    def __init__(
        self,
        boards: int,
        port: int = DEFAULT_PORT,
        tags: dict[str, str] | None = None,
        sweep: float = SWEEP_SECONDS,
    ) -> None:
        if not 1 <= boards <= MAX_BOARDS:
            raise KitError(ExitCode.USAGE, f"a farm of {boards} boards", f"give 1 to {MAX_BOARDS}")
        self.count = boards
        self.port = port
        self.sweep = sweep
        self.tags = {"board": "virt", "npu": "rocket", "virtual": "yes", **(tags or {})}
        self.results: Path | None = None
        self.farm: Farm | None = None
        self._supervisor: Supervisor | None = None

    def start(self) -> Farm:
        """Start coordinator, exporter and sweeper; returns when the places are there."""
        place = state.root()
        lock = state.lock(place / "lock")
        if lock is None:
            running = state.local_farm()
            where = f" at {running.coordinator}" if running else ""
            raise KitError(ExitCode.USAGE, f"this user's farm runs already{where}", "npulab farm down ends it")
        with lock:
            return self._start(place, lock.fileno())

    def _start(self, place: Path, lock: int) -> Farm:
        ports = free_ports(self.count + 1)
        port = self.port or ports[-1]
        check_port(port)
        address = f"127.0.0.1:{port}"
        slots = [Slot(f"virt-{number + 1}", ports[number]) for number in range(self.count)]
        self.results = new_results_dir("farm-up")
        (place / "farm.json").unlink(missing_ok=True)
        (place / "coordinator").mkdir(exist_ok=True)
        config = place / "exporter.yaml"
        config.write_text(yaml.safe_dump(exporter_config(slots)))
        self._supervisor = Supervisor(
            self._programs(address, config, place / "coordinator"),
            remove=[],
            log=self.results / "guard.log",
            keep_fds=[lock],
        )
        try:
            self._supervisor.start()
            self._supervisor.wait_for("ready", "coordinator", READY_SECONDS)
            self._supervisor.wait_for("started", "exporter", READY_SECONDS)
            self._make_places(address, slots)
            self.farm = Farm(address, self._supervisor.pid, tuple(s.place for s in slots), str(self.results))
            state.write(place / "farm.json", self.farm.document())
        except BaseException:
            self.stop()
            raise
        return self.farm

    def _programs(self, address: str, config: Path, directory: Path) -> list[Program]:
        assert self.results is not None
        coordinator = Program(
            "coordinator",
            "labgrid's coordinator",
            [_script("labgrid-coordinator"), "-l", address],
            self.results / "coordinator.log",
            ready=f"listening on {address}",
            ready_timeout=READY_SECONDS,
            cwd=directory,
        )
        exporter = [_script("labgrid-exporter"), "-c", address, "--name", EXPORTER, "--hostname", "127.0.0.1"]
        sweeper = [sys.executable, "-m", "lab.farm.sweeper", address, str(self.sweep)]
        return [
            coordinator,
            Program("exporter", "labgrid's exporter", [*exporter, str(config)], self.results / "exporter.log"),
            Program("sweeper", "the farm's sweeper", sweeper, self.results / "sweeper.log"),
        ]

    def _make_places(self, address: str, slots: list[Slot]) -> None:
        assert self._supervisor is not None and self.results is not None
        wanted = {slot.place for slot in slots}
        with Client(address, "npulab/farm") as client:
            deadline = time.monotonic() + READY_SECONDS
            while missing := client.wait_for_groups(wanted, 0.5):
                failure = self._supervisor.failure()
                if failure is not None:
                    raise failure
                if time.monotonic() >= deadline:
                    raise KitError(
                        ExitCode.INFRASTRUCTURE,
                        f"labgrid's exporter does not offer {', '.join(sorted(missing))}",
                        "its log says why",
                        tail=tail(self.results / "exporter.log"),
                        log=self.results / "exporter.log",
                    )
            for slot in slots:
                comment = f"virtual RK3588 board, ssh on port {slot.port}"
                client.ensure_place(slot.place, f"{EXPORTER}/{slot.place}/*", self.tags, comment)
            # boards of an earlier, larger farm
            for place in client.places():
                if place.matches == (f"{EXPORTER}/{place.name}/*",) and place.name not in wanted:
                    client.delete_place(place.name)

    def wait(self) -> None:
        """Until a program ends, which is an error; KeyboardInterrupt ends it."""
        assert self._supervisor is not None
        while not self._supervisor.wait_end(3600.0):
            pass
        failure = self._supervisor.failure()
        if failure is not None:
            raise failure

    def detach(self) -> None:
        """Let the farm live on without us."""
        assert self._supervisor is not None
        self._supervisor.detach()
        self._supervisor = None

    def stop(self) -> None:
        """End all programs; safe at any time, any number of times."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None

    def __enter__(self) -> Farm:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def borrowed(coordinator: str | None, boards: int) -> Iterator[str]:
    """A coordinator's address: the one that is named, or a local farm for the time of the block."""
    if coordinator:
        yield full_address(coordinator)
        return
    with LocalFarm(boards, port=0) as farm:
        yield farm.coordinator


def stop_local(force: bool, patience: float = 20.0) -> Farm:
    """End the local farm; KitError (refused) when a place is in use, unless ``force``."""
    farm = state.local_farm()
    if farm is None:
        raise KitError(ExitCode.NO_DEVICE, "no farm of this user runs on this host", "npulab farm up starts one")
    if not force:
        client = Client(farm.coordinator)
        try:
            used = [f"{place.name} by {place.acquired}" for place in client.places() if place.acquired]
        finally:
            client.close()
        if used:
            raise KitError(ExitCode.REFUSED, f"in use: {', '.join(used)}", "wait, or end those jobs with --force")
    os.kill(farm.guard, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while state.held(state.root() / "lock"):
        if time.monotonic() >= deadline:
            what = f"the farm (process {farm.guard}) did not end within {patience:.0f} s"
            raise KitError(ExitCode.INFRASTRUCTURE, what, f"kill -9 {farm.guard}")
        time.sleep(0.05)
    (state.root() / "farm.json").unlink(missing_ok=True)
    return farm


def exporter_log(coordinator: str) -> Path | None:
    """The exporter's log when it is the local farm's."""
    farm = state.local_farm()
    if farm is None or full_address(coordinator) != farm.coordinator:
        return None
    return Path(farm.results) / "exporter.log"
