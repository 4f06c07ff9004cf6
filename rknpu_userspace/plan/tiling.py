# SPDX-License-Identifier: MIT
"""How a problem is cut into tasks so that it fits the CBUF, with the least DMA traffic.

The CBUF holds a tile's features and, beside them, at least one kernel group. The tasks form a grid of spatial tiles by
blocks of kernels, which is walked in one of two ways:

* *features outside*: a tile stays (DATA_REUSE) while all kernels pass by; every tile fetches all weights;
* *kernels outside*: a block of kernels stays (WEIGHT_REUSE) while the tiles pass by; every block fetches all features.

Every second line of the grid is walked backwards, so that what is in the CBUF at its end serves the next one too.

When kernels are long, the sum may also be cut into *chunks* of input channels (or, if even that is not enough, of
taps): the NPU writes one partial result per chunk in int32 or float32, and the host adds them up exactly. A partial
byte counts twice, once written by the NPU and once read by the host.

The choice is the plan with the fewest bytes, a task counting as the bytes that could move while it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from rknpu_userspace.formats import OUTPUTS, PARTIAL
from rknpu_userspace.layout import align, ceil_div

from . import limits
from .geometry import Axis, Chunk, Plan, Problem, Tile, axes, chunk_channels
from .jobs import fetch_at_job_starts, job_sizes

_CHUNK_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_WIDTH_CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_GOOD_ENOUGH = 1.02
"""Bytes over the lower bound at which the search ends."""


@dataclass(frozen=True)
class _Cut:
    """How one chunk is tiled and walked, and what it costs. ``whole``: a task's kernels fit the weight banks."""

    tile_height: int
    tile_width: int
    kernels: int
    data_banks: int
    whole: bool
    kernels_outside: bool
    dma: int
    tasks: int

    @property
    def cost(self) -> int:
        return self.dma + self.tasks * limits.TASK_OVERHEAD_BYTES


def _pieces(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, step):
        yield at, min(at + step, stop)


def _covered(axis: Axis, step: int) -> int:
    """Input positions that tiles of ``step`` outputs fetch together."""
    return sum(axis.window(a, b)[1] for a, b in _pieces(*axis.valid, step))


def _widths(axis: Axis, step: int) -> list[int]:
    """Input pixels of each piece of ``step`` outputs."""
    return [axis.window(a, b)[1] for a, b in _pieces(*axis.valid, step)]


