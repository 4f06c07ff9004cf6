# SPDX-License-Identifier: MIT
"""Measured values of a run, brought into tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lab.report.svg import Series, chart

WORKLOAD = "workload"
"""A label that names points of a chart."""


@dataclass(frozen=True)
class Plot:
    """A chart of one measurement over one of its labels."""

    name: str
    unit: str
    over: str
    svg: Markup


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def axis(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The label that a measurement is plotted over: numeric in every row, and the one with most values."""
    names = set.intersection(*(set(row["labels"]) for row in rows))
    numeric = [name for name in names if all(_number(row["labels"][name]) for row in rows)]
    values = {name: len({row["labels"][name] for row in rows}) for name in numeric}
    best = max(sorted(values), key=lambda name: values[name], default=None)
    return best if best is not None and values[best] > 1 else None


def measurements(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All measured values, each with its test."""
    return [{**row, "test": test["id"]} for test in tests for row in test["measurements"]]


def numerics(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All error statistics, by operation and datatype, each with its test."""
    rows = [{**row, "test": test["id"]} for test in tests for row in test["numerics"]]
    return sorted(
        rows, key=lambda row: (row["op"], row["dtype"], sorted((k, str(v)) for k, v in row["labels"].items()))
    )


def plots(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """A chart for each measurement that has points along a numeric label."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["unit"]), []).append(row)
    found = []
    for (name, unit), group in groups.items():
        over = axis(group)
        if over is None:
            continue
        lines = _lines(group, over)
        ideal = over in ("cores", "processes") and unit in ("x", "GOP/s", "jobs/s") and len(lines) == 1
        found.append(Plot(name, unit, over, chart(f"{name} over {over}", over, unit, lines, ideal=ideal)))
    return found


def _lines(rows: Sequence[Mapping[str, Any]], over: str) -> list[Series]:
    """A line for each value of the other labels. Workloads are no series: each is a point that has its name."""
    lines: dict[str, dict[float, tuple[float, str]]] = {}
    for row in rows:
        others = {key: value for key, value in row["labels"].items() if key not in (over, WORKLOAD)}
        rest = ", ".join(f"{key}={value}" for key, value in sorted(others.items()))
        name = str(row["labels"].get(WORKLOAD, ""))
        lines.setdefault(rest, {})[row["labels"][over]] = row["value"], name
    found = []
    for rest, points in sorted(lines.items()):
        places = tuple((x, value) for x, (value, _) in sorted(points.items()))
        names = tuple(name for _, (_, name) in sorted(points.items()))
        found.append(Series(rest, places, names if all(names) else ()))
    return found


def legend(rows: Sequence[Mapping[str, Any]], plot: Plot) -> list[str]:
    """Names of a chart's lines, in the order of their colours; none when there is but one."""
    group = [row for row in rows if (row["name"], row["unit"]) == (plot.name, plot.unit)]
    names = [line.name for line in _lines(group, plot.over)]
    return names if len(names) > 1 else []
