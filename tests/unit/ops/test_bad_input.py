# SPDX-License-Identifier: MIT
"""What the hardware or the library can not take is a ValueError or TypeError that says so; odd memory layouts work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rknpu_userspace
from rknpu_userspace import Activation, Binary, Conv2d, Device, Matmul, Pool2d, Scales, average_pool
from rknpu_userspace.ops.activation import UnaryScales

NAN, INF = float("nan"), float("inf")


def i8(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


def f2(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


def matmul(**options: Any) -> Callable[[Device], Any]:
    return lambda npu: npu.matmul(i8(4, 8), i8(8, 8), **options)


def half(**options: Any) -> Callable[[Device], Any]:
    return lambda npu: npu.matmul(f2(4, 8), f2(8, 8), **options)


def conv(x: tuple[int, ...] = (1, 8, 8, 16), w: tuple[int, ...] = (8, 3, 3, 16), **options: Any) -> Any:
    return lambda npu: npu.conv2d(i8(*x), i8(*w), **options)


def scales(*values: Any) -> Callable[[Device], Any]:
    return lambda npu: npu.elementwise("add", i8(4), i8(4), scales=Scales(*values))


def of(a: Any, b: Any) -> Callable[[Device], Any]:
    return lambda npu: npu.matmul(a, b)


CASES: dict[str, tuple[Callable[[Device], Any], type[Exception], str]] = {
    # scales that are no scales
    "nan scale": (matmul(scale=NAN), ValueError, "finite and positive, not nan"),
    "infinite scale": (matmul(scale=INF), ValueError, "finite and positive"),
    "zero scale": (matmul(scale=0.0), ValueError, "finite and positive"),
    "negative scale": (matmul(scale=-1), ValueError, "finite and positive"),
    "scale of text": (matmul(scale="x"), TypeError, "must be a number"),
    "scale of a boolean": (matmul(scale=True), TypeError, "must be a number"),
    "nan among scales": (matmul(scale=np.array([1.0] * 7 + [NAN])), ValueError, "every requantisation scale"),
    "too few scales": (matmul(scale=np.ones(7)), ValueError, r"shape \(7,\), expected one number or \(8,\)"),
    "too small a scale": (matmul(scale=1e-30), ValueError, r"too small.*smallest 1.77636e-15"),
    "too large a scale": (matmul(scale=1e30), ValueError, r"too large.*ends at 32767"),
    "scale without int8 output": (matmul(scale=0.1, out_dtype="int32"), ValueError, "scale is for int8 output"),
    "nan operand scale": (scales(NAN, 1, 1), ValueError, "scale a must be finite and positive, not nan"),
    "operand scale of text": (scales("a", 1, 1), TypeError, "scale a must be a number, not 'a'"),
    "negative output scale": (scales(1, 1, -2.0), ValueError, "scale out must be finite"),
    "scales of floats": (
        lambda npu: npu.elementwise("add", f2(4), f2(4), scales=Scales()),
        ValueError,
        "scales are for int8",
    ),
    "activation's scale": (
        lambda npu: Activation("sigmoid", (4, 8), form="int8", scales=UnaryScales(x=INF)),
        ValueError,
        "scale x must be finite",
    ),
    # zero points
    "zero point 128": (matmul(a_zero_point=128), ValueError, r"a_zero_point 128 is outside the int8 range -128..127"),
    "zero point -129": (matmul(scale=0.1, out_zero_point=-129), ValueError, r"-129 is outside the int8 range"),
    "fraction as zero point": (matmul(a_zero_point=1.5), TypeError, "must be an integer, not float"),
    "boolean as zero point": (matmul(b_zero_point=True), TypeError, "must be an integer, not bool"),
    "vector of zero points": (matmul(scale=0.1, out_zero_point=np.ones(2, int)), TypeError, "must be an integer"),
    "zero point of floats": (half(a_zero_point=3), ValueError, "is for int8 operands, not float16"),
    "zero point of an operand": (scales(1, 1, 1, 200), ValueError, "a_zero_point 200 is outside the int8 range"),
    "zero point of a convolution": (conv(x_zero_point=300), ValueError, "x_zero_point 300 is outside"),
    # sizes
    "no rows": (of(i8(0, 8), i8(8, 8)), ValueError, r"a is empty \(shape \(0, 8\)\): the NPU has no empty tensors"),
    "nothing to add up": (of(i8(4, 0), i8(0, 8)), ValueError, "is empty"),
    "no images": (conv(x=(0, 8, 8, 16)), ValueError, "x is empty"),
    "no kernels": (conv(w=(0, 3, 3, 16)), ValueError, "weights is empty"),
    "no elements": (lambda npu: npu.elementwise("add", f2(0, 3), f2(0, 3)), ValueError, "no empty tensors"),
    "no pixels": (lambda npu: Pool2d("max", "int8", (1, 8, 0, 16), 2), ValueError, "no empty tensors"),
    "nothing to activate": (lambda npu: Activation("relu", (0, 8)), ValueError, "no empty tensors"),
    "negative size": (lambda npu: Conv2d(i8(8, 3, 3, 16), (1, -8, 8, 16)), ValueError, "no empty tensors"),
    "half a line": (lambda npu: Conv2d(i8(8, 3, 3, 16), (1, 8.5, 8, 16)), TypeError, "H of the input shape must be"),  # type: ignore[arg-type]
    "nan lines": (lambda npu: Conv2d(i8(8, 3, 3, 16), (1, NAN, 8, 16)), TypeError, "must be an integer, not nan"),  # type: ignore[arg-type]
    "three sizes": (lambda npu: Pool2d("max", "int8", (1, 8, 8), 2), ValueError, r"must be \(N, H, W, C\)"),
    "no rows to plan": (lambda npu: Matmul(i8(8, 8), 0), ValueError, "rows must be a positive integer"),
    "inner sizes": (of(i8(4, 7), i8(8, 8)), ValueError, "a has K = 7, b has K = 8"),
    "channels": (conv(x=(1, 8, 8, 15)), ValueError, "weights are for 16 input channels, the input has 15"),
    "a number": (of(np.int8(3), i8(1, 8)), ValueError, "a has 0 dimensions, expected at least 1"),
    # limits of the hardware, with the nearest legal choice
    "stride 8": (
        conv(stride=8),
        ValueError,
        r"8 is outside 1..7 \(3-bit register field\); the nearest legal value is 7",
    ),
    "stride 0": (conv(stride=0), ValueError, "nearest legal value is 1"),
    "kernel 32": (conv(x=(1, 40, 40, 16), w=(8, 32, 3, 16)), ValueError, r"kernel height 32 is outside 1..31.* is 31"),
    "dilation 33": (conv(x=(1, 90, 90, 16), dilation=33), ValueError, "nearest legal value is 32"),
    "padding 3": (conv(padding=3), ValueError, "nearest legal value is 2"),
    "negative padding": (conv(padding=-1), ValueError, "nearest legal value is 0"),
    "window beyond the input": (conv(x=(1, 2, 2, 16)), ValueError, "3x3 window is larger than the padded 2x2 input"),
    "pooling padding": (
        lambda npu: Pool2d("max", "int8", (1, 8, 8, 16), 2, padding=2),
        ValueError,
        "nearest legal value is 1",
    ),
    "pooling kernel": (lambda npu: Pool2d("max", "int8", (1, 8, 8, 16), 9), ValueError, "nearest legal value is 8"),
    "average kernel": (lambda npu: average_pool("int8", (1, 8, 8, 16), 9), ValueError, "is outside"),
    # kinds of numbers
    "fraction as stride": (conv(stride=1.5), TypeError, "stride must be an integer, not 1.5"),
    "three strides": (conv(stride=(1, 1, 1)), ValueError, r"a number or \(vertical, horizontal\)"),
    "padding in words": (conv(padding="same"), TypeError, "padding must be an integer, not 'same'"),
    "fraction as kernel": (
        lambda npu: Pool2d("max", "int8", (1, 8, 8, 16), 2.5),
        TypeError,
        "kernel must be an integer",
    ),  # type: ignore[arg-type]
    "groups": (conv(w=(8, 3, 3, 5), groups=3), ValueError, "3 groups do not divide 16 input and 8 output channels"),
    "float64": (of(np.ones((4, 8)), i8(8, 8)), TypeError, r"convert it with .astype\(numpy.float16\)"),
    "uint8": (of(np.ones((4, 8), np.uint8), i8(8, 8)), TypeError, "lower its zero point by 128"),
    "objects": (of(np.ones((4, 8), object), i8(8, 8)), TypeError, "dtype object"),
    "nothing": (of(None, i8(2, 8)), TypeError, "dtype object"),
    "two formats": (of(i8(4, 8), f2(8, 8)), TypeError, "operands of one format only"),
    "masked": (of(np.ma.masked_array(i8(4, 8), mask=True), i8(8, 8)), TypeError, "fill its gaps first"),
    "output format": (matmul(out_dtype="float64"), TypeError, "int8 operands can give int32, int8, float32"),
    "bias nan": (half(bias=np.full(8, NAN)), ValueError, "bias has values that are not finite"),
    "bias beyond float32": (half(bias=np.full(8, 1e300)), ValueError, "beyond float32's largest"),
    "bias beyond int32": (matmul(bias=np.full(8, 2**40)), ValueError, "outside the int32 range"),
    "bias of floats": (matmul(bias=np.ones(8)), TypeError, "expected integers"),
    "upper end nan": (conv(relu=True, bound=NAN), ValueError, "bound must be finite and positive"),
    "infinite slope": (conv(slope=INF), ValueError, "slope inf"),
    "unknown operation": (lambda npu: npu.elementwise("pow", f2(4), f2(4)), ValueError, "not 'pow'"),
    "unknown activation": (lambda npu: Activation("swoosh", (4, 8)), ValueError, "'swoosh' is not one of"),
    "cores": (matmul(cores=4), ValueError, r"cores must be 1..3, not 4: the RK3588 has three NPU cores"),
    "cores in words": (matmul(cores="2"), ValueError, r"cores must be 1..3, not '2'"),
    "masked sum": (
        lambda npu: npu.add(np.ma.masked_array(f2(3), mask=True), f2(3)),
        TypeError,
        "fill its gaps first",
    ),
    "one-dimensional window": (lambda npu: npu.conv1d(f2(1, 8, 4), f2(2, 3, 4), stride=9), ValueError, "value is 7"),
    "output padding": (
        lambda npu: npu.conv_transpose2d(f2(1, 4, 4, 8), f2(8, 3, 3, 8), stride=2, output_padding=5),
        ValueError,
        "nearest legal value is 0",
    ),
    "quotient of int8": (lambda npu: npu.divide(i8(2, 3), i8(2, 3)), ValueError, "int8 can add, sub.* not 'div'"),
    "slopes": (lambda npu: npu.prelu(f2(2, 3), np.ones(4)), ValueError, r"expected one per channel of \(2, 3\)"),
    "slopes nan": (lambda npu: npu.prelu(f2(2, 3), np.full(3, NAN)), ValueError, "slopes must be finite"),
    "softmax of int8": (lambda npu: npu.softmax(i8(2, 3)), TypeError, "softmax takes float16, bfloat16, not int8"),
    "epsilon": (lambda npu: npu.rms_norm(f2(2, 8), epsilon=NAN), ValueError, "epsilon must be between 0 and 1"),
    "gamma": (lambda npu: npu.layer_norm(f2(2, 8), np.full(8, NAN, np.float16)), ValueError, "gamma must .* finite"),
    "axis": (lambda npu: npu.sum(f2(2, 3), axis=5), ValueError, r"axis 5 is outside -2..1"),
    "axis in words": (lambda npu: npu.sum(f2(2, 3), axis="x"), TypeError, "axis must be an integer, not 'x'"),  # type: ignore[arg-type]
    "no operation": (lambda npu: npu.compile(3), TypeError, "3 is no operation"),
}


@pytest.fixture(scope="module")
def npu() -> Any:
    with rknpu_userspace.open("model") as device:
        yield device


@pytest.mark.parametrize("case", CASES)
def test_an_error_that_says_what_is_wrong(npu: Device, case: str) -> None:
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call(npu)


def test_int4_range(npu: Device) -> None:
    with pytest.raises(ValueError, match=r"a has values outside -8..7, the range of int4"):
        npu.matmul(i8(4, 32) * 9, i8(32, 8), format="int4")


def test_the_output_array(npu: Device) -> None:
    x = i8(4, 8)
    with npu.compile(Matmul(i8(8, 8), 4)) as program:
        out = np.empty((4, 8), np.int32)
        assert program(x, out=out) is out
        assert (out == 8).all()
        bad: list[tuple[Any, type[Exception], str]] = [
            ([0], TypeError, "must be a numpy array, not list"),
            (np.empty((4, 8), np.int64), TypeError, "out must be int32, not int64"),
            (np.empty((8, 4), np.int32), ValueError, r"out must have shape \(4, 8\), not \(8, 4\)"),
            (np.empty((8, 4), np.int32).T, ValueError, "out is not contiguous"),
            (np.empty((4, 16), np.int32)[:, ::2], ValueError, "out is not contiguous"),
            (np.frombuffer(bytes(128), np.int32).reshape(4, 8), ValueError, "out is read-only"),
            (np.frombuffer(bytearray(132), np.uint8)[1:129].view(np.int32).reshape(4, 8), ValueError, "not aligned"),
        ]
        for array, kind, message in bad:
            with pytest.raises(kind, match=message):
                program(x, out=array)
        assert (program(x) == 8).all()
        with pytest.raises(TypeError, match="takes 1 arrays, not 2"):
            program(x, x)
        with pytest.raises(TypeError, match="fill its gaps"):
            program(np.ma.masked_array(x, mask=False))


def layouts(array: np.ndarray, how: str) -> np.ndarray:
    """The same numbers, lying differently in memory."""
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "reversed":
        flipped = array[::-1, ..., ::-1].copy()
        return flipped[::-1, ..., ::-1]
    if how == "every second":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if how == "read-only":
        kept = array.copy()
        kept.flags.writeable = False
        return kept
    if how == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        moved = raw[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved
    return array


HOW = st.sampled_from(["plain", "fortran", "reversed", "every second", "read-only", "unaligned"])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["int8", "float16"]), HOW, HOW, st.integers(1, 40), st.integers(1, 70), st.integers(1, 40))
def test_matmul_of_odd_layouts(npu: Device, kind: str, left: str, right: str, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng([m, k, n])
    a, b = rng.integers(-5, 6, (m, k)).astype(kind), rng.integers(-5, 6, (k, n)).astype(kind)
    y = npu.matmul(layouts(a, left), layouts(b, right))
    assert np.array_equal(y, a.astype(np.int64) @ b.astype(np.int64))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["int8", "float16"]), HOW, HOW, st.integers(1, 40), st.integers(1, 40))
def test_convolutions_of_odd_layouts(npu: Device, kind: str, left: str, right: str, c: int, n: int) -> None:
    rng = np.random.default_rng([c, n])
    x, w = rng.integers(-3, 4, (2, 4, 5, c)).astype(kind), rng.integers(-3, 4, (n, 1, 1, c)).astype(kind)
    y = npu.conv2d(layouts(x, left), layouts(w, right))
    assert np.array_equal(y, x.astype(np.int64) @ w[:, 0, 0].astype(np.int64).T)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["int32", "float16"]), HOW, HOW, st.integers(1, 40), st.integers(1, 40))
def test_elementwise_and_pooling_of_odd_layouts(npu: Device, kind: str, left: str, right: str, h: int, c: int) -> None:
    rng = np.random.default_rng([h, c])
    a, b = (rng.integers(-99, 99, (h, c)).astype(kind) for _ in range(2))
    assert np.array_equal(npu.elementwise("add", layouts(a, left), layouts(b, right)), a + b)
    with npu.compile(Binary("max", kind, a.shape)) as program:
        assert np.array_equal(program(layouts(a, left), layouts(b, right)), np.maximum(a, b))
    x = rng.integers(-99, 99, (1, 4, 4, c)).astype(kind)
    with npu.compile(Pool2d("max", kind, x.shape, 2)) as program:
        assert np.array_equal(program(layouts(x, left)), x.reshape(1, 2, 2, 2, 2, c).max(axis=(2, 4)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders(npu: Device, order: str) -> None:
    b = np.arange(64).reshape(8, 8)
    x = np.eye(8, dtype=f"{order}f2")
    assert np.array_equal(npu.matmul(x, b.astype(f"{order}f2"), bias=np.ones(8, f"{order}f4")), b + 1)
    with npu.compile(Matmul(b.astype(f"{order}f2"), 8)) as program:
        assert np.array_equal(program(np.eye(8, dtype=np.float16)), b)
