# SPDX-License-Identifier: MIT
"""The PC front end of an NPU core and its link to the model process, with a peer that computes nothing."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from npu_peer import (
    ANSWER,
    CNA_S_POINTER,
    CORE_S_POINTER,
    DONE,
    DPU_0,
    DPU_1,
    HELLO,
    JOB,
    NPU,
    OUTCOME_HANG,
    PC_BASE_ADDRESS,
    PC_INT_CLEAR,
    PC_INT_MASK,
    PC_INT_RAW,
    PC_INT_STATUS,
    PC_OPERATION_ENABLE,
    PC_REGISTER_AMOUNTS,
    PC_TASK_CON,
    PC_TASK_DMA_BASE,
    PC_TASK_STATUS,
    PC_VERSION,
    PC_VERSION_NUM,
    READ,
    RESET,
    WRITE,
    Frame,
    Peer,
    done_payload,
    gate_clock,
    gate_power,
    npu_path,
    pack,
    soft_reset,
    submit,
    wait_until,
)
from qtest_client import QTest, QTestError

GIC, NPU_SPI = "/machine/soc/gic", (110, 111, 112)
# (core, PMU gate bit, reset register, reset bits)
CORES = [(0, 3, 30, (6, 8)), (1, 4, 27, (0, 2)), (2, 5, 28, (0, 2))]
PC = NPU[0]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


@pytest.fixture
def machine(start: Callable[..., QTest], peer: Peer) -> QTest:
    """A machine whose cores have a model, with the interrupt controller's inputs watched."""
    machine = start(args=[*peer.arguments(), "-global", "rk3588-npu.link-timeout-ms=3000"])
    machine.irq_intercept(GIC, "in")
    for core in range(3):
        peer.expect(RESET, core)  # of the machine's own reset at its start
    peer.forget()
    return machine


def start_job(machine: QTest, peer: Peer, core: int = 0) -> Frame:
    count = len(peer.of_type(JOB, core))
    submit(machine, core)
    return peer.expect(JOB, core, count + 1)


def run_job(machine: QTest, peer: Peer, core: int = 0, interrupts: int = DPU_0) -> None:
    peer.finish(machine, start_job(machine, peer, core), interrupts=interrupts, ns=10)
    machine.clock_step(10)


def acknowledge(machine: QTest, core: int = 0) -> None:
    """The driver's interrupt handler and thread."""
    machine.writel(NPU[core] + PC_INT_MASK, 0)
    machine.writel(NPU[core] + PC_OPERATION_ENABLE, 0)
    machine.writel(NPU[core] + PC_INT_CLEAR, 0x1FFFF)


# -- registers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("core", range(3))
def test_version_and_reset_values(machine: QTest, core: int) -> None:
    base = NPU[core]
    assert machine.readl(base + PC_VERSION) + (machine.readl(base + PC_VERSION_NUM) & 0xFFFF) == 1179210309
    assert machine.readl(base + PC_INT_MASK) == 0x1FFFF
    for offset in (PC_OPERATION_ENABLE, PC_BASE_ADDRESS, PC_INT_RAW, PC_INT_STATUS, PC_TASK_CON, PC_TASK_STATUS):
        assert machine.readl(base + offset) == 0, hex(offset)


def test_registers_keep_their_bits(machine: QTest) -> None:
    for offset, kept in (
        (PC_BASE_ADDRESS, 0xFFFFFFF1),
        (PC_REGISTER_AMOUNTS, 0xFFFF),
        (PC_INT_MASK, 0x1FFFF),
        (PC_TASK_DMA_BASE, 0xFFFFFFF0),
        (PC_TASK_CON, 0xFFFFFFFF & ~(1 << 13)),
    ):
        machine.writel(PC + offset, 0xFFFFFFFF)
        assert machine.readl(PC + offset) == kept, hex(offset)


