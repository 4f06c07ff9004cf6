# SPDX-License-Identifier: MIT
"""Failures are seen, say what was submitted, and leave the device working: on the model and on the driver."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import ModelDriver

import rknpu_userspace
from rknpu_userspace import Activation, Conv2d, Matmul, Pool2d, regcmd
from rknpu_userspace.backend import Job, kernel_log
from rknpu_userspace.backend.kernel_log import Fault, last_fault
from rknpu_userspace.backend.model import ModelContext
from rknpu_userspace.backend.rocket import RocketContext
from rknpu_userspace.device import Device
from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.probe.rig import poke
from rknpu_userspace.probe.tasks import Flying
from rknpu_userspace.task import Pool, TaskConfig
from rknpu_userspace.uapi import explain_open

X = np.arange(64, dtype=np.int32).reshape(16, 4)


@pytest.fixture
def node(tmp_path: Path) -> str:
    path = tmp_path / "accel0"
    path.touch()
    return str(path)


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[ModelDriver]:
    """The files that a device opens, in order."""
    opened: list[ModelDriver] = []

    def open_file(path: str) -> Any:
        opened.append(ModelDriver(len(opened)))
        opened[-1].sleep = time.sleep
        return opened[-1].accel(path)

    monkeypatch.setattr("rknpu_userspace.backend.rocket.Accel", open_file)
    monkeypatch.setattr(kernel_log, "KMSG", Path("/nonexistent"))
    return opened


@pytest.fixture(params=["model", "rocket"])
def npu(request: pytest.FixtureRequest, drivers: list[ModelDriver], node: str) -> Iterator[Device]:
    with rknpu_userspace.open("model" if request.param == "model" else node) as device:
        yield device


class Copy:
    """A job that copies 16 pixels of int32, and its buffers; ``change`` spoils its commands."""

    def __init__(self, context: Any, change: Callable[[np.ndarray], np.ndarray] = lambda words: words) -> None:
        self.source, self.out, self.code = (context.alloc(4096) for _ in range(3))
        self.source.view[:256].view(np.int32)[:] = X.reshape(-1)
        self.commands = change(Flying("int32").words(self.source.iova, 0, self.out.iova, 16, 4))
        self.code.view[: self.commands.nbytes] = self.commands.view(np.uint8)
        tasks = ((self.code.iova, len(self.commands)),)
        self.submission = context.prepare([Job(tasks, 240, "a copy")], [self.code], [self.source], self.out)

    def run(self) -> np.ndarray:
        self.submission.start()
        self.submission.wait(5.0)
        return self.out.view[:256].view(np.int32).reshape(16, 4).copy()


def hang(words: np.ndarray) -> np.ndarray:
    return poke(words, "DPU_FEATURE_MODE_CFG", OUTPUT_MODE=0)


def fault(words: np.ndarray) -> np.ndarray:
    return poke(words, "DPU_RDMA_RDMA_SRC_BASE_ADDR", SRC_BASE_ADDR=0xF0000000)


def test_a_job_that_hangs(npu: Device) -> None:
    context = npu.contexts()[0]
    good, bad = Copy(context), Copy(context, hang)
    for _ in range(2):
        with pytest.raises(JobError, match="a copy, commands at 0x") as caught:
            bad.run()
        assert caught.value.kind == "timed out"
        assert "not modelled: DPU OUTPUT_MODE 0" in str(caught.value)
        assert caught.value.elapsed >= 0.5
        assert caught.value.address is None
        assert np.array_equal(good.run(), X)


def test_a_fault_names_address_and_buffer() -> None:
    context = ModelContext(0)
    good, bad = Copy(context), Copy(context, fault)
    with pytest.raises(JobError, match=r"IOMMU fault: read at 0xf0000000, bank 1, in no buffer") as caught:
        bad.run()
    assert (caught.value.kind, caught.value.address) == ("fault", 0xF0000000)
    behind = bad.source.iova + 4096 * 3  # behind this copy's last buffer, which no other follows

    def overrun(words: np.ndarray) -> np.ndarray:
        return poke(words, "DPU_RDMA_RDMA_SRC_BASE_ADDR", SRC_BASE_ADDR=behind + 0x3000)

    with pytest.raises(JobError, match=r"\d+ bytes behind the buffer of 4096 bytes at 0x"):
        Copy(context, overrun).run()
    assert np.array_equal(good.run(), X)


def test_a_fault_in_the_kernels_log(
    drivers: list[ModelDriver], node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "kmsg"
    with rknpu_userspace.open(node) as device:
        context = device.contexts()[0]
        good, bad = Copy(context), Copy(context, fault)

        def report(seconds: float) -> None:
            time.sleep(seconds)
            now = int(time.monotonic() * 1e6)
            text = "rk_iommu fdab9000.iommu: Page fault at 0x00000000f0000000 of type read"
            log.write_text(f"6,1,5,-;rk_iommu fdab9000.iommu: Page fault at 0x11 of type write\n3,2,{now},-;{text}\n")

        drivers[0].sleep = report
        monkeypatch.setattr("rknpu_userspace.backend.rocket.last_fault", lambda since: last_fault(since, log))
        with pytest.raises(JobError, match="faulted reading 0xf0000000, in no buffer") as caught:
            bad.run()
        assert (caught.value.kind, caught.value.address) == ("fault", 0xF0000000)
        assert drivers[0].faults == [0xF0000000]
        assert np.array_equal(good.run(), X)


def test_the_kernels_log_is_read_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    assert last_fault(0.0, log) is None
    log.write_bytes(
        b"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n"
        b"3,340,7000000,-;rk_iommu fdaca000.iommu: Page fault at 0x0000000012345000 of type write\n"
        b"3,341,7000001,-;rk_iommu fe4b0000.iommu: Page fault at 0x0000000000000001 of type read\n\xff\xfe garbage\n"
    )
    assert last_fault(6.9, log) == Fault(0x12345000, True)
    assert last_fault(7.2, log) is None


def test_dropped_jobs_and_a_device_that_goes_away(drivers: list[ModelDriver], node: str) -> None:
    with rknpu_userspace.open(node) as device:
        copy = Copy(device.contexts()[0])
        drivers[0].fate = ["drop"]
        with pytest.raises(JobError, match="rejected the job: nothing ran") as caught:
            copy.run()
        assert caught.value.kind == "dropped"
        assert np.array_equal(copy.run(), X)
        drivers[0].fate = ["lose"]
        with pytest.raises(DeviceError, match="waiting for the NPU failed: the device is gone"):
            copy.run()
        with pytest.raises(DeviceError, match="handing a buffer to the NPU failed: the device is gone"):
            copy.run()


def pool_words(source: int, out: int) -> np.ndarray:
    pool = Pool(1, 2, 2, 8, 8, 8, 4, 4, 2, 2, 2, 2, source, 128, 1024, out, 256)
    return regcmd.encode(TaskConfig(pool=pool))


@pytest.mark.parametrize("last", [True, False])
def test_a_task_of_the_pooling_unit_alone_ends_its_job(npu: Device, last: bool) -> None:
    """The driver looks at DPU interrupts only: what comes after such a task in a job never runs."""
    context = npu.contexts()[0]
    copy = Copy(context)
    values, code = context.alloc(4096), context.alloc(4096)
    words = pool_words(values.iova, copy.out.iova + 1024)
    code.view[: words.nbytes] = words.view(np.uint8)
    tasks = [(copy.code.iova, len(copy.commands)), (code.iova, len(words))]
    if not last:
        tasks.reverse()
    job = Job(tuple(tasks), 1024 + 240 if last else 240, "pooling")
    submission = context.prepare([job], [copy.code, code], [copy.source, values], copy.out)
    copy.out.view[1024:1280] = 5
    submission.start()
    if last:
        submission.wait(5.0)
        assert not copy.out.view[1024:1280].any()
    else:
        with pytest.raises(JobError) as caught:
            submission.wait(5.0)
        assert caught.value.kind == "timed out"
    assert submission.elapsed >= 0.5
    assert np.array_equal(copy.run(), X)


OPERATIONS: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "matmul": (lambda: Matmul(np.ones((64, 32), np.int8), 8), (8, 64), "int8"),
    "conv2d": (lambda: Conv2d(np.ones((32, 3, 3, 16), np.int8), (1, 9, 9, 16), padding=1), (1, 9, 9, 16), "int8"),
    "depthwise": (
        lambda: Conv2d(np.ones((64, 3, 3, 1), np.float16), (1, 9, 9, 64), padding=1, groups=64),
        (1, 9, 9, 64),
        "float16",
    ),
    "sigmoid": (lambda: Activation("sigmoid", (32, 8)), (32, 8), "float16"),
    "relu": (lambda: Activation("relu", (32, 8)), (32, 8), "float16"),
    "pool": (lambda: Pool2d("max", "float16", (1, 8, 8, 16), (2, 2), stride=(2, 2)), (1, 8, 8, 16), "float16"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_sees_a_failure_and_works_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rknpu_userspace.model.machine import ModelMachine

    make, shape, dtype = OPERATIONS[name]
    x = np.random.default_rng(1).integers(-9, 9, shape).astype(dtype)
    real = ModelMachine.run_task
    with rknpu_userspace.open("model", cores=2) as npu, npu.compile(make()) as program:
        expected = program(x)
        ran: list[int] = []

        def once(self: Any, core: int, iova: int, words: int) -> Any:
            ran.append(iova)
            return real(self, core, 0xFFFF0000 if len(ran) == 1 else iova, words)

        monkeypatch.setattr(ModelMachine, "run_task", once)
        with pytest.raises(JobError, match="commands at 0x") as caught:
            program(x)
        assert caught.value.kind == "fault"
        assert caught.value.address == 0xFFFF0000
        assert np.array_equal(program(x), expected)


def test_closed_things() -> None:
    npu = rknpu_userspace.open("model")
    program = npu.compile(Matmul(np.ones((8, 8), np.int8), 8))
    other = npu.compile(Matmul(np.ones((8, 8), np.int8), 8))
    other.close()
    with pytest.raises(DeviceError, match="the program is closed"):
        other(np.ones((8, 8), np.int8))
    npu.close()
    npu.close()
    with pytest.raises(DeviceError, match="closed"):
        program(np.ones((8, 8), np.int8))
    with pytest.raises(DeviceError, match="model is closed"):
        npu.matmul(np.ones((8, 8), np.int8), np.ones((8, 8), np.int8))
    program.close()
    program.close()


def test_closed_device_of_the_driver(drivers: list[ModelDriver], node: str) -> None:
    npu = rknpu_userspace.open(node)
    program = npu.compile(Matmul(np.ones((8, 8), np.int8), 8))
    assert (program(np.ones((8, 8), np.int8)) == 8).all()
    npu.close()
    with pytest.raises(DeviceError, match="closed"):
        program(np.ones((8, 8), np.int8))
    program.close()


def test_an_interrupt_leaves_no_buffer_for_others_to_use(drivers: list[ModelDriver], node: str) -> None:
    """The jobs of all cores go on; none of their buffers is kept for a later program."""
    with rknpu_userspace.open(node, cores=2) as npu:
        program = npu.compile(Matmul(np.ones((64, 64), np.int8), 64))
        drivers[0].raised = [KeyboardInterrupt()]
        drivers[1].raised = [TimeoutError(errno.ETIMEDOUT, "timed out")]
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        with pytest.raises(KeyboardInterrupt):
            program(np.ones((64, 64), np.int8))
        assert drivers[1].deadlines[0] <= before + 10**9, "nobody waits a minute for the other core"
        program.close()
        for context in npu.contexts(2):
            assert isinstance(context, RocketContext)
            assert not context._pool


def test_no_permission(tmp_path: Path) -> None:
    node = tmp_path / "accel0"
    node.touch()
    node.chmod(0o600)
    text = explain_open(str(node), PermissionError(errno.EACCES, "denied"))
    assert "its mode -rw------- keeps its group" in text
    assert "udev rule" in text
    node.chmod(0o660)
    assert "usermod -aG" in explain_open(str(node), PermissionError(errno.EACCES, "denied"))
    assert "ask its owner" in explain_open(str(tmp_path / "none"), PermissionError(errno.EACCES, "denied"))


def test_contexts_are_made_once_whatever_threads_ask() -> None:
    made: list[int] = []

    def make(core: int) -> Any:
        time.sleep(0.01)
        made.append(core)
        return ModelContext(core, 1 << 20)

    with contextlib.closing(Device("slow", make, 3)) as npu:
        threads = [threading.Thread(target=npu.contexts) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [0, 1, 2]
