# SPDX-License-Identifier: MIT
"""Power states of the NPU while jobs run and after them: ``power.py SECONDS``, prints JSON.

What is read: runtime power management of each core and its IOMMU, the power domains (debugfs pm_genpd), the enable
counts of the cores' clocks (debugfs clk).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from concurrency import forked, jobs

DEVICES = Path("/sys/bus/platform/devices")
DOMAINS = Path("/sys/kernel/debug/pm_genpd")
CLOCKS = Path("/sys/kernel/debug/clk")
NPU_DOMAINS = ("npu", "nputop", "npu1", "npu2")
"""linux drivers/pmdomain/rockchip/pm-domains.c, rk3588_pm_domains"""
IDLE_SECONDS = 5.0


def now() -> dict[str, str]:
    """State of every device, domain and clock of the NPU."""
    state = {}
    for device in sorted(DEVICES.iterdir()):
        if device.name.endswith((".npu", ".iommu")) and device.name.startswith(("fdab", "fdac", "fdad")):
            state[device.name] = (device / "power/runtime_status").read_text().strip()
    for name in NPU_DOMAINS:
        path = DOMAINS / name / "current_state"
        if path.exists():
            state[name] = path.read_text().strip().split("-")[0]
    for core in range(3):
        path = CLOCKS / f"aclk_npu{core}" / "clk_enable_count"
        if path.exists():
            state[path.parent.name] = "off" if path.read_text().strip() == "0" else "on"
    return state


def watch(seconds: float) -> dict[str, Any]:
    """What was seen while three processes ran jobs, and how long afterwards until everything was off, or what is on."""

    def work(number: int) -> int:
        # counted from the first job on: before it memory is mapped and weights are packed
        begin: list[float] = []

        def go_on(done: int) -> bool:
            begin.append(time.monotonic())
            return begin[-1] < begin[0] + seconds

        return int(jobs(number, go_on)["wrong"])

    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(forked(3, work)).encode())
        os._exit(0)
    os.close(writing)
    seen: dict[str, set[str]] = {name: set() for name in now()}
    while not select.select([reading], [], [], 0)[0]:
        for name, value in now().items():
            seen[name].add(value)
    stopped = time.monotonic()
    with os.fdopen(reading) as stream:
        wrong = json.loads(stream.read())
    os.wait()
    while any(value in ("active", "on") for value in now().values()) and time.monotonic() < stopped + IDLE_SECONDS:
        time.sleep(0.02)
    states = {name: sorted(values) for name, values in seen.items()}
    return {"wrong": wrong, "seen": states, "idle_after": time.monotonic() - stopped, "idle": now()}


def main() -> None:
    """Watch."""
    print(json.dumps(watch(float(sys.argv[1]))))


main()
