# SPDX-License-Identifier: MIT
"""What a debug kernel's own watchers have found while the rest of the suite ran: leaks, locks, DMA mappings.

Only with a kernel that has them: ``npulab test board --kernel debug``. KASAN and lockdep speak up in the kernel's log,
which every test is judged by; kmemleak and the DMA debugging have to be asked.
"""

from __future__ import annotations

import re

import pytest
from on_board import Board

pytestmark = pytest.mark.lg_feature("npu")

DEBUG = "/sys/kernel/debug"
KMEMLEAK, DMA_ERRORS, LOCKDEP = f"{DEBUG}/kmemleak", f"{DEBUG}/dma-api/error_count", "/proc/lockdep_stats"
OURS = re.compile(r"rocket|drm_|rk_iommu|rockchip_pm_domain")
SCAN_SECONDS = 300.0


@pytest.fixture(autouse=True)
def _debugfs(board: Board) -> None:
    board.run(f"test -e {DEBUG}/clk || mount -t debugfs debugfs {DEBUG}")


def test_no_memory_of_the_driver_is_lost(board: Board) -> None:
    if not board.exists(KMEMLEAK):
        pytest.skip("this kernel has no kmemleak (CONFIG_DEBUG_KMEMLEAK)")
    board.output("python3 -m rknpu_userspace.jobloop --jobs 50", SCAN_SECONDS)
    # what is referenced from a register only looks lost in one scan, hardly in two
    for _ in range(2):
        board.output(f"echo scan > {KMEMLEAK}", SCAN_SECONDS)
    report = board.output(f"cat {KMEMLEAK}", SCAN_SECONDS)
    lost = [part for part in re.split(r"(?=unreferenced object)", report) if OURS.search(part)]
    assert not lost, "\n".join(lost[:3])


def test_dma_mappings_are_used_as_the_interface_demands(board: Board) -> None:
    if not board.exists(DMA_ERRORS):
        pytest.skip("this kernel does not check DMA mappings (CONFIG_DMA_API_DEBUG)")
    assert board.read(DMA_ERRORS).strip() == "0"


def test_lock_checks_are_still_on(board: Board) -> None:
    if not board.exists(LOCKDEP):
        pytest.skip("this kernel does not check locks (CONFIG_PROVE_LOCKING)")
    # lockdep switches itself off at the first thing that it finds
    assert re.search(r"debug_locks:\s+1", board.read(LOCKDEP))
