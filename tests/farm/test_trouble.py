# SPDX-License-Identifier: MIT
"""A farm whose own programs fail: bounded time, the infrastructure's exit code, the stage, the last lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunningFarm, wait_for
from test_leases import SLEEP, finish, start_sleeper

from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.farm import state
from lab.farm.client import Client, full_address
from lab.farm.server import LocalFarm, _script, free_ports

MakeFarm = Callable[[int], RunningFarm]


def program(farm: RunningFarm, name: str) -> int:
    supervisor = farm.server._supervisor
    assert supervisor is not None
    pid = supervisor.program_pid(name)
    assert pid is not None
    return pid


def test_coordinator_that_is_not_there(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    started = time.monotonic()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    assert (
        main(["farm", "run", "--coordinator", address, "--place", "x", "--results", str(tmp_path), "--", "true"]) == 8
    )
    told = capfd.readouterr().err
    assert f"the coordinator at {address} is away" in told and "npulab farm up" in told and "stage reserve" in told
    assert main(["farm", "place", "list", "--coordinator", address]) == 8
    assert time.monotonic() - started < 30


def test_something_else_listens_there(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        assert main(["farm", "place", "list", "--coordinator", f"127.0.0.1:{port}"]) == 8
    finally:
        server.terminate()
        server.wait()
    assert "is away" in capfd.readouterr().err


def test_addresses() -> None:
    assert full_address("lab") == "lab:20408" and full_address("lab:1") == "lab:1"
    for wrong in ("lab:", "lab:x", "lab:70000"):
        with pytest.raises(KitError):
            full_address(wrong)


def test_no_coordinator_is_known(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path))
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    assert main(["farm", "status"]) == 8
    assert "no coordinator is known" in capfd.readouterr().err
    assert main(["farm", "down"]) == int(ExitCode.NO_DEVICE)


def test_exporter_lost_while_a_job_runs(make_farm: MakeFarm, nothing_left: str, tmp_path: Path) -> None:
    farm = make_farm(1)
    config = tmp_path / "exporter.yaml"
    config.write_text("desk: {NetworkService: {address: 192.0.2.1, username: root}}\n")
    exporter = subprocess.Popen(
        [_script("labgrid-exporter"), "-c", farm.coordinator, "--name", "desk", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Client(farm.coordinator, "desk/somebody") as client:
            assert client.wait_for_groups({"desk"}, 20.0) == set()
            client.ensure_place("desk", "desk/desk/*", {"board": "orangepi-5"})
        job = start_sleeper(farm, "desk", "--lost-after", "1")
    finally:
        exporter.kill()
        exporter.wait()
    code, text = finish(job)
    assert code == 8 and "stage run" in text
    assert "place desk was lost: the exporter of desk/desk/NetworkService/NetworkService is away" in text
    assert farm.acquired() == []
    code, text = finish(farm.start("--place", "desk", "--", "true"))
    assert code == 8 and "its exporter is not there" in text
    farm.server.stop()


def test_coordinator_lost_while_a_job_runs(make_farm: MakeFarm, nothing_left: str) -> None:
    farm = make_farm(1)
    job = start_sleeper(farm, "virt-1", "--lost-after", "1")
    started = time.monotonic()
    farm.server.stop()
    code, text = finish(job, 90)
    assert code == 8 and "stage run" in text and "coordinator" in text, text
    assert time.monotonic() - started < 60
    # the coordinator forgets who has what when it ends; the lease goes with the next sweep
    wait_for(lambda: not [path for path in (state.root() / "leases").iterdir() if state.held(path)])


def test_kill_9_of_both_is_swept_by_the_farm_itself(make_farm: MakeFarm, nothing_left: str) -> None:
    from test_leases import keeper_of

    farm = make_farm(1)
    job = start_sleeper(farm, "virt-1")
    os.kill(keeper_of(farm, "virt-1"), signal.SIGKILL)
    job.kill()
    job.wait()
    wait_for(lambda: farm.acquired() == [])
    farm.server.stop()


def test_up_and_down_in_the_background(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path / "state"))
    monkeypatch.setenv("NPULAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    assert main(["farm", "up", "--boards", "3", "--port", "0", "--detach", "--tag", "room=lab"]) == 0
    try:
        assert main(["farm", "up", "--port", "0"]) == 2
        assert "runs already" in capfd.readouterr().err
        assert main(["farm", "status"]) == 0
        shown = capfd.readouterr().out
        assert "virt-3" in shown and "room=lab" in shown
        job = start_background_job()
        assert main(["farm", "down"]) == int(ExitCode.REFUSED)
        assert "in use: virt-3" in capfd.readouterr().err
        job.send_signal(signal.SIGINT)
        job.communicate(timeout=60)
    finally:
        assert main(["farm", "down", "--force"]) == 0
    assert state.local_farm() is None


def start_background_job() -> subprocess.Popen[str]:
    job = subprocess.Popen(
        [sys.executable, "-m", "lab", "farm", "run", "--place", "virt-3", "--", *SLEEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert job.stdout is not None
    assert any(line.strip() == "begun" for line in job.stdout)
    return job


def test_a_smaller_farm_forgets_the_places_of_the_larger(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path / "state"))
    monkeypatch.setenv("NPULAB_RESULTS", str(tmp_path / "results"))
    for boards, expected in ((2, ["virt-1", "virt-2"]), (1, ["virt-1"])):
        with LocalFarm(boards, port=0) as farm:
            client = Client(farm.coordinator)
            assert [place.name for place in client.places()] == expected
            client.close()


def test_port_in_use(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPULAB_FARM", str(tmp_path / "state"))
    port = free_ports(1)[0]
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen(1)
        with pytest.raises(KitError, match=f"port {port} .* cannot be used"):
            LocalFarm(1, port=port).start()
    with pytest.raises(KitError, match="a farm of 0 boards"):
        LocalFarm(0)
