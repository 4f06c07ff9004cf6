# SPDX-License-Identifier: MIT
"""Encoding of the driver's ioctls and the words for its errors, against a stand-in for the system call."""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rknpu_userspace import uapi
from rknpu_userspace.backend import Job
from rknpu_userspace.backend.rocket import RocketContext
from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.uapi import Accel, JobList


class FakeDriver:
    """Answers ioctls as the driver does; ``run`` sees every decoded job."""

    def __init__(self, name: bytes = b"rocket") -> None:
        self.name = name
        self.calls: list[int] = []
        self.fail: dict[int, OSError] = {}
        self.memory: dict[int, bytearray] = {}
        self.sizes: dict[int, int] = {}
        self.closed: list[int] = []
        self.deadlines: list[int] = []
        self.jobs: list[tuple[list[tuple[int, int]], list[int], list[int]]] = []
        self.run: Callable[[FakeDriver], None] = lambda driver: None

    def ioctl(self, fd: int, number: int, argument: Any) -> int:
        self.calls.append(number)
        if number in self.fail:
            raise self.fail.pop(number)
        assert len(argument) == (number >> 16) & 0x3FFF
        getattr(self, f"call_{number:08x}")(argument)
        return 0

    def map(self, fd: int, length: int, offset: int) -> bytearray:
        assert self.sizes[offset] == length
        return self.memory[offset]

    def call_c0406400(self, argument: bytearray) -> None:  # VERSION
        length, pointer = struct.unpack_from("<QQ", argument, 16)
        ctypes.memmove(pointer, self.name, min(length, len(self.name)))
        struct.pack_into("<Q", argument, 16, len(self.name))

    def call_c0186440(self, argument: bytearray) -> None:  # CREATE_BO
        (size,) = struct.unpack_from("<I", argument, 0)
        handle = len(self.memory) + 1
        offset = handle << 32
        self.memory[offset], self.sizes[offset] = bytearray(size), size
        struct.pack_into("<IQQ", argument, 4, handle, 0x10000 * (handle - 1), offset)

    def call_40186441(self, argument: bytes) -> None:  # SUBMIT
        jobs, count, size, reserved = struct.unpack("<QIIQ", argument)
        assert (size, reserved) == (40, 0)
        for index in range(count):
            raw = ctypes.string_at(jobs + index * size, size)
            tasks, reads, writes, task_count, task_size, read_count, write_count = struct.unpack("<QQQIIII", raw)
            assert task_size == 8
            words = np.frombuffer(ctypes.string_at(tasks, 8 * task_count), "<u4").reshape(-1, 2).tolist()
            self.jobs.append(
                (
                    [tuple(pair) for pair in words],
                    np.frombuffer(ctypes.string_at(reads, 4 * read_count), "<u4").tolist() if read_count else [],
                    np.frombuffer(ctypes.string_at(writes, 4 * write_count), "<u4").tolist() if write_count else [],
                )
            )
        self.run(self)

    def call_40106442(self, argument: bytes) -> None:  # PREP_BO
        self.deadlines.append(struct.unpack("<IIq", argument)[2])

    def call_40086443(self, argument: bytes) -> None:  # FINI_BO
        assert struct.unpack("<II", argument)[1] == 0

    def call_40086409(self, argument: bytes) -> None:  # GEM_CLOSE
        self.closed.append(struct.unpack("<II", argument)[0])


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def node(tmp_path: Path) -> str:
    path = tmp_path / "accel0"
    path.touch()
    return str(path)


@pytest.fixture
def accel(driver: FakeDriver, node: str) -> Accel:
    return Accel(node, driver.ioctl, driver.map)


def test_ioctl_numbers() -> None:
    """As the kernel's macros make them from rocket_accel.h and drm.h."""
    assert uapi.VERSION == 0xC0406400
    assert uapi.GEM_CLOSE == 0x40086409
    assert uapi.CREATE_BO == 0xC0186440
    assert uapi.SUBMIT == 0x40186441
    assert uapi.PREP_BO == 0x40106442
    assert uapi.FINI_BO == 0x40086443
    assert (uapi.JOB_FORMAT.size, uapi.TASK_FORMAT.size) == (40, 8)


