# SPDX-License-Identifier: MIT
"""Plans of every kind of problem: each output once, in memory too; tasks within the model's rules; reuse that holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace import regcmd
from rknpu_userspace.formats import ATOM, COMBINATIONS, INPUTS, OUTPUTS
from rknpu_userspace.layout import align
from rknpu_userspace.model.estimate import convolution
from rknpu_userspace.plan import Plan, Problem, limits, make_plan, split
from rknpu_userspace.plan.tasks import Places, Post, job_sizes, out_place, tasks
from rknpu_userspace.task import Conv

PLACES = (0x1000000, 0x2000000, 0x3000000)
sizes = st.sampled_from((1, 2, 3, 5, 7, 13, 16, 17, 31, 32, 33, 64, 97, 128, 251, 509, 1021)) | st.integers(1, 1200)


@st.composite
def matmuls(draw: st.DrawFn) -> Problem:
    """Any format, row-major or native, sums that need to be cut included."""
    form = draw(st.sampled_from(sorted(INPUTS)))
    out = draw(st.sampled_from(COMBINATIONS[form]))
    inner = draw(sizes | st.sampled_from((1537, 4096, 8960, 20011)))
    native = form != "int4" and draw(st.booleans())
    return Problem.matmul(form, out, draw(sizes), inner, draw(sizes), native)


@st.composite
def convolutions(draw: st.DrawFn) -> Problem:
    """Kernels, strides, dilations and paddings that differ by side; cubes, lines, packed images; depthwise."""
    form = draw(st.sampled_from(("int8", "float16", "bfloat16")))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    span = tuple((taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True))
    pads = [draw(st.integers(0, min(15, span[side % 2] - 1))) for side in range(4)]
    height, width = draw(st.integers(span[0], 60)), draw(st.integers(span[1], 200) | st.sampled_from((2048, 3001)))
    channels, outputs = draw(sizes), draw(sizes)
    if height * width * channels * kernel[0] * kernel[1] > 1 << 27:  # thousands of tasks show nothing new
        channels = 16
    kind = draw(st.sampled_from(("cube", "lines", "depthwise", "packed")))
    out = draw(st.sampled_from(COMBINATIONS[form]))
    if kind == "depthwise":
        outputs = channels
        out = {"int8": "int8", "float16": "float16", "bfloat16": "bfloat16"}[form]
    if kind == "packed":
        channels, form, width = draw(st.integers(1, 4)), "int8", min(width, 200)
        out, dilation = draw(st.sampled_from(COMBINATIONS[form])), (1, 1)
        pads = [min(pad, kernel[side % 2] - 1) for side, pad in enumerate(pads)]
    return Problem(
        form,
        out,
        height,
        width,
        channels,
        outputs,
        *kernel,
        *stride,
        *dilation,
        *pads,
        depthwise=kind == "depthwise",
        packed=kind == "packed",
        lines_in=kind == "lines",
    )


def check_cover(plan: Plan) -> None:
    """Every output whose window touches the input, of every image and chunk, is computed by exactly one tile."""
    problem = plan.problem
    bounds = sorted({bound for tile in plan.tiles for bound in (tile.n0, tile.n1)})
    assert not plan.tiles or (bounds[0], bounds[-1]) == (0, problem.out_channels)
    for image in range(plan.images):
        for index, (vertical, horizontal) in enumerate(plan.axes):
            count = np.zeros((len(bounds) - 1, problem.out_height, problem.out_width), np.int8)
            for tile in plan.tiles:
                if (tile.chunk, tile.image) == (index, image):
                    kernels = slice(bounds.index(tile.n0), bounds.index(tile.n1))
                    count[kernels, tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
            inside = count[:, slice(*vertical.valid), slice(*horizontal.valid)]
            assert (inside == 1).all()
            assert count.sum() == inside.size


def check_memory(plan: Plan) -> None:
    """No two tasks of a plan write the same atom, and none writes outside of the output."""
    written = np.zeros(plan.images * len(plan.chunks) * plan.image_bytes // ATOM, np.int8)
    for tile in plan.tiles:
        offset, surface, notch = out_place(plan, tile)
        width, height = tile.x1 - tile.x0, tile.y1 - tile.y0
        surfaces = align(tile.n1 - tile.n0, plan.problem.output_group) * OUTPUTS[plan.out].nbytes // ATOM
        line = np.arange(height)[:, None] * (width + notch) + np.arange(width)
        atoms = offset // ATOM + np.arange(surfaces)[:, None, None] * (surface // ATOM) + line
        assert atoms.max() < len(written)
        written[atoms] += 1
    assert written.max(initial=0) <= 1


def check_tasks(plan: Plan) -> None:
    """The model accepts every task; what a task reuses is what the one before has left."""
    features, weights, bias = PLACES
    starts = {sum(job_sizes(plan)[:index]) for index in range(len(job_sizes(plan)))}
    before: Conv | None = None
    places = Places(features, tuple(weights + 0x100000 * index for index in range(len(plan.chunks))), bias, 0)
    for index, task in enumerate(tasks(plan, Post(), places)):
        convolution(regcmd.encode(task))
        conv = task.conv
        assert conv is not None
        slack = limits.SLACK_BANKS if conv.width == 1 and not plan.problem.input.is_float else 0
        if not plan.problem.packed:
            assert (
                -(-conv.data_entries * limits.ENTRY_BYTES * conv.height // limits.BANK_BYTES) + slack <= conv.data_banks
            )
        if conv.data_reuse or conv.weight_reuse:
            assert index not in starts
            assert before is not None
            assert conv.data_banks == before.data_banks
            assert not (conv.data_reuse and conv.weight_reuse)
        if conv.weight_reuse and before is not None:
            assert conv.weight_bytes <= conv.weight_banks * limits.BANK_BYTES
            assert (conv.weight_address, conv.weight_bytes) == (before.weight_address, before.weight_bytes)
        if conv.data_reuse and before is not None:
            place = (conv.feature_address, conv.height, conv.width, conv.channels)
            assert place == (before.feature_address, before.height, before.width, before.channels)
        before = conv


def check(plan: Plan) -> None:
    check_cover(plan)
    check_tasks(plan)
    if plan.images * len(plan.chunks) * plan.image_bytes < 1 << 26:
        check_memory(plan)
    if plan.problem.form != "int4":  # whose sums the NPU writes as int16 and the host widens
        assert plan.dma_bytes >= plan.bound_bytes


@settings(max_examples=60, deadline=None)
@given(problem=matmuls(), whole=st.booleans())
def test_matmuls(problem: Problem, whole: bool) -> None:
    try:
        plan = make_plan(problem, 1, whole)
    except ValueError as error:
        assert whole
        assert "needs partial sums" in str(error)
    else:
        check(plan)


@settings(max_examples=60, deadline=None)
@given(problem=convolutions(), images=st.integers(1, 3))
def test_convolutions(problem: Problem, images: int) -> None:
    check(make_plan(problem, images))


@settings(max_examples=30, deadline=None)
@given(problem=convolutions() | matmuls(), images=st.integers(1, 3), cores=st.integers(2, 3))
def test_parts_of_cores(problem: Problem, images: int, cores: int) -> None:
    images = 1 if problem.rows_in else images
    for part in split(problem, images, cores):
        check_cover(part.plan)
        check_tasks(part.plan)


def test_slab_rule_narrows_tiles() -> None:
    """1024 channels of int8 are 16 slabs: tiles of at most 136 columns, though the CBUF holds more."""
    plan = make_plan(Problem("int8", "int8", 8, 200, 1024, 64))
    assert max(tile.x1 - tile.x0 for tile in plan.tiles) <= limits.MAX_SLAB_START // 15
    check(plan)


@pytest.mark.parametrize("rows", [1, 5, 171, 512])
def test_floats_need_no_slack(rows: int) -> None:
    check(make_plan(Problem.matmul("float16", "float16", rows, 1536, 1536)))
