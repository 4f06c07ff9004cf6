# SPDX-License-Identifier: MIT
"""The bytes that a plan promises are those that the model counts, and those that are read off the command words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace import regcmd
from rknpu_userspace.backend.model import ModelContext
from rknpu_userspace.formats import COMBINATIONS, INPUTS
from rknpu_userspace.model.cost import Meter
from rknpu_userspace.model.estimate import convolution
from rknpu_userspace.model.results import TaskStats
from rknpu_userspace.ops.convolution import Weights, build
from rknpu_userspace.plan import Plan, Problem, make_plan, split
from rknpu_userspace.plan.tasks import Places, Post, tasks

SIZES = (1, 2, 7, 13, 16, 17, 31, 33, 61, 64, 97, 128)


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Problems that the model computes quickly: odd, prime and off-atom sizes, direct and depthwise, both layouts."""
    form = draw(st.sampled_from(("int8", "float16")))
    out = draw(st.sampled_from(COMBINATIONS[form]))
    channels, outputs = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(("matmul", "conv", "depthwise")))
    if kind == "matmul":
        rows, inner = draw(st.sampled_from((1, 5, 131, 700))), draw(st.sampled_from((17, 500, 1537, 3000)))
        rows_in = draw(st.booleans())
        return Problem(form, out, rows, 1, inner, outputs, rows_in=rows_in, rows_out=rows_in)
    kernel, stride = draw(st.sampled_from((1, 2, 3, 5))), draw(st.integers(1, 3))
    height, width = draw(st.integers(kernel, 40)), draw(st.integers(kernel, 50))
    pads = [draw(st.integers(0, kernel - 1)) for _ in range(4)]
    lines = draw(st.booleans())
    steps = (kernel, kernel, stride, stride, 1, 1)
    if kind == "depthwise":
        narrow = "int8" if form == "int8" else "float16"
        return Problem(form, narrow, height, width, channels, channels, *steps, *pads, depthwise=True, lines_in=lines)
    return Problem(form, out, height, width, channels, outputs, *steps, *pads, lines_in=lines)


def run(problem: Problem) -> tuple[Plan, TaskStats]:
    """Run the problem over zeros; its plan, and what the model counted."""
    part = split(problem, 1, 1)[0]
    kernel = (problem.kernel_height, problem.kernel_width)
    shape = (*kernel, problem.channels) if problem.depthwise else (problem.out_channels, *kernel, problem.channels)
    kernels = np.zeros(shape, INPUTS[problem.form].dtype)
    context = ModelContext(0)
    (unit,) = build([context], [part], Weights(kernels, None, Post()), "zeros")
    unit.start()
    unit.wait(60)
    unit.close()
    return part.plan, context.stats


def estimated(plan: Plan) -> Meter:
    """The sum over the plan's command words."""
    total = Meter()
    for task in tasks(plan, Post(), Places(0, (0,) * len(plan.chunks), 0, 0)):
        meter = convolution(regcmd.encode(task))
        for unit, count in meter.dma_bytes.items():
            total.dma(unit, count)
        total.macs += meter.macs
        total.mac_cycles += meter.mac_cycles
        total.dpu_atoms += meter.cycles()
    return total


@settings(max_examples=40, deadline=None)
@given(problem=small())
def test_plan_estimate_and_model_agree(problem: Problem) -> None:
    plan, stats = run(problem)
    total = estimated(plan)
    assert plan.dma == tuple(stats.dma_bytes.get(unit, 0) for unit in ("feature", "weight", "wdma"))
    assert {unit: count for unit, count in total.dma_bytes.items() if count} == stats.dma_bytes
    assert (total.macs, total.mac_cycles, total.dpu_atoms) == (stats.macs, stats.mac_cycles, stats.cycles)
    assert plan.dma_bytes >= plan.bound_bytes


@pytest.mark.parametrize(
    "problem",
    [
        Problem("int8", "int8", 300, 1, 1536, 320, rows_in=True, rows_out=True),
        Problem("int8", "int32", 200, 1, 6000, 96, rows_in=True, rows_out=True),
        Problem("float16", "float32", 150, 1, 1536, 128, rows_in=True, rows_out=True),
        Problem("int8", "int8", 56, 56, 512, 96, 1, 1),
        Problem("int8", "int8", 40, 90, 256, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1),
    ],
)
def test_larger_than_the_cbuf(problem: Problem) -> None:
    plan, stats = run(problem)
    assert len(plan.tiles) > 1
    assert plan.dma == tuple(stats.dma_bytes[unit] for unit in ("feature", "weight", "wdma"))


def test_features_stay_while_all_kernels_pass() -> None:
    """More kernels than one task takes: the tile's features are fetched once."""
    plan = make_plan(Problem("int8", "int8", 128, 1, 1536, 8960, rows_in=True, rows_out=True))
    assert [(tile.data_reuse, tile.weight_reuse) for tile in plan.tiles] == [
        (False, False),
        (True, False),
        (True, False),
    ]
    assert plan.dma_bytes == plan.bound_bytes


def test_turns_keep_what_the_cbuf_holds() -> None:
    """Walked to and fro: the tile at which a line of the grid ends is the one at which the next begins."""
    plan = make_plan(Problem("float16", "float16", 512, 1, 1536, 256, rows_in=True, rows_out=True), 1, True)
    for before, tile in zip(plan.tiles, plan.tiles[1:], strict=False):
        same_place = (before.chunk, before.y0, before.x0) == (tile.chunk, tile.y0, tile.x0)
        same_kernels = (before.chunk, before.n0) == (tile.chunk, tile.n0)
        assert tile.data_reuse == same_place
        assert not tile.weight_reuse or same_kernels
        assert same_place or same_kernels