def _tile_height(axis: Axis, line_entries: int, banks: int, most: int = limits.MAX_LINES) -> int:
    """Most output lines whose input fits; 0 if not even one does."""
    lines = min(most, banks * limits.ENTRIES_PER_BANK // line_entries)
    low, high = axis.valid
    if min(axis.size, axis.window(low, high)[1]) <= lines:
        return high - low
    return max(0, (lines * axis.insert - axis.span) // axis.stride + 1)


def _even(total: int, step: int) -> int:
    """The same number of pieces, of like size."""
    return ceil_div(total, ceil_div(total, step))


def _kernel_options(problem: Problem, per_kernel: int) -> Iterator[tuple[int, int, bool]]:
    """(kernels per task, weight banks, whether they fit these) that are worth weighing."""
    group = problem.output_group
    kernels = problem.out_channels
    groups = ceil_div(kernels, group)
    most = limits.MAX_TASK_KERNELS // group
    one = ceil_div(min(group, align(kernels, 2)) * per_kernel, limits.BANK_BYTES)
    per_task = _even(groups, min(groups, most))
    if one < limits.CBUF_BANKS:
        yield min(kernels, per_task * group), min(max(one, 2), limits.CBUF_BANKS - 1), False
        if one == 1:
            yield min(kernels, per_task * group), 1, False
    seen = set()
    for banks in range(one, limits.CBUF_BANKS):
        fit = min(groups, most, banks * limits.BANK_BYTES // (group * per_kernel) or 1)
        fit = _even(groups, fit)
        if fit not in seen:
            seen.add(fit)
            yield min(kernels, fit * group), banks, True


def _depthwise_options(problem: Problem, taps_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """(channels per task, weight banks, whether they fit): depthwise weights are small, features are not."""
    group = problem.output_group
    groups = ceil_div(problem.out_channels, group)
    most = min(groups, limits.MAX_TASK_KERNELS // group)
    for count in sorted({_even(groups, ceil_div(most, cut)) for cut in range(1, most + 1)}, reverse=True):
        banks = ceil_div(count * group * taps_bytes, limits.BANK_BYTES)
        if banks < limits.CBUF_BANKS:
            yield min(problem.out_channels, count * group), banks, True


def _cuts(problem: Problem, chunk: Chunk, images: int) -> Iterator[_Cut]:
    """Every way of tiling and walking a chunk that fits the CBUF."""
    form = problem.input
    channels = chunk_channels(problem, chunk)
    per_kernel = form.nbytes(chunk.taps * channels)
    if problem.depthwise:
        options = _depthwise_options(problem, form.nbytes(chunk.taps))
    elif per_kernel > limits.MAX_BYTES_PER_KERNEL:
        return
    else:
        options = _kernel_options(problem, per_kernel)
    vertical, horizontal = axes(problem, chunk)
    for kernels, weight_banks, whole in options:
        fetched = align(kernels, form.atom_channels) if problem.depthwise else channels
        for height, width in _spatial(vertical, horizontal, problem, form.nbytes(fetched), weight_banks):
            tiles = images * _count(vertical, height) * _count(horizontal, width)
            pixels = images * _covered(vertical, height) * _covered(horizontal, width)
            blocks = ceil_div(problem.out_channels, kernels)
            features = pixels * form.nbytes(align(problem.out_channels, form.atom_channels))
            weights = form.nbytes(chunk.taps * features // pixels)
            walks: tuple[tuple[bool, int], ...] = ((True, features + weights),)
            if not problem.depthwise:
                features = pixels * form.nbytes(channels)
                weights = per_kernel * align(problem.out_channels, 2)
                walks = _walks(features, weights, tiles, blocks, whole)
            for kernels_outside, dma in walks:
                banks = limits.CBUF_BANKS - weight_banks
                yield _Cut(height, width, kernels, banks, whole, kernels_outside, dma, tiles * blocks)


def _walks(features: int, weights: int, tiles: int, blocks: int, whole: bool) -> tuple[tuple[bool, int], ...]:
    """(kernels outside, bytes fetched) of both ways through the grid; turns keep a tile, or a block that fits."""
    outside = blocks * features - (blocks - 1) * features // tiles + weights
    inside = features + tiles * weights
    if not whole:
        return ((False, inside),)
    return (True, outside), (False, inside - (tiles - 1) * weights // blocks)


def _count(axis: Axis, step: int) -> int:
    return ceil_div(axis.valid[1] - axis.valid[0], step)


def _spatial(
    vertical: Axis, horizontal: Axis, problem: Problem, pixel_bytes: int, weight_banks: int
) -> Iterator[tuple[int, int]]:
    """(height, width) in outputs of the tiles that fit beside the weights: the highest for every width."""
    columns = horizontal.valid[1] - horizontal.valid[0]
    rows = vertical.valid[1] - vertical.valid[0]
    last = 0
    for cut in _WIDTH_CUTS:
        width = ceil_div(columns, cut)
        if width == last or (problem.packed and cut > 1):
            return
        last = width
        widths = _widths(horizontal, width)
        widest = max(widths)
        slabs = ceil_div(pixel_bytes, limits.ENTRY_BYTES)
        if max(width, widest) > limits.MAX_WIDTH or (widest > 1 and (slabs - 1) * widest > limits.MAX_SLAB_START):
            continue
        slack = limits.SLACK_BANKS if 1 in widths and not problem.input.is_float else 0
        banks = limits.CBUF_BANKS - weight_banks - slack
        most = limits.MAX_IMAGE_PIXELS // widest if problem.packed else limits.MAX_LINES
        height = _tile_height(
            vertical, ceil_div(pixel_bytes * widest, limits.ENTRY_BYTES), banks, min(most, limits.MAX_LINES)
        )
        if height > 0:
            yield _even(rows, height), width


def _channel_chunks(problem: Problem, count: int) -> tuple[Chunk, ...] | None:
    """Cut the input channels into ``count`` pieces of whole channel groups; None if there are not as many."""
    unit = max(problem.input.channel_group, problem.input.atom_channels)
    groups = ceil_div(problem.channels, unit)
    if count > groups:
        return None
    step = ceil_div(groups, count) * unit
    if ceil_div(problem.channels, step) != count:
        return None
    return _chunks_of(problem, step)


def _chunks_of(problem: Problem, step: int) -> tuple[Chunk, ...]:
    taps = (0, problem.kernel_height, 0, problem.kernel_width)
    return tuple(Chunk(a, b, *taps) for a, b in _pieces(0, problem.channels, step))


def _largest_chunks(problem: Problem) -> tuple[Chunk, ...]:
    """As many channels to a piece as one task sums up, for sums that no even cut of the list fits."""
    unit = max(problem.input.channel_group, problem.input.atom_channels)
    return _chunks_of(problem, limits.MAX_CHANNELS_PER_TASK[problem.form] // unit * unit)


def _tap_chunks(problem: Problem) -> Iterator[tuple[Chunk, ...]]:
    """Cut the kernel into ever smaller pieces of lines, then of single lines' columns, by channel group."""
    unit = max(problem.input.channel_group, problem.input.atom_channels)
    channels = list(_pieces(0, problem.channels, unit))
    for pieces in range(2, problem.kernel_height + 1):
        step = ceil_div(problem.kernel_height, pieces)
        lines = list(_pieces(0, problem.kernel_height, step))
        yield tuple(Chunk(*c, *ky, 0, problem.kernel_width) for c in channels for ky in lines)
    for pieces in range(2, problem.kernel_width + 1):
        columns = list(_pieces(0, problem.kernel_width, ceil_div(problem.kernel_width, pieces)))
        yield tuple(
            Chunk(*c, ky, ky + 1, *kx) for c in channels for ky in range(problem.kernel_height) for kx in columns
        )


def _best(problem: Problem, chunks: tuple[Chunk, ...], images: int) -> list[_Cut] | None:
    """The cheapest cut of every chunk, or None if one does not fit. Like chunks are looked at once."""
    known: dict[tuple[int, ...], _Cut | None] = {}
    cuts = []
    for chunk in chunks:
        vertical, horizontal = axes(problem, chunk)
        if vertical.valid[0] == vertical.valid[1] or horizontal.valid[0] == horizontal.valid[1]:
            cuts.append(_Cut(1, 1, problem.out_channels, 1, False, False, 0, 0))
            continue
        key = (chunk.c1 - chunk.c0, chunk.ky0, chunk.ky1, chunk.kx0, chunk.kx1)
        if key not in known:
            known[key] = min(_cuts(problem, chunk, images), key=lambda cut: cut.cost, default=None)
        best = known[key]
        if best is None:
            return None
        cuts.append(best)
    return cuts


def _out_bytes(problem: Problem, chunks: int, images: int) -> int:
    pixels = problem.out_height * problem.out_width * images
    return pixels * problem.stored_outputs * OUTPUTS[npu_format(problem, chunks)].nbytes * chunks


def npu_format(problem: Problem, chunks: int) -> str:
    """The format that the NPU writes when the sum is cut into ``chunks``."""
    return PARTIAL[problem.form] if chunks > 1 or problem.form == "int4" else problem.out


@lru_cache(maxsize=256)
def make_plan(problem: Problem, images: int = 1, whole_sums: bool = False) -> Plan:
    """The cheapest plan. ValueError if the problem breaks a limit of the hardware.

    ``whole_sums``: no partial sums, so that the NPU alone computes the result.
    """
    problem.check()
    best: tuple[int, tuple[Chunk, ...], list[_Cut]] | None = None
    most = limits.MAX_CHANNELS_PER_TASK[problem.form]
    least = images * (problem.in_bytes + problem.out_bytes) + problem.weight_bytes
    for count in (1,) if problem.depthwise or whole_sums else _CHUNK_COUNTS:
        chunks = _channel_chunks(problem, count) if not problem.depthwise else _whole(problem)
        if chunks is None or (not problem.depthwise and chunks[0].c1 > most):
            continue
        written = _out_bytes(problem, len(chunks), images) * (2 if len(chunks) > 1 else 1)
        if best is not None and written + images * problem.in_bytes + problem.weight_bytes > best[0]:
            break
        cuts = _best(problem, chunks, images)
        if cuts is None:
            continue
        cost = written + sum(cut.cost for cut in cuts)
        if best is None or cost < best[0]:
            best = (cost, chunks, cuts)
        if best[0] <= least * _GOOD_ENOUGH + limits.TASK_OVERHEAD_BYTES:
            break
    if best is None and whole_sums:
        raise ValueError(f"this layer needs partial sums, which a chain of layers can not add up: {problem}")
    if best is None and not problem.depthwise:
        chunks = _largest_chunks(problem)
        cuts = _best(problem, chunks, images)
        best = None if cuts is None else (0, chunks, cuts)
    if best is None:
        best = _by_taps(problem, images)
    return _plan(problem, images, best[1], best[2])


def _whole(problem: Problem) -> tuple[Chunk, ...]:
    return (Chunk(0, problem.channels, 0, problem.kernel_height, 0, problem.kernel_width),)


def _by_taps(problem: Problem, images: int) -> tuple[int, tuple[Chunk, ...], list[_Cut]]:
    inserted = problem.insert_y > 1 or problem.insert_x > 1
    for chunks in () if problem.depthwise or inserted else _tap_chunks(problem):
        cuts = _best(problem, chunks, images)
        if cuts is not None:
            return 0, chunks, cuts
    raise ValueError(
        f"no tile of this convolution fits the CBUF ({limits.CBUF_BANKS} banks of {limits.BANK_BYTES} bytes): "
        f"{problem}; use a smaller kernel or dilation"
    )


def _plan(problem: Problem, images: int, chunks: tuple[Chunk, ...], cuts: list[_Cut]) -> Plan:
    tiles: list[Tile] = []
    for index, (chunk, cut) in enumerate(zip(chunks, cuts, strict=True)):
        tiles += _tiles(problem, index, chunk, cut, images)
    plan = Plan(problem, images, chunks, tuple(tiles), npu_format(problem, len(chunks)))
    return fetch_at_job_starts(plan, job_sizes(plan))


def _tiles(problem: Problem, index: int, chunk: Chunk, cut: _Cut, images: int) -> Iterator[Tile]:
    """The grid of a chunk, walked to and fro."""
    vertical, horizontal = axes(problem, chunk)
    places = [
        (image, *y, *x)
        for image in range(images)
        for y in _pieces(*vertical.valid, cut.tile_height)
        for x in _pieces(*horizontal.valid, cut.tile_width)
    ]
    blocks = list(_pieces(0, problem.out_channels, cut.kernels))
    if cut.kernels_outside:
        grid = [(place, block) for at, block in enumerate(blocks) for place in places[:: -1 if at % 2 else 1]]
    else:
        grid = [(place, block) for at, place in enumerate(places) for block in blocks[:: -1 if at % 2 else 1]]
    before: tuple[object, object] = (None, None)
    for place, block in grid:
        weight_reuse = cut.whole and before[1] == block
        data_reuse = not problem.depthwise and before[0] == place
        image, y0, y1, x0, x1 = place
        yield Tile(image, index, y0, y1, x0, x1, *block, cut.data_banks, weight_reuse, data_reuse)
        before = (place, block)


@dataclass(frozen=True)
class Part:
    """What one core does: images [i0, i1), output lines [y0, y1), kernels [n0, n1) of a problem."""

    i0: int
    i1: int
    y0: int
    y1: int
    n0: int
    n1: int
    plan: Plan


def _part(problem: Problem, i: tuple[int, int], y: tuple[int, int], n: tuple[int, int]) -> Part:
    sub = problem.lines(*y)
    if n != (0, problem.out_channels):
        sub = replace(sub, out_channels=n[1] - n[0], channels=n[1] - n[0] if sub.depthwise else sub.channels)
    return Part(*i, *y, *n, make_plan(sub, i[1] - i[0]))


def split(problem: Problem, images: int, cores: int) -> tuple[Part, ...]:
    """Cut a problem into at most ``cores`` independent parts along images, output lines or kernels.

    Of the splits that use most cores, the one with the fewest DMA bytes over all parts.
    """
    everything = ((0, images), (0, problem.out_height), (0, problem.out_channels))
    problem.check()
    if cores == 1:
        return (_part(problem, *everything),)
    units = (1, 1, problem.output_group)
    candidates = []
    for axis, (whole, unit) in enumerate(zip(everything, units, strict=True)):
        step = align(ceil_div(whole[1], cores), unit)
        parts = []
        for piece in _pieces(*whole, step):
            ranges = list(everything)
            ranges[axis] = piece
            parts.append(_part(problem, *ranges))
        dma = sum(part.plan.dma_bytes for part in parts)
        candidates.append((-len(parts), dma, axis, tuple(parts)))
    return min(candidates, key=lambda candidate: candidate[:3])[3]