def test_read_only_and_write_only_registers(machine: QTest) -> None:
    machine.writel(PC + PC_VERSION, 5)
    machine.writel(PC + PC_INT_RAW, 0x300)
    assert machine.readl(PC + PC_INT_CLEAR) == 0
    assert machine.readl(PC + PC_VERSION) == 0x46495245
    assert machine.readl(PC + PC_INT_RAW) == 0
    log = machine.log()
    assert "rk3588-npu: core 0: write of PC_VERSION (0x0000) ignored: it is read-only (value 0x00000005)" in log
    assert "write of PC_INTERRUPT_RAW_STATUS (0x002c) ignored: it is read-only" in log
    assert "read of PC_INTERRUPT_CLEAR (0x0024) returns 0: it is write-only" in log


# -- the link ---------------------------------------------------------------------------------------
def test_hello_describes_the_memory(start: Callable[..., QTest], peer: Peer) -> None:
    start(args=peer.arguments(), memory="64M")
    for core in range(3):
        hello = peer.expect(HELLO, core)
        assert hello.payload == struct.pack("<IIQQQ", 1, 1, 0, 0, 64 << 20)
        assert next(f for f in peer.frames if f.core == core) is hello, "HELLO comes first"


def test_hello_describes_memory_above_4_gib(start: Callable[..., QTest], peer: Peer) -> None:
    start(args=peer.arguments(0), memory="6G")
    payload = peer.expect(HELLO).payload
    version, count = struct.unpack_from("<II", payload)
    (gpa0, offset0, size0), (gpa1, offset1, size1) = struct.iter_unpack("<QQQ", payload[8:])
    assert (version, count, gpa0, offset0) == (1, 2, 0, 0)
    assert (gpa1, offset1) == (1 << 32, size0)
    assert size0 + size1 == 6 << 30


def test_accesses_are_forwarded_in_order(machine: QTest, peer: Peer) -> None:
    peer.registers[(0, 0x1040)] = 0xB1
    machine.writel(PC + CNA_S_POINTER, 0xE)
    assert machine.readl(PC + 0x1040) == 0xB1
    machine.writel(PC + 0x8FFC, 7)
    machine.writel(PC + CORE_S_POINTER, 0x1000000E)
    assert machine.readl(PC + 0x3010) == 0
    peer.expect(READ, count=2)
    assert [(f.type, *f.words()) for f in peer.frames] == [
        (WRITE, 0x1004, 0xE),
        (READ, 0x1040),
        (WRITE, 0x8FFC, 7),
        (WRITE, 0x3004, 0x1000000E),
        (READ, 0x3010),
    ]
    sequence = [f.seq for f in peer.frames]
    assert sequence == list(range(sequence[0], sequence[0] + 5))


def test_accesses_go_to_their_core(machine: QTest, peer: Peer) -> None:
    for core in range(3):
        peer.registers[(core, 0x4010)] = 100 + core
    assert [machine.readl(NPU[core] + 0x4010) for core in range(3)] == [100, 101, 102]


def test_job_frame(machine: QTest, peer: Peer) -> None:
    machine.writel(PC + PC_TASK_DMA_BASE, 0x20)
    job = start_job(machine, peer)
    # amount counts pairs of words minus one; COUNT_CLEAR reaches the model
    assert job.words()[:4] == (0x1000, 0x82, 0x7001, 0)
    assert [(f.type, *f.words()) for f in peer.frames[:2]] == [(WRITE, 0x1004, 0xE), (WRITE, 0x3004, 0xE)]
    assert machine.qom_get(npu_path(0), "jobs") == 1


