# SPDX-License-Identifier: MIT
"""Kernels of one line with a vertical stride: the lines in between are not fetched, and results stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rknpu_userspace.backend.model import ModelContext
from rknpu_userspace.ops.convolution import Weights, build
from rknpu_userspace.plan import Problem, split
from rknpu_userspace.plan.tasks import Post


@pytest.mark.parametrize("lines_in", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        Problem("int8", "int32", 28, 28, 512, 96, 1, 1, 2, 2),
        Problem("int8", "int32", 57, 30, 700, 40, 1, 1, 3, 1),
        Problem("int8", "int32", 9, 11, 17, 5, 1, 3, 2, 2, 1, 1, 0, 1, 0, 2),
        Problem("int8", "int32", 10, 2100, 32, 33, 1, 1, 4, 2),
    ],
)
@pytest.mark.parametrize("cores", [1, 3])
def test_lines_in_between_stay_where_they_are(problem: Problem, lines_in: bool, cores: int) -> None:
    rng = np.random.default_rng(1)
    problem = replace(problem, lines_in=lines_in)
    image = rng.integers(-128, 128, (problem.height, problem.width, problem.channels), dtype=np.int8)
    shape = (problem.out_channels, 1, problem.kernel_width, problem.channels)
    kernels = rng.integers(-128, 128, shape, dtype=np.int8)
    wide = np.pad(image, ((0, 0), (problem.pad_left, problem.pad_right), (0, 0))).astype(np.float64)
    expected = np.zeros((problem.out_height, problem.out_width, problem.out_channels))
    for tap in range(problem.kernel_width):
        window = wide[:: problem.stride_y, tap:][:, : (problem.out_width - 1) * problem.stride_x + 1 : problem.stride_x]
        expected += window @ kernels[:, 0, tap].T.astype(np.float64)
    out = np.zeros((1, *expected.shape), np.int32)
    fetched = 0
    parts = split(problem, 1, cores)
    contexts = [ModelContext(core) for core in range(cores)]
    for part, unit in zip(parts, build(contexts, parts, Weights(kernels, None, Post()), "conv"), strict=False):
        top, bottom = problem.input_lines(part.y0, part.y1)
        unit.pack(image[None, top:bottom])
        unit.start()
        unit.wait(60)
        unit.unpack(out[:, part.y0 : part.y1, :, part.n0 : part.n1])
        fetched += part.plan.dma[0]
    assert np.array_equal(out[0], expected)
    if cores == 1:
        lines = -(-problem.height // problem.stride_y)
        assert fetched <= 1.2 * lines * problem.width * problem.input.nbytes(problem.stored_channels)
