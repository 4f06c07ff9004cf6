# SPDX-License-Identifier: MIT
"""The NPU's device-tree graph as a picture (SVG or PNG)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.kernel.graph import Graph

_COLUMN_OF = {"core": 0, "iommu": 1, "domain": 2, "controller": 3, "clock": 3, "reset": 3, "supply": 4}
_FILL = {
    "core": "#cfe2f3",
    "iommu": "#d9ead3",
    "domain": "#fff2cc",
    "controller": "#eeeeee",
    "clock": "#eeeeee",
    "reset": "#eeeeee",
    "supply": "#f4cccc",
}
_TITLES = ("cores", "IOMMUs", "power domains", "providers", "regulators")
_STYLE = {
    "iommus": "#38761d",
    "power-domains": "#bf9000",
    "parent": "#bf9000",
    "clocks": "#999999",
    "resets": "#666666",
}
_SUPPLY_COLOUR = "#990000"
_BROKEN = "#ff0000"
FORMATS = (".svg", ".png")


def _label(path: str) -> str:
    parts = path.strip("/").split("/")
    return "\n".join(parts[-2:]) if len(parts) > 1 else parts[0]


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Column and row of each node, rows centred per column."""
    columns: dict[int, list[str]] = defaultdict(list)
    used = {edge.source for edge in graph.edges} | {edge.target for edge in graph.edges if edge.target}
    for path in sorted(used | set(graph.cores) | set(graph.disabled_cores)):
        columns[_COLUMN_OF.get(graph.kinds.get(path, "controller"), 3)].append(path)
    height = max((len(paths) for paths in columns.values()), default=1)
    return {
        path: (column * 3.6, (height - len(paths)) / 2 + row)
        for column, paths in columns.items()
        for row, path in enumerate(paths)
    }


def draw(graph: Graph, target: Path) -> None:
    """Write the picture; the suffix of ``target`` chooses SVG or PNG."""
    if target.suffix not in FORMATS:
        raise KitError(ExitCode.USAGE, f"{target}: pictures are {' or '.join(FORMATS)}", "choose another name")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = _places(graph)
    height = max((y for _, y in places.values()), default=1.0) + 1
    figure, axes = pyplot.subplots(figsize=(18, max(4.5, height * 1.3)))
    try:
        for column, title in enumerate(_TITLES):
            axes.text(column * 3.6, -0.9, title, ha="center", fontsize=11, weight="bold")
        _edges(axes, graph, places)
        _nodes(axes, graph, places)
        axes.set_xlim(-1.8, 4 * 3.6 + 1.8)
        axes.set_ylim(height, -1.4)
        axes.axis("off")
        for row, (kind, colour) in enumerate((*_STYLE.items(), ("supplies", _SUPPLY_COLOUR), ("broken", _BROKEN))):
            axes.text(-1.7, height - 0.2 * (row + 1), kind, color=colour, fontsize=8)
        verdict = "complete" if graph.ok else f"{graph.state}, {len(graph.errors)} errors"
        axes.set_title(f"{graph.model}: the NPU in the device tree ({verdict})")
        partial = target.with_name(f".{target.stem}.partial{target.suffix}")
        try:
            figure.savefig(partial, bbox_inches="tight", dpi=110)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    finally:
        pyplot.close(figure)


def _nodes(axes: Any, graph: Graph, places: dict[str, tuple[float, float]]) -> None:
    broken = {finding.path for finding in graph.errors}
    for path, (x, y) in places.items():
        kind = graph.kinds.get(path, "controller")
        box = {
            "boxstyle": "round,pad=0.35",
            "facecolor": _FILL[kind],
            "edgecolor": _BROKEN if path in broken else "#444444",
            "linewidth": 2.2 if path in broken else 0.8,
        }
        axes.text(x, y, _label(path), ha="center", va="center", fontsize=8, bbox=box, zorder=3)


def _edges(axes: Any, graph: Graph, places: dict[str, tuple[float, float]]) -> None:
    merged: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    good: dict[tuple[str, str, str], bool] = {}
    for edge in graph.edges:
        if edge.kind == "power-domains" and graph.kinds.get(edge.target) == "controller" and edge.ok:
            continue  # the domain itself is drawn
        key = (edge.source, edge.target, edge.kind)
        merged[key].append(edge.label)
        good[key] = good.get(key, True) and edge.ok
    for source, target, kind in merged:
        x0, y0 = places[source]
        colour = _STYLE.get(kind, _SUPPLY_COLOUR)
        if not target:
            axes.annotate(f"{kind}?", (x0, y0), (x0 + 1.1, y0 + 0.42), color=_BROKEN, fontsize=8, zorder=4)
            continue
        ok = good[source, target, kind]
        curve = {
            "arrowstyle": "->",
            "color": colour if ok else _BROKEN,
            "linewidth": 1.0 if ok else 2.2,
            "linestyle": "-" if ok else "--",
            "connectionstyle": "arc3,rad=0.12",
            "shrinkA": 28,
            "shrinkB": 28,
        }
        axes.annotate("", places[target], (x0, y0), arrowprops=curve, zorder=1)
