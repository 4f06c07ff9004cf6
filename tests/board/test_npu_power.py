# SPDX-License-Identifier: MIT
"""Power of the NPU: on for jobs, off soon after them, core by core; the driver can be unloaded and loaded again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from on_board import Board, KernelLog
from own_board import modular_board

from lab.report.kmsg import Journal

pytestmark = pytest.mark.lg_feature("npu")

CORES = ("fdab0000", "fdac0000", "fdad0000")
DRIVER = "/sys/bus/platform/drivers/rocket"
DEVICES = "/sys/bus/platform/devices"
AUTOSUSPEND_MS = 50
"""linux drivers/accel/rocket/rocket_core.c"""
OFF_SECONDS = 2.0
"""The delay, then clocks and domains one after the other; a slow processor needs longer."""
RELOADS = 20
LOST_KIB = 4 << 10

Measure = Callable[..., None]


@pytest.fixture(scope="module")
def watched(board: Board) -> dict[str, Any]:
    """States while jobs ran, and afterwards."""
    board.run("test -e /sys/kernel/debug/pm_genpd || mount -t debugfs debugfs /sys/kernel/debug")
    return board.python("power.py", "3")


@pytest.mark.parametrize("core", CORES)
def test_autosuspend_is_configured(board: Board, core: str) -> None:
    power = f"{DEVICES}/{core}.npu/power"
    assert board.read(f"{power}/control") == "auto"
    assert board.read(f"{power}/autosuspend_delay_ms") == str(AUTOSUSPEND_MS)


def test_cores_are_on_for_jobs(watched: dict[str, Any]) -> None:
    assert watched["wrong"] == [0, 0, 0]
    cores = {name: states for name, states in watched["seen"].items() if name.endswith(".npu")}
    assert len(cores) == len(CORES)
    assert all("active" in states for states in cores.values()), cores


def test_everything_is_off_after_jobs(watched: dict[str, Any], measure: Measure) -> None:
    measure("off after the last job", watched["idle_after"], "s")
    still_on = [name for name, state in watched["idle"].items() if state not in ("suspended", "off")]
    assert not still_on, watched["idle"]
    assert watched["idle_after"] < OFF_SECONDS


def test_domains_follow_the_cores(watched: dict[str, Any]) -> None:
    domains = {name: states for name, states in watched["seen"].items() if "." not in name and "aclk" not in name}
    if not domains:
        pytest.skip("this kernel has no debugfs with power domains (CONFIG_PM_GENERIC_DOMAINS, CONFIG_DEBUG_FS)")
    assert set(domains) == {"npu", "nputop", "npu1", "npu2"}
    assert all("on" in states for states in domains.values()), domains


def test_clocks_follow_the_cores(watched: dict[str, Any]) -> None:
    clocks = {name: states for name, states in watched["seen"].items() if name.startswith("aclk")}
    if not clocks:
        pytest.skip("this kernel has no debugfs with clocks")
    assert len(clocks) == len(CORES)
    assert all("on" in states for states in clocks.values()), clocks


@pytest.mark.parametrize("core", CORES)
def test_user_can_keep_a_core_on(board: Board, core: str) -> None:
    power = f"{DEVICES}/{core}.npu/power"
    try:
        board.output(f"echo on > {power}/control")
        time.sleep(4 * AUTOSUSPEND_MS / 1000)
        assert board.read(f"{power}/runtime_status") == "active"
    finally:
        board.output(f"echo auto > {power}/control")
    for _ in range(50):
        if board.read(f"{power}/runtime_status") == "suspended":
            return
    pytest.fail(f"core {core} stays {board.read(f'{power}/runtime_status')}")


def _reload(board: Board, measure: Measure) -> None:
    """Unload and load the driver again and again: three cores each time, right results, no memory lost."""
    available = "awk '/MemAvailable/{print $2}' /proc/meminfo"
    once = f"modprobe -r rocket && modprobe rocket && ls -d {DRIVER}/*.npu | wc -l"
    board.output(once)
    before, started = int(board.output(available)), time.monotonic()
    counts = board.output(f"for i in $(seq {RELOADS}); do {once}; done", 120.0).split()
    measure("reload of the module", (time.monotonic() - started) / RELOADS, "s")
    assert counts == ["3"] * RELOADS
    lost = before - int(board.output(available))
    measure("memory lost by reloads", lost, "KiB", reloads=RELOADS)
    assert lost < LOST_KIB
    found = board.python("concurrency.py", "processes", "6", "5")
    assert found["done"] == [5] * 6 and not any(found["wrong"]), found
    assert all(found["interrupts"].values()), found


@pytest.mark.timeout(3600)
def test_module_can_be_reloaded(board: Board, env: Any, tmp_path: Path, measure: Measure) -> None:
    if board.exists("/sys/module/rocket/refcnt"):
        _reload(board, measure)
    elif "virtual" in env.get_features():
        with modular_board(tmp_path) as modular:
            log = KernelLog(Journal(modular), "reload")
            log.refresh("before")
            _reload(modular, measure)
            log.refresh("after")
        assert not log.problems(), log.problems()
    else:
        pytest.skip("rocket is built into this kernel")
