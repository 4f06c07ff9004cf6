# SPDX-License-Identifier: MIT
"""Pooling on the model: maximum and minimum bit for bit, the average as a requantised sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.pool import Pool2d, average_pool
from rknpu_userspace.ops.pool import reference as pool_reference
from rknpu_userspace.quant import derive


def images(form: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, shape, dtype=np.int8) if form == "int8" else rng.normal(size=shape).astype("f2")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(("max", "min")),
    form=st.sampled_from(("int8", "float16")),
    shape=st.tuples(st.integers(1, 2), st.integers(4, 15), st.integers(4, 15), st.integers(1, 50)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    choice=st.data(),
    cores=st.integers(1, 3),
)
def test_extremes(
    npu: Device, kind: str, form: str, shape: Any, kernel: Any, stride: Any, choice: st.DataObject, cores: int
) -> None:
    padding = tuple(choice.draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    x = images(form, shape, 3)
    with npu.compile(Pool2d(kind, form, shape, kernel, stride=stride, padding=padding), cores=cores) as program:
        assert np.array_equal(program(x), pool_reference(kind, x, kernel, stride, padding))


def test_average_int8(npu: Device) -> None:
    x = images("int8", (2, 12, 10, 70), 1)
    operation = average_pool("int8", x.shape, 3, stride=2, padding=1, scale=0.7, x_zero_point=9, out_zero_point=-4)
    with npu.compile(operation) as program:
        result = program(x)
    expected = reference.conv2d(
        x,
        np.ones((70, 3, 3, 1), np.int8),
        stride=(2, 2),
        padding=(1,) * 4,
        groups=70,
        x_zero_point=9,
        requant=derive(0.7 / 9, -4),
    )
    assert np.array_equal(result, expected)
    wide = np.pad(x - 9.0, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))[:, ::2, ::2]
    real = np.clip(windows.mean(axis=(-2, -1)) * 0.7 - 4, -128, 127)
    assert np.abs(result - real).max() <= 0.51


def test_global_average(npu: Device) -> None:
    """The window is the image: no stride limit applies."""
    x = images("float16", (1, 13, 11, 40), 2)
    with npu.compile(average_pool("float16", x.shape, (13, 11))) as program:
        assert np.allclose(program(x)[0, 0, 0], x.astype(float).mean(axis=(0, 1, 2)), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("mean", "int8", (1, 8, 8, 8), 2), {}, ValueError, "max, min, not 'mean'"),
        (("max", "int32", (1, 8, 8, 8), 2), {}, TypeError, "takes int8, float16, not int32"),
        (("max", "int8", (8, 8, 8), 2), {}, ValueError, r"must be \(N, H, W, C\)"),
        (("max", "int8", (1, 40, 40, 8), 17), {}, ValueError, "vertical kernel 17 is outside 1..16"),
        (("max", "int8", (1, 8, 8, 8), 2), {"padding": 2}, ValueError, "top padding 2 is outside 0..1"),
        (("max", "int8", (1, 3, 3, 8), 4), {}, ValueError, "window is larger"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pool2d(*arguments, **options)
