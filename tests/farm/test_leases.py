# SPDX-License-Identifier: MIT
"""Whatever ends a job, its place comes back: the coordinator and the exporter are real, the jobs small programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RunningFarm, wait_for, wait_until_gone

from lab.cli import main
from lab.farm import state
from lab.farm.client import Client
from lab.farm.junit import infrastructure_trouble

# not a shell: dash loses a SIGINT that comes between its echo and its exec
SLEEP = (sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(300)")


def keeper_of(farm: RunningFarm, place: str) -> int:
    """The process that keeps the lease of a place."""
    for path in (state.root() / "leases").glob("*.json"):
        document = json.loads(path.read_text())
        if document["place"] == place and document["coordinator"] == farm.coordinator:
            return int(document["keeper"])
    raise AssertionError(f"no lease of {place}")


def start_sleeper(farm: RunningFarm, place: str, *words: str) -> subprocess.Popen[str]:
    """A job whose command runs."""
    job = farm.start("--place", place, *words, "--", *SLEEP)
    assert job.stdout is not None
    for line in job.stdout:
        if line.strip() == "begun":
            return job
    raise AssertionError(f"the job ended with {job.wait()}")


def finish(job: subprocess.Popen[str], timeout: float = 60.0) -> tuple[int, str]:
    text, _ = job.communicate(timeout=timeout)
    return job.returncode, text


def test_a_job_gets_what_labgrid_needs_and_gives_the_place_back(farm: RunningFarm, nothing_left: str) -> None:
    program = "import json,os; print('VALUES', json.dumps(dict(os.environ)))"
    code, text = farm.run("--tag", "board=virt", "--place", "virt-2", "--", sys.executable, "-c", program)
    assert code == 0, text
    values = json.loads(next(line for line in text.splitlines() if line.startswith("VALUES"))[7:])
    assert values["LG_PLACE"] == "virt-2" and values["LG_COORDINATOR"] == farm.coordinator
    assert values["LG_ENV"].endswith("virt-place.yaml")
    record = json.loads((Path(values["NPULAB_RESULTS"]) / "job.json").read_text())
    assert record["owner"] == f"{values['LG_HOSTNAME']}/{values['LG_USERNAME']}"
    assert record["released"] and record["code"] == 0 and set(record["seconds"]) >= {"reserve", "run", "release"}
    assert "VALUES" in (Path(values["NPULAB_RESULTS"]) / "log.txt").read_text()
    assert farm.acquired() == []


def test_a_failed_command_is_a_failure(farm: RunningFarm, nothing_left: str) -> None:
    code, text = farm.run("--place", "virt-1", "--", "sh", "-c", "exit 3")
    assert code == 1 and "virt-1: ended with 3" in text


def test_a_command_that_says_infrastructure_is_taken_at_its_word(farm: RunningFarm, nothing_left: str) -> None:
    code, text = farm.run("--place", "virt-1", "--", "sh", "-c", "echo the relay is silent; exit 8")
    assert code == 8 and "stage run" in text and "the relay is silent" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signals(farm: RunningFarm, nothing_left: str, number: signal.Signals) -> None:
    job = start_sleeper(farm, "virt-1")
    assert farm.acquired() == ["virt-1"]
    job.send_signal(number)
    code, text = finish(job)
    assert code == 7, text
    assert farm.acquired() == []


def test_kill_9_of_the_runner(farm: RunningFarm, nothing_left: str) -> None:
    job = start_sleeper(farm, "virt-1")
    job.kill()
    job.wait()
    wait_for(lambda: farm.acquired() == [])


def test_kill_9_of_the_keeper(farm: RunningFarm, nothing_left: str) -> None:
    job = start_sleeper(farm, "virt-1")
    os.kill(keeper_of(farm, "virt-1"), signal.SIGKILL)
    code, text = finish(job)
    assert code == 8 and "keeps the lease" in text
    assert farm.acquired() == []


def test_kill_9_of_both_is_swept_by_the_next_job(farm: RunningFarm, nothing_left: str) -> None:
    job = start_sleeper(farm, "virt-1")
    os.kill(keeper_of(farm, "virt-1"), signal.SIGKILL)
    job.kill()
    job.wait()
    assert wait_until_gone(nothing_left, 10.0) == [], "the command dies with its keeper"
    code, text = farm.run("--place", "virt-1", "--", "true")
    assert code == 0, text
    assert farm.acquired() == []


def test_kill_9_while_waiting(farm: RunningFarm, nothing_left: str) -> None:
    holder = start_sleeper(farm, "virt-1")
    waiter = farm.start("--place", "virt-1", "--", "true")
    wait_for(lambda: farm.reservations() == 2)
    waiter.kill()
    waiter.wait()
    wait_for(lambda: farm.reservations() == 1)
    holder.send_signal(signal.SIGINT)
    finish(holder)


def test_a_command_that_ignores_being_ended_leaves_nothing(farm: RunningFarm, nothing_left: str) -> None:
    """Sessions of their own, ignored signals: the place comes back after all of it is gone."""
    stubborn = "trap '' INT TERM; setsid sh -c 'trap \"\" INT TERM HUP; sleep 301' & echo begun; exit 0"
    code, text = farm.run("--place", "virt-1", "--", "sh", "-c", stubborn)
    assert code == 0, text
    assert wait_until_gone(nothing_left, 1.0) == []


def test_timeout_of_a_job(farm: RunningFarm, nothing_left: str) -> None:
    started = time.monotonic()
    code, text = farm.run("--place", "virt-1", "--timeout", "1", "--", *SLEEP)
    assert code == 8 and "no end after 1 s" in text and "begun" in text
    assert time.monotonic() - started < 20
    assert farm.acquired() == []


def test_two_at_a_time_and_the_third_waits_its_turn(farm: RunningFarm, nothing_left: str, tmp_path: Path) -> None:
    def job(name: str) -> subprocess.Popen[str]:
        script = f"touch {tmp_path}/{name}; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
        return farm.start("--tag", "board=virt", "--", "sh", "-c", script)

    def begun() -> set[str]:
        return {path.name for path in tmp_path.iterdir()} - {"go"}

    jobs = [job(name) for name in ("a", "b")]
    wait_for(lambda: begun() == {"a", "b"})
    jobs.append(job("c"))
    wait_for(lambda: farm.reservations() == 3)
    time.sleep(1.0)
    assert begun() == {"a", "b"} and len(farm.acquired()) == 2
    (tmp_path / "go").touch()
    assert [finish(one)[0] for one in jobs] == [0, 0, 0]
    assert begun() == {"a", "b", "c"}


def test_no_turn_in_time_says_who_has_it(farm: RunningFarm, nothing_left: str) -> None:
    with Client(farm.coordinator, "desk/somebody") as other:
        other.acquire("virt-1")
        try:
            code, text = farm.run("--place", "virt-1", "--wait", "1", "--", "true")
        finally:
            other.release("virt-1", "desk/somebody")
    assert code == 8 and "virt-1 is held by desk/somebody" in text and "stage wait" in text


def test_no_such_place_or_tag(farm: RunningFarm, nothing_left: str) -> None:
    code, text = farm.run("--tag", "board=virtt", "--", "true")
    assert code == 4 and "no place has board=virtt" in text and "virt-1 (board=virt" in text
    code, text = farm.run("--tag", "board", "--", "true")
    assert code == 2 and "not KEY=VALUE" in text
    code, text = farm.run("--", "true")
    assert code == 2 and "which place" in text
    code, text = farm.run("--place", "virt-1", "--", "no-such-program")
    assert code == 2 and "no program no-such-program" in text


def test_somebody_takes_the_place_away(farm: RunningFarm, nothing_left: str) -> None:
    job = start_sleeper(farm, "virt-1")
    owner = farm.places()["virt-1"].acquired
    client = Client(farm.coordinator)
    client.release("virt-1", owner)
    client.close()
    code, text = finish(job)
    assert code == 8 and "was taken away" in text and "stage run" in text


def test_full_disk_is_told_and_the_place_comes_back(farm: RunningFarm, nothing_left: str, tmp_path: Path) -> None:
    results = tmp_path / "full"
    results.mkdir()
    (results / "log.txt").symlink_to("/dev/full")
    code, text = farm.run("--place", "virt-1", "--results", str(results), "--", "sh", "-c", "echo lost words")
    assert code == 8 and "the disk is full" in text and "lost words" in text
    assert farm.acquired() == []


def test_tests_that_could_not_run_are_infrastructure(farm: RunningFarm, nothing_left: str, tmp_path: Path) -> None:
    path = tmp_path / "test_small.py"
    path.write_text("def test_it(no_such_fixture): pass")
    options = ("--rootdir", str(tmp_path), "-p", "no:cacheprovider")
    code, text = farm.run("--tag", "npu=rocket", "--", "pytest", *options, str(path))
    assert code == 8 and "1 of 1 tests could not be run" in text and "no_such_fixture" in text, text


@pytest.mark.parametrize(
    ("code", "tests", "is_pytest", "words"),
    [
        (0, {"tests": 3, "failures": 0, "errors": 0}, True, ""),
        (1, {"tests": 3, "failures": 1, "errors": 0}, True, ""),
        (1, {"tests": 3, "failures": 1, "errors": 2}, True, ""),
        (1, {"tests": 3, "failures": 0, "errors": 2}, True, "2 of 3 tests could not be run"),
        (4, {}, True, "without a verdict"),
        (2, {"tests": 1, "errors": 1}, True, "without a verdict"),
        (-9, {}, True, "without a verdict"),
        (1, {}, True, "left no report"),
        (1, {}, False, ""),
        (8, {}, False, "its infrastructure failed"),
    ],
)
def test_infrastructure_is_told_from_product(code: int, tests: dict[str, int], is_pytest: bool, words: str) -> None:
    why = infrastructure_trouble(code, tests, is_pytest=is_pytest)
    assert (words in why) if words else why == ""


def test_environment_with_a_typo_takes_no_place(farm: RunningFarm, nothing_left: str, tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("imports: [lab.labgrid]\ntargets: {main: {drivers: {KitQEMUDriver: {memroy: 2G}}}}\n")
    code, text = farm.run("--place", "virt-1", "--env", str(path), "--", "true")
    assert code == 8 and "KitQEMUDriver has no option memroy" in text and "did you mean memory?" in text


def test_places_of_a_file(farm: RunningFarm, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "places.yaml"
    for tags in ("{board: orangepi-5, room: a}", "{board: orangepi-5, room: b}"):
        path.write_text(f"shelf-1: {{match: desk/shelf-1/*, tags: {tags}, comment: a real one}}\n")
        assert main(["farm", "place", "apply", str(path), "--coordinator", farm.coordinator]) == 0
    place = farm.places()["shelf-1"]
    assert place.matches == ("desk/shelf-1/*",) and place.tags == {"board": "orangepi-5", "room": "b"}
    path.write_text("shelf-1: {matches: desk/shelf-1/*}\n")
    assert main(["farm", "place", "apply", str(path), "--coordinator", farm.coordinator]) == 2
    assert "match" in capfd.readouterr().err
    client = Client(farm.coordinator)
    client.delete_place("shelf-1")
    client.close()
