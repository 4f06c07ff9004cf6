# SPDX-License-Identifier: MIT
"""Pictures of a report as SVG that follows the page's colours: the NPU, and charts of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

COLUMN, GAP, TOP = 220, 20, 30


def _text(x: float, y: float, words: object, style: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        round(x, 1), round(y, 1), style, anchor, words
    )


def _box(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="6" class="{}"/>').format(x, y, width, height, style)


def npu(picture: Mapping[str, Any] | None) -> Markup:
    """Cores in their power domains, each with its IOMMU and state; nothing when the board has no cores."""
    if not picture or not picture["cores"]:
        return Markup("")
    cores = picture["cores"]
    width = len(cores) * COLUMN + (len(cores) + 1) * GAP
    used = {core["domain"] for core in cores}
    parents = [domain for domain in picture["domains"] if domain["name"] not in used]
    label = ", ".join(f"{domain['name']}: {domain['state']}" for domain in parents)
    parts = [_box(2, 2, width - 4, 256, "outer")]
    if label:
        parts.append(_text(GAP, 22, f"power domain {label}", "small"))
    for number, core in enumerate(cores):
        parts.append(_core(core, number, GAP + number * (COLUMN + GAP)))
    parts.append(_box(2, 292, width - 4, 34, "memory"))
    parts.append(_text(width / 2, 314, "memory", "small", "middle"))
    body = Markup("").join(parts)
    start = Markup('<svg class="npu" viewBox="0 0 {} 330" role="img" aria-label="{}">').format(width, _words(cores))
    return start + body + Markup("</svg>")


def _words(cores: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"core at {core['address']}: {core['driver'] or 'no driver'}, {core['status']}" for core in cores)


def _core(core: Mapping[str, Any], number: int, x: float) -> Markup:
    good = core["driver"] == "rocket"
    off = core["domain_state"].startswith("off")
    parts = [
        _box(x, TOP + 4, COLUMN, 216, "domain off" if off else "domain"),
        _text(x + 10, TOP + 22, f"domain {core['domain'] or 'unknown'}: {core['domain_state'] or '?'}", "small"),
        _box(x + 10, TOP + 34, COLUMN - 20, 94, "core" if good else "core broken"),
        _text(x + 20, TOP + 54, f"core {core.get('number', number)}", "strong"),
        _text(x + COLUMN - 20, TOP + 54, core["address"], "mono", "end"),
        _text(x + 20, TOP + 74, f"driver: {core['driver'] or 'none'}"),
        _text(x + 20, TOP + 93, f"state: {core['status'] or '?'}"),
        _text(x + 20, TOP + 112, f"version: {core['version'] or 'not read'}", "small"),
        _box(x + 10, TOP + 150, COLUMN - 20, 60, "iommu" if core["iommu"] else "iommu broken"),
        _text(x + 20, TOP + 170, "IOMMU", "strong"),
        _text(x + COLUMN - 20, TOP + 170, core["iommu"] or "none", "mono", "end"),
        _text(x + 20, TOP + 192, f"group {core['iommu_group'] or '?'}"),
    ]
    for start, end in ((TOP + 128, TOP + 150), (TOP + 210, 292)):
        parts.append(
            Markup('<line x1="{0}" x2="{0}" y1="{1}" y2="{2}" class="wire"/>').format(x + COLUMN / 2, start, end)
        )
    return Markup("").join(parts)


@dataclass(frozen=True)
class Series:
    """Points of a line, sorted by x; with ``names`` points of their own that no line joins."""

    name: str
    points: tuple[tuple[float, float], ...]
    names: tuple[str, ...] = ()


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range; one number when it is as good as empty."""
    span = high - low
    if not span > max(1e-9 * max(abs(low), abs(high)), 1e-100) or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step)
    return [float(f"{(first + number) * step:.12g}") for number in range(math.ceil(high / step) - first + 1)]


