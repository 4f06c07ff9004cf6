# SPDX-License-Identifier: MIT
"""The power domain controller: what drivers/pmdomain/rockchip/pm-domains.c in Linux polls, and the domains' lines."""

from __future__ import annotations

import pytest
from qtest_client import QTest

PMU = 0xFD8D8000
PATH = "/machine/soc/pmu"
IDLE_REQ, IDLE_ACK, IDLE = PMU + 0x10C, PMU + 0x118, PMU + 0x120
GATE, STATUS, REPAIR = PMU + 0x14C, PMU + 0x180, PMU + 0x290
MEM, CHAIN, MEM_STATUS = PMU + 0x1A0, PMU + 0x1F0, PMU + 0x1F8

# name, gate register and bit, status ("off" bit of STATUS or "on" bit of REPAIR), memory status bit
DOMAINS = [
    ("gpu", 0, 0, "on", 1, None), ("npu", 0, 1, "off", 1, None), ("vcodec", 0, 2, "off", 2, None),
    ("nputop", 0, 3, "on", 2, 11), ("npu1", 0, 4, "on", 3, 12), ("npu2", 0, 5, "on", 4, 13),
    ("venc0", 0, 6, "on", 5, 14), ("venc1", 0, 7, "on", 6, 15), ("rkvdec0", 0, 8, "on", 7, 16),
    ("rkvdec1", 0, 9, "on", 8, 17), ("vdpu", 0, 10, "on", 9, 18), ("rga30", 0, 11, "on", 10, 19),
    ("av1", 0, 12, "on", 11, 20), ("vi", 0, 13, "on", 12, 21), ("fec", 0, 14, "on", 13, 22),
    ("isp1", 0, 15, "on", 14, 23), ("rga31", 1, 0, "on", 15, 24), ("vop", 1, 1, "on", 16, 25),
    ("vo0", 1, 2, "on", 17, 26), ("vo1", 1, 3, "on", 18, 27), ("audio", 1, 4, "on", 19, 28),
    ("php", 1, 5, "on", 20, 29), ("gmac", 1, 6, "on", 21, 30), ("pcie", 1, 7, "on", 22, 31),
    ("nvm", 1, 8, "off", 24, None), ("nvm0", 1, 9, "on", 23, 33), ("sdio", 1, 10, "on", 24, 34),
    ("usb", 1, 11, "on", 25, 35), ("sdmmc", 1, 13, "on", 26, 37),
]  # fmt: skip
LINE = {name: number for number, (name, *_) in enumerate(DOMAINS)}
ALL_REPAIRED = sum(1 << bit for _, _, _, kind, bit, _ in DOMAINS if kind == "on")


def set_gate(machine: QTest, name: str, off: bool, base: int = GATE) -> None:
    _, register, bit, *_ = DOMAINS[LINE[name]]
    machine.writel(base + 4 * register, 1 << (bit + 16) | off << bit)


def is_on(machine: QTest, name: str) -> bool:
    """As the driver reads it."""
    _, _, _, kind, bit, _ = DOMAINS[LINE[name]]
    if kind == "on":
        return bool(machine.readl(REPAIR) >> bit & 1)
    return not machine.readl(STATUS) >> bit & 1


def off_lines(machine: QTest) -> set[str]:
    return {name for name, line in LINE.items() if machine.irq(line)}


def test_firmware_leaves_everything_on(machine: QTest) -> None:
    machine.irq_intercept(PATH, name="power-off")
    assert machine.readl(STATUS) == 0
    assert machine.readl(REPAIR) == ALL_REPAIRED
    assert machine.readl(MEM_STATUS) == machine.readl(MEM_STATUS + 4) == 0
    assert machine.readl(CHAIN) == machine.readl(CHAIN + 4) == 0xFFFFFFFF
    assert not off_lines(machine)


@pytest.mark.parametrize("name", sorted(LINE))
def test_domain_follows_its_gate(machine: QTest, name: str) -> None:
    machine.irq_intercept(PATH, name="power-off")
    set_gate(machine, name, True)
    assert not is_on(machine, name)
    assert name in off_lines(machine)
    set_gate(machine, name, False)
    assert is_on(machine, name)
    assert not off_lines(machine)


