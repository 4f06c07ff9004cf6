# SPDX-License-Identifier: MIT
"""One core, a split over two or three, a program per core; threads and processes: the same bits in all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import workloads
from served import SLICE, open_served

import rknpu_userspace
from rknpu_userspace import Matmul

HERE = Path(__file__).parent
SLOTS = 12
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """On one core, in this thread."""
    with rknpu_userspace.open("model") as npu:
        prints = workloads.run(npu)
        a, b = workloads.A.astype(np.int64), workloads.B.astype(np.int64)
        exact = workloads.fingerprint((a @ b).astype(np.int32))
    assert prints["int8 matmul"] == exact
    return prints


@pytest.mark.parametrize("cores", [2, 3])
def test_split_over_cores(expected: dict[str, str], cores: int) -> None:
    with rknpu_userspace.open("model", cores=cores) as npu:
        assert workloads.run(npu) == expected
        with npu.compile(workloads.OPERATIONS["int8 matmul"][0]()) as program:
            assert len(program._shares) == cores


def test_a_program_on_each_core_from_its_own_thread(expected: dict[str, str]) -> None:
    with rknpu_userspace.open("model", cores=3) as npu, ThreadPoolExecutor(3) as pool:
        for prints in pool.map(lambda core: workloads.run(npu, core=core), range(3)):
            assert prints == expected


def test_one_program_from_several_threads() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.integers(-128, 128, (12, *workloads.A.shape), np.int8)
    with rknpu_userspace.open("model", cores=2) as npu, npu.compile(Matmul(workloads.B, len(workloads.A))) as program:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(program, inputs))
        for x, y in zip(inputs, results, strict=True):
            assert np.array_equal(y, x.astype(np.int32) @ workloads.B.astype(np.int32))


def test_programs_that_share_cores_from_several_threads(expected: dict[str, str]) -> None:
    """Split programs and single-core programs over the same three cores, all at once, allocation included."""
    jobs: list[Callable[[], dict[str, str]]] = []
    with rknpu_userspace.open("model", cores=3) as npu, ThreadPoolExecutor(6) as pool:
        for names in (["int8 conv", "fp16 add"], ["fp16 conv", "int8 matmul"]):
            jobs.append(lambda names=names: workloads.run(npu, names))
            jobs.append(lambda names=names: workloads.run(npu, names, cores=2))
            jobs.append(lambda names=names: workloads.run(npu, names, core=1))
        for prints in pool.map(lambda job: job(), jobs):
            assert prints == {name: expected[name] for name in prints}


def test_a_failure_on_one_core_leaves_the_others_alone(expected: dict[str, str]) -> None:
    from rknpu_userspace.errors import JobError
    from rknpu_userspace.probe.rig import Rig, Run
    from rknpu_userspace.probe.tasks import Flying

    failures: list[Run] = []
    stop = threading.Event()

    def fail(npu: rknpu_userspace.Device) -> None:
        rig = Rig(npu.contexts(3)[2])
        while not stop.is_set() or not failures:
            failures.append(Flying("int32", dpu={"to_memory": 0}).run(rig, np.zeros((4, 4))).run)

    with rknpu_userspace.open("model", cores=3) as npu, ThreadPoolExecutor(3) as pool:
        failing = pool.submit(fail, npu)
        try:
            for prints in pool.map(lambda core: workloads.run(npu, core=core), range(2)):
                assert prints == expected
        finally:
            stop.set()
        failing.result()
        assert not any(run.done for run in failures)
        try:
            assert workloads.run(npu, ["int8 conv"], core=2) == {"int8 conv": expected["int8 conv"]}
        except JobError as error:
            pytest.fail(f"the core did not recover: {error}")


def test_which_core_is_checked() -> None:
    with rknpu_userspace.open("model") as npu:
        make = workloads.OPERATIONS["fp16 add"][0]
        with pytest.raises(ValueError, match=r"core must be 0\.\.2, not 3"):
            npu.compile(make(), core=3)
        with pytest.raises(ValueError, match="not both"):
            npu.compile(make(), core=1, cores=2)


# Processes


_IN_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import rknpu_userspace, workloads
with rknpu_userspace.open("model", cores=int(sys.argv[2])) as npu:
    print(json.dumps(workloads.run(npu)))
"""


def outputs(commands: list[list[str]]) -> list[dict[str, str]]:
    """What several processes print, run at the same time."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes, env=ENVIRONMENT, text=True) for command in commands]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, results, strict=True):
        assert process.returncode == 0, error
    return [json.loads(text) for text, _ in results]


def test_processes_with_a_model_each(expected: dict[str, str]) -> None:
    commands = [[sys.executable, "-c", _IN_PROCESS, str(HERE), str(cores)] for cores in (1, 3)]
    for prints in outputs(commands):
        assert prints == expected


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Socket and RAM file of a model process."""
    path, ram = tmp_path / "npu.sock", tmp_path / "ram"
    with ram.open("wb") as file:
        file.truncate(SLOTS * SLICE)
    command = [sys.executable, "-m", "rknpu_userspace.model.server", "--socket", str(path), "--ram", str(ram)]
    process = subprocess.Popen(
        [*command, "--exit-with-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield str(path), str(ram)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def test_processes_and_threads_over_one_model_process(expected: dict[str, str], server: tuple[str, str]) -> None:
    """Two client processes (one core; three cores) and three threads here, all at once, nine connections."""
    path, ram = server
    script = str(HERE / "served.py")
    commands = [[sys.executable, script, path, ram, slot, cores] for slot, cores in (("0", "1"), ("1", "3"))]
    with ThreadPoolExecutor(2) as pool:
        others = pool.submit(outputs, commands)

        def here(slot: int) -> dict[str, str]:
            with open_served(path, ram, slot, 1) as device:
                return workloads.run(device, ["int8 conv", "fp16 matmul", "fp16 sigmoid"])

        with ThreadPoolExecutor(3) as threads:
            for prints in threads.map(here, range(4, 7)):
                assert prints == {name: expected[name] for name in prints}
        for prints in others.result():
            assert prints == expected
