# SPDX-License-Identifier: MIT
"""The short forms of the sweeps: no case may lose data or the truth about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import boards
from lab.firmware import sweep
from lab.firmware.standin.engine import Engine
from lab.firmware.store import disk


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


def test_every_fault(tmp_path: Path, board: boards.Board) -> None:
    done = sweep.fault_sweep(tmp_path, board, 128 << 10)
    assert done.cases == 100 and done.problems == []


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
