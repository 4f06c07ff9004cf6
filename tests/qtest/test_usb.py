# SPDX-License-Identifier: MIT
"""The SoC's three USB 3 controllers: DesignWare's global registers, an xHCI each, and ports with devices in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from qtest_client import QTest

CONTROLLERS = (0xFC000000, 0xFC400000, 0xFCD00000)
GCTL, GSNPSID, GHWPARAMS0 = 0xC110, 0xC120, 0xC140
HOST_MODE = 1
CONFIGURE = 0x40 + 0x38
PORTSC = 0x40 + 0x400
"""Operational registers follow the capability registers, 0x40 bytes; each port has 0x10."""
CONNECTED, POWERED = 1 << 0, 1 << 9
USB2_PORTS, USB3_PORTS, INTERRUPTERS, SLOTS = 4, 4, 1, 64


@pytest.mark.parametrize("base", CONTROLLERS)
def test_a_host_controller_each(machine: QTest, base: int) -> None:
    assert machine.readl(base) == 0x01000040, "xHCI 1.0, operational registers at 0x40"
    assert machine.readl(base + 4) == (USB2_PORTS + USB3_PORTS) << 24 | INTERRUPTERS << 8 | SLOTS
    assert machine.readl(base + GSNPSID) >> 16 == 0x5533, "Linux asks whether it is a DWC3"
    assert machine.readl(base + GHWPARAMS0) & 7 == HOST_MODE
    assert all(machine.readl(base + PORTSC + n * 16) & POWERED for n in range(USB2_PORTS + USB3_PORTS))


def test_registers_forget_at_a_reset(machine: QTest) -> None:
    for base in CONTROLLERS:
        before = machine.readl(base + GCTL)
        machine.writel(base + GCTL, before ^ 0x3000)
        machine.writel(base + CONFIGURE, 8)
        assert machine.readl(base + GCTL) == before ^ 0x3000 and machine.readl(base + CONFIGURE) == 8
        machine.system_reset()
        assert machine.readl(base + GCTL) == before and machine.readl(base + CONFIGURE) == 0


@pytest.mark.parametrize("controller", range(3))
def test_a_port_without_a_peer_is_empty(start: Callable[..., QTest], controller: int) -> None:
    """The stand-in may be plugged in later: nobody behind the socket is no error."""
    chardev = ["-chardev", "socket,id=usb0,path=/nonexistent/usb,reconnect-ms=200"]
    machine = start(args=[*chardev, "-device", f"usb-redir,chardev=usb0,bus=usb-bus.{controller},port=1"])
    ports = [machine.readl(CONTROLLERS[controller] + PORTSC + n * 16) for n in range(USB2_PORTS + USB3_PORTS)]
    assert not any(port & CONNECTED for port in ports)
