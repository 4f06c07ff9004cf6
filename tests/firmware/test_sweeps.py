# SPDX-License-Identifier: MIT
"""The short forms of the sweeps: no case may lose data or the truth about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import boardsweep, campaign, faultsweep, figures, sweep
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
    """A handful; ``npulab bench firmware`` has them all. What ran is kept, and a second call has nothing to do."""
    found, form = boardsweep.config("fast", Output(quiet=True)), figures.QUICK
    state = tmp_path / "state.jsonl"
    (tmp_path / "work").mkdir()
    done = campaign.power_cuts(tmp_path / "work", found, sweep.Quiet(), form, state=state, at_a_time=1)
    assert done.cases == done.planned == 5 and done.problems == []
    assert {outcome.case.kind for outcome in done.outcomes} == set(boardsweep.KINDS)
    assert done.total("boots") == 4, "each cut of the board boots it, the host's does not"
    state.write_bytes(state.read_bytes() + b'{"case": {"kind": "roll')  # ended in the middle of a line
    again = campaign.power_cuts(tmp_path / "none", found, sweep.Quiet(), form, state=state)
    assert again.outcomes == done.outcomes


def test_a_sweep_has_every_write_once(tmp_path: Path) -> None:
    steps = {"flash": 16, "rollback": 16, "reads": 1000, "changes": 30}
    units = campaign.units(boardsweep.SMALL, steps)
    cases = [case for unit in units for case in unit]
    assert len(set(cases)) == len(cases) == 3 * 16 + 30 + 4
    for kind in ("flash-resume", "flash-rollback", "rollback"):
        assert sorted(case.number for case in cases if case.kind == kind) == list(range(1, 17))
    assert units == campaign.units(boardsweep.SMALL, steps)
    many = campaign.units(boardsweep.LARGE, {**steps, "flash": 2048, "rollback": 2048})
    cut = [case for unit in many for case in unit if not case.kind.startswith("backup")]
    assert len(cut) == len(set(cut)) == 500


def test_the_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    campaign.State(tmp_path / "state.jsonl", boardsweep.SMALL)
    with pytest.raises(KitError) as caught:
        campaign.State(tmp_path / "state.jsonl", boardsweep.LARGE)
    assert caught.value.code is ExitCode.USAGE
    (tmp_path / "other").write_text("no json\n")
    with pytest.raises(KitError) as caught:
        campaign.State(tmp_path / "other", boardsweep.LARGE)
    assert caught.value.code is ExitCode.USAGE


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
