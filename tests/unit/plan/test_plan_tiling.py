# SPDX-License-Identifier: MIT
"""Plans: every output once, within the limits of a task, inputs that the tiles need, splits that cover the problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.formats import COMBINATIONS
from rknpu_userspace.plan import Plan, Problem, limits, make_plan, split
from rknpu_userspace.plan.geometry import axes
from rknpu_userspace.plan.tasks import (
    Places,
    Post,
    fetch_at_job_starts,
    job_sizes,
    last_atom,
    out_place,
    seconds,
    tasks,
)
from rknpu_userspace.task import Conv


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Convolutions and matmuls, small and far larger than the CBUF."""
    form = draw(st.sampled_from(("int8", "float16")))
    out = draw(st.sampled_from(COMBINATIONS[form]))
    channels = draw(st.sampled_from((1, 3, 16, 17, 64, 500, 2000)) | st.integers(1, 3000))
    outputs = draw(st.sampled_from((1, 16, 33, 128)) | st.integers(1, 700))
    if draw(st.booleans()):
        rows = draw(st.integers(1, 1500))
        return Problem(form, out, rows, 1, channels, outputs, rows_in=True, rows_out=True)
    kernel = draw(st.sampled_from((1, 2, 3, 5, 7)))
    pad = draw(st.integers(0, min(15, kernel - 1)))
    height, width = draw(st.integers(kernel, 90)), draw(st.integers(kernel, 300))
    stride = draw(st.integers(1, 3))
    return Problem(
        form, out, height, width, channels, outputs, kernel, kernel, stride, stride, 1, 1, pad, pad // 2, pad // 3, pad
    )


