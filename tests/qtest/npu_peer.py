# SPDX-License-Identifier: MIT
"""A model process for tests: speaks docs/npu-link.md, computes nothing, and does what the test tells it to do.

It answers HELLO, RESET and READ by itself (a test may switch that off) and records every frame; jobs are answered
by the test. The frame formats are written down here a second time on purpose: the tests must not share code with
what they test.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtest_client import QTest

MAGIC = 0x4C4E4B52
HELLO, RESET, WRITE, READ, JOB = 1, 2, 3, 4, 5
ANSWER = 0x80
DONE = ANSWER + JOB
OUTCOME_DONE, OUTCOME_HANG, OUTCOME_FAULT = 0, 1, 2

NPU = (0xFDAB0000, 0xFDAC0000, 0xFDAD0000)
CRU, PMU = 0xFD7C0000, 0xFD8D8000
PMU_PWR_GATE = PMU + 0x14C
WAIT_S = 20.0

PC_VERSION, PC_VERSION_NUM, PC_OPERATION_ENABLE = 0x00, 0x04, 0x08
PC_BASE_ADDRESS, PC_REGISTER_AMOUNTS = 0x10, 0x14
PC_INT_MASK, PC_INT_CLEAR, PC_INT_STATUS, PC_INT_RAW = 0x20, 0x24, 0x28, 0x2C
PC_TASK_CON, PC_TASK_DMA_BASE, PC_TASK_STATUS = 0x30, 0x34, 0x3C
CNA_S_POINTER, CORE_S_POINTER = 0x1004, 0x3004
DPU_0, DPU_1 = 0x100, 0x200


def npu_path(core: int) -> str:
    """QOM path of an NPU core."""
    return f"/machine/soc/npu[{core}]"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Poll until the condition holds; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Frame:
    """One received frame."""

    type: int
    core: int
    seq: int
    payload: bytes

    def words(self) -> tuple[int, ...]:
        """The payload as 32-bit words."""
        return struct.unpack(f"<{len(self.payload) // 4}I", self.payload)


def pack(frame_type: int, core: int, seq: int, payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    return struct.pack("<IHHII", MAGIC, frame_type, len(payload), core, seq) + payload


def done_payload(
    outcome: int = OUTCOME_DONE,
    interrupts: int = 0,
    status: int = 0,
    bank: int = 0,
    address: int = 0,
    flags: int = 0,
    ns: int = 0,
) -> bytes:
    """The payload of a DONE frame."""
    return struct.pack("<6IQ", outcome, interrupts, status, bank, address, flags, ns)


class Peer:
    """The model's side of the links of all cores. Use as a context manager, around the machine's life."""

    def __init__(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="npulab-peer-")
        self.path = Path(self._dir.name) / "npu.sock"
        self.version = 1
        self.silent: set[int] = set()  # types of frames that are not answered
        self.delay_s: dict[int, float] = {}  # type -> how long its answer takes
        self.before_answer: dict[int, bytes] = {}  # type -> bytes sent ahead of its answer
        self.registers: dict[tuple[int, int], int] = {}  # (core, offset) -> what READ answers
        self.frames: list[Frame] = []
        self._links: dict[int, socket.socket] = {}  # by core, once it has sent something
        self._connections: list[socket.socket] = []
        self._changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def arguments(self, *cores: int) -> list[str]:
        """QEMU arguments that connect the given cores (all three without arguments)."""
        result: list[str] = []
        for core in cores or (0, 1, 2):
            result += ["-chardev", f"socket,id=npu{core},path={self.path}"]
        return result

    # -- the side of the threads --------------------------------------------------------------------
    def _accept(self) -> None:
        while True:
            try:
                link = self._listener.accept()[0]
            except OSError:
                return
            self._connections.append(link)
            thread = threading.Thread(target=self._serve, args=(link,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, link: socket.socket) -> None:
        stream = link.makefile("rb")
        try:
            while len(header := stream.read(16)) == 16:
                magic, frame_type, length, core, seq = struct.unpack("<IHHII", header)
                assert magic == MAGIC
                frame = Frame(frame_type, core, seq, stream.read(length))
                with self._changed:
                    self._links[core] = link
                    self.frames.append(frame)
                    self._changed.notify_all()
                self._answer(link, frame)
        except OSError:
            return  # the machine has ended, or the test closed the link

    def _answer(self, link: socket.socket, frame: Frame) -> None:
        if frame.type in self.silent or frame.type in (WRITE, JOB):
            return
        payload = {
            HELLO: struct.pack("<I", self.version),
            RESET: b"",
            READ: struct.pack("<I", self.registers.get((frame.core, frame.words()[0]), 0)) if frame.payload else b"",
        }[frame.type]
        time.sleep(self.delay_s.get(frame.type, 0))
        ahead = self.before_answer.pop(frame.type, b"")
        link.sendall(ahead + pack(ANSWER + frame.type, frame.core, frame.seq, payload))

    # -- the side of the test -----------------------------------------------------------------------
    def of_type(self, frame_type: int, core: int = 0) -> list[Frame]:
        """All frames of a type that a core has sent so far."""
        with self._changed:
            return [f for f in self.frames if f.type == frame_type and f.core == core]

    def expect(self, frame_type: int, core: int = 0, count: int = 1) -> Frame:
        """Wait until a core has sent `count` frames of a type; the last of them."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self._matching(frame_type, core)) >= count, WAIT_S)
            assert found, f"core {core} sent {len(self._matching(frame_type, core))} frames of type {frame_type}"
            return self._matching(frame_type, core)[count - 1]

    def _matching(self, frame_type: int, core: int) -> list[Frame]:
        return [f for f in self.frames if f.type == frame_type and f.core == core]

    def forget(self) -> None:
        """Forget the frames recorded so far."""
        with self._changed:
            self.frames.clear()

    def send(self, core: int, data: bytes) -> None:
        """Send raw bytes on a core's link."""
        self._links[core].sendall(data)

    def finish(
        self,
        machine: QTest,
        job: Frame,
        outcome: int = OUTCOME_DONE,
        interrupts: int = 0,
        status: int = 0,
        bank: int = 0,
        address: int = 0,
        flags: int = 0,
        ns: int = 0,
    ) -> None:
        """Answer a job and wait until the machine has taken the answer (guest time is released by it)."""
        payload = done_payload(outcome, interrupts, status, bank, address, flags, ns)
        self.send(job.core, pack(DONE, job.core, job.seq, payload))
        wait_until(lambda: not machine.qom_get(npu_path(job.core), "time-frozen"), "the end of the job")

    def hang_up(self, core: int) -> None:
        """End a core's link, as a dying process does."""
        self._links[core].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything. Threads end before the descriptors that they use are closed and their numbers reused."""
        self._end([self._listener], self._threads[:1])
        self._end(self._connections, self._threads[1:])
        self._dir.cleanup()

    @staticmethod
    def _end(sockets: list[socket.socket], threads: list[threading.Thread]) -> None:
        for end in sockets:
            with contextlib.suppress(OSError):  # the other side may have ended it
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(WAIT_S)
        for end in sockets:
            end.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- what a driver does to a core -------------------------------------------------------------------
def submit(machine: QTest, core: int = 0, regcmd: int = 0x1000, amount: int = 0x40) -> None:
    """The register writes of one task, in the order of linux drivers/accel/rocket/rocket_job.c."""
    base, pointer = NPU[core], 0xE | core << 28
    for offset, value in (
        (PC_BASE_ADDRESS, 1),
        (CNA_S_POINTER, pointer),
        (CORE_S_POINTER, pointer),
        (PC_BASE_ADDRESS, regcmd),
        (PC_REGISTER_AMOUNTS, amount),
        (PC_INT_MASK, DPU_0 | DPU_1),
        (PC_INT_CLEAR, DPU_0 | DPU_1),
        (PC_TASK_CON, 0x7001),
        (PC_TASK_DMA_BASE, 0),
        (PC_OPERATION_ENABLE, 1),
    ):
        machine.writel(base + offset, value)


def start_job(machine: QTest, peer: Peer, core: int = 0) -> Frame:
    """Submit a task and wait for its JOB frame."""
    count = len(peer.of_type(JOB, core))
    submit(machine, core)
    return peer.expect(JOB, core, count + 1)


def run_job(machine: QTest, peer: Peer, core: int = 0, interrupts: int = DPU_0) -> None:
    """A task from submission to its interrupt."""
    peer.finish(machine, start_job(machine, peer, core), interrupts=interrupts, ns=10)
    machine.clock_step(10)


def start_watched(start: Callable[..., QTest], peer: Peer, *arguments: str) -> QTest:
    """A machine whose cores have the peer as their model, past its first resets, with the GIC's inputs watched."""
    machine = start(args=[*peer.arguments(), *arguments])
    machine.irq_intercept("/machine/soc/gic", "in")
    for core in range(3):
        peer.expect(RESET, core)  # of the machine's own reset at its start
    peer.forget()
    return machine


def gate_power(machine: QTest, bit: int, off: bool) -> None:
    """Close or open a power gate (PMU PWR_GATE_SFTCON0): 1 NPU, 3 NPUTOP, 4 NPU1, 5 NPU2."""
    machine.writel(PMU_PWR_GATE, 1 << (16 + bit) | off << bit)


def gate_clock(machine: QTest, con: int, bit: int, off: bool) -> None:
    """Close or open a clock gate (CRU CLKGATE_CON)."""
    machine.writel(CRU + 0x800 + con * 4, 1 << (16 + bit) | off << bit)


def soft_reset(machine: QTest, con: int, bit: int, on: bool) -> None:
    """Assert or release a soft reset (CRU SOFTRST_CON)."""
    machine.writel(CRU + 0xA00 + con * 4, 1 << (16 + bit) | on << bit)
