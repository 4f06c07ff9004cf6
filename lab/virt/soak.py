# SPDX-License-Identifier: MIT
"""Boot after boot: does the board reach its shell with a working NPU node, every time?"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

from lab.errors import KitError
from lab.output import Output
from lab.virt.board import BoardConfig
from lab.virt.session import BoardSession

PROBE = "test -c /dev/accel/accel0 && cat /sys/kernel/debug/devices_deferred 2>/dev/null; test -c /dev/accel/accel0"
BAD_WORDS = ("WARNING:", "BUG:", "Oops", "Kernel panic", "Unable to handle", "rcu: INFO", "hung_task")


def boot_once(config: BoardConfig, results: Path) -> tuple[float, str]:
    """One boot from nothing to the shell and off again: seconds to the shell, and what was wrong (empty: nothing)."""
    results.mkdir(parents=True, exist_ok=True)
    try:
        with BoardSession(config, results) as session:
            session.to("shell")
            seconds: float = session.strategy.boot_seconds
            _, code = session.run(PROBE)
            session.to("off")
    except KitError as error:
        return 0.0, error.message
    if code:
        return seconds, "/dev/accel/accel0 is not there"
    console = (results / "console.log").read_text(errors="replace")
    words = [word for word in BAD_WORDS if word in console]
    return seconds, f"the kernel said {', '.join(words)}" if words else ""


def soak(config: BoardConfig, boots: int, results: Path, out: Output) -> dict[str, Any]:
    """Boot ``boots`` times; the logs of boots that failed stay in ``results``."""
    seconds: list[float] = []
    failures: list[dict[str, Any]] = []
    with out.stage(f"{boots} boots") as meter:
        for number in range(1, boots + 1):
            place = results / f"boot-{number:04}"
            took, wrong = boot_once(config, place)
            if wrong:
                failures.append({"boot": number, "reason": wrong, "logs": str(place)})
                out.note(f"boot {number}: {wrong} ({place})")
            else:
                seconds.append(took)
                shutil.rmtree(place)
            meter.update(number, boots, f"{len(failures)} failed")
    median = statistics.median(seconds) if seconds else 0.0
    worst = max(seconds, default=0.0)
    out.say(f"{boots} boots, {len(failures)} failed; to the shell: median {median:.1f} s, longest {worst:.1f} s")
    return {
        "ok": not failures,
        "boots": boots,
        "failed": len(failures),
        "failures": failures,
        "seconds": {"median": round(median, 2), "max": round(worst, 2)},
        "results": str(results),
    }
