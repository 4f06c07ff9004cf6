# SPDX-License-Identifier: MIT
"""Flying tasks over views of cubes: lines further apart than they are long, every n-th column, ranges of surfaces.

Evidence: the address formulas of DPU_RDMA and of the DPU's writer, with LINE_NOTCH, SURF_NOTCH and NOTCH (HM, RU,
Rockchip's RMSNorm stream). Columns can not be skipped within a line, so every n-th column is read as lines of one pixel
each, and the lines of the image take the place of surfaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rknpu_userspace.formats import ATOM, OUTPUTS
from rknpu_userspace.layout import ceil_div
from rknpu_userspace.plan import limits
from rknpu_userspace.task import TaskConfig

from . import flying
from .flying import Flow
from .steps import Addresses, Cube

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """Pixels of a cube: the first one, the distance between lines and that between columns (pixels), first surface."""

    first: int
    line: int
    column: int = 1
    surface: int = 0

    def at(self, y: int, x: int, surface: int) -> View:
        """The view from line y, column x and a surface on."""
        return replace(self, first=self.first + y * self.line + x * self.column, surface=self.surface + surface)


@dataclass(frozen=True)
class Window:
    """What one pass covers: lines, columns and surfaces of the result, and the views of main data, operand, result."""

    height: int
    width: int
    surfaces: int
    main: View
    out: View
    operand: View | None = None

    def part(self, y: tuple[int, int], x: tuple[int, int], s: tuple[int, int]) -> Window:
        """Lines, columns and surfaces [from, to) of it."""
        corner = y[0], x[0], s[0]
        return Window(
            y[1] - y[0],
            x[1] - x[0],
            s[1] - s[0],
            self.main.at(*corner),
            self.out.at(*corner),
            None if self.operand is None else self.operand.at(*corner),
        )

    @property
    def views(self) -> list[View]:
        """All views."""
        return [view for view in (self.main, self.out, self.operand) if view is not None]

    @property
    def by_column(self) -> bool:
        """Whether columns are skipped somewhere."""
        return any(view.column != 1 for view in self.views) and self.width > 1


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    for at in range(0, count, step):
        yield at, min(at + step, count)


def cut(window: Window, lanes: int) -> list[Window]:
    """Windows of a task each: sizes and notches within their fields, not too many atoms."""
    most = flying.MAX_CHANNELS // lanes
    notch = max(view.line - window.width for view in window.views)
    if window.by_column:
        lines, columns, surfaces = most, flying.MAX_LINE, 1
    else:
        columns = min(window.width, flying.MAX_LINE)
        surfaces = min(window.surfaces, most)
        lines = 1 if notch > limits.MAX_NOTCH or columns < window.width else flying.MAX_LINE
        lines = max(1, min(lines, flying.MAX_ATOMS // (columns * surfaces)))
    return [
        window.part(y, x, s)
        for s in _ranges(window.surfaces, surfaces)
        for y in _ranges(window.height, lines)
        for x in _ranges(window.width, columns)
    ]


class ViewStep:
    """The DPU alone over windows of one cube, or of two. ``windows`` cover disjoint parts of the result."""

    macs = 0

    def __init__(self, label: str, flow: Flow, reads: Sequence[Cube], target: Cube, windows: Sequence[Window]) -> None:
        self.label = label
        self.reads, self.writes = tuple(reads), target
        self._flow = flow
        self._windows = [piece for window in windows for piece in cut(window, flow.main.atom_channels)]

    @property
    def out_bytes(self) -> int:
        """See Step."""
        return self.writes.nbytes

    @property
    def dma_bytes(self) -> int:
        """See Step."""
        return sum(_atoms(window) * ATOM * len(window.views) for window in self._windows)

    def constants(self) -> tuple[Bytes, ...]:
        """None."""
        return ()

    def seconds(self) -> list[float]:
        """See Step."""
        moved = [_atoms(window) * ATOM * len(window.views) for window in self._windows]
        return [
            (nbytes // limits.DMA_BYTES_PER_CYCLE + limits.TASK_OVERHEAD_CYCLES) / limits.CLOCK_HZ for nbytes in moved
        ]

    def tasks(self, at: Addresses) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """See Step."""
        for window in self._windows:
            yield self._task(window, at), self._flow.prologue

    def _task(self, window: Window, at: Addresses) -> TaskConfig:
        flow = self._flow
        lanes = flow.main.atom_channels
        cubes = (self.reads[0], self.writes, self.reads[-1])
        main, out, operand = (
            _geometry(window, view, cube.pixels) if view is not None else None
            for view, cube in zip((window.main, window.out, window.operand), cubes, strict=True)
        )
        assert main is not None and out is not None
        height, width, surfaces = (window.width, 1, window.height) if window.by_column else _sizes(window)
        config = flying.task(flow, flying.Tile(0, height, width, 0, surfaces * lanes), 0, 0, 0, 0)
        assert config.dpu is not None and config.rdma is not None
        area = height * width * ATOM
        dpu = replace(config.dpu, address=at.out + out.start, surface_stride=out.surface, notch=out.line - width)
        rdma = replace(
            config.rdma,
            main_address=at.reads[0] + main.start,
            main_surface_gap=main.surface - area,
            main_line_notch=main.line - width,
        )
        if operand is not None:
            rdma = replace(
                rdma,
                operand_address=at.reads[-1] + operand.start,
                operand_surface=operand.surface,
                operand_line_notch=operand.line - width,
            )
        return TaskConfig(dpu=dpu, rdma=rdma)

    def last_atom(self, index: int) -> int:
        """See Step."""
        window = self._windows[index]
        last = window.out.at(window.height - 1, window.width - 1, window.surfaces - 1)
        return (last.surface * self.writes.pixels + last.first) * ATOM


@dataclass(frozen=True)
class _Geometry:
    """Of one feed: offset of the first atom and of the next surface (bytes), distance between lines (atoms)."""

    start: int
    surface: int
    line: int


def _sizes(window: Window) -> tuple[int, int, int]:
    return window.height, window.width, window.surfaces


def _geometry(window: Window, view: View, pixels: int) -> _Geometry:
    start = (view.surface * pixels + view.first) * ATOM
    if window.by_column:
        line = view.column
        # a single line of the image has no next one; the gap field must not become negative
        surface = view.line if window.height > 1 else window.width * view.column
        return _Geometry(start, max(surface, window.width) * ATOM, line)
    line = view.line if window.height > 1 else window.width
    return _Geometry(start, pixels * ATOM, line)


def _atoms(window: Window) -> int:
    return window.height * window.width * window.surfaces


def whole(height: int, width: int, cube: Cube) -> View:
    """All pixels of a cube as an image."""
    if height * width != cube.pixels:
        raise ValueError(f"{height}x{width} pixels are not the {cube.pixels} of the cube")
    return View(0, width)


def surfaces_of(cube: Cube) -> int:
    """Atoms of a pixel."""
    return ceil_div(cube.channels, OUTPUTS[cube.form].atom_channels)
