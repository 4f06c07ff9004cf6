# SPDX-License-Identifier: MIT
"""A device whose jobs run in the model process: QEMU's side of the link, for processes that share a RAM file.

Every context is a connection, hence a core, with a slice of the RAM file as its memory. Run as a program it is one of
several client processes: SOCKET RAM SLOT CORES; it prints the fingerprints of all workloads.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rknpu_userspace.backend import Buffer, Bytes, Job, command_bytes
from rknpu_userspace.backend.model import ModelBuffer
from rknpu_userspace.device import Device
from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.model import link

SLICE = 16 << 20
BASE = 0x10000
DONE = 0


class ServedContext:
    """See backend.Context."""

    def __init__(self, path: str, ram: str, slot: int, core: int) -> None:
        self.core = core
        self._memory = np.memmap(ram, np.uint8, "r+", slot * SLICE, SLICE)
        self._next = 0
        self._sequence = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        region = struct.pack("<QQQ", BASE, slot * SLICE, SLICE)
        self._ask(link.HELLO, struct.pack("<II", link.VERSION, 1) + region)

    def _send(self, kind: int, payload: bytes) -> None:
        self._sequence += 1
        self._socket.sendall(link.HEADER.pack(link.MAGIC, kind, len(payload), self.core, self._sequence) + payload)

    def _ask(self, kind: int, payload: bytes = b"") -> bytes:
        self._send(kind, payload)
        head = self._exactly(link.HEADER.size)
        return self._exactly(link.HEADER.unpack(head)[2])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise DeviceError("the model process is gone")
            data += part
        return data

    def alloc(self, size: int) -> Buffer:
        need = -(-size // 4096) * 4096
        start, self._next = self._next, self._next + need
        if self._next > SLICE:
            raise DeviceError("the slice is full")
        view = self._memory[start : self._next]
        view[:] = 0
        return ModelBuffer(BASE + start, view)

    def free(self, buffer: Buffer) -> None:
        """A slice is large enough for all that a test allocates."""

    def flush(self, buffer: Buffer) -> None:
        """The model process sees the same file."""

    def prepare(
        self, jobs: Sequence[Job], constants: Sequence[Buffer], reads: Sequence[Buffer], out: Buffer
    ) -> ServedSubmission:
        return ServedSubmission(self, jobs, constants)

    def kick(self, iova: int, words: int) -> int:
        """One task as the driver starts it; its outcome."""
        for offset in (0x1004, 0x3004):
            self._send(link.WRITE, link.WRITE_BODY.pack(offset, 0xE | self.core << 28))
        job = (iova, (words + 1) // 2 * 2, 0x7001, 0, 0, link.BANK_EXISTS, 0, 0)
        answer = self._ask(link.JOB, link.JOB_BODY.pack(*job))
        outcome: int = link.DONE_BODY.unpack(answer)[0]
        return outcome

    def close(self) -> None:
        self._socket.close()


class ServedSubmission:
    """See backend.Submission."""

    elapsed = 0.0

    def __init__(self, context: ServedContext, jobs: Sequence[Job], constants: Sequence[Buffer]) -> None:
        self.jobs = tuple(jobs)
        self._context, self._constants = context, tuple(constants)
        self._failed = ""

    def start(self) -> None:
        self._failed = ""
        for job in self.jobs:
            for iova, words in job.tasks:
                if self._context.kick(iova, words) != DONE:
                    self._failed = job.label
                    return

    def wait(self, timeout: float) -> None:
        if self._failed:
            raise JobError("timed out", "the model process did not finish it", self._failed)

    def commands(self) -> list[tuple[str, int, Bytes]]:
        return command_bytes(self.jobs, self._constants)


def open_served(path: str, ram: str, slot: int, cores: int) -> Device:
    """A device over ``cores`` slices from ``slot`` on."""
    return Device("served", lambda core: ServedContext(path, ram, slot + core, core), cores)


if __name__ == "__main__":
    from workloads import run

    with open_served(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) as device:
        print(json.dumps(run(device)))
