# SPDX-License-Identifier: MIT
"""matmul in bfloat16, tfloat32, int4 and int16; scales per channel; depthwise and grouped convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.ops import reference
from rknpu_userspace.quant import derive, derive_channels, requantize_channels

size = st.sampled_from((1, 2, 15, 16, 17, 31, 32, 33, 64, 65)) | st.integers(1, 150)
shapes = st.tuples(size, size, size)
seeds = st.integers(0, 2**32 - 1)


def truncated(values: np.ndarray) -> np.ndarray:
    """float32 without the low 13 bits of the mantissa."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def distance(actual: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    left, right = a.astype(np.float64), b.astype(np.float64)
    return reference.ulp_distance_to(actual, left @ right, np.abs(left) @ np.abs(right))


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=seeds)
def test_bfloat16_and_tfloat32(npu: Device, shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape[:2]).astype(np.float32)
    b = rng.normal(size=shape[1:]).astype(np.float32)
    brain = from_bfloat16(to_bfloat16(a)), from_bfloat16(to_bfloat16(b))
    wide = npu.matmul(a, b, format="bfloat16")
    assert wide.dtype == np.float32
    assert distance(wide, *brain) <= 4
    narrow = npu.matmul(to_bfloat16(a), to_bfloat16(b), format="bfloat16", out_dtype="bfloat16")
    assert np.array_equal(narrow, to_bfloat16(wide))
    assert distance(npu.matmul(a, b, format="tfloat32"), truncated(a), truncated(b)) <= 4


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=seeds, relu=st.booleans())
def test_int4_is_exact(npu: Device, shape: tuple[int, int, int], seed: int, relu: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-8, 8, part, dtype=np.int8) for part in (shape[:2], shape[1:]))
    bias = rng.integers(-1000, 1000, shape[2])
    result = npu.matmul(a, b, format="int4", bias=bias, relu=relu)
    assert result.dtype == np.int32
    assert np.array_equal(result, reference.matmul(a, b, bias, relu=relu))


def test_int4_sums_do_not_saturate(npu: Device) -> None:
    """A single task would clamp at 32767."""
    a, b = np.full((3, 2000), -8, np.int8), np.full((2000, 70), -8, np.int8)
    assert (npu.matmul(a, b, format="int4") == 128000).all()


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=seeds, extreme=st.booleans())
def test_int16_is_exact(npu: Device, shape: tuple[int, int, int], seed: int, extreme: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-32768, 32768, part, dtype=np.int16) for part in (shape[:2], shape[1:]))
    if extreme:
        a[:], b[:] = -32768, rng.choice((-32768, 32767), b.shape)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert np.array_equal(npu.matmul(a, b), expected)
    assert np.array_equal(npu.matmul(a.T.copy(), b.T.copy(), transpose_a=True, transpose_b=True), expected)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=seeds, with_bias=st.booleans(), relu=st.booleans())
def test_scale_per_column(npu: Device, shape: tuple[int, int, int], seed: int, with_bias: bool, relu: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, part, dtype=np.int8) for part in (shape[:2], shape[1:]))
    bias = rng.integers(-50000, 50000, shape[2]) if with_bias else None
    scales = rng.uniform(1e-5, 1e-2, shape[2])
    result = npu.matmul(a, b, bias=bias, relu=relu, scale=scales, out_zero_point=-7, a_zero_point=5)
    expected = reference.matmul(a, b, bias, relu=relu, requant=derive_channels(scales, -7), a_zero_point=5)
    assert np.array_equal(result, expected)