def test_buffer(accel: Accel, driver: FakeDriver) -> None:
    first = accel.create_bo(5000)
    second = accel.create_bo(4096)
    assert (first.handle, first.iova, first.size) == (1, 0, 8192)
    assert (second.handle, second.iova, second.size) == (2, 0x10000, 4096)
    first.view[17] = 5
    assert driver.memory[1 << 32][17] == 5
    accel.free_bo(first)
    assert driver.closed == [1]
    assert first.size == 0


def test_buffer_that_can_not_be_mapped_is_released(driver: FakeDriver, node: str) -> None:
    def refuse(fd: int, length: int, offset: int) -> bytearray:
        raise OSError(errno.ENOMEM, "no memory")

    accel = Accel(node, driver.ioctl, refuse)
    with pytest.raises(DeviceError, match="out of memory"):
        accel.create_bo(4096)
    assert driver.closed == [1]


@pytest.mark.parametrize("size", [0, -1, 1 << 31])
def test_buffer_size_limits(accel: Accel, size: int) -> None:
    with pytest.raises(DeviceError, match="2147479552"):
        accel.create_bo(size)


def test_jobs(accel: Accel, driver: FakeDriver) -> None:
    jobs = JobList([([(0x1000, 130), (0x1440, 130)], [3, 1], [2]), ([(0x2000, 7)], [], [2])])
    accel.submit(jobs.argument)
    assert driver.jobs == [([(0x1000, 130), (0x1440, 130)], [3, 1], [2]), ([(0x2000, 7)], [], [2])]


