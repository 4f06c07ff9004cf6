# SPDX-License-Identifier: MIT
"""What ran: the rows that the board's selftest printed, joined with what the model counted for them.

The selftest runs one workload after the other and the model writes one line per task in the order in which they end,
so each workload owns as many lines as it has tasks. If the totals differ, nothing is attributed to anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError

CLOCK_HZ = 200_000_000
"""The NPU's clock in the mainline device tree (assigned-clock-rates of the core nodes)."""


@dataclass(frozen=True)
class ModelCount:
    """The model's figures of one workload.

    ``npu_us``: estimated time on the NPU, the busiest core's sum (the cores work side by side); ``busy_us``: the sum
    over cores; ``dma_bytes`` by DMA unit; ``outcomes`` counts how tasks ended.
    """

    tasks: int = 0
    macs: int = 0
    npu_us: float = 0.0
    busy_us: float = 0.0
    host_us: float = 0.0
    dma_bytes: dict[str, int] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All DMA."""
        return sum(self.dma_bytes.values())


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The model's statistics, one document per line; none when the model never ran a task."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def parse_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The selftest's rows among what a command printed; KitError when a row is not what it should be."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise KitError(ExitCode.INFRASTRUCTURE, f"the selftest printed a broken line: {line[:100]}") from error
        if isinstance(row, dict) and "name" in row:
            rows.append(row)
    return rows


def count(stats: Sequence[dict[str, Any]]) -> ModelCount:
    """Sum up lines of the model's statistics."""
    dma: dict[str, int] = {}
    busy: dict[int, float] = {}
    outcomes: dict[str, int] = {}
    for line in stats:
        for unit, amount in line.get("dma_bytes", {}).items():
            dma[unit] = dma.get(unit, 0) + int(amount)
        core = int(line["core"])
        busy[core] = busy.get(core, 0.0) + line.get("ns", 0) / 1000
        outcome = str(line.get("outcome", ""))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return ModelCount(
        tasks=len(stats),
        macs=sum(int(line.get("macs", 0)) for line in stats),
        npu_us=max(busy.values(), default=0.0),
        busy_us=sum(busy.values()),
        host_us=sum(float(line.get("host_us", 0.0)) for line in stats),
        dma_bytes=dma,
        cores=tuple(sorted(busy)),
        outcomes=outcomes,
    )


def attribute(rows: Sequence[dict[str, Any]], stats: Sequence[dict[str, Any]]) -> list[ModelCount] | None:
    """The model's figures of each row, or None when rows and statistics do not add up."""
    if sum(int(row.get("tasks", 0)) for row in rows) != len(stats):
        return None
    counts: list[ModelCount] = []
    start = 0
    for row in rows:
        end = start + int(row.get("tasks", 0))
        counts.append(count(stats[start:end]))
        start = end
    return counts


def documents(rows: Sequence[dict[str, Any]], counts: Sequence[ModelCount] | None) -> list[dict[str, Any]]:
    """Rows for ``--json``: the selftest's own, completed with the model's figures."""
    found = []
    for number, row in enumerate(rows):
        document = {**row, "ok": bool(row.get("ok"))}
        if counts is not None:
            figures = counts[number]
            document |= {
                "model_macs": figures.macs,
                "dma_bytes": figures.bytes,
                "dma_by_unit": figures.dma_bytes,
                "npu_us": round(figures.npu_us, 1),
                "npu_busy_us": round(figures.busy_us, 1),
                "ran_on": list(figures.cores),
            }
        found.append(document)
    return found
