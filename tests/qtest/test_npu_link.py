# SPDX-License-Identifier: MIT
"""The link between an NPU core and the model process: what crosses it, and what happens when the model misbehaves."""

from __future__ import annotations

import struct
from collections.abc import Callable

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
    PC_INT_RAW,
    PC_OPERATION_ENABLE,
    PC_TASK_DMA_BASE,
    READ,
    RESET,
    WRITE,
    Peer,
    done_payload,
    npu_path,
    pack,
    run_job,
    soft_reset,
    start_job,
    start_watched,
    submit,
    wait_until,
)
from qtest_client import QTest, QTestError

PC = NPU[0]


@pytest.fixture
def machine(start: Callable[..., QTest], peer: Peer) -> QTest:
    """A machine whose cores have a model, with the interrupt controller's inputs watched."""
    return start_watched(start, peer, "-global", "rk3588-npu.link-timeout-ms=3000")


# -- what crosses the link -------------------------------------------------------------------------
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


# -- answers that come at odd moments, or in pieces ------------------------------------------------------------------
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
    machine.irq_intercept("/machine/soc/gic", "in")
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
