# SPDX-License-Identifier: MIT
"""Calls of a device that the table's trials do not reach: axes, conv1d paddings, activations behind sums, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.ops import activation, reference
from rknpu_userspace.ops.activation import UnaryScales


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), keepdims=st.booleans(), choice=st.data())
def test_axes(npu: Device, shape: tuple[int, ...], keepdims: bool, choice: st.DataObject) -> None:
    axes = choice.draw(st.none() | st.sets(st.integers(0, len(shape) - 1), min_size=1).map(tuple))
    x = np.random.default_rng(1).integers(-128, 128, shape, dtype=np.int8)
    result = npu.sum(x, axes, keepdims=keepdims)
    expected = x.sum(axis=axes, dtype=np.int32, keepdims=keepdims)
    assert result.dtype == np.int32
    assert result.shape == np.shape(expected)
    assert np.array_equal(result, expected)


def test_long_sums_and_negative_axes(npu: Device) -> None:
    x = np.random.default_rng(2).integers(-128, 128, (3, 50001), dtype=np.int8)
    assert np.array_equal(npu.sum(x, -1), x.sum(axis=-1, dtype=np.int32))
    mean = npu.mean(x.astype(np.float16), -1)
    assert mean.dtype == np.float32
    assert np.allclose(mean, x.mean(axis=-1), atol=1e-3)


@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky_relu", "gelu", "tanh"])
def test_activations_behind_sums(npu: Device, kind: str) -> None:
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(2, 5, 6, 8)).astype(np.float16), rng.normal(size=(9, 3, 3, 8)).astype(np.float16)
    plain = npu.conv2d(x, w, padding=1, out_dtype="float16")
    result = npu.conv2d(x, w, padding=1, out_dtype="float16", activation=kind)
    real = activation.reference(kind, plain)
    assert result.dtype == np.float16
    assert (np.abs(result - real) <= 3e-3 + 2e-3 * np.abs(real)).all()


def test_relu_of_int8(npu: Device) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(-128, 128, (7, 30), dtype=np.int8), rng.integers(-128, 128, (5, 30), dtype=np.int8)
    result = npu.linear(a, b, scale=1e-3, activation="relu")
    assert np.array_equal(result, np.maximum(npu.linear(a, b, scale=1e-3), 0))
    with pytest.raises(ValueError, match="gelu of an int8 result needs its scales"):
        npu.linear(a, b, scale=1e-3, activation="gelu")


def test_images_without_a_batch(npu: Device) -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
    w = rng.integers(-128, 128, (4, 3, 3, 3), dtype=np.int8)
    assert np.array_equal(npu.conv2d(x, w), reference.conv2d(x[None], w)[0])
    y = rng.integers(-128, 128, (8, 9, 3), dtype=np.int8)
    assert np.array_equal(npu.conv_transpose2d(y, w), reference.conv_transpose2d(y[None], w)[0])
    assert npu.max_pool2d(y, 2).shape == (4, 4, 3)


@pytest.mark.parametrize("padding", [0, 2, (2, 0), (1, 2)])
def test_conv1d(npu: Device, padding: Any) -> None:
    rng = np.random.default_rng(6)
    x, w = rng.integers(-128, 128, (2, 40, 5), dtype=np.int8), rng.integers(-128, 128, (6, 3, 5), dtype=np.int8)
    before, after = (padding, padding) if isinstance(padding, int) else padding
    expected = reference.conv2d(x[:, None], w[:, None], stride=(1, 2), padding=(0, before, 0, after), dilation=(1, 2))
    result = npu.conv1d(x, w, stride=2, padding=padding, dilation=2)
    assert np.array_equal(result, expected[:, 0])
    assert np.array_equal(npu.conv1d(x[0], w, stride=2, padding=padding, dilation=2), result[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda npu: npu.sum(np.ones((2, 2), np.int8), 5), ValueError, r"axis 5 is outside -2\.\.1"),
        (lambda npu: npu.sum(np.ones((2, 2), np.int8), (0, 0)), ValueError, "names no axis, or one twice"),
        (lambda npu: npu.sum(np.ones((2, 2), np.int8), 0.5), TypeError, "axis must be an integer"),
        (lambda npu: npu.sum(np.ones((2, 0), np.int8)), ValueError, "empty"),
        (lambda npu: npu.mean(np.ones((2, 2), np.float16), scale=2.0), ValueError, "are for means of int8"),
        (lambda npu: npu.mean(np.ones((2, 2), np.int8), scale=-1.0), ValueError, "scale must be finite and positive"),
        (lambda npu: npu.conv1d(np.ones(3, np.int8), np.ones((1, 1, 1), np.int8)), ValueError, "expected 2 or 3"),
        (lambda npu: npu.conv1d(np.ones((3, 1), np.int8), np.ones((1, 1), np.int8)), ValueError, "expected 3"),
        (lambda npu: npu.max_pool2d(np.ones((3, 3), np.int8), 2), ValueError, "expected 3 or 4"),
        (lambda npu: npu.global_avg_pool2d(np.ones((3, 3), np.int8)), ValueError, "expected 4"),
        (lambda npu: npu.global_avg_pool2d(np.ones((1, 3, 3, 3), np.int32)), TypeError, "not int32"),
        (lambda npu: npu.activate("relu", np.ones(3, np.float64)), TypeError, "not float64"),
        (lambda npu: npu.add(np.ones(3, np.int8), np.ones(3, np.int32)), TypeError, "operands of one format only"),
        (lambda npu: npu.softmax(np.ma.masked_array([1.0, 2.0])), TypeError, "masked array"),
        (
            lambda npu: npu.activate("relu", np.ones(3, np.float16), scales=UnaryScales()),
            ValueError,
            "scales are for int8",
        ),
    ],
)
def test_refusals(npu: Device, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(npu)
