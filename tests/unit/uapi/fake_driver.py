# SPDX-License-Identifier: MIT
"""A stand-in for the rocket driver whose jobs run on the model: ioctls in, results out, failures as the kernel has.

Every open file is an address space of its own on a core, as with the driver. ``fate`` decides what becomes of the next
jobs: "run", "drop" (SUBMIT returns 0 and nothing runs), "lose" (the device is gone from now on).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from rknpu_userspace.backend.model import DPU_IRQ
from rknpu_userspace.model.machine import ModelMachine
from rknpu_userspace.uapi import Accel

ARENA = 256 << 20


class ModelDriver:
    """One file of the driver."""

    def __init__(self, core: int = 0) -> None:
        self.core = core
        self.machine = ModelMachine(ARENA)
        self.next = 0x10000
        self.handles: dict[int, tuple[int, int]] = {}
        self.fate: list[str] = []
        self.raised: list[BaseException] = []
        self.lost = False
        self.faults: list[int] = []
        self.deadlines: list[int] = []
        self.sleep: Callable[[float], None] = lambda seconds: None

    def ioctl(self, fd: int, number: int, argument: Any) -> int:
        if self.lost:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        getattr(self, f"call_{number:08x}")(argument)
        return 0

    def map(self, fd: int, length: int, offset: int) -> Any:
        return self.machine.memory.view(offset, length)

    def accel(self, path: str) -> Accel:
        return Accel(path, self.ioctl, self.map)

    def call_c0406400(self, argument: bytearray) -> None:  # VERSION
        pointer = struct.unpack_from("<Q", argument, 24)[0]
        ctypes.memmove(pointer, b"rocket", 6)
        struct.pack_into("<Q", argument, 16, 6)

    def call_c0186440(self, argument: bytearray) -> None:  # CREATE_BO
        size = struct.unpack_from("<I", argument, 0)[0]
        iova, self.next = self.next, self.next + size + 0x10000
        self.machine.memory.map(iova, size)
        handle = len(self.handles) + 1
        self.handles[handle] = iova, size
        struct.pack_into("<IQQ", argument, 4, handle, iova, iova)

    def call_40086409(self, argument: bytes) -> None:  # GEM_CLOSE
        self.machine.memory.unmap(*self.handles[struct.unpack("<II", argument)[0]])

    def call_40086443(self, argument: bytes) -> None:  # FINI_BO
        return

    def call_40106442(self, argument: bytes) -> None:  # PREP_BO
        self.deadlines.append(struct.unpack("<IIq", argument)[2])
        if self.raised:
            raise self.raised.pop(0)

    def call_40186441(self, argument: bytes) -> None:  # SUBMIT
        jobs, count, size, _ = struct.unpack("<QIIQ", argument)
        for index in range(count):
            raw = ctypes.string_at(jobs + index * size, size)
            tasks, _, _, task_count, _, _, _ = struct.unpack("<QQQIIII", raw)
            pairs = np.frombuffer(ctypes.string_at(tasks, 8 * task_count), "<u4").reshape(-1, 2).tolist()
            fate = self.fate.pop(0) if self.fate else "run"
            if fate == "lose":
                self.lost = True
                return
            if fate == "run":
                self._run(pairs)

    def _run(self, tasks: list[list[int]]) -> None:
        for iova, words in tasks:
            result = self.machine.run_task(self.core, iova, words)
            if result.outcome != "done" or not result.irq_bits & DPU_IRQ:
                if result.fault is not None:
                    self.faults.append(result.fault.address)
                self.machine.reset(self.core)
                self.sleep(0.5)
                return
