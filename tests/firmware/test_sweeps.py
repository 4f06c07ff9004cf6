# SPDX-License-Identifier: MIT
"""The short forms of the sweeps: no case may lose data or the truth about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import boards
from lab.firmware import boardsweep, faultsweep, sweep
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.store import disk
from lab.output import Output


@pytest.fixture
def board() -> boards.Board:
    return boards.load("rock-5-itx-plus")


def test_power_cuts_while_backing_up(tmp_path: Path, board: boards.Board) -> None:
    done = sweep.backup_power_cuts(tmp_path, board, 256 << 10)
    assert done.cases >= 15 and done.problems == []
    assert disk.observer is None


def test_power_cuts_while_flashing_and_rolling_back(tmp_path: Path, board: boards.Board) -> None:
    done = sweep.flash_power_cuts(tmp_path, board, 256 << 10)
    assert done.cases >= 12 and done.problems == []


def test_every_fault_at_every_operation(tmp_path: Path, board: boards.Board) -> None:
    done = faultsweep.fault_matrix(tmp_path, board, 128 << 10, sweep.Quiet())
    assert done.problems == []
    assert set(done.table) == {(kind, name) for kind in faults.KINDS for name in faultsweep.OPERATIONS}
    assert not any("right" in done.table["power", name] for name in faultsweep.OPERATIONS), "no power, no success"
    assert done.table["flip", "backup create"] >= {"mismatch"}, "a bit that is wrong once is no verified backup"


def test_cuts_on_the_virtual_board(tmp_path: Path) -> None:
    """A handful; ``npulab bench firmware`` has them all."""
    found = boardsweep.config("fast", Output(quiet=True))
    done = boardsweep.power_cuts(tmp_path, found, sweep.Quiet(), changed=8192, cuts=3)
    assert done.cases == 5 and done.problems == []


def test_random_cuts_are_the_same_each_time() -> None:
    assert sweep.chosen_cuts(50, 10, 1) == sweep.chosen_cuts(50, 10, 1)
    assert len(set(sweep.chosen_cuts(50, 50, 1))) == 50 and len(sweep.chosen_cuts(7, 20, 1)) == 20


def test_the_sweep_notices_a_loss(tmp_path: Path, board: boards.Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that comes back with other content must be counted."""
    power_on = Engine.power_on

    def forget(self: Engine) -> None:
        power_on(self)
        monkeypatch.setattr(sweep.Session, "rollback", lambda *_: None)
        monkeypatch.setattr(sweep.Session, "run", lambda *_: None)

    monkeypatch.setattr(Engine, "power_on", forget)
    done = sweep.flash_power_cuts(tmp_path, board, 256 << 10, cuts=[1])
    assert done.lost >= 1
