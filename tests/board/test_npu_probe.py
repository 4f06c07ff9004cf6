# SPDX-License-Identifier: MIT
"""The NPU in the kernel: three cores, their IOMMUs, the device node, and nothing waiting for anything."""

from __future__ import annotations

import re
from typing import Any

import pytest
from on_board import Board

CORES = ("fdab0000", "fdac0000", "fdad0000")
"""linux arch/arm64/boot/dts/rockchip/rk3588-base.dtsi, nodes rknn_core_0 to 2"""
IOMMUS = ("fdab9000", "fdaca000", "fdada000")
VERSION = 1179210309
"""PC_VERSION (0x46495245) plus PC_VERSION_NUM (0), as the driver prints it; seen in boot logs of boards."""

pytestmark = pytest.mark.lg_feature("npu")


@pytest.mark.parametrize("address", CORES)
def test_device_tree_enables_core(board: Board, address: str) -> None:
    node = f"/proc/device-tree/npu@{address}"
    assert "rockchip,rk3588-rknn-core" in board.read(f"{node}/compatible")
    if board.exists(f"{node}/status"):
        assert board.read(f"{node}/status") == "okay"


@pytest.mark.parametrize("address", IOMMUS)
def test_device_tree_enables_iommu(board: Board, address: str) -> None:
    node = f"/proc/device-tree/iommu@{address}"
    if board.exists(f"{node}/status"):
        assert board.read(f"{node}/status") == "okay"


@pytest.mark.parametrize("address", CORES)
def test_driver_has_core(board: Board, address: str) -> None:
    driver = board.output(f"readlink /sys/bus/platform/devices/{address}.npu/driver")
    assert driver.rsplit("/", 1)[-1] == "rocket"


@pytest.mark.parametrize("address", IOMMUS)
def test_driver_has_iommu(board: Board, address: str) -> None:
    driver = board.output(f"readlink /sys/bus/platform/devices/{address}.iommu/driver")
    assert driver.rsplit("/", 1)[-1] == "rk_iommu"


def test_cores_are_in_iommu_groups_of_their_own(board: Board) -> None:
    groups = {board.output(f"readlink /sys/bus/platform/devices/{address}.npu/iommu_group") for address in CORES}
    assert len(groups) == len(CORES)


def test_driver_read_the_version_of_each_core(board: Board) -> None:
    lines, _ = board.run("dmesg | grep 'NPU core'")
    if not lines:
        pytest.skip("the kernel's log no longer has the driver's probe messages")
    for number, address in enumerate(CORES):
        wanted = f"NPU core {number} version: {VERSION}"
        assert any(address in line and wanted in line for line in lines), lines


def test_nothing_of_the_npu_is_deferred(board: Board) -> None:
    board.run("test -e /sys/kernel/debug/devices_deferred || mount -t debugfs debugfs /sys/kernel/debug")
    deferred = board.output("cat /sys/kernel/debug/devices_deferred")
    ours = [line for line in deferred.splitlines() if any(address in line for address in CORES + IOMMUS)]
    assert not ours, deferred


def test_device_node(board: Board) -> None:
    assert board.run("test -c /dev/accel/accel0")[1] == 0
    major = board.output("stat -c %t /dev/accel/accel0")
    assert int(major, 16) == 261  # ACCEL_MAJOR, linux include/drm/drm_accel.h


@pytest.mark.parametrize("address", CORES)
def test_core_is_powered_down_when_idle(board: Board, address: str) -> None:
    power = f"/sys/bus/platform/devices/{address}.npu/power"
    assert board.read(f"{power}/control") == "auto"
    # the driver's autosuspend delay is 50 ms (rocket_core.c)
    for _ in range(50):
        if board.read(f"{power}/runtime_status") == "suspended":
            return
    pytest.fail(f"core {address} stays {board.read(f'{power}/runtime_status')}")


