# SPDX-License-Identifier: MIT
"""A picture of what ran against what one core and three cores could do at most, by the model's own constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.virt.workloads import CLOCK_HZ

CORES = 3
_PRECISION = {"int8": 0, "float16": 2}
"""Precision codes of `rknpu_userspace.model.cost.MACS_PER_CYCLE`."""


def peak_gops(dtype: str, cores: int) -> float:
    """Operations (two per multiply-accumulate) per nanosecond at most."""
    from rknpu_userspace.model.cost import MACS_PER_CYCLE

    return 2 * MACS_PER_CYCLE[_PRECISION[dtype]] * cores * CLOCK_HZ / 1e9


def bandwidth_gbytes(cores: int) -> float:
    """Bytes per nanosecond that the cores' DMA moves at most."""
    from rknpu_userspace.model.cost import DMA_BYTES_PER_CYCLE

    return DMA_BYTES_PER_CYCLE * cores * CLOCK_HZ / 1e9


def point(row: dict[str, Any]) -> tuple[float, float] | None:
    """A workload's operations per byte and operations per nanosecond; None when the model has no figures of it."""
    if not row.get("macs") or not row.get("dma_bytes") or not row.get("npu_us"):
        return None
    operations = 2 * row["macs"]
    return operations / row["dma_bytes"], operations / (row["npu_us"] * 1e3)


def roofs(axes: Any, colours: Mapping[str, str], core_counts: Sequence[int], low: float, high: float) -> None:
    """The roof of every datatype (its colour by name) and number of cores, between two intensities."""
    for dtype, colour in colours.items():
        for cores in core_counts:
            peak, bandwidth = peak_gops(dtype, cores), bandwidth_gbytes(cores)
            ridge = peak / bandwidth
            label = f"{dtype}, {cores} core{'s' if cores > 1 else ''}: {peak:.0f} GOP/s, {bandwidth:.1f} GB/s"
            style = "-" if cores == CORES else "--"
            axes.plot([low, ridge, high], [low * bandwidth, peak, peak], style, color=colour, label=label, linewidth=1)


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Write the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = figure.subplots()
    points = [(row, place) for row in rows if (place := point(row)) is not None]
    low = min([0.5, *(place[0] / 2 for _, place in points)])
    high = max([1000.0, *(place[0] * 2 for _, place in points)])
    colours = {"int8": "tab:blue", "float16": "tab:red"}
    roofs(axes, colours, (1, CORES), low, high)
    for row, (intensity, speed) in points:
        colour = colours.get(row.get("dtype", ""), "tab:green")
        axes.plot(intensity, speed, "o", color=colour)
        # workloads of both datatypes lie close together: one kind is named above its points, the other below
        above = row.get("dtype") == "float16"
        offset, side = ((-4, 4), "right") if above else ((4, -9), "left")
        name = str(row["name"])
        axes.annotate(name, (intensity, speed), xytext=offset, textcoords="offset points", fontsize=7, ha=side)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("operations per byte of DMA")
    axes.set_ylabel("GOP/s (modelled, 200 MHz)")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="lower right")
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.rename(path)
