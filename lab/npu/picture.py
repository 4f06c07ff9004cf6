# SPDX-License-Identifier: MIT
"""The picture of ``npulab npu bench``: every layer under the roofline, and what each layer's time goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.errors import ExitCode, KitError
from lab.npu.layers import CLOCKS_HZ, Cost
from lab.virt import roofline

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
LIMITS = {
    "mac": ("tab:blue", "multiply-accumulates"),
    "dma": ("tab:orange", "DMA"),
    "dpu": ("tab:green", "output (DPU)"),
    "start": ("tab:gray", "starting tasks"),
}
_NAMED = 30
"""Bars that can all be named; of more, every second one is."""
_LEVEL = 10
"""Bars whose names fit side by side."""


def draw(costs: Mapping[str, Sequence[Cost]], cores: int, path: Path) -> None:
    """Write the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    clock = CLOCKS_HZ[0]
    figure = Figure(figsize=(16, max(6.0, 1.2 + 1.9 * len(costs))), dpi=100, layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1, 1.45)), object)
    _roofline(left.subplots(), costs, cores)
    panels = right.subplots(len(costs), 1, squeeze=False)[:, 0]
    for axes, (name, rows) in zip(panels, costs.items(), strict=True):
        _bars(axes, name, rows)
    found = {row.limit for rows in costs.values() for row in rows}
    handles = [Patch(color=colour, label=label) for name, (colour, label) in LIMITS.items() if name in found]
    right.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, title="limited by")
    title = f"plans of {cores} core{'s' if cores > 1 else ''}, times by the model's estimate at {clock // 10**6} MHz"
    figure.suptitle(title, fontsize=12)
    partial = path.with_name(f"{path.stem}.partial.png")
    try:
        figure.savefig(partial)
        partial.rename(path)
    except OSError as error:
        raise KitError(ExitCode.FAILED, f"{path} can not be written: {error.strerror}", "name another place") from error
    finally:
        partial.unlink(missing_ok=True)


def _roofline(axes: Any, costs: Mapping[str, Sequence[Cost]], cores: int) -> None:
    points = [(name, _point(row)) for name, rows in costs.items() for row in rows]
    low, high = 0.5, max(2000.0, *(2 * point[0] for _, point in points))
    dtypes = sorted({row.dtype for rows in costs.values() for row in rows}, reverse=True)
    roofline.roofs(axes, dict.fromkeys(dtypes, "black"), (cores,), low, high)
    for colour, (name, rows) in zip(COLOURS * len(costs), costs.items(), strict=False):
        places = [_point(row) for row in rows]
        x, y = [place[0] for place in places], [place[1] for place in places]
        axes.scatter(x, y, s=26, color=colour, alpha=0.75, linewidths=0, label=name)
    floor = min(point[1] for _, point in points)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor / 2, None))
    axes.set_xlabel("operations per byte of DMA")
    axes.set_ylabel("GOP/s that the results need")
    axes.set_title("roofline, one point per layer", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")


def _point(row: Cost) -> tuple[float, float]:
    """Operations per byte, operations per nanosecond."""
    return 2 * row.macs / row.dma_bytes, 2 * row.macs / (row.times[0] * 1e3)


def _bars(axes: Any, name: str, rows: Sequence[Cost]) -> None:
    """Time per layer, and on the right how many times the least bytes it moves."""
    places = range(len(rows))
    axes.bar(places, [row.times[0] / 1e3 for row in rows], 0.8, color=[LIMITS[row.limit][0] for row in rows])
    ratio = axes.twinx()
    ratio.plot(places, [row.ratio for row in rows], "k.", markersize=4)
    ratio.set_ylim(0.9, max(2.0, 1.1 * max(row.ratio for row in rows)))
    ratio.axhline(1.0, color="black", linewidth=0.5)
    ratio.tick_params(labelsize=7)
    ratio.set_ylabel("bytes x bound (dots)", fontsize=7)
    total = sum(row.times[0] for row in rows) / 1e3
    axes.set_title(f"{name}: {len(rows)} layers, {total:.2f} ms", fontsize=9, loc="left")
    axes.set_ylabel("ms", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    step = 1 if len(rows) <= _NAMED else 2
    labels = [row.layer if index % step == 0 else "" for index, row in enumerate(rows)]
    tilt: dict[str, Any] = {"rotation": 60, "ha": "right"} if len(rows) > _LEVEL else {}
    axes.set_xticks(list(places), labels, fontsize=6, **tilt)