@dataclass(frozen=True)
class Scale:
    """An axis: numbers with a mark, and where on it (0 to 1) a value lies."""

    marks: tuple[float, ...]
    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value."""
        low, high = (self._of(end) for end in (self.low, self.high))
        return (self._of(value) - low) / ((high - low) or 1.0)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


DECADES = 20.0
"""Points of workloads whose values differ by more than this factor are shown on a logarithmic axis."""


def logarithmic(values: Sequence[float]) -> Scale:
    """A scale of positive numbers, from mark to mark: 1, 2 and 5 times powers of ten, or only those."""
    exponents = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    marks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in (1, 2, 5)]
    first = max(number for number, mark in enumerate(marks) if mark <= min(values))
    last = min(number for number, mark in enumerate(marks) if mark >= max(values))
    kept = marks[first : last + 1]
    few = [mark for mark in kept if f"{mark:e}".startswith("1.0")] if len(kept) > 7 else kept
    return Scale(tuple(few), kept[0], kept[-1], logarithmic=True)


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 1e-100 and max(values) > DECADES * min(values)


def _scales(series: Sequence[Series], ideals: Sequence[tuple[float, float]]) -> tuple[Scale, Scale]:
    """Axes for some lines: from zero upwards, marks below where there are points."""
    points = [point for line in series for point in line.points] + list(ideals)
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    named = any(line.names for line in series)
    shown = xs if len(xs) <= 10 else [xs[0], xs[len(xs) // 2], xs[-1]]
    across = logarithmic(xs) if named and _wide(xs) else Scale(tuple(shown), xs[0], xs[-1])
    if named and _wide(ys):
        return across, logarithmic(ys)
    marks = ticks(min(0.0, *ys), max(0.0, *ys) or 1.0)
    return across, Scale(tuple(marks), marks[0], marks[-1])


def chart(
    title: str, x_name: str, unit: str, series: Sequence[Series], *, ideal: bool = False, width: float = 440
) -> Markup:
    """Lines over a numeric label. ``ideal`` adds the line of proportional growth from the first point."""
    height = 250.0
    left, top, right, bottom = 58.0, 16.0, width - 16.0, height - 40.0
    ideals: tuple[tuple[float, float], ...] = ()
    if ideal and series and series[0].points and series[0].points[0][0] > 0:
        x0, y0 = series[0].points[0]
        ideals = tuple((x, y0 * x / x0) for x, _ in series[0].points)
    across, up = _scales(series, ideals)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + across(x) * (right - left), bottom - up(y) * (bottom - top)

    parts = list(_grid(across, up, at, (left, right, bottom)))
    if ideals:
        parts.append(_line(ideals, at, "ideal"))
    for number, line in enumerate(series):
        if not line.names:
            parts.append(_line(line.points, at, f"line c{number % 5}"))
        for place, (x, y) in enumerate(line.points):
            px, py = at(x, y)
            name = line.names[place] if line.names else line.name
            tip = escape(f"{name} {x:g}: {y:.4g} {unit}".strip())
            parts.append(
                Markup('<circle cx="{}" cy="{}" r="3.5" class="dot c{}"><title>{}</title></circle>').format(
                    round(px, 1), round(py, 1), number % 5, tip
                )
            )
    parts.append(_text((left + right) / 2, height - 6, x_name, "small", "middle"))
    start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return start + Markup("").join(parts) + Markup("</svg>")


def _grid(across: Scale, up: Scale, at: Any, edges: tuple[float, float, float]) -> Iterator[Markup]:
    left, right, bottom = edges
    for value in up.marks:
        _, y = at(across.low, value)
        place = round(y, 1)
        yield Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" class="grid"/>').format(left, right, place, place)
        yield _text(left - 6, y + 4, f"{value:g}", "small", "end")
    for value in across.marks:
        yield _text(at(value, up.low)[0], bottom + 16, f"{value:g}", "small", "middle")


def _line(points: Sequence[tuple[float, float]], at: Any, style: str) -> Markup:
    places = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y in points))
    return Markup('<polyline points="{}" class="{}"/>').format(places, style)
