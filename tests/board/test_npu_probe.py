# SPDX-License-Identifier: MIT
"""The NPU in the kernel: three cores, their IOMMUs, the device node, and nothing waiting for anything."""

from __future__ import annotations

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