# -- a job from kick to acknowledgement -------------------------------------------------------------
@pytest.mark.parametrize("core", range(3))
def test_job_of_the_driver(machine: QTest, peer: Peer, core: int) -> None:
    base, spi = NPU[core], NPU_SPI[core]
    for interrupts in (DPU_0, DPU_1, DPU_0):
        job = start_job(machine, peer, core)
        assert machine.qom_get(npu_path(core), "time-frozen")
        peer.finish(machine, job, interrupts=interrupts, status=0xF000, ns=5000)
        machine.clock_step(4999)
        assert machine.readl(base + PC_INT_RAW) == 0
        assert not machine.irqs.get(spi)
        machine.clock_step(1)
        assert machine.irqs == {spi: True}
        assert machine.readl(base + PC_INT_RAW) == interrupts
        assert machine.readl(base + PC_INT_STATUS) == interrupts
        assert machine.readl(base + PC_TASK_STATUS) == 0xF000
        machine.writel(base + PC_INT_MASK, 0)
        assert not machine.irqs[spi], "the line follows the mask"
        assert machine.readl(base + PC_INT_RAW) == interrupts
        machine.writel(base + PC_OPERATION_ENABLE, 0)
        machine.writel(base + PC_INT_CLEAR, 0x1FFFF)
        assert machine.readl(base + PC_INT_RAW) == 0
        machine.irqs.clear()
    assert "rk3588-npu" not in machine.log()


def test_clear_takes_only_the_bits_written(machine: QTest, peer: Peer) -> None:
    run_job(machine, peer, interrupts=DPU_0 | DPU_1 | 0x1003)
    assert machine.readl(PC + PC_INT_STATUS) == 0x300, "the driver's mask"
    machine.writel(PC + PC_INT_CLEAR, DPU_0)
    assert machine.readl(PC + PC_INT_RAW) == DPU_1 | 0x1003
    assert machine.irqs[110]
    machine.writel(PC + PC_INT_CLEAR, DPU_1)
    assert not machine.irqs[110]
    machine.writel(PC + PC_INT_MASK, 0x1000)
    assert machine.irqs[110], "unmasking an interrupt that is pending raises the line"


def test_task_con_clears_the_task_counter(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), status=0xF003)
    machine.clock_step(1)
    machine.writel(PC + PC_TASK_CON, 0x5001)
    assert machine.readl(PC + PC_TASK_STATUS) == 0xF003
    machine.writel(PC + PC_TASK_CON, 0x7001)
    assert machine.readl(PC + PC_TASK_STATUS) == 0xF000
    assert machine.readl(PC + PC_TASK_CON) == 0x5001


def test_three_cores_at_once(machine: QTest, peer: Peer) -> None:
    jobs = [start_job(machine, peer, core) for core in range(3)]
    assert all(machine.qom_get(npu_path(core), "time-frozen") for core in range(3))
    for core in (2, 0, 1):
        peer.finish(machine, jobs[core], interrupts=DPU_0, ns=100 * (core + 1))
    machine.clock_step(100)
    assert machine.irqs == {110: True}
    machine.clock_step(100)
    assert machine.irqs == {110: True, 111: True}
    machine.clock_step(100)
    assert machine.irqs == {110: True, 111: True, 112: True}


# -- kicks that start nothing -----------------------------------------------------------------------
def test_slave_mode_does_not_kick(machine: QTest, peer: Peer) -> None:
    machine.writel(PC + PC_BASE_ADDRESS, 0x1001)
    machine.writel(PC + PC_OPERATION_ENABLE, 1)
    assert machine.qom_get(npu_path(0), "jobs") == 0
    assert "PC_OPERATION_ENABLE (0x0008) starts nothing: PC_SEL is 1" in machine.log()


def test_only_a_change_kicks(machine: QTest, peer: Peer) -> None:
    run_job(machine, peer)
    machine.writel(PC + PC_OPERATION_ENABLE, 1)
    assert machine.qom_get(npu_path(0), "jobs") == 1
    assert "starts nothing: OP_EN is already 1" in machine.log()
    acknowledge(machine)
    start_job(machine, peer)
    assert machine.qom_get(npu_path(0), "jobs") == 2


