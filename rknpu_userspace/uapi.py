# SPDX-License-Identifier: MIT
"""The rocket driver's interface: ioctls, buffer objects, and their errors in words.

Numbers and structures: linux include/uapi/drm/rocket_accel.h and drm.h. Little-endian 64-bit kernels only, as the
driver's board is one.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import mmap
import os
import platform
import stat
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DeviceError

_WRITE, _READ = 1, 2
_DRM = ord("d")
_COMMAND_BASE = 0x40


def _ioctl_number(direction: int, number: int, size: int) -> int:
    """As the kernel's _IOC macro builds it."""
    return direction << 30 | size << 16 | _DRM << 8 | number


CREATE_BO_FORMAT = struct.Struct("<IIQQ")
"""size; out: handle, dma_address, offset for mmap."""
SUBMIT_FORMAT = struct.Struct("<QIIQ")
"""jobs, job_count, job_struct_size, reserved."""
JOB_FORMAT = struct.Struct("<QQQIIII")
"""tasks, in_bo_handles, out_bo_handles, task_count, task_struct_size, in_bo_handle_count, out_bo_handle_count."""
TASK_FORMAT = struct.Struct("<II")
"""regcmd, regcmd_count."""
PREP_BO_FORMAT = struct.Struct("<IIq")
"""handle, reserved, timeout_ns: absolute time of CLOCK_MONOTONIC."""
FINI_BO_FORMAT = struct.Struct("<II")
"""handle, reserved."""
GEM_CLOSE_FORMAT = struct.Struct("<II")
"""handle, pad."""
VERSION_FORMAT = struct.Struct("<iii4xQQQQQQ")
"""major, minor, patch; length and address of name, date, description."""

CREATE_BO = _ioctl_number(_READ | _WRITE, _COMMAND_BASE + 0, CREATE_BO_FORMAT.size)
SUBMIT = _ioctl_number(_WRITE, _COMMAND_BASE + 1, SUBMIT_FORMAT.size)
PREP_BO = _ioctl_number(_WRITE, _COMMAND_BASE + 2, PREP_BO_FORMAT.size)
FINI_BO = _ioctl_number(_WRITE, _COMMAND_BASE + 3, FINI_BO_FORMAT.size)
GEM_CLOSE = _ioctl_number(_WRITE, 0x09, GEM_CLOSE_FORMAT.size)
VERSION = _ioctl_number(_READ | _WRITE, 0x00, VERSION_FORMAT.size)

DRIVER = "rocket"
FIRST_KERNEL = (6, 18)
"""First release with the driver."""
MAX_BO_BYTES = (1 << 31) - 4096
"""The driver keeps the length of a mapping in an int (rocket_gem.c)."""
LINGER_SECONDS = 0.1
"""Time between the last job and the closing of the file.

The driver takes down the file's address space when the file is closed, while its scheduler may still be about to
release the buffers of jobs that have just ended (linux 7.3 drivers/accel/rocket: drm_mm_takedown in
rocket_postclose); a buffer released after that is a use after free in the kernel. Jobs are released within a few
milliseconds of their end.
"""

_GROUP_ACCESS = stat.S_IRGRP | stat.S_IWGRP
IoctlFunction = Callable[[int, int, Any], Any]


class Bo:
    """A buffer object: shared memory with an address for the NPU, mapped for the CPU."""

    def __init__(self, handle: int, iova: int, view: npt.NDArray[np.uint8]) -> None:
        self.handle = handle
        self.iova = iova
        self.view = view

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.view)