def test_scales_per_channel_are_close_to_single_ones() -> None:
    rng = np.random.default_rng(1)
    scales = rng.uniform(0.001, 0.02, 40)
    sums = rng.integers(-10000, 10000, (1000, 40)).astype(np.int32)
    result = requantize_channels(sums, derive_channels(scales, 3)).astype(int)
    exact = np.clip(np.rint(sums * scales) + 3, -128, 127)
    assert np.abs(result - exact).max() <= 1
    assert (result == exact).mean() > 0.98


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": np.ones(5)}, ValueError, r"scale has shape \(5,\), expected one number or \(6,\)"),
        ({"scale": np.array([1.0, 1, 1, 1, 1, np.nan])}, ValueError, "every requantisation scale"),
        ({"scale": "big"}, TypeError, "must be a number"),
        ({"format": "int5"}, ValueError, "'int5' is not one of int4, int8"),
        ({"format": "float16"}, TypeError, "a has dtype int8, format float16 takes float16"),
        ({"format": "bfloat16"}, TypeError, r"uint16 \(bit patterns\) or float32"),
    ],
)
def test_bad_arguments(npu: Device, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        npu.matmul(np.ones((4, 8), np.int8), np.ones((8, 6), np.int8), **options)


def test_bad_values(npu: Device) -> None:
    a, b = np.full((2, 2), 8, np.int8), np.ones((2, 2), np.int8)
    with pytest.raises(ValueError, match=r"outside -8\.\.7"):
        npu.matmul(a, b, format="int4")
    with pytest.raises(TypeError, match="int16 matmul takes no relu"):
        npu.matmul(a.astype(np.int16), b.astype(np.int16), relu=True)
    with pytest.raises(ValueError, match="inner sizes differ"):
        npu.matmul(a.astype(np.int16), np.ones((3, 2), np.int16))


# --- depthwise and groups --------------------------------------------------------------------------------------------


@st.composite
def grouped(draw: st.DrawFn) -> dict[str, Any]:
    """A depthwise or grouped convolution."""
    depthwise = draw(st.booleans())
    groups = draw(st.integers(2, 150) if depthwise else st.integers(2, 9))
    inputs, outputs = (1, 1) if depthwise else (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    kernel = draw(st.integers(1, 4))
    return {
        "x": (draw(st.integers(1, 2)), draw(st.integers(kernel, 14)), draw(st.integers(kernel, 14)), groups * inputs),
        "weights": (groups * outputs, kernel, draw(st.integers(1, kernel)), inputs),
        "groups": groups,
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": (draw(st.integers(0, kernel - 1)), 0, draw(st.integers(0, kernel - 1)), 0),
        "cores": draw(st.integers(1, 3)),
    }


@settings(max_examples=60, deadline=None)
@given(
    case=grouped(),
    seed=seeds,
    relu=st.booleans(),
    per_channel=st.booleans(),
    quantised=st.booleans(),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
)
def test_int8_groups(
    npu: Device,
    case: dict[str, Any],
    seed: int,
    relu: bool,
    per_channel: bool,
    quantised: bool,
    zero_points: tuple[int, int, int],
) -> None:
    rng = np.random.default_rng(seed)
    x, weights = (rng.integers(-128, 128, case[name], dtype=np.int8) for name in ("x", "weights"))
    bias = rng.integers(-9000, 9000, weights.shape[0])
    options = {name: case[name] for name in ("groups", "stride", "padding")}
    options |= {"relu": relu, "x_zero_point": zero_points[0], "w_zero_point": zero_points[1]}
    scale = rng.uniform(1e-4, 1e-2, weights.shape[0]) if per_channel else 0.0007
    requant = derive_channels(scale, zero_points[2]) if per_channel else derive(0.0007, zero_points[2])
    if not quantised:
        assert np.array_equal(
            npu.conv2d(x, weights, bias, cores=case["cores"], **options), reference.conv2d(x, weights, bias, **options)
        )
        return
    result = npu.conv2d(x, weights, bias, scale=scale, out_zero_point=zero_points[2], cores=case["cores"], **options)
    assert np.array_equal(result, reference.conv2d(x, weights, bias, requant=requant, **options))


@settings(max_examples=30, deadline=None)
@given(case=grouped(), seed=seeds, form=st.sampled_from(("float16", "bfloat16")))
def test_float_groups(npu: Device, case: dict[str, Any], seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    x, weights = (rng.normal(size=case[name]).astype(np.float32) for name in ("x", "weights"))
    options = {name: case[name] for name in ("groups", "stride", "padding")}
    if form == "float16":
        x, weights = x.astype(np.float16), weights.astype(np.float16)
        stored = x, weights
        extra = {}
    else:
        stored = from_bfloat16(to_bfloat16(x)), from_bfloat16(to_bfloat16(weights))
        extra = {"format": "bfloat16"}
    result = npu.conv2d(x, weights, cores=case["cores"], **options, **extra)
    exact = reference.conv2d(*stored, out_dtype="float64", **options)
    magnitude = reference.conv2d(np.abs(stored[0]), np.abs(stored[1]), out_dtype="float64", **options)
    assert result.dtype == np.float32
    assert reference.ulp_distance_to(result, exact, magnitude) <= 4


def test_depthwise_is_one_task_where_it_fits(npu: Device) -> None:
    from rknpu_userspace.ops.conv2d import Conv2d

    weights = np.ones((128, 3, 3, 1), np.int8)
    with npu.compile(Conv2d(weights, (1, 28, 28, 128), groups=128, padding=1, scale=0.01), cores=1) as program:
        assert program.tasks == 1
    wide = np.ones((512, 3, 3, 1), np.int8)
    x = np.random.default_rng(0).integers(-128, 128, (1, 40, 40, 512), dtype=np.int8)
    expected = reference.conv2d(x, wide, groups=512, padding=(1,) * 4, requant=derive(0.05))
    assert np.array_equal(npu.conv2d(x, wide, groups=512, padding=1, scale=0.05), expected)


def test_groups_share_tasks_while_zeros_are_free(npu: Device) -> None:
    from rknpu_userspace.ops.conv2d import Conv2d

    operation = Conv2d(np.ones((64, 3, 3, 4), np.int8), (1, 9, 9, 64), groups=16)
    with npu.compile(operation, cores=1) as program:
        assert program.tasks == 2


@pytest.mark.parametrize(
    ("groups", "message"),
    [(3, "3 groups do not divide 4 input and 6"), (0, "positive integer"), (2, r"are for 8 .* \(2 groups of 4\)")],
)
def test_bad_groups(npu: Device, groups: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        npu.conv2d(np.ones((1, 9, 9, 4), np.int8), np.ones((6, 3, 3, 4), np.int8), groups=groups)
