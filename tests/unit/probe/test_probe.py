# SPDX-License-Identifier: MIT
"""The experiments: on the model they read back every answer that it can be given; what they write, it loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rknpu_userspace
from lab.cli import main as npulab
from rknpu_userspace.model.quirks import BY_NAME, TABLE, Quirks
from rknpu_userspace.probe import runner
from rknpu_userspace.probe.rig import Finding, decide

OF_QUIRK = {quirk: experiment for experiment in runner.EXPERIMENTS for quirk in experiment.quirks}
ANSWERS = [(quirk.name, value) for quirk in TABLE for value in quirk.values if OF_QUIRK[quirk.name].measure]
NEEDING = {"core0_banks", "task_dma_base", "chain_without_link", "irq_blocks", "nibble_order"}


def measured(name: str, quirks: dict[str, str]) -> runner.Row:
    with rknpu_userspace.open("model", quirks=quirks) as device:
        return runner.run_one(device, runner.BY_NAME[name])


def test_every_quirk_has_one_experiment_and_those_that_can_not_be_done_say_why() -> None:
    named = [quirk for experiment in runner.EXPERIMENTS for quirk in experiment.quirks]
    assert sorted(named) == sorted(BY_NAME)
    assert {quirk for quirk in named if OF_QUIRK[quirk].measure is None} == NEEDING
    for experiment in runner.EXPERIMENTS:
        assert (experiment.measure is None) == bool(experiment.needs)
        assert len(experiment.needs) > 40 or experiment.measure


@pytest.mark.parametrize(("quirk", "value"), ANSWERS)
def test_the_configured_answer_is_read_back(quirk: str, value: str) -> None:
    row = measured(OF_QUIRK[quirk].name, {quirk: value})
    assert row["status"] == "measured"
    assert row["quirks"][quirk] == value
    assert row["confidence"] == "certain"
    for other, answer in row["quirks"].items():
        if other != quirk:
            assert answer == BY_NAME[other].default


def test_experiments_that_settle_no_quirk() -> None:
    assert measured("register-groups", {})["observed"] == {"added": [1, 2, 1, 2], "done": True}
    reset = measured("after-timeout", {})["observed"]
    assert reset == {"hung": True, "delta_done": False, "next_job_done": True}
    assert measured("short-tiles", {})["observed"]["wrong_by_rows"] == {"1": 0, "2": 0, "3": 0}
    formats = measured("formats", {})["observed"]
    assert set(formats["wrong"].values()) == {0}
    assert "does not complete" in formats["nibbles"]
    specials = measured("float-conversions", {})["observed"]["conversions"]
    assert {row["wrong"] for row in specials.values()} == {0}


def test_the_capture_holds_its_tensors() -> None:
    import base64

    capture = measured("capture", {})["observed"]["capture"]
    x, w, out = (
        np.frombuffer(base64.b64decode(capture[name]["base64"]), capture[name]["dtype"]).reshape(capture[name]["shape"])
        for name in ("x", "weights", "out")
    )
    assert out.shape == (6, 7, 32)
    window = x[1:4, 1:4].astype(int)
    assert out[1, 1, 5] == (window * w[5]).sum()


def test_a_board_that_gives_no_known_answer_is_undecided() -> None:
    odd = decide("bn_order", np.array([1, 2, 3]), {"mul_alu": np.array([9, 9, 9]), "alu_mul": np.array([8, 8, 8])})
    assert (odd.confidence, odd.quirks) == ("none", {})
    assert "none of the known answers" in odd.answer
    tie = decide("bn_order", np.array([1]), {"mul_alu": np.array([1]), "alu_mul": np.array([1])})
    assert (tie.confidence, tie.quirks) == ("none", {})
    most = decide("bn_order", np.arange(10), {"mul_alu": np.arange(10) % 9, "alu_mul": np.zeros(10)}, least=0.5)
    assert (most.confidence, most.quirks) == ("likely", {"bn_order": "mul_alu"})
    assert Finding("a", {"x": "1"}).join(Finding("b", {"y": "2"}, confidence="likely")).confidence == "likely"


def test_the_model_loads_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A board that differs in every measurable point, as a model; its answers, loaded, make the same board."""
    other = {quirk: BY_NAME[quirk].values[-1] for quirk, experiment in OF_QUIRK.items() if experiment.measure}
    other["tie_rounding"] = "half_up"  # the float shift's answers are told apart whatever ties do
    given, found = tmp_path / "given.json", tmp_path / "found.json"
    given.write_text(json.dumps({"quirks": other}), encoding="utf-8")
    assert npulab(["npu", "probe", "--device", "model", "--quirks", str(given), "--out", str(found), "--quiet"]) == 0
    assert f"{len(other)} answers for the model" in capsys.readouterr().out
    document = json.loads(found.read_text(encoding="utf-8"))
    assert document["quirks"] == other
    assert document["schema"] == "rknpu-probe-1"
    assert not list(tmp_path.glob("*.partial"))
    loaded = Quirks.load(found)
    assert all(loaded[name] == value for name, value in other.items())
    with rknpu_userspace.open("model", quirks=str(found)) as device:
        assert runner.run_one(device, runner.BY_NAME["scale-sign"])["quirks"] == {"out_scale_sign": "unsigned"}


def test_a_job_that_never_ran_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from rknpu_userspace.backend.model import ModelContext
    from rknpu_userspace.errors import JobError

    def dropped(self: object, job: object, index: int, count: int) -> JobError:
        return JobError("dropped", "the driver rejected the job", "probe")

    monkeypatch.setattr(ModelContext, "run", dropped)
    row = measured("ties", {})
    assert row["status"] == "failed"
    assert "rejected" in row["error"]
    assert row["open"] == ["tie_rounding", "round_bit_set"]


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert runner.main(["--device", "model", "--only", "ties,bn-order"]) == 0
    assert capsys.readouterr().out.count("measured") == 2
    assert runner.main(["--device", "/nonexistent"]) == 4
    assert "does not exist" in capsys.readouterr().err
    assert npulab(["npu", "probe", "--device", "/nonexistent"]) == 4
    assert "npu probe: /nonexistent does not exist" in capsys.readouterr().err
    assert npulab(["npu", "probe", "--only", "nothing"]) == 2
    assert npulab(["npu", "probe", "--device", "model", "--out", str(tmp_path / "none" / "x.json")]) == 2
    assert npulab(["npu", "probe", "--device", "model", "--quirks", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert npulab(["npu", "probe", "--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["experiments"]) == len(runner.EXPERIMENTS)
    with pytest.raises(SystemExit):
        runner.main(["--only", "nothing"])


def test_quirks_are_for_the_model_only() -> None:
    with pytest.raises(ValueError, match="has its own"):
        rknpu_userspace.open("/dev/accel/accel0", quirks={"bn_order": "alu_mul"})
    with pytest.raises(ValueError, match="unknown quirk"):
        rknpu_userspace.open("model", quirks={"colour": "red"})
