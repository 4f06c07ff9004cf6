# SPDX-License-Identifier: MIT
"""Accesses to NPU and IOMMU registers that a board punishes: power off, clock gated, reset asserted, nothing there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from guest import Guest
from npu_peer import NPU, PC_INT_MASK, gate_clock, gate_power, soft_reset
from qtest_client import QTest

STATES = {
    "power": "while power domain is off",
    "clock": "while clock is gated",
    "reset": "while reset is asserted",
}
# core -> (PMU gate bit, CRU register, bits of aclk/srst_a and hclk/srst_h)
WIRING = {0: (3, 30, (6, 8)), 1: (4, 27, (0, 2)), 2: (5, 28, (0, 2))}
IOMMU_BANKS = {
    0: (("fdab9000.iommu bank 0", 0xFDAB9000), ("fdab9000.iommu bank 1", 0xFDABA000)),
    1: (("fdaca000.iommu", 0xFDACA000),),
    2: (("fdada000.iommu", 0xFDADA000),),
}
IOMMU_DTE_ADDR, IOMMU_INT_MASK = 0x00, 0x1C


def disturb(machine: QTest, core: int, state: str, on: bool, line: int = 0) -> None:
    """Enter or leave a state in which the core cannot be reached."""
    gate, con, bits = WIRING[core]
    if state == "power":
        gate_power(machine, gate, on)
    elif state == "clock":
        gate_clock(machine, con, bits[line], on)
    else:
        soft_reset(machine, con, bits[line], on)


def npu_lines(machine: QTest) -> list[str]:
    """The log lines of the NPU and its IOMMUs."""
    return [line for line in machine.log().splitlines() if line.startswith(("rk3588-npu:", "rk-iommu:"))]


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("state", STATES)
def test_npu_cannot_be_reached(machine: QTest, core: int, state: str) -> None:
    base = NPU[core]
    machine.writel(base + PC_INT_MASK, 0x300)
    disturb(machine, core, state, True)
    assert machine.readl(base + PC_INT_MASK) == 0
    machine.writel(base + PC_INT_MASK, 0x155)
    machine.readl(base + 0x2C)
    machine.writel(base + 0x1004, 0xE)
    machine.readl(base + 0x3010)
    why = STATES[state]
    assert npu_lines(machine) == [
        f"rk3588-npu: core {core}: read of PC_INTERRUPT_MASK (0x0020) {why}",
        f"rk3588-npu: core {core}: write of PC_INTERRUPT_MASK (0x0020) {why}",
        f"rk3588-npu: core {core}: read of PC_INTERRUPT_RAW_STATUS (0x002c) {why}",
        f"rk3588-npu: core {core}: write of CNA_S_POINTER (0x1004) {why}",
        f"rk3588-npu: core {core}: read of CORE+0x010 (0x3010) {why}",
    ]
    disturb(machine, core, state, False)
    # a gated clock loses nothing; power and reset do
    assert machine.readl(base + PC_INT_MASK) == (0x300 if state == "clock" else 0x1FFFF)
    assert len(npu_lines(machine)) == 5


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("state", STATES)
def test_iommu_cannot_be_reached(machine: QTest, core: int, state: str) -> None:
    expected = []
    for _, bank in IOMMU_BANKS[core]:
        machine.writel(bank + IOMMU_DTE_ADDR, 0x1000_0001)
    disturb(machine, core, state, True)
    for name, bank in IOMMU_BANKS[core]:
        assert machine.readl(bank + IOMMU_DTE_ADDR) == 0
        machine.writel(bank + IOMMU_INT_MASK, 3)
        expected += [
            f"rk-iommu: {name}: read of MMU_DTE_ADDR (0x00) {STATES[state]}",
            f"rk-iommu: {name}: write of MMU_INT_MASK (0x1c) {STATES[state]}",
        ]
    assert npu_lines(machine) == expected
    disturb(machine, core, state, False)
    for _, bank in IOMMU_BANKS[core]:
        assert machine.readl(bank + IOMMU_DTE_ADDR) == (0x1000_0001 if state == "clock" else 0)
        assert machine.readl(bank + IOMMU_INT_MASK) == 0
    assert npu_lines(machine) == expected


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("state", ["clock", "reset"])
def test_either_of_two_lines_is_enough(machine: QTest, core: int, state: str) -> None:
    for line in (0, 1):
        disturb(machine, core, state, True, line)
        machine.readl(NPU[core])
        disturb(machine, core, state, False, line)
        machine.readl(NPU[core])
    assert npu_lines(machine) == [f"rk3588-npu: core {core}: read of PC_VERSION (0x0000) {STATES[state]}"] * 2


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("state", STATES)
def test_other_cores_stay_reachable(machine: QTest, core: int, state: str) -> None:
    # cores 1 and 2 hang below core 0's power domain
    others = [other for other in range(3) if other != core and not (state == "power" and core == 0)]
    disturb(machine, core, state, True)
    for other in others:
        assert machine.readl(NPU[other]) == 0x46495245
    assert npu_lines(machine) == []


def test_power_is_named_first(machine: QTest) -> None:
    for state in ("clock", "reset", "power"):
        disturb(machine, 1, state, True)
        machine.readl(NPU[1])
    assert [line.rpartition(") ")[2] for line in npu_lines(machine)] == [
        STATES["clock"],
        STATES["reset"],
        STATES["power"],
    ]


def test_machine_reset_makes_reachable(machine: QTest) -> None:
    for state in STATES:
        disturb(machine, 0, state, True)
    machine.system_reset()
    assert machine.readl(NPU[0]) == 0x46495245
    assert machine.readl(0xFDAB9004) == 0x18
    assert npu_lines(machine) == []


def test_hole_page(machine: QTest) -> None:
    assert machine.readl(NPU[0] + 0x2000) == 0
    machine.writel(NPU[0] + 0x2FFC, 1)
    end = "is a bus error: nothing is there; on silicon it locks up the SoC"
    assert npu_lines(machine) == [
        f"rk3588-npu: core 0: read of hole+0x000 (0x2000) {end}",
        f"rk3588-npu: core 0: write of hole+0xffc (0x2ffc) {end}",
    ]


def test_access_sizes(machine: QTest) -> None:
    assert machine.command("readb", hex(NPU[0])) == "0x0000000000000000"
    assert machine.command("readw", hex(NPU[0] + 0x20)) == "0x0000000000000000"
    machine.command("writeq", hex(NPU[0] + 0x20), "0x155")
    machine.command("writeb", hex(0xFDAB9000 + 0x1C), "0x3")
    assert npu_lines(machine) == [
        "rk3588-npu: core 0: read of PC_VERSION (0x0000) is a bus error: only aligned 32-bit accesses work",
        "rk3588-npu: core 0: read of PC_INTERRUPT_MASK (0x0020) is a bus error: only aligned 32-bit accesses work",
        "rk3588-npu: core 0: write of PC_INTERRUPT_MASK (0x0020) is a bus error: only aligned 32-bit accesses work",
        "rk-iommu: fdab9000.iommu bank 0: write of MMU_INT_MASK (0x1c) is a bus error: "
        "only aligned 32-bit accesses work",
    ]
    assert machine.readl(NPU[0] + 0x20) == 0x1FFFF
    assert machine.readl(0xFDAB9000 + 0x1C) == 0


# -- what the guest's CPU sees ----------------------------------------------------------------------
@pytest.fixture
def guest(start: Callable[..., QTest]) -> Guest:
    return Guest(start(args=Guest.ARGUMENTS, accel="tcg"))


def test_guest_sees_the_registers(guest: Guest) -> None:
    access = guest.load(NPU[0])
    assert (access.value, access.syndrome) == (0x46495245, 0)
    assert guest.store(NPU[0] + PC_INT_MASK, 0x300).syndrome == 0
    assert guest.load(NPU[0] + PC_INT_MASK).value == 0x300


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("address", [NPU[1] + PC_INT_MASK, NPU[1] + 0x1004, 0xFDACA000 + IOMMU_INT_MASK], ids=hex)
def test_guest_takes_an_external_abort(guest: Guest, state: str, address: int) -> None:
    disturb(guest.machine, 1, state, True)
    assert guest.load(address).external_abort
    assert guest.store(address, 1).external_abort
    disturb(guest.machine, 1, state, False)
    assert guest.load(address).syndrome == 0
    assert guest.store(address, 1).syndrome == 0


def test_guest_takes_an_external_abort_in_the_hole(guest: Guest) -> None:
    assert guest.load(NPU[0] + 0x2000).external_abort
    assert guest.load(NPU[0] + 0x1FFC).syndrome == 0
    assert guest.load(NPU[0] + 0x3000).syndrome == 0
