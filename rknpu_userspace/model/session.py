# SPDX-License-Identifier: MIT
"""The model process behind the NPU link: one session per connection, a reader thread and a worker thread each.

The reader stays responsive while the worker computes, so that a RESET cuts a job off at once: the old core loses its
access to memory, a new one takes its place, and the DONE of the abandoned job is never sent.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np

from . import link
from .memory import AddressSpace, Bytes, JobAborted, Paged, PassThrough, PhysicalMemory, Stalled
from .npu import NpuCore
from .quirks import Quirks
from .results import TaskResult, TaskStats

_OUTCOME = {"done": 0, "hang": 1, "fault": 2}


class Log:
    """Lines with a time stamp, from any thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        with self._lock:
            self._stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            self._stream.flush()


@dataclass
class Shared:
    """What the sessions of one process share."""

    ram: Bytes
    quirks: Quirks
    clock_hz: int
    log: Callable[[str], None]
    stats: IO[str] | None
    stats_lock: threading.Lock

    def record(self, core: int, job: int, result: TaskResult) -> None:
        """One line of JSON for a finished job."""
        if self.stats is None:
            return
        stats = result.stats
        line = {
            "core": core,
            "job": job,
            "tasks": stats.tasks,
            "outcome": result.outcome,
            "reason": result.reason,
            "op": stats.op,
            "macs": stats.macs,
            "mac_cycles": stats.mac_cycles,
            "utilisation": round(stats.utilisation, 4),
            "dma_bytes": stats.dma_bytes,
            "cycles": stats.cycles,
            "ns": stats.ns,
            "host_us": round(stats.host_us, 1),
        }
        with self.stats_lock:
            self.stats.write(json.dumps(line) + "\n")
            self.stats.flush()


@dataclass(frozen=True)
class _Job:
    core: NpuCore
    number: int
    sequence: int
    payload: bytes


class Session:
    """One connection, which is one core."""

    def __init__(self, connection: socket.socket, shared: Shared) -> None:
        self._connection = connection
        self._shared = shared
        self._memory: PhysicalMemory | None = None
        self._core: NpuCore | None = None
        self._index = -1
        self._jobs = 0
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Serve until the peer closes or breaks the protocol."""
        worker = threading.Thread(target=self._work, name="npu-worker", daemon=True)
        worker.start()
        try:
            while (frame := link.receive(self._connection)) is not None:
                self._handle(frame)
        except link.LinkError as error:
            self._shared.log(f"connection of core {self._index} closed: {error}")
        except OSError as error:
            self._shared.log(f"connection of core {self._index} lost: {error}")
        finally:
            if self._core is not None:
                self._core.abort()
            self._queue.put(None)
            self._connection.close()
        worker.join()

    def _new_core(self, memory: PhysicalMemory) -> NpuCore:
        shared = self._shared
        return NpuCore(self._index, PassThrough(memory), shared.quirks, shared.clock_hz, log=shared.log)

    def _handle(self, frame: link.Frame) -> None:
        if frame.kind == link.HELLO:
            self._hello(frame)
            return
        core, memory = self._core, self._memory
        if core is None or memory is None:
            raise link.LinkError(f"frame type {frame.kind} before HELLO")
        if frame.core != self._index:
            raise link.LinkError(f"frame for core {frame.core} on the connection of core {self._index}")
        if frame.kind == link.RESET:
            core.abort()
            with self._send_lock:
                self._core = self._new_core(memory)
                self._connection.sendall(link.answer(link.RESET, self._index, frame.sequence))
            return
        if frame.kind == link.WRITE:
            core.write(*link.WRITE_BODY.unpack(frame.payload))
        elif frame.kind == link.READ:
            value = core.read(*link.READ_BODY.unpack(frame.payload))
            self._send(link.answer(link.READ, self._index, frame.sequence, link.READ_BODY.pack(value)))
        else:
            self._jobs += 1
            self._queue.put(_Job(core, self._jobs, frame.sequence, frame.payload))

    def _hello(self, frame: link.Frame) -> None:
        if self._core is not None:
            raise link.LinkError("a second HELLO")
        try:
            memory = PhysicalMemory(self._shared.ram, link.parse_hello(frame.payload))
        except ValueError as error:
            raise link.LinkError(f"HELLO: {error}") from error
        self._index = frame.core
        self._memory = memory
        self._core = self._new_core(memory)
        self._send(link.answer(link.HELLO, self._index, frame.sequence, link.READ_BODY.pack(link.VERSION)))

    def _send(self, data: bytes) -> None:
        with self._send_lock:
            self._connection.sendall(data)

    # the worker's side ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                result = self._run(job)
            except JobAborted:
                self._shared.log(f"core {self._index}: job {job.number} abandoned by a reset")
                continue
            try:
                with self._send_lock:
                    if self._core is not job.core:
                        continue
                    self._shared.record(self._index, job.number, result)
                    self._connection.sendall(_done(self._index, job.sequence, result))
            except OSError as error:
                self._shared.log(f"core {self._index}: the result of job {job.number} could not be sent: {error}")

    def _run(self, job: _Job) -> TaskResult:
        regcmd, words, task_con, dma_base, *banks = link.JOB_BODY.unpack(job.payload)
        try:
            return job.core.run_job(regcmd, words, task_con, dma_base, self._spaces(banks))
        except JobAborted:
            raise
        except Exception as error:  # noqa: BLE001 - a bug in the model must hang one job, not freeze the guest
            self._shared.log(f"core {self._index}: error in the model\n{traceback.format_exc()}")
            return TaskResult("hang", 0, f"error in the model: {error}", TaskStats())

    def _spaces(self, banks: list[int]) -> list[AddressSpace]:
        """Address spaces of the banks that exist; banks = DTE_ADDR, flags of each."""
        memory = self._memory
        if memory is None:
            raise link.LinkError("a job before HELLO")
        spaces: list[AddressSpace] = []
        for directory, flags in zip(banks[0::2], banks[1::2], strict=True):
            if not flags & link.BANK_EXISTS:
                continue
            if flags & link.BANK_STALLED:
                spaces.append(Stalled(memory))
            elif flags & link.BANK_PAGING:
                spaces.append(Paged(memory, directory))
            else:
                spaces.append(PassThrough(memory))
        return spaces or [PassThrough(memory)]


def _done(core: int, sequence: int, result: TaskResult) -> bytes:
    fault = result.fault
    body = link.DONE_BODY.pack(
        _OUTCOME[result.outcome],
        result.irq_bits,
        result.task_status,
        fault.bank if fault else 0,
        fault.address if fault else 0,
        int(fault.write) if fault else 0,
        result.stats.ns,
    )
    return link.answer(link.JOB, core, sequence, body)


def map_ram(buffer: memoryview) -> Bytes:
    """The RAM file's mapping as an array of bytes."""
    return np.frombuffer(buffer, np.uint8)