def test_kick_during_a_job(machine: QTest, peer: Peer) -> None:
    job = start_job(machine, peer)
    machine.writel(PC + PC_OPERATION_ENABLE, 1)
    assert "PC_OPERATION_ENABLE (0x0008) starts nothing: a job is running" in machine.log()
    peer.finish(machine, job, interrupts=DPU_0, ns=100)
    machine.writel(PC + PC_OPERATION_ENABLE, 1)
    assert machine.log().count("a job is running") == 2, "until the modelled time has passed"
    assert machine.qom_get(npu_path(0), "jobs") == 1


def test_disable_after_the_answer_stops_the_job(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), interrupts=DPU_0, ns=1000)
    machine.writel(PC + PC_OPERATION_ENABLE, 0)
    machine.clock_step(2000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    assert "write of PC_OPERATION_ENABLE (0x0008) stops a job before its end" in machine.log()
    assert not peer.of_type(RESET), "registers survive"
    run_job(machine, peer)
    assert machine.readl(PC + PC_INT_RAW) == DPU_0


def test_disable_waits_for_the_model(machine: QTest, peer: Peer) -> None:
    """While the model computes, the write of 0 returns only after the model has stopped writing memory."""
    job = start_job(machine, peer)
    answer = threading.Timer(0.5, peer.send, (0, pack(DONE, 0, job.seq, done_payload(interrupts=DPU_0, ns=1000))))
    answer.start()
    started = time.monotonic()
    machine.writel(PC + PC_OPERATION_ENABLE, 0)
    assert time.monotonic() - started >= 0.4
    answer.join()
    assert not machine.qom_get(npu_path(0), "time-frozen")
    machine.clock_step(2000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    run_job(machine, peer)
    assert machine.readl(PC + PC_INT_RAW) == DPU_0


# -- hangs and resets -------------------------------------------------------------------------------
def test_hang(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), OUTCOME_HANG, status=0x3000, ns=100)
    machine.clock_step(600_000_000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    assert machine.readl(PC + PC_TASK_STATUS) == 0x3000
    assert not machine.irqs
    # only a reset helps
    machine.writel(PC + PC_OPERATION_ENABLE, 0)
    machine.writel(PC + PC_OPERATION_ENABLE, 1)
    assert "starts nothing: an earlier job hangs, reset the core" in machine.log()
    assert machine.qom_get(npu_path(0), "jobs") == 1
    soft_reset(machine, 30, 6, True)
    soft_reset(machine, 30, 6, False)
    peer.expect(RESET)
    run_job(machine, peer)
    assert machine.readl(PC + PC_INT_RAW) == DPU_0


@pytest.mark.parametrize(("core", "gate", "con", "bits"), CORES)
def test_soft_reset(machine: QTest, peer: Peer, core: int, gate: int, con: int, bits: tuple[int, int]) -> None:
    run_job(machine, peer, core)
    assert machine.irqs[NPU_SPI[core]]
    for bit in bits:  # the driver asserts both, then releases both
        soft_reset(machine, con, bit, True)
    assert not machine.irqs[NPU_SPI[core]]
    for bit in bits:
        soft_reset(machine, con, bit, False)
    peer.expect(RESET, core)
    assert len(peer.of_type(RESET, core)) == 1
    assert not any(peer.of_type(RESET, other) for other in range(3) if other != core)
    base = NPU[core]
    assert machine.readl(base + PC_INT_RAW) == 0
    assert machine.readl(base + PC_INT_MASK) == 0x1FFFF
    assert machine.readl(base + PC_OPERATION_ENABLE) == 0
    assert machine.readl(base + PC_BASE_ADDRESS) == 0
    assert machine.readl(base + PC_TASK_STATUS) == 0


@pytest.mark.parametrize(("core", "gate", "con", "bits"), CORES)
def test_power_cycle(machine: QTest, peer: Peer, core: int, gate: int, con: int, bits: tuple[int, int]) -> None:
    run_job(machine, peer, core)
    gate_power(machine, gate, True)
    assert not machine.irqs[NPU_SPI[core]]
    gate_power(machine, gate, False)
    peer.expect(RESET, core)
    assert machine.readl(NPU[core] + PC_INT_RAW) == 0
    assert machine.readl(NPU[core] + PC_INT_MASK) == 0x1FFFF
    run_job(machine, peer, core)


def test_power_of_the_parent_domain(machine: QTest, peer: Peer) -> None:
    gate_power(machine, 1, True)  # NPU, above NPUTOP, NPU1 and NPU2
    for core in range(3):
        peer.expect(RESET, core)


def test_reset_abandons_a_running_job(machine: QTest, peer: Peer) -> None:
    start_job(machine, peer)
    soft_reset(machine, 30, 6, True)
    peer.expect(RESET)
    assert not machine.qom_get(npu_path(0), "time-frozen")
    soft_reset(machine, 30, 6, False)
    assert "rk3588-npu: core 0: a running job is lost to a reset or power-off" in machine.log()
    run_job(machine, peer)
    assert machine.readl(PC + PC_INT_RAW) == DPU_0


def test_answer_that_crosses_a_reset(machine: QTest, peer: Peer) -> None:
    job = start_job(machine, peer)
    peer.before_answer[RESET] = pack(DONE, 0, job.seq, done_payload(interrupts=DPU_0))
    soft_reset(machine, 30, 6, True)
    soft_reset(machine, 30, 6, False)
    machine.clock_step(1000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    run_job(machine, peer)
    assert machine.stderr() == ""


def test_reset_during_the_modelled_time(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), interrupts=DPU_0, ns=1000)
    soft_reset(machine, 30, 8, True)
    soft_reset(machine, 30, 8, False)
    machine.clock_step(2000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    assert not machine.irqs.get(110)


def test_machine_reset(machine: QTest, peer: Peer) -> None:
    start_job(machine, peer)
    start_job(machine, peer, core=1)
    machine.system_reset()
    for core in range(3):
        peer.expect(RESET, core)
        assert not machine.qom_get(npu_path(core), "time-frozen")
        assert machine.readl(NPU[core] + PC_INT_MASK) == 0x1FFFF
        assert machine.readl(NPU[core] + PC_OPERATION_ENABLE) == 0
    run_job(machine, peer)


def test_clock_gated_during_a_job(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), interrupts=DPU_0, ns=100)
    gate_clock(machine, 30, 6, True)
    machine.clock_step(200)
    assert not machine.irqs.get(110)
    gate_clock(machine, 30, 6, False)
    assert machine.irqs[110]
    assert "rk3588-npu: core 0: clock gated while a job is running" in machine.log()


def test_reset_of_a_job_that_the_clock_holds(machine: QTest, peer: Peer) -> None:
    peer.finish(machine, start_job(machine, peer), interrupts=DPU_0, ns=100)
    gate_clock(machine, 30, 6, True)
    machine.clock_step(200)
    soft_reset(machine, 30, 6, True)
    soft_reset(machine, 30, 6, False)
    gate_clock(machine, 30, 6, False)
    assert machine.readl(PC + PC_INT_RAW) == 0
    assert not machine.irqs.get(110)


def test_answer_arrives_while_a_read_is_waited_for(machine: QTest, peer: Peer) -> None:
    job = start_job(machine, peer)
    peer.registers[(0, 0x1000)] = 0x10001
    peer.before_answer[READ] = pack(DONE, 0, job.seq, done_payload(interrupts=DPU_1, ns=50))
    assert machine.readl(PC + 0x1000) == 0x10001
    assert not machine.qom_get(npu_path(0), "time-frozen")
    machine.clock_step(50)
    assert machine.readl(PC + PC_INT_RAW) == DPU_1


def test_frames_may_arrive_in_pieces(machine: QTest, peer: Peer) -> None:
    job = start_job(machine, peer)
    data = pack(DONE, 0, job.seq, done_payload(interrupts=DPU_0))
    for index in range(len(data)):
        assert machine.qom_get(npu_path(0), "time-frozen")
        peer.send(0, data[index : index + 1])
    wait_until(lambda: not machine.qom_get(npu_path(0), "time-frozen"), "the end of the job")
    machine.clock_step(1)
    assert machine.readl(PC + PC_INT_RAW) == DPU_0


# -- no model, a dying model, a model that talks nonsense -------------------------------------------
def test_without_a_model(start: Callable[..., QTest]) -> None:
    machine = start()
    machine.irq_intercept(GIC, "in")
    submit(machine)
    assert machine.readl(PC + CNA_S_POINTER) == 0
    machine.clock_step(600_000_000)
    assert not machine.irqs
    log = machine.log()
    assert "core 0: write of CNA_S_POINTER (0x1004) dropped: no NPU model is connected (value 0x0000000e)" in log
    assert "core 0: read of CNA_S_POINTER (0x1004) returns 0: no NPU model is connected" in log
    assert "rk3588-npu: core 0: job at 0x00001000 hangs: no NPU model is connected" in log
    assert not machine.qom_get(npu_path(0), "time-frozen")


def expect_lost(machine: QTest, why: str) -> None:
    """The core has lost its model: reported once, and jobs hang from now on."""
    line = f"rk3588-npu: core 0: the NPU model {why}"
    wait_until(lambda: line in machine.stderr(), f"the message '{line}'")
    assert not machine.qom_get(npu_path(0), "time-frozen")
    soft_reset(machine, 30, 6, True)
    soft_reset(machine, 30, 6, False)
    submit(machine)
    machine.clock_step(600_000_000)
    assert machine.readl(PC + PC_INT_RAW) == 0
    assert "core 0: job at 0x00001000 hangs: no NPU model is connected" in machine.log()
    assert machine.stderr().count("rk3588-npu: core 0") == 1, machine.stderr()
    assert "jobs of this core do not complete from now on" in machine.stderr()


def test_model_dies_during_a_job(machine: QTest, peer: Peer) -> None:
    start_job(machine, peer)
    peer.hang_up(0)
    expect_lost(machine, "closed the connection")
    run_job(machine, peer, core=1)  # the other cores go on
    assert machine.irqs == {111: True}


def test_model_dies_while_idle(machine: QTest, peer: Peer) -> None:
    run_job(machine, peer)
    peer.hang_up(0)
    expect_lost(machine, "closed the connection")


NONSENSE = {
    "magic": (b"HTTP/1.1 200 OK\r\n\r\n", "sent a malformed frame (magic 0x50545448)"),
    "type": (pack(0x77, 0, 1), "sent a frame of the unknown type 0x77"),
    "request": (pack(JOB, 0, 1, bytes(32)), "sent a frame of the unknown type 0x05"),
    "length": (pack(DONE, 0, 1, bytes(28)), "sent a malformed frame (type 0x85 with 28 bytes instead of 32)"),
    "core": (pack(DONE, 2, 1, done_payload()), "sent a frame for core 2"),
    "answer": (pack(ANSWER + READ, 0, 9, bytes(4)), "sent an answer of type 0x84, sequence number 9, that nothing"),
    "job": (pack(DONE, 0, 999, done_payload()), "sent DONE for a job that is not under way (sequence number 999)"),
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_nonsense_ends_the_link(machine: QTest, peer: Peer, kind: str, busy: bool) -> None:
    data, message = NONSENSE[kind]
    if busy:
        start_job(machine, peer)
    else:
        machine.readl(PC + 0x1000)  # so that the link is known to the peer
    peer.send(0, data)
    expect_lost(machine, message)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (done_payload(outcome=3), "sent DONE with the unknown outcome 3"),
        (done_payload(interrupts=0x40000), "sent DONE with interrupt bits 0x40000, which do not exist"),
        (done_payload(outcome=2, bank=2), "sent DONE with a fault in IOMMU bank 2, which does not exist"),
        (done_payload(ns=1 << 63), "sent DONE with a duration of 9223372036854775808 ns, more than an hour"),
    ],
    ids=["outcome", "interrupts", "bank", "ns"],
)
def test_impossible_result_ends_the_link(machine: QTest, peer: Peer, payload: bytes, message: str) -> None:
    job = start_job(machine, peer)
    peer.send(0, pack(DONE, 0, job.seq, payload))
    expect_lost(machine, message)


def test_second_bank_exists_on_core_0_only(machine: QTest, peer: Peer) -> None:
    job = start_job(machine, peer, core=1)
    peer.send(1, pack(DONE, 1, job.seq, done_payload(outcome=2, bank=1)))
    wait_until(lambda: "core 1: the NPU model sent DONE with a fault in IOMMU bank 1" in machine.stderr(), "message")


def test_nonsense_instead_of_an_answer(machine: QTest, peer: Peer) -> None:
    peer.before_answer[READ] = b"x" * 16
    assert machine.readl(PC + 0x1000) == 0
    assert "core 0: read of CNA_S_STATUS (0x1000) returns 0: no NPU model is connected" in machine.log()
    expect_lost(machine, "sent a malformed frame (magic 0x78787878)")


@pytest.mark.parametrize("what", [READ, RESET])
def test_silent_model_is_given_up(start: Callable[..., QTest], peer: Peer, what: int) -> None:
    machine = start(args=[*peer.arguments(), "-global", "rk3588-npu.link-timeout-ms=300"])
    peer.silent.add(what)
    if what == READ:
        assert machine.readl(PC + 0x1000) == 0
    else:
        soft_reset(machine, 30, 6, True)
        soft_reset(machine, 30, 6, False)
    peer.silent.clear()
    expect_lost(machine, f"did not answer {'READ' if what == READ else 'RESET'} within 300 ms")


def test_silent_model_at_a_disable(start: Callable[..., QTest], peer: Peer) -> None:
    machine = start(args=[*peer.arguments(), "-global", "rk3588-npu.link-timeout-ms=300"])
    start_job(machine, peer)
    machine.writel(PC + PC_OPERATION_ENABLE, 0)
    expect_lost(machine, "did not answer JOB within 300 ms")


def test_model_of_another_version(start: Callable[..., QTest], peer: Peer) -> None:
    peer.version = 2
    with pytest.raises(QTestError, match="core 0: the NPU model speaks version 2 of the link protocol, not 1"):
        start(args=peer.arguments())


def test_model_that_does_not_greet(start: Callable[..., QTest], peer: Peer) -> None:
    peer.silent.add(HELLO)
    with pytest.raises(QTestError, match="core 0: the NPU model did not answer HELLO within 300 ms"):
        start(args=[*peer.arguments(), "-global", "rk3588-npu.link-timeout-ms=300"])


def test_chardev_must_be_a_socket(start: Callable[..., QTest]) -> None:
    with pytest.raises(QTestError, match="core 0: the chardev must be a socket"):
        start(args=["-chardev", "null,id=npu0"])


def test_state_cannot_be_migrated(machine: QTest) -> None:
    with pytest.raises(QTestError, match=r"core \d: the NPU's state lives in the model process"):
        machine.qmp("migrate", uri="exec:cat >/dev/null")


def test_quitting_is_quiet(start: Callable[..., QTest], peer: Peer) -> None:
    machine = start(args=peer.arguments())
    machine.qmp("quit")
    with pytest.raises(QTestError, match="QEMU ended"):
        while True:  # until it has ended
            machine.readl(PC)
    assert machine.stderr() == ""
