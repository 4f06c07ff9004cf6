# SPDX-License-Identifier: MIT
"""The PC front end of an NPU core and its link to the model process, with a peer that computes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from npu_peer import (
    DONE,
    DPU_0,
    DPU_1,
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
    RESET,
    Peer,
    done_payload,
    gate_clock,
    gate_power,
    npu_path,
    pack,
    run_job,
    soft_reset,
    start_job,
    start_watched,
)
from qtest_client import QTest

NPU_SPI = (110, 111, 112)
# (core, PMU gate bit, reset register, reset bits)
CORES = [(0, 3, 30, (6, 8)), (1, 4, 27, (0, 2)), (2, 5, 28, (0, 2))]
PC = NPU[0]


@pytest.fixture
def machine(start: Callable[..., QTest], peer: Peer) -> QTest:
    """A machine whose cores have a model, with the interrupt controller's inputs watched."""
    return start_watched(start, peer, "-global", "rk3588-npu.link-timeout-ms=3000")


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