def test_kernel_is_not_tainted_by_a_fault(board: Board) -> None:
    # bits of Documentation/admin-guide/tainted-kernels.rst: 4 machine check, 5 bad page, 7 died, 9 warning, 14 lockup
    taint = int(board.read("/proc/sys/kernel/tainted"))
    found = [bit for bit in (4, 5, 7, 9, 14) if taint >> bit & 1]
    assert not found, f"taint {taint}, bits {found}"


@pytest.fixture(scope="module")
def wiring(board: Board) -> dict[str, Any]:
    """What `target/wiring.py` found."""
    board.run("test -e /sys/kernel/debug/clk || mount -t debugfs debugfs /sys/kernel/debug")
    return board.python("wiring.py")


@pytest.mark.parametrize("number", range(3))
def test_references_of_core(wiring: dict[str, Any], number: int) -> None:
    """Names as the binding has them (Documentation/devicetree/bindings/npu/rockchip,rk3588-rknn-core.yaml), and what
    the references of the running tree lead to."""
    core = wiring["cores"][CORES[number]]
    assert core["reg_names"] == ["pc", "cna", "core"]
    assert core["clock_names"] == ["aclk", "hclk", "npu", "pclk"]
    assert core["clock_providers"] == ["clock-controller@fd7c0000", "firmware/scmi/protocol@14"]
    assert (core["reset_names"], core["resets"]) == (["srst_a", "srst_h"], 2)
    assert core["iommu"] == [f"iommu@{IOMMUS[number]}"]
    assert core["domain"] == "power-management@fd8d8000/power-controller"
    # a supply that leads nowhere holds the core's probe back for ever
    assert all(core["supplies"].values()), core["supplies"]


@pytest.mark.parametrize("number", range(3))
def test_core_waited_for_its_suppliers(wiring: dict[str, Any], number: int) -> None:
    suppliers = wiring["cores"][CORES[number]]["suppliers"]
    if not suppliers:
        pytest.skip("this kernel keeps no links to suppliers (fw_devlink=off)")
    for wanted in ("clock-controller", "power-controller", f"{IOMMUS[number]}.iommu", "scmi"):
        assert any(wanted in supplier for supplier in suppliers), suppliers


@pytest.mark.parametrize("number", range(3))
def test_module_alias_of_core(wiring: dict[str, Any], number: int) -> None:
    """What udev loads the driver by: the driver's alias is of:N*T*Crockchip,rk3588-rknn-core."""
    alias = wiring["cores"][CORES[number]]["modalias"]
    assert re.fullmatch(r"of:N\w+T.*Crockchip,rk3588-rknn-core", alias), alias


def test_interrupts_are_shared_with_the_iommu_of_the_core(wiring: dict[str, Any]) -> None:
    """SPI 110 to 112 (rk3588-base.dtsi), 32 higher as the GIC counts."""
    for number, address in enumerate(CORES):
        found = wiring["interrupts"][f"{address}.npu"]
        assert found.split() == [str(142 + number), "Level", f"{IOMMUS[number]}.iommu,"], wiring["interrupts"]


def test_clock_has_the_rate_of_the_device_tree(wiring: dict[str, Any]) -> None:
    if wiring["clock_rate"] is None:
        pytest.skip("this kernel has no debugfs with clocks")
    # assigned-clock-rates of rk3588-base.dtsi; more would need a PVTPLL that is off while the domain is
    assert wiring["clock_rate"] == 200_000_000


def test_power_domains_hold_core_and_iommu(wiring: dict[str, Any]) -> None:
    if not wiring["domains"]:
        pytest.skip("this kernel has no debugfs with power domains")
    pairs = {f"{core}.npu": f"{iommu}.iommu" for core, iommu in zip(CORES, IOMMUS, strict=True)}
    for domain, core in (("nputop", CORES[0]), ("npu1", CORES[1]), ("npu2", CORES[2])):
        wanted = sorted([f"{core}.npu", pairs[f"{core}.npu"]])
        assert wiring["domains"][domain] == wanted, wiring["domains"]
