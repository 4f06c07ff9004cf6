# SPDX-License-Identifier: MIT
"""A farm of labgrid's own coordinator and exporter on 127.0.0.1, and the means to see that nothing stays behind."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.cli import main
from lab.farm import state
from lab.farm.client import Client, Place
from lab.farm.server import LocalFarm

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "virt"))

from boards import abandoned, processes_mentioning, run_directories, wait_until_gone

Wait = Callable[[Callable[[], object]], None]


@dataclass
class RunningFarm:
    """A farm, and ways to use it as a user does."""

    coordinator: str
    server: LocalFarm
    results: Path
    capture: pytest.CaptureFixture[str] | None = None

    def places(self) -> dict[str, Place]:
        client = Client(self.coordinator)
        try:
            return {place.name: place for place in client.places()}
        finally:
            client.close()

    def acquired(self) -> list[str]:
        return [place.name for place in self.places().values() if place.acquired]

    def reservations(self) -> int:
        client = Client(self.coordinator)
        try:
            return len(client.reservations())
        finally:
            client.close()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """``npulab farm run`` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "lab", "farm", "run", "--coordinator", self.coordinator, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of ``npulab farm run`` in this process."""
        assert self.capture is not None
        self.capture.readouterr()
        code = main(["farm", "run", "--coordinator", self.coordinator, *words])
        told = self.capture.readouterr()
        return code, told.out + told.err


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def mark() -> Iterator[str]:
    """A word in the environment of every process of these tests; all of them are gone at the end."""
    word = f"NPULAB_TEST_{secrets.token_hex(6)}"
    before = run_directories()
    os.environ[word] = "1"
    yield word
    del os.environ[word]
    assert wait_until_gone(word, 10.0) == [], "processes left"
    assert abandoned(before) == set(), "files left"


@pytest.fixture(scope="session")
def make_farm(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], RunningFarm]]:
    """Makes farms, each with a state directory of its own; `NPULAB_FARM` is that of the last one."""
    made: list[LocalFarm] = []
    patch = pytest.MonkeyPatch()

    def make(boards: int) -> RunningFarm:
        root = tmp_path_factory.mktemp("farm")
        patch.setenv("NPULAB_FARM", str(root / "state"))
        patch.setenv("NPULAB_RESULTS", str(root / "results"))
        patch.delenv("LG_COORDINATOR", raising=False)
        server = LocalFarm(boards, port=0, sweep=2.0)
        made.append(server)
        return RunningFarm(server.start().coordinator, server, root / "results")

    yield make
    for server in made:
        server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def farm(make_farm: Callable[[int], RunningFarm]) -> Iterator[RunningFarm]:
    """Two virtual boards (which these tests need not boot); free and unreserved afterwards."""
    running = make_farm(2)
    yield running
    assert running.acquired() == []
    assert running.reservations() == 0
    assert list((state.root() / "leases").iterdir()) == []
    running.server.stop()


@pytest.fixture(autouse=True)
def _captured(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> None:
    """What jobs print in this process, for `RunningFarm.run`."""
    if "farm" in request.fixturenames:
        request.getfixturevalue("farm").capture = capfd


@pytest.fixture
def nothing_left(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A word in the environment of this test's processes; they are gone after it."""
    word = f"NPULAB_TEST_{secrets.token_hex(6)}"
    monkeypatch.setenv(word, "1")
    yield word
    assert wait_until_gone(word, 15.0) == [], "processes left"
    assert processes_mentioning(word) == []
