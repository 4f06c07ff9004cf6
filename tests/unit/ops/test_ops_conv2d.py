# SPDX-License-Identifier: MIT
"""conv2d on the model against numpy: integers equal, floats within the stated units in the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.conv2d import Conv2d
from rknpu_userspace.quant import derive

FLOAT_ULP = {"float32": 4.0, "float16": 1.0}
channel = st.sampled_from((1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64)) | st.integers(1, 80)


@st.composite
def geometry(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and options of a convolution that the hardware can do."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    pads = tuple(draw(st.integers(0, min(15, span[side % 2] - 1))) for side in range(4))
    height = draw(st.integers(max(1, span[0] - pads[0] - pads[2]), 24))
    width = draw(st.integers(max(1, span[1] - pads[1] - pads[3]), 24))
    return {
        "x": (draw(st.integers(1, 2)), height, width, draw(channel)),
        "kernel": kernel,
        "outputs": draw(channel),
        "stride": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "dilation": dilation,
        "padding": pads,
    }


def arrays(shapes: dict[str, Any], seed: int, form: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    sizes = (shapes["x"], (shapes["outputs"], *shapes["kernel"], shapes["x"][3]))
    options = {name: shapes[name] for name in ("stride", "dilation", "padding")}
    if form == "int8":
        x, weights = (rng.integers(-128, 128, size, dtype=np.int8) for size in sizes)
    else:
        x, weights = (rng.normal(size=size).astype(np.float16) for size in sizes)
    return x, weights, options


@settings(max_examples=40, deadline=None)
@given(shapes=geometry(), seed=st.integers(0, 2**32 - 1), cores=st.integers(1, 3))
def test_int8_to_int32(npu: Device, shapes: dict[str, Any], seed: int, cores: int) -> None:
    x, weights, options = arrays(shapes, seed, "int8")
    assert np.array_equal(npu.conv2d(x, weights, cores=cores, **options), reference.conv2d(x, weights, **options))


@settings(max_examples=40, deadline=None)
@given(
    shapes=geometry(),
    seed=st.integers(0, 2**32 - 1),
    relu=st.booleans(),
    with_bias=st.booleans(),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
    scale=st.floats(1e-6, 0.5),
)
def test_int8_quantised(
    npu: Device,
    shapes: dict[str, Any],
    seed: int,
    relu: bool,
    with_bias: bool,
    zero_points: tuple[int, int, int],
    scale: float,
) -> None:
    x, weights, options = arrays(shapes, seed, "int8")
    bias = np.random.default_rng(seed).integers(-30000, 30000, shapes["outputs"]) if with_bias else None
    x_zero, w_zero, out_zero = zero_points
    options |= {"relu": relu, "x_zero_point": x_zero, "w_zero_point": w_zero}
    result = npu.conv2d(x, weights, bias, scale=scale, out_zero_point=out_zero, **options)
    expected = reference.conv2d(x, weights, bias, requant=derive(scale, out_zero), **options)
    assert result.dtype == np.int8
    assert np.array_equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(
    shapes=geometry(),
    seed=st.integers(0, 2**32 - 1),
    relu=st.booleans(),
    with_bias=st.booleans(),
    out=st.sampled_from(("float32", "float16")),
)
def test_float16(npu: Device, shapes: dict[str, Any], seed: int, relu: bool, with_bias: bool, out: str) -> None:
    x, weights, options = arrays(shapes, seed, "float16")
    bias = np.random.default_rng(seed).normal(size=shapes["outputs"]).astype(np.float32) if with_bias else None
    result = npu.conv2d(x, weights, bias, relu=relu, out_dtype=out, **options)
    exact = reference.conv2d(x, weights, bias, relu=relu, out_dtype="float64", **options)
    total = reference.conv2d(np.abs(x), np.abs(weights), None, out_dtype="float64", **options)
    magnitude = total + (0 if bias is None else np.abs(bias))
    assert result.dtype == np.dtype(out)
    assert reference.ulp_distance_to(result, exact, magnitude) <= FLOAT_ULP[out]


LARGE = {
    "many channels": ((1, 9, 300, 600), (40, 3, 3), {"padding": 1}),
    "wide": ((1, 5, 4200, 8), (8, 3, 3), {"stride": 2, "padding": 1}),
    "resident weights": ((1, 56, 56, 128), (64, 3, 3), {"padding": 1}),
    "largest kernel": ((1, 24, 40, 5), (33, 31, 31), {"padding": 15}),
    "sums cut by taps": ((1, 12, 12, 40), (40, 25, 25), {"padding": 12, "x_zero_point": 7}),
    "largest dilation": ((1, 70, 70, 3), (5, 3, 3), {"dilation": 32, "padding": (4, 0, 15, 2)}),
    "several images": ((4, 30, 30, 20), (33, 3, 3), {"stride": 3}),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("cores", [1, 3])
def test_far_larger_than_the_cbuf(npu: Device, name: str, cores: int) -> None:
    in_shape, kernel, options = LARGE[name]
    rng = np.random.default_rng(11)
    x = rng.integers(-128, 128, in_shape, dtype=np.int8)
    weights = rng.integers(-128, 128, (*kernel, in_shape[3]), dtype=np.int8)
    bias = rng.integers(-1000, 1000, kernel[0])
    full = {
        **options,
        "stride": reference.pair("stride", options.get("stride", 1)),
        "dilation": reference.pair("dilation", options.get("dilation", 1)),
        "padding": reference.pads(options.get("padding", 0)),
    }
    expected = reference.conv2d(x, weights, bias, w_zero_point=2, **full)
    assert np.array_equal(npu.conv2d(x, weights, bias, w_zero_point=2, cores=cores, **options), expected)
    requant = derive(1e-4, -3)
    expected = reference.conv2d(x, weights, bias, relu=True, requant=requant, **full)
    result = npu.conv2d(x, weights, bias, relu=True, scale=1e-4, out_zero_point=-3, cores=cores, **options)
    assert np.array_equal(result, expected)


def test_single_image_without_batch(npu: Device) -> None:
    rng = np.random.default_rng(1)
    x, weights = rng.integers(-9, 9, (7, 8, 3), dtype=np.int8), rng.integers(-9, 9, (4, 3, 3, 3), dtype=np.int8)
    assert np.array_equal(npu.conv2d(x, weights), reference.conv2d(x[None], weights)[0])


def test_program_and_strided_input(npu: Device) -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(-128, 128, (20, 3, 3, 16), dtype=np.int8)
    wide = rng.integers(-128, 128, (2, 24, 12, 32), dtype=np.int8)
    x = wide[:, ::2, :, ::2]
    with npu.compile(Conv2d(weights, x.shape, padding=1)) as program:
        expected = reference.conv2d(x, weights, padding=(1, 1, 1, 1))
        assert program.output.shape == expected.shape
        assert np.array_equal(program(x), expected)
        assert np.array_equal(program(-x), reference.conv2d(-x, weights, padding=(1, 1, 1, 1)))


X, W = np.ones((1, 9, 9, 4), np.int8), np.ones((6, 3, 3, 4), np.int8)


@pytest.mark.parametrize(
    ("x", "weights", "options", "error", "message"),
    [
        (X, W[..., :3], {}, ValueError, "weights are for 3 input channels, the input has 4"),
        (X[0, 0], W, {}, ValueError, "x has 2 dimensions, expected 3 or 4"),
        (X, W[0], {}, ValueError, "weights has 3 dimensions, expected 4"),
        (X[:0], W, {}, ValueError, "empty"),
        (X, W, {"stride": 8}, ValueError, "vertical stride 8 is outside 1..7"),
        (X, W, {"stride": (1, 2, 3)}, ValueError, "stride must be a number or"),
        (X, W, {"padding": 3}, ValueError, "top padding 3 is outside 0..2"),
        (X, W, {"padding": (1, 2, 3)}, ValueError, "padding must be"),
        (X, W, {"dilation": 0}, ValueError, "vertical dilation 0 is outside 1..32"),
        (X, W, {"dilation": 5}, ValueError, "11x11 window is larger than the padded 9x9 input"),
        (X, np.ones((6, 40, 3, 4), np.int8), {}, ValueError, "kernel height 40 is outside 1..31"),
        (X.astype("f4"), W, {}, TypeError, "astype"),
    ],
)
def test_bad_arguments(
    npu: Device, x: np.ndarray, weights: np.ndarray, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        npu.conv2d(x, weights, **options)