def explain_open(path: str, error: OSError, release: str | None = None) -> str:
    """Why a node can not be opened, and what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        try:
            status = Path(path).stat()
            group = grp.getgrgid(status.st_gid).gr_name
        except (OSError, KeyError):
            return f"no permission to open {path}: ask its owner"
        if status.st_mode & _GROUP_ACCESS != _GROUP_ACCESS:
            return (
                f"no permission to open {path}: its mode {stat.filemode(status.st_mode)} keeps its group {group} out; "
                'as root, give it one with a udev rule (SUBSYSTEM=="accel", GROUP="render", MODE="0660")'
            )
        return (
            f"no permission to open {path}: it belongs to group {group}; add yourself with "
            f"'sudo usermod -aG {group} $USER' and log in again"
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        running = release or platform.release()
        numbers = tuple(int(part) for part in running.split("-")[0].split(".")[:2] if part.isdigit())
        if numbers < FIRST_KERNEL:
            return f"{path} does not exist: the rocket driver needs Linux 6.18 or later, this is {running}"
        return (
            f"{path} does not exist: the rocket module is not loaded, or the device tree leaves the NPU disabled "
            f"(Linux {running}; look for 'rocket' in the kernel log)"
        )
    return f"{path} can not be opened: {error.strerror}"


class Accel:
    """An open file of the driver: an address space of its own, and jobs that run on one core at a time.

    ``version`` is the driver's. ``ioctl`` and ``map_memory`` stand in for the system calls in tests of the encoding.
    """

    def __init__(
        self,
        path: str,
        ioctl: IoctlFunction = fcntl.ioctl,
        map_memory: Callable[[int, int, int], Any] | None = None,
    ) -> None:
        self.path = path
        self._ioctl = ioctl
        self._map = map_memory or _map_shared
        self._last_job = 0.0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(explain_open(path, error)) from error
        try:
            self._check_driver()
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def _check_driver(self) -> None:
        name = bytearray(32)
        pointer = np.frombuffer(name, np.uint8).ctypes.data
        argument = bytearray(VERSION_FORMAT.pack(0, 0, 0, len(name), pointer, 0, 0, 0, 0))
        try:
            self._ioctl(self._fd, VERSION, argument)
        except OSError as error:
            raise DeviceError(f"{self.path} is not a device of the rocket driver: {error.strerror}") from error
        major, minor, patch, length = VERSION_FORMAT.unpack(bytes(argument))[:4]
        self.version = f"{major}.{minor}.{patch}"
        driver = bytes(name[:length]).decode("ascii", "replace")
        if driver != DRIVER:
            raise DeviceError(f"{self.path} belongs to the driver {driver!r}, not to {DRIVER!r}: choose another node")

    def call(self, number: int, argument: Any, what: str) -> None:
        """One ioctl; interrupted calls are repeated, which is safe for all of them but SUBMIT (it does not sleep)."""
        if self._fd < 0:
            raise DeviceError(f"{self.path} is closed")
        while True:
            try:
                self._ioctl(self._fd, number, argument)
                return
            except InterruptedError:
                continue
            except TimeoutError:
                raise
            except OSError as error:
                raise DeviceError(_explain(self.path, what, error)) from error

    def create_bo(self, size: int) -> Bo:
        """A zeroed buffer object of at least ``size`` bytes, mapped."""
        if not 0 < size <= MAX_BO_BYTES:
            raise DeviceError(f"a buffer of {size} bytes is outside 1..{MAX_BO_BYTES}, what the driver can map")
        length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        argument = bytearray(CREATE_BO_FORMAT.pack(length, 0, 0, 0))
        self.call(CREATE_BO, argument, f"allocating {length} bytes")
        _, handle, iova, offset = CREATE_BO_FORMAT.unpack(bytes(argument))
        try:
            memory = self._map(self._fd, length, offset)
        except OSError as error:
            self.call(GEM_CLOSE, GEM_CLOSE_FORMAT.pack(handle, 0), "releasing a buffer")
            raise DeviceError(_explain(self.path, f"mapping {length} bytes", error)) from error
        return Bo(handle, iova, np.frombuffer(memory, np.uint8))

    def free_bo(self, bo: Bo) -> None:
        """Release a buffer object; its memory goes when the last view of it does."""
        bo.view = np.empty(0, np.uint8)
        self.call(GEM_CLOSE, GEM_CLOSE_FORMAT.pack(bo.handle, 0), "releasing a buffer")

    def fini_bo(self, bo: Bo) -> None:
        """The CPU is done with a buffer: what it wrote reaches memory."""
        self.call(FINI_BO, FINI_BO_FORMAT.pack(bo.handle, 0), "handing a buffer to the NPU")

    def prep_bo(self, bo: Bo, timeout: float) -> None:
        """Wait until the NPU is done with a buffer and make what it wrote visible.

        TimeoutError when jobs are still at work after ``timeout`` seconds. A job that the driver gave up on counts as
        done: the driver does not say.
        """
        deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(timeout * 1e9)
        argument = PREP_BO_FORMAT.pack(bo.handle, 0, deadline)
        self.call(PREP_BO, argument, "waiting for the NPU")
        self._last_job = time.monotonic()

    def submit(self, argument: bytes) -> None:
        """Queue jobs, encoded by ``JobList``. The driver does not report jobs that it rejects."""
        self._last_job = time.monotonic()
        self.call(SUBMIT, argument, "submitting jobs")

    def close(self) -> None:
        """Close the file, not sooner than ``LINGER_SECONDS`` after the last job."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if self._last_job:
                time.sleep(max(0.0, self._last_job + LINGER_SECONDS - time.monotonic()))
        finally:
            os.close(fd)


def _map_shared(fd: int, length: int, offset: int) -> mmap.mmap:
    return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)


def _explain(path: str, what: str, error: OSError) -> str:
    hints = {
        errno.ENOMEM: "out of memory (system memory, or the 4 GiB that the NPU can address per file)",
        errno.ENOSPC: "the 4 GiB that the NPU can address per file are used up",
        errno.ENODEV: "the device is gone",
        errno.ENOTTY: "the kernel's driver is too old and does not know this call",
        errno.EINVAL: "the driver does not accept the arguments",
    }
    return f"{path}: {what} failed: {hints.get(error.errno or 0, error.strerror)}"


class JobList:
    """Encoded jobs: ``argument`` for SUBMIT, and the arrays that it points to, which live as long as this object.

    Each job is (tasks, in handles, out handles), a task (IOVA of the commands, number of words). ValueError when a
    handle is both in and out: the driver drops such a job without a word.
    """

    def __init__(self, jobs: Sequence[tuple[Sequence[tuple[int, int]], Sequence[int], Sequence[int]]]) -> None:
        self._arrays: list[npt.NDArray[np.uint32]] = []
        encoded = b""
        for tasks, reads, writes in jobs:
            if set(reads) & set(writes) or len(set(reads)) < len(reads) or len(set(writes)) < len(writes):
                raise ValueError("a buffer may appear once in a job, as in or as out")
            if not tasks or any(count < 1 for _, count in tasks):
                raise ValueError("a job needs tasks, a task needs command words")
            encoded += JOB_FORMAT.pack(
                self._array([number for task in tasks for number in task]),
                self._array(reads),
                self._array(writes),
                len(tasks),
                TASK_FORMAT.size,
                len(reads),
                len(writes),
            )
        self._jobs = np.frombuffer(encoded, np.uint8)
        self.argument = SUBMIT_FORMAT.pack(self._jobs.ctypes.data, len(jobs), JOB_FORMAT.size, 0)

    def _array(self, numbers: Sequence[int]) -> int:
        array = np.array(numbers, np.uint32)
        self._arrays.append(array)
        return array.ctypes.data if len(array) else 0
