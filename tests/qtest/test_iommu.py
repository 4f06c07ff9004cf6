# SPDX-License-Identifier: MIT
"""Register banks of the IOMMUs in front of the NPU cores, as linux drivers/iommu/rockchip-iommu.c uses them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from npu_peer import NPU, OUTCOME_FAULT, Peer, start_job
from qtest_client import QTest

DTE_ADDR, STATUS, COMMAND, FAULT_ADDR, ZAP = 0x00, 0x04, 0x08, 0x0C, 0x10
INT_RAW, INT_CLEAR, INT_MASK, INT_STATUS, AUTO_GATING = 0x14, 0x18, 0x1C, 0x20, 0x24
PAGING, FAULT, STALL, IDLE, REPLAY_EMPTY, FAULT_WRITE = (1 << bit for bit in range(6))
ENABLE_PAGING, DISABLE_PAGING, ENABLE_STALL, DISABLE_STALL, ZAP_CACHE, FAULT_DONE, FORCE_RESET = range(7)
QUIET = IDLE | REPLAY_EMPTY

CORE0 = (NPU[0] + 0x9000, NPU[0] + 0xA000)
BANKS = (*CORE0, NPU[1] + 0xA000, NPU[2] + 0xA000)
GIC, NPU_SPI = "/machine/soc/gic", 110


def attach(machine: QTest, banks: tuple[int, ...], table: int) -> None:
    """rk_iommu_enable(): self test, reset, table, interrupts, paging; each step on every bank."""
    for bank in banks:
        machine.writel(bank + DTE_ADDR, 0xCAFEB000)
        assert machine.readl(bank + DTE_ADDR) == 0xCAFEB000
        machine.writel(bank + COMMAND, FORCE_RESET)
        assert machine.readl(bank + DTE_ADDR) == 0
    for bank in banks:
        machine.writel(bank + DTE_ADDR, table)
        machine.writel(bank + COMMAND, ZAP_CACHE)
        machine.writel(bank + INT_MASK, 3)
        machine.writel(bank + AUTO_GATING, machine.readl(bank + AUTO_GATING) | 1 << 31)
    for bank in banks:
        machine.writel(bank + COMMAND, ENABLE_PAGING)
    assert all(machine.readl(bank + STATUS) & PAGING for bank in banks)


def detach(machine: QTest, banks: tuple[int, ...]) -> None:
    """rk_iommu_disable(): stall, paging off, table and interrupts cleared, stall off."""
    for bank in banks:
        machine.writel(bank + COMMAND, ENABLE_STALL)
    assert all(machine.readl(bank + STATUS) & STALL for bank in banks)
    for bank in banks:
        machine.writel(bank + COMMAND, DISABLE_PAGING)
    assert not any(machine.readl(bank + STATUS) & PAGING for bank in banks)
    for bank in banks:
        machine.writel(bank + INT_MASK, 0)
        machine.writel(bank + DTE_ADDR, 0)
        machine.writel(bank + COMMAND, DISABLE_STALL)
    assert not any(machine.readl(bank + STATUS) & STALL for bank in banks)


@pytest.fixture
def modelled(start: Callable[..., QTest], peer: Peer) -> QTest:
    """A machine whose cores have a model."""
    return start(args=peer.arguments())


@pytest.mark.parametrize("bank", BANKS, ids=hex)
def test_reset_state(machine: QTest, bank: int) -> None:
    assert machine.readl(bank + STATUS) == QUIET
    for register in (DTE_ADDR, FAULT_ADDR, INT_RAW, INT_MASK, INT_STATUS):
        assert machine.readl(bank + register) == 0, hex(register)


@pytest.mark.parametrize("bank", BANKS, ids=hex)
def test_self_test_of_the_driver(machine: QTest, bank: int) -> None:
    machine.writel(bank + DTE_ADDR, 0xCAFEB000)
    assert machine.readl(bank + DTE_ADDR) == 0xCAFEB000
    machine.writel(bank + COMMAND, FORCE_RESET)
    assert machine.readl(bank + DTE_ADDR) == 0


def test_banks_are_independent(machine: QTest) -> None:
    for index, bank in enumerate(BANKS):
        machine.writel(bank + DTE_ADDR, 0x1000 * (index + 1) | 1)
        machine.writel(bank + INT_MASK, 1 + index % 3)
    machine.writel(BANKS[1] + COMMAND, ENABLE_PAGING)
    assert [machine.readl(bank + DTE_ADDR) for bank in BANKS] == [0x1001, 0x2001, 0x3001, 0x4001]
    assert [machine.readl(bank + INT_MASK) for bank in BANKS] == [1, 2, 3, 1]
    assert [machine.readl(bank + STATUS) & PAGING for bank in BANKS] == [0, PAGING, 0, 0]
    machine.writel(BANKS[0] + COMMAND, FORCE_RESET)
    assert [machine.readl(bank + DTE_ADDR) for bank in BANKS] == [0, 0x2001, 0x3001, 0x4001]


@pytest.mark.parametrize("banks", [CORE0, BANKS[2:3], BANKS[3:4]], ids=["core0", "core1", "core2"])
def test_attach_and_detach(machine: QTest, banks: tuple[int, ...]) -> None:
    for _ in range(2):
        attach(machine, banks, 0x0040_0001)
        assert all(machine.readl(bank + AUTO_GATING) >> 31 for bank in banks)
        detach(machine, banks)
        assert all(machine.readl(bank + STATUS) == QUIET for bank in banks)
    assert "rk-iommu" not in machine.log()


def test_stall_is_per_bank(machine: QTest) -> None:
    attach(machine, CORE0, 0x0040_0001)
    machine.writel(CORE0[0] + COMMAND, ENABLE_STALL)
    assert [machine.readl(bank + STATUS) & STALL for bank in CORE0] == [STALL, 0]
    assert machine.readl(CORE0[0] + STATUS) == 0x1D  # as seen on a board


def test_stall_needs_paging(machine: QTest) -> None:
    machine.writel(BANKS[0] + COMMAND, ENABLE_STALL)
    assert machine.readl(BANKS[0] + STATUS) == QUIET
    assert "rk-iommu: fdab9000.iommu bank 0: write of MMU_COMMAND (0x08) cannot stall: paging is off" in machine.log()


def test_table_address_keeps_its_high_bits(machine: QTest) -> None:
    """A table above 4 GiB has bits 39:32 of its address in 11:4; they must come back as written."""
    machine.writel(BANKS[0] + DTE_ADDR, 0x1234_5FE1)
    assert machine.readl(BANKS[0] + DTE_ADDR) == 0x1234_5FE1


def test_odd_accesses_are_logged(machine: QTest) -> None:
    bank = BANKS[2]
    machine.writel(bank + COMMAND, 9)
    machine.writel(bank + STATUS, 1)
    machine.writel(bank + 0x30, 1)
    assert machine.readl(bank + COMMAND) == 0
    log = machine.log()
    assert "rk-iommu: fdaca000.iommu: write of MMU_COMMAND (0x08) unknown command 9" in log
    assert "write of MMU_STATUS (0x04) ignored: it cannot be written (value 0x00000001)" in log
    assert "write of an undocumented register (0x30) ignored" in log
    assert "read of MMU_COMMAND (0x08) returns 0: it cannot be read" in log
    assert machine.readl(bank + STATUS) == QUIET


def test_machine_reset(machine: QTest) -> None:
    attach(machine, CORE0, 0x0040_0001)
    machine.system_reset()
    for bank in CORE0:
        assert machine.readl(bank + STATUS) == QUIET
        assert machine.readl(bank + DTE_ADDR) == 0
        assert machine.readl(bank + INT_MASK) == 0


# -- faults -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("bank", "write"), [(0, False), (1, True)])
def test_fault_is_delivered(modelled: QTest, peer: Peer, bank: int, write: bool) -> None:
    attach(modelled, CORE0, 0x0040_0001)
    modelled.irq_intercept(GIC, "in")
    job = start_job(modelled, peer)
    peer.finish(modelled, job, OUTCOME_FAULT, bank=bank, address=0x4000_1230, flags=int(write), ns=1000)
    assert modelled.readl(CORE0[bank] + INT_RAW) == 0, "the modelled time has not passed"
    modelled.clock_step(2000)

    other = CORE0[1 - bank]
    assert modelled.readl(CORE0[bank] + INT_STATUS) == 1
    assert modelled.readl(CORE0[bank] + FAULT_ADDR) == 0x4000_1230
    status = modelled.readl(CORE0[bank] + STATUS)
    assert status == PAGING | FAULT | IDLE | (FAULT_WRITE if write else 0)
    assert modelled.readl(other + INT_RAW) == 0
    assert modelled.readl(other + STATUS) == PAGING | QUIET
    assert modelled.irqs[NPU_SPI]
    assert modelled.readl(NPU[0] + 0x2C) == 0, "the NPU itself reports nothing"

    # the driver's handler: zap, fault done, clear
    modelled.writel(CORE0[bank] + ZAP, 0x4000_1230)
    modelled.writel(CORE0[bank] + COMMAND, FAULT_DONE)
    assert modelled.readl(CORE0[bank] + STATUS) == PAGING | QUIET
    modelled.writel(CORE0[bank] + INT_CLEAR, 1)
    assert modelled.readl(CORE0[bank] + INT_STATUS) == 0
    assert not modelled.irqs[NPU_SPI]
    # the driver's timeout detaches before it resets: that must work while the job hangs
    detach(modelled, CORE0)


def test_masked_fault_raises_no_interrupt(modelled: QTest, peer: Peer) -> None:
    attach(modelled, CORE0, 0x0040_0001)
    modelled.irq_intercept(GIC, "in")
    modelled.writel(CORE0[0] + INT_MASK, 0)
    peer.finish(modelled, start_job(modelled, peer), OUTCOME_FAULT, address=0x5000)
    modelled.clock_step(1)
    assert modelled.readl(CORE0[0] + INT_RAW) == 1
    assert modelled.readl(CORE0[0] + INT_STATUS) == 0
    assert not modelled.irqs.get(NPU_SPI)
    modelled.writel(CORE0[0] + INT_MASK, 1)
    assert modelled.readl(CORE0[0] + INT_STATUS) == 1
    assert modelled.irqs[NPU_SPI]


def test_no_stall_while_a_fault_is_active(modelled: QTest, peer: Peer) -> None:
    attach(modelled, CORE0, 0x0040_0001)
    peer.finish(modelled, start_job(modelled, peer), OUTCOME_FAULT, bank=1, address=0x5000)
    modelled.clock_step(1)
    for bank in CORE0:
        modelled.writel(bank + COMMAND, ENABLE_STALL)
    assert [modelled.readl(bank + STATUS) & STALL for bank in CORE0] == [STALL, 0]
    assert "bank 1: write of MMU_COMMAND (0x08) cannot stall: a page fault is active" in modelled.log()
    modelled.writel(CORE0[1] + COMMAND, FAULT_DONE)
    modelled.writel(CORE0[1] + COMMAND, ENABLE_STALL)
    assert modelled.readl(CORE0[1] + STATUS) & STALL


def test_force_reset_ends_a_fault(modelled: QTest, peer: Peer) -> None:
    attach(modelled, CORE0, 0x0040_0001)
    modelled.irq_intercept(GIC, "in")
    peer.finish(modelled, start_job(modelled, peer), OUTCOME_FAULT, address=0x5000, flags=1)
    modelled.clock_step(1)
    assert modelled.irqs[NPU_SPI]
    modelled.writel(CORE0[0] + COMMAND, FORCE_RESET)
    assert modelled.readl(CORE0[0] + STATUS) == QUIET
    assert modelled.readl(CORE0[0] + FAULT_ADDR) == 0
    assert not modelled.irqs[NPU_SPI]


def test_job_carries_the_banks(modelled: QTest, peer: Peer) -> None:
    attach(modelled, CORE0, 0x1234_5FE1)
    modelled.writel(CORE0[1] + DTE_ADDR, 0x0077_0001)
    modelled.writel(CORE0[1] + COMMAND, ENABLE_STALL)
    assert start_job(modelled, peer).words()[4:] == (0x1234_5FE1, 0b101, 0x0077_0001, 0b111)
    assert start_job(modelled, peer, core=1).words()[4:] == (0, 0b100, 0, 0)
