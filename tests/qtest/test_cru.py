# SPDX-License-Identifier: MIT
"""The clock and reset unit: what drivers/clk/rockchip/{clk,rst}-rk3588.c in Linux relies on, and the NPU's lines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from qtest_client import QTest

CRU = 0xFD7C0000
PATH = "/machine/soc/cru"
GPLL = CRU + 0x1C0
LOCK, POWER_DOWN = 1 << 15, 1 << 13

# clock gate (and, at the same place, soft reset) bits of core 0, 1, 2: (register, bit of aclk, bit of hclk)
CORE_BITS = ((30, 6, 8), (27, 0, 2), (28, 0, 2))


def gate(number: int) -> int:
    return CRU + 0x800 + 4 * number


def softrst(number: int) -> int:
    return CRU + 0xA00 + 4 * number


def set_bit(machine: QTest, register: int, bit: int, value: bool) -> None:
    """A hiword write: the upper half says which bits change."""
    machine.writel(register, 1 << (bit + 16) | value << bit)


def lines(machine: QTest) -> list[bool]:
    return [machine.irq(core) for core in range(3)]


def test_write_mask(machine: QTest) -> None:
    register = CRU + 0x300
    machine.writel(register, 0xFFFF_1234)
    assert machine.readl(register) == 0x1234
    machine.writel(register, 0x00F0_FFFF)
    assert machine.readl(register) == 0x12F4
    machine.writel(register, 0x0000_FFFF)
    assert machine.readl(register) == 0x12F4, "no mask, no change"


def test_fractional_dividers_have_no_write_mask(machine: QTest) -> None:
    for register in (CRU + 0x300 + 25 * 4, CRU + 0x300 + 156 * 4, CRU + 0x30300 + 8 * 4):
        machine.writel(register, 0x00031234)
        assert machine.readl(register) == 0x00031234


@pytest.mark.parametrize(
    ("base", "megahertz"),
    [
        (0x160, 1188), (0x1A0, 1500), (0x1C0, 1188), (0x1E0, 850), (0x8200, 1100), (0x50000, 1008), (0x52020, 1008),
        (0x58040, 816), (0x180, 786),
    ],
)  # fmt: skip
def test_firmware_leaves_plls_running(machine: QTest, base: int, megahertz: int) -> None:
    con0, con1 = machine.readl(CRU + base), machine.readl(CRU + base + 4)
    rate = 24 * (con0 & 0x3FF) // (con1 & 0x3F) >> (con1 >> 6 & 7)
    assert rate == megahertz
    assert machine.readl(CRU + base + 0x18) & LOCK


def test_pll_locks_while_it_is_powered(machine: QTest) -> None:
    machine.writel(GPLL + 4, POWER_DOWN << 16 | POWER_DOWN)
    assert not machine.readl(GPLL + 0x18) & LOCK
    assert machine.readl(CRU + 0x1A0 + 0x18) & LOCK, "another PLL"
    machine.writel(GPLL + 4, POWER_DOWN << 16)
    assert machine.readl(GPLL + 0x18) & LOCK


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("clock", ["aclk", "hclk"])
def test_gate_of_a_core(machine: QTest, core: int, clock: str) -> None:
    machine.irq_intercept(PATH, name="npu-clock-off")
    register, *bits = CORE_BITS[core]
    bit = bits[clock == "hclk"]
    set_bit(machine, gate(register), bit, True)
    assert lines(machine) == [n == core for n in range(3)]
    set_bit(machine, gate(register), bit, False)
    assert not any(lines(machine))


@pytest.mark.parametrize(("bit", "stops"), [(0, True), (1, True), (4, False)])
def test_gate_of_the_roots(machine: QTest, bit: int, stops: bool) -> None:
    """hclk_npu_root and clk_npu_dsu0 feed all cores; pclk_npu_root is no part of their bus interface."""
    machine.irq_intercept(PATH, name="npu-clock-off")
    set_bit(machine, gate(29), bit, True)
    assert lines(machine) == [stops] * 3
    set_bit(machine, gate(29), bit, False)
    assert not any(lines(machine))


def test_a_core_stays_off_until_both_gates_are_open(machine: QTest) -> None:
    machine.irq_intercept(PATH, name="npu-clock-off")
    machine.writel(gate(27), 0x0005_0005)
    set_bit(machine, gate(27), 0, False)
    assert lines(machine) == [False, True, False]
    set_bit(machine, gate(27), 2, False)
    assert not any(lines(machine))


@pytest.mark.parametrize("core", range(3))
@pytest.mark.parametrize("which", [0, 1])
def test_soft_reset_of_a_core(machine: QTest, core: int, which: int) -> None:
    machine.irq_intercept(PATH, name="npu-reset")
    register, *bits = CORE_BITS[core]
    set_bit(machine, softrst(register), bits[which], True)
    assert lines(machine) == [n == core for n in range(3)]
    set_bit(machine, softrst(register), bits[which], False)
    assert not any(lines(machine))


def test_other_bits_leave_the_npu_alone(machine: QTest) -> None:
    machine.irq_intercept(PATH, name="npu-reset")
    for register, *bits in CORE_BITS:
        others = 0xFFFF & ~sum(1 << bit for bit in bits)
        machine.writel(softrst(register), others << 16 | others)
    machine.writel(softrst(29), 0xFFFF_FFFF)
    assert not any(lines(machine))


@pytest.mark.parametrize("array", ["npu-clock-off", "npu-reset"])
def test_machine_reset_opens_and_releases(machine: QTest, array: str) -> None:
    machine.irq_intercept(PATH, name=array)
    base = gate if array == "npu-clock-off" else softrst
    machine.writel(base(28), 0xFFFF_FFFF)
    assert lines(machine) == [False, False, True]
    machine.system_reset()
    assert not any(lines(machine))
    assert machine.readl(base(28)) == 0


@pytest.mark.parametrize(("register", "key"), [(0xC08, 0xFDB9), (0xC0C, 0xECA8)])
def test_global_soft_reset(machine: QTest, register: int, key: int) -> None:
    machine.writel(CRU + 0x300, 0xFFFF_00AA)
    machine.writel(CRU + register, key ^ 1)
    assert f"[{register:03x}] = {key ^ 1:08x}: wrong key" in machine.log()
    assert machine.readl(CRU + 0x300) == 0xAA
    machine.writel(CRU + register, key)
    machine.wait_event("RESET")
    assert machine.readl(CRU + 0x300) == 0


def test_lines_reach_the_core(start: Callable[..., QTest]) -> None:
    """A closed gate is felt at the other end of the wire: the IOMMU of that core refuses, the others answer."""
    machine = start()
    set_bit(machine, gate(27), 2, True)
    machine.readl(0xFDACA000)
    machine.readl(0xFDAB9000)
    refused = [line for line in machine.log().splitlines() if line.startswith("rk-iommu")]
    assert len(refused) == 1
    assert "fdaca000" in refused[0]
    assert "clock" in refused[0]