def check_cover(plan: Plan) -> None:
    """Every valid output of every chunk is written by exactly one tile, and the chunks make up the sum."""
    problem = plan.problem
    taps = sum((chunk.c1 - chunk.c0) * chunk.taps for chunk in plan.chunks)
    assert taps == problem.channels * problem.kernel_height * problem.kernel_width
    for index, chunk in enumerate(plan.chunks):
        vertical, horizontal = axes(problem, chunk)
        count = np.zeros((problem.out_height, problem.out_width, -(-problem.out_channels // 16)), np.int8)
        for tile in plan.tiles:
            if tile.chunk == index and tile.image == 0:
                count[tile.y0 : tile.y1, tile.x0 : tile.x1, tile.n0 // 16 : -(-tile.n1 // 16)] += 1
        inside = np.zeros(count.shape[:2], bool)
        inside[slice(*vertical.valid), slice(*horizontal.valid)] = True
        assert (count[inside] == 1).all()
        assert (count[~inside] == 0).all()


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_tiles_cover_and_fit(problem: Problem) -> None:
    plan = make_plan(problem)
    check_cover(plan)
    places = Places(0, (0,) * len(plan.chunks), 0, 0)
    before: Conv | None = None
    for tile, task in zip(plan.tiles, tasks(plan, Post(), places), strict=True):
        conv = task.conv
        assert conv is not None
        assert conv.height <= limits.MAX_LINES
        assert max(conv.width, conv.out_width) <= limits.MAX_WIDTH
        assert conv.data_banks + conv.weight_banks == 12
        used = -(-conv.data_entries * 64 * conv.height // 32768)
        slack = int(conv.width == 1 and problem.form == "int8")
        assert used + slack <= conv.data_banks
        assert conv.bytes_per_kernel <= limits.MAX_BYTES_PER_KERNEL
        group = min(conv.kernels, problem.input.kernel_group) * conv.bytes_per_kernel
        assert group <= conv.weight_banks * 32768
        if tile.weight_reuse:
            assert before is not None
            assert (before.weight_address, before.weight_bytes) == (conv.weight_address, conv.weight_bytes)
            assert conv.weight_bytes <= conv.weight_banks * 32768
        if tile.data_reuse:
            assert before is not None
            assert (before.feature_address, before.height, before.width) == (
                conv.feature_address,
                conv.height,
                conv.width,
            )
        before = conv
        assert conv.width == 1 or (-(-conv.data_entries // conv.width) - 1) * conv.width <= limits.MAX_SLAB_START
        assert max(conv.pad_top, conv.pad_left) <= 15
        assert problem.form not in limits.MAX_CHANNELS_PER_TASK or (
            conv.channels_real <= limits.MAX_CHANNELS_PER_TASK[problem.form]
        )


@settings(max_examples=50, deadline=None)
@given(problem=problems(), cores=st.integers(1, 3), images=st.integers(1, 4))
def test_split_covers(problem: Problem, cores: int, images: int) -> None:
    parts = split(problem, images, cores)
    assert 1 <= len(parts) <= cores
    total = 0
    for part in parts:
        sub = part.plan.problem
        assert (sub.out_height, sub.out_channels) == (part.y1 - part.y0, part.n1 - part.n0)
        assert part.plan.images == part.i1 - part.i0
        top, bottom = problem.input_lines(part.y0, part.y1)
        assert bottom - top == sub.height
        total += (part.i1 - part.i0) * sub.out_height * sub.out_channels
    assert total == images * problem.out_height * problem.out_channels


def test_matmul_that_fits_is_one_task() -> None:
    plan = make_plan(Problem("int8", "int32", 64, 1, 64, 64, rows_in=True, rows_out=True))
    assert len(plan.tiles) == 1
    assert plan.dma_bytes == plan.bound_bytes == 64 * 64 * 6


def test_long_sums_are_cut_when_that_moves_less() -> None:
    """128 x 8960 features do not fit the CBUF; fetching 13 MB of weights for every few rows would be far worse."""
    plan = make_plan(Problem("int8", "int32", 128, 1, 8960, 1536, rows_in=True, rows_out=True))
    assert plan.partial
    assert plan.dma[1] == plan.problem.weight_bytes
    assert plan.dma_bytes < 1.3 * plan.bound_bytes


def test_wide_image_is_cut_into_columns() -> None:
    plan = make_plan(Problem("int8", "int8", 4, 5000, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1))
    assert max(tile.x1 - tile.x0 for tile in plan.tiles) <= limits.MAX_WIDTH
    assert len({tile.x0 for tile in plan.tiles}) > 1


def test_kernel_group_larger_than_the_cbuf_is_cut_by_taps() -> None:
    plan = make_plan(Problem("int8", "int32", 40, 40, 16, 32, 31, 31, 1, 1, 1, 1, 15, 15, 15, 15))
    assert plan.partial
    assert {(chunk.c0, chunk.c1) for chunk in plan.chunks} == {(0, 16)}


def test_jobs_end_before_the_driver_loses_patience() -> None:
    plan = make_plan(Problem("int8", "int32", 1020, 1, 8192, 16384, rows_in=True, rows_out=True))
    sizes = job_sizes(plan)
    assert sum(sizes) == len(plan.tiles)
    assert len(sizes) > 1
    first = 0
    for size in sizes:
        chosen = plan.tiles[first : first + size]
        assert size == 1 or sum(seconds(plan, tile) for tile in chosen) <= limits.MAX_JOB_SECONDS
        first += size


def test_last_atom_is_inside_the_tile() -> None:
    problem = Problem("int8", "int32", 20, 300, 64, 96, 3, 3)
    plan = make_plan(replace(problem, width=2500))
    ends = set()
    for tile in plan.tiles:
        offset, _, _ = out_place(plan, tile)
        end = last_atom(plan, tile)
        assert offset <= end <= plan.image_bytes * len(plan.chunks) - 16
        assert end % 16 == 0
        ends.add(end)
    assert len(ends) == len(plan.tiles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_height": 32}, "kernel height 32 is outside 1..31 .* nearest legal value is 31"),
        ({"stride_x": 8}, "horizontal stride 8 is outside 1..7"),
        ({"stride_y": 0}, "vertical stride 0 is outside 1..7 .* nearest legal value is 1"),
        ({"dilation_y": 33}, "vertical dilation 33 is outside 1..32"),
        ({"kernel_width": 20, "pad_left": 16}, "left padding 16 is outside 0..15 .*4-bit"),
        ({"pad_top": 3}, "top padding 3 is outside 0..2 .*padding alone"),
        ({"channels": 0}, "channels is zero"),
        ({"height": 2}, "window is larger"),
    ],
)
def test_limits_are_named(change: dict[str, int], message: str) -> None:
    problem = Problem("int8", "int32", 64, 64, 16, 16, 3, 3)
    with pytest.raises(ValueError, match=message):
        make_plan(replace(problem, **change))


def test_first_task_of_a_job_fetches_its_weights() -> None:
    """Another program's job may have run on the core in between."""
    plan = make_plan(Problem("int8", "int8", 1000, 1900, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1))
    sizes = [3, 5, len(plan.tiles) - 8]
    assert plan.tiles[3].weight_reuse
    changed = fetch_at_job_starts(plan, sizes)
    assert [changed.tiles[index].weight_reuse for index in (0, 2, 3, 4, 8, 9)] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    assert [tile.y0 for tile in changed.tiles] == [tile.y0 for tile in plan.tiles]


def test_whole_sums() -> None:
    problem = Problem("int8", "int32", 128, 1, 8960, 1536, rows_in=True, rows_out=True)
    assert make_plan(replace(problem, channels=4096)).partial
    assert not make_plan(replace(problem, channels=4096), 1, whole_sums=True).partial
    with pytest.raises(ValueError, match="needs partial sums"):
        make_plan(replace(problem, channels=9000), 1, whole_sums=True)


def test_long_int4_sums_whose_even_cuts_are_all_too_long() -> None:
    problem = Problem(
        form="int4", out="int32", height=1, width=1, channels=20011, out_channels=1, kernel_height=1, kernel_width=1,
        rows_in=True, rows_out=True,
    )  # fmt: skip
    chunks = make_plan(problem).chunks
    assert max(chunk.c1 - chunk.c0 for chunk in chunks) == 480
    assert sum(chunk.c1 - chunk.c0 for chunk in chunks) == 20011
