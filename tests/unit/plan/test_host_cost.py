# SPDX-License-Identifier: MIT
"""What the host allocates beyond the buffers that it shares with the NPU: at most one copy of the operands."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from rknpu_userspace.backend.model import ModelContext
from rknpu_userspace.formats import INPUTS, OUTPUTS
from rknpu_userspace.ops.convolution import Weights, build
from rknpu_userspace.plan import Problem, split
from rknpu_userspace.plan.tasks import Post

SPARE = 1 << 18
"""Plans, descriptions of tasks, interpreter."""


def arrays(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, kernels, results."""
    kind = np.dtype(INPUTS[problem.form].dtype)
    kernel = (problem.kernel_height, problem.kernel_width)
    shape = (*kernel, problem.channels) if problem.depthwise else (problem.out_channels, *kernel, problem.channels)
    out = np.dtype(OUTPUTS[problem.out].dtype)
    image = np.zeros((1, problem.height, problem.width, problem.channels), kind)
    return (
        image,
        np.zeros(shape, kind),
        np.zeros((1, problem.out_height, problem.out_width, problem.out_channels), out),
    )


@pytest.mark.parametrize(
    "problem",
    [
        Problem.matmul("int8", "int32", 512, 1536, 2048),
        Problem.matmul("int8", "int8", 300, 1536, 1000),
        Problem.matmul("float16", "float32", 256, 1024, 1024),
        Problem.matmul("int8", "int32", 301, 1001, 1777),
        Problem("int8", "int32", 55, 57, 250, 251, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, lines_in=True),
        Problem.matmul("int8", "int32", 128, 8960, 512),
        Problem("int8", "int32", 56, 56, 256, 256, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, lines_in=True),
        Problem("float16", "float16", 56, 56, 128, 512, lines_in=True),
        Problem("int8", "int8", 112, 112, 256, 256, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, depthwise=True, lines_in=True),
    ],
)
def test_extra_memory(problem: Problem) -> None:
    """Compiling, packing and unpacking; what the model allocates to compute does not count."""
    image, kernels, out = arrays(problem)
    context = ModelContext(0)
    part = split(problem, 1, 1)[0]
    peaks: dict[str, Any] = {}
    tracemalloc.start()
    try:
        (unit,) = build([context], [part], Weights(kernels, None, Post()), "operands")
        peaks["compile"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unit.pack(image)
        peaks["pack"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unit.unpack(out)
        peaks["unpack"] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peaks["compile"] <= problem.weight_bytes + SPARE
    assert peaks["pack"] <= image.nbytes // 8 + SPARE
    assert peaks["unpack"] <= (2 * out.nbytes if part.plan.partial else SPARE) + SPARE
    unit.close()