@pytest.mark.parametrize(
    ("tasks", "reads", "writes", "message"),
    [
        ([(0, 1)], [1, 2], [2], "once"),
        ([(0, 1)], [1, 1], [2], "once"),
        ([(0, 1)], [1], [2, 2], "once"),
        ([], [1], [2], "needs tasks"),
        ([(0, 0)], [1], [2], "command words"),
    ],
)
def test_jobs_that_the_driver_would_drop(
    tasks: list[tuple[int, int]], reads: list[int], writes: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        JobList([(tasks, reads, writes)])


def test_wait_has_an_absolute_deadline(accel: Accel, driver: FakeDriver) -> None:
    bo = accel.create_bo(1)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    accel.prep_bo(bo, 2.0)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert before + 2_000_000_000 <= driver.deadlines[0] <= after + 2_000_000_000


def test_interrupted_wait_goes_on_to_the_same_deadline(accel: Accel, driver: FakeDriver) -> None:
    bo = accel.create_bo(1)
    driver.fail[uapi.PREP_BO] = InterruptedError(errno.EINTR, "interrupted")
    accel.prep_bo(bo, 1.0)
    assert driver.calls.count(uapi.PREP_BO) == 2
    assert len(driver.deadlines) == 1


def test_closing_waits_for_the_driver(accel: Accel) -> None:
    bo = accel.create_bo(1)
    accel.prep_bo(bo, 1.0)
    begin = time.monotonic()
    accel.close()
    assert time.monotonic() - begin >= 0.09
    accel.close()
    with pytest.raises(DeviceError, match="closed"):
        accel.create_bo(1)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOTTY, "too old"),
        (errno.ENODEV, "gone"),
        (errno.ENOMEM, "out of memory"),
        (errno.EINVAL, "does not accept"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_of_calls(accel: Accel, driver: FakeDriver, number: int, message: str) -> None:
    import os

    driver.fail[uapi.CREATE_BO] = OSError(number, os.strerror(number))
    with pytest.raises(DeviceError, match=message):
        accel.create_bo(1)


def test_another_driver(node: str) -> None:
    with pytest.raises(DeviceError, match="'intel_vpu', not to 'rocket'"):
        driver = FakeDriver(b"intel_vpu")
        Accel(node, driver.ioctl, driver.map)


def test_not_a_drm_node(node: str) -> None:
    with pytest.raises(DeviceError, match="not a device of the rocket driver"):
        Accel(node)


def test_missing_node() -> None:
    text = uapi.explain_open("/dev/accel/accel0", FileNotFoundError(errno.ENOENT, "gone"), "7.3.4-arm64")
    assert "module is not loaded" in text
    text = uapi.explain_open("/dev/accel/accel0", FileNotFoundError(errno.ENOENT, "gone"), "6.12.9-arm64")
    assert "needs Linux 6.18 or later, this is 6.12.9-arm64" in text
    with pytest.raises(DeviceError, match="does not exist"):
        Accel("/nonexistent/accel0")


def test_no_permission_names_the_group(node: str) -> None:
    import grp

    Path(node).chmod(0o660)
    group = grp.getgrgid(Path(node).stat().st_gid).gr_name
    text = uapi.explain_open(node, PermissionError(errno.EACCES, "denied"))
    assert f"belongs to group {group}" in text
    assert f"usermod -aG {group}" in text


# --- the backend: detection of jobs that did not run -----------------------------------------------------------------


@pytest.fixture
def context(driver: FakeDriver, node: str, monkeypatch: pytest.MonkeyPatch) -> RocketContext:
    monkeypatch.setattr("rknpu_userspace.backend.rocket.Accel", lambda path: Accel(path, driver.ioctl, driver.map))
    return RocketContext(node)


def prepared(context: RocketContext) -> tuple[Any, Any]:
    constants, features, out = context.alloc(100), context.alloc(100), context.alloc(100)
    job = Job(((constants.iova, 130),), 64, "a job")
    return context.prepare([job], [constants], [features], out), out


def test_run_lists_buffers_and_hands_them_over(context: RocketContext, driver: FakeDriver) -> None:
    submission, _out = prepared(context)
    driver.calls.clear()
    driver.run = lambda d: d.memory[3 << 32].__setitem__(slice(64, 80), bytes(16))
    submission.start()
    submission.wait(1.0)
    assert driver.jobs == [([(0, 130)], [1, 2], [3])]
    assert driver.calls == [uapi.FINI_BO, uapi.FINI_BO, uapi.SUBMIT, uapi.PREP_BO]


def test_dropped_job(context: RocketContext, driver: FakeDriver) -> None:
    submission, _out = prepared(context)
    submission.start()
    with pytest.raises(JobError, match=r"rejected the job.*a job, commands at 0x0") as caught:
        submission.wait(1.0)
    assert caught.value.kind == "dropped"
    driver.run = lambda d: d.memory[3 << 32].__setitem__(slice(64, 80), bytes(16))
    submission.start()
    submission.wait(1.0)


def test_timed_out_job(context: RocketContext, driver: FakeDriver) -> None:
    submission, _out = prepared(context)
    driver.run = lambda d: time.sleep(0.5)
    submission.start()
    with pytest.raises(JobError, match="driver gave up") as caught:
        submission.wait(1.0)
    assert caught.value.kind == "timed out"
    assert caught.value.elapsed >= 0.5


def test_late_job_keeps_its_buffers_from_being_used_again(context: RocketContext, driver: FakeDriver) -> None:
    submission, out = prepared(context)
    submission.start()
    driver.fail[uapi.PREP_BO] = TimeoutError(errno.ETIMEDOUT, "timed out")
    with pytest.raises(JobError, match="not done after 1 s") as caught:
        submission.wait(1.0)
    assert caught.value.kind == "late"
    context.free(out)
    assert driver.closed == [3]


def test_released_buffers_are_used_again_and_zeroed(context: RocketContext, driver: FakeDriver) -> None:
    first = context.alloc(1000)
    first.view[:] = 7
    context.free(first)
    again = context.alloc(2000)
    assert again is first
    assert not again.view.any()
    assert driver.calls.count(uapi.CREATE_BO) == 1
    context.close()
