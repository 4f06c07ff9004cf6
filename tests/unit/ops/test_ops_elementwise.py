# SPDX-License-Identifier: MIT
"""Element-wise operations on the model, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import to_bfloat16
from rknpu_userspace.ops.elementwise import OPERATIONS, Binary, Scales, reference

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple) | st.tuples(st.integers(1, 40000))


def data(rng: np.random.Generator, form: str, shape: tuple[int, ...]) -> np.ndarray:
    if form == "float16":
        return (rng.normal(size=shape) * 8).astype(np.float16)
    if form == "bfloat16":
        return to_bfloat16(rng.normal(size=shape).astype(np.float32))
    limits = np.iinfo(form)
    return rng.integers(limits.min, limits.max, shape, dtype=form, endpoint=True)


@pytest.mark.parametrize("form", OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(choice=st.data(), shape=shapes, seed=st.integers(0, 2**32 - 1), relu=st.booleans(), cores=st.integers(1, 3))
def test_same_shape(
    npu: Device, form: str, choice: st.DataObject, shape: tuple[int, ...], seed: int, relu: bool, cores: int
) -> None:
    kind = choice.draw(st.sampled_from(OPERATIONS[form]))
    rng = np.random.default_rng(seed)
    a, b = data(rng, form, shape), data(rng, form, shape)
    result = npu.elementwise(kind, a, b, relu=relu, cores=cores)
    assert result.dtype == a.dtype
    assert np.array_equal(result, reference(kind, a, b, relu=relu), equal_nan=form == "float16")


@pytest.mark.parametrize("form", OPERATIONS)
@settings(max_examples=25, deadline=None)
@given(
    choice=st.data(),
    pixels=st.integers(1, 60) | st.integers(4000, 9000),
    channels=st.integers(2, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_vector_over_the_channels(
    npu: Device, form: str, choice: st.DataObject, pixels: int, channels: int, seed: int
) -> None:
    kind = choice.draw(st.sampled_from([name for name in OPERATIONS[form] if name != "sub"]))
    rng = np.random.default_rng(seed)
    a, b = data(rng, form, (pixels, channels)), data(rng, form, (channels,))
    result = npu.elementwise(kind, a, b)
    assert np.array_equal(result, reference(kind, a, b), equal_nan=form == "float16")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(OPERATIONS["int8"]),
    scales=st.tuples(*[st.floats(1e-3, 0.5)] * 3),
    zero_points=st.tuples(*[st.integers(-128, 127)] * 3),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_int8_with_different_scales(
    npu: Device, kind: str, scales: tuple[float, ...], zero_points: tuple[int, ...], relu: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = data(rng, "int8", (500,)), data(rng, "int8", (500,))
    quantisation = Scales(*scales, *zero_points)
    result = npu.elementwise(kind, a, b, scales=quantisation, relu=relu)
    assert np.array_equal(result, reference(kind, a, b, quantisation, relu))
    x, y = (a - float(zero_points[0])) * scales[0], (b - float(zero_points[1])) * scales[1]
    real = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[kind](x, y)
    exact = np.clip((np.maximum(real, 0) if relu else real) / scales[2] + zero_points[2], -128, 127)
    # half a unit of the result, and what integer weights and a 15-bit scale are off by
    weights = 0 if kind == "mul" else 255 * max(scales[:2]) / 32767 / 2 / scales[2]
    allowed = 0.5 + weights + np.abs(real) / scales[2] * 2.0**-15 + 1e-9
    assert (np.abs(result - exact) <= allowed).all()


def test_broadcasting(npu: Device) -> None:
    rng = np.random.default_rng(1)
    a, b = data(rng, "float16", (4, 1, 5)), data(rng, "float16", (3, 1))
    assert np.array_equal(npu.elementwise("mul", a, b), reference("mul", *np.broadcast_arrays(a, b)))
    vector = data(rng, "float16", (5,))
    assert np.array_equal(npu.elementwise("sub", a, vector), reference("sub", *np.broadcast_arrays(a, vector)))
    number = np.float16(3)
    assert np.array_equal(npu.elementwise("add", a, number), reference("add", *np.broadcast_arrays(a, number)))


def test_larger_than_a_task(npu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from rknpu_userspace.ops import flying

    monkeypatch.setattr(flying, "MAX_ATOMS", 8192)
    rng = np.random.default_rng(2)
    count = 4096 * 16 * 11 + 77
    a, b = data(rng, "int8", (count,)), data(rng, "int8", (count,))
    with npu.compile(Binary("max", "int8", a.shape), cores=1) as program:
        assert (program.tasks, program.jobs) == (7, 3)
        assert np.array_equal(program(a, b), np.maximum(a, b))


def test_int32_clamps(npu: Device) -> None:
    a = np.array([2**31 - 1, -(2**31), -1], np.int32)
    assert npu.elementwise("add", a, a).tolist() == [2**31 - 1, -(2**31), -2]
    assert npu.elementwise("sub", a, np.array([-1, 1, -(2**31)], np.int32)).tolist() == [2**31 - 1, -(2**31), 2**31 - 1]


@pytest.mark.parametrize(
    ("kind", "a", "b", "options", "error", "message"),
    [
        ("add", np.ones(3, np.float32), np.ones(3, np.float32), {}, TypeError, "take float16, bfloat16, int32, int8"),
        ("add", np.ones(3, np.int8), np.ones(3, np.int32), {}, TypeError, "one format only"),
        (
            "div",
            np.ones(3, np.int8),
            np.ones(3, np.int8),
            {},
            ValueError,
            "int8 can add, sub, mul, max, min, not 'div'",
        ),
        ("add", np.ones((2, 3), np.int8), np.ones((4, 3), np.int8), {}, ValueError, "broadcast"),
        ("add", np.ones(0, np.int8), np.ones(0, np.int8), {}, ValueError, "empty"),
        ("add", np.ones(3, "f2"), np.ones(3, "f2"), {"scales": Scales()}, ValueError, "scales are for int8"),
        ("add", np.ones(3, "i1"), np.ones(3, "i1"), {"scales": Scales(a=0.0)}, ValueError, "scale a must be"),
        (
            "add",
            np.ones(3, "i1"),
            np.ones(3, "i1"),
            {"scales": Scales(out_zero_point=200)},
            ValueError,
            "200 is outside",
        ),
    ],
)
def test_bad_arguments(
    npu: Device, kind: str, a: Any, b: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        npu.elementwise(kind, a, b, **options)