@pytest.mark.parametrize(
    ("parent", "with_it"),
    [
        ("npu", {"nputop", "npu1", "npu2"}),
        ("nputop", {"npu1", "npu2"}),
        ("npu1", set()),
        ("npu2", set()),
        ("vcodec", {"venc0", "venc1", "rkvdec0", "rkvdec1"}),
        ("vop", set()),
    ],
)
def test_domains_below_go_with_it(machine: QTest, parent: str, with_it: set[str]) -> None:
    machine.irq_intercept(PATH, name="power-off")
    set_gate(machine, parent, True)
    assert off_lines(machine) == {parent, *with_it}
    assert {name for name in LINE if not is_on(machine, name)} == {parent, *with_it}
    set_gate(machine, parent, False)
    assert not off_lines(machine)


def test_own_gate_keeps_a_domain_off_when_its_parent_returns(machine: QTest) -> None:
    machine.irq_intercept(PATH, name="power-off")
    for name in ("npu1", "nputop"):
        set_gate(machine, name, True)
    set_gate(machine, "nputop", False)
    assert off_lines(machine) == {"npu1"}


@pytest.mark.parametrize("name", [name for name, *_, memory in DOMAINS if memory is not None])
def test_memory_status_follows_its_request(machine: QTest, name: str) -> None:
    memory = DOMAINS[LINE[name]][5]
    assert memory is not None
    set_gate(machine, name, True, MEM)
    assert machine.readl(MEM_STATUS + memory // 32 * 4) == 1 << memory % 32
    assert machine.readl(MEM_STATUS + (1 - memory // 32) * 4) == 0
    set_gate(machine, name, False, MEM)
    assert machine.readl(MEM_STATUS + memory // 32 * 4) == 0


def test_idle_requests_are_granted(machine: QTest) -> None:
    machine.writel(IDLE_REQ, 0x000E_000E)
    machine.writel(IDLE_REQ + 4, 0x0003_0003)
    assert machine.readl(IDLE_ACK) == machine.readl(IDLE) == 0x0003_000E
    machine.writel(IDLE_REQ, 0x0004_0000)
    assert machine.readl(IDLE_ACK) == machine.readl(IDLE) == 0x0003_000A


@pytest.mark.parametrize("register", [IDLE_ACK, IDLE, STATUS, REPAIR, CHAIN, MEM_STATUS])
def test_status_is_read_only(machine: QTest, register: int) -> None:
    before = machine.readl(register)
    machine.writel(register, ~before & 0xFFFFFFFF)
    assert machine.readl(register) == before
    assert f"[{register - PMU:03x}] = {~before & 0xFFFFFFFF:08x}: read-only" in machine.log()


def test_machine_reset_powers_everything(machine: QTest) -> None:
    machine.irq_intercept(PATH, name="power-off")
    set_gate(machine, "npu", True)
    set_gate(machine, "usb", True, MEM)
    machine.writel(IDLE_REQ, 0xFFFF_FFFF)
    assert off_lines(machine) == {"npu", "nputop", "npu1", "npu2"}
    machine.system_reset()
    assert not off_lines(machine)
    assert machine.readl(REPAIR) == ALL_REPAIRED
    assert machine.readl(MEM_STATUS + 4) == 0
    assert machine.readl(IDLE_ACK) == 0


@pytest.mark.parametrize(("domain", "address"), [("nputop", 0xFDABA000), ("npu1", 0xFDACA000), ("npu2", 0xFDADA000)])
def test_lines_reach_the_core(machine: QTest, domain: str, address: int) -> None:
    """A domain that is off is felt at the other end of the wire, and power coming back ends it."""
    set_gate(machine, domain, True)
    machine.readl(address)
    refused = [line for line in machine.log().splitlines() if line.startswith("rk-iommu")]
    assert len(refused) == 1
    assert "power" in refused[0]
    set_gate(machine, domain, False)
    machine.readl(address)
    assert len([line for line in machine.log().splitlines() if line.startswith("rk-iommu")]) == 1
