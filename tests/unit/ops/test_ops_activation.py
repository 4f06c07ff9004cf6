# SPDX-License-Identifier: MIT
"""Activations on the model: floats within the stated bounds, int8 exact, for every kind and format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.ops.activation import (
    BOUNDS,
    FORMATS,
    KINDS,
    STAGED,
    Activation,
    PRelu,
    UnaryScales,
    int8_results,
    reference,
    reference_int8,
    reference_prelu,
)
from rknpu_userspace.ops.tables import TABLES

shapes = st.lists(st.integers(1, 40) | st.sampled_from((1, 7, 8, 9, 16, 17)), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)
scales = st.builds(
    UnaryScales,
    x=st.floats(1e-3, 0.2),
    out=st.floats(1e-3, 0.2),
    x_zero_point=st.integers(-128, 127),
    out_zero_point=st.integers(-128, 127),
)


def every(form: str, low: float, high: float) -> np.ndarray:
    """Every number of a 16-bit format in a range; bfloat16 as bit patterns, without what is tiny but not zero."""
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        real = from_bfloat16(patterns) if form == "bfloat16" else patterns.view(np.float16).astype(np.float32)
    chosen = np.isfinite(real) & (real >= low) & (real <= high)
    if form == "bfloat16":
        chosen &= (np.abs(real) >= 2.0**-14) | (real == 0)
    return patterns[chosen] if form == "bfloat16" else patterns[chosen].view(np.float16)


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in KINDS for form in BOUNDS[kind]])
def test_every_number_is_within_the_bound(npu: Device, kind: str, form: str) -> None:
    bound = BOUNDS[kind][form]
    x = every(form, bound.low, bound.high)
    with npu.compile(Activation(kind, x.shape, form=form, slope=0.25)) as program:
        y = program(x)
    assert y.dtype == x.dtype
    real = reference(kind, x, 0.25)
    error = np.abs((from_bfloat16(y) if form == "bfloat16" else y.astype(np.float64)) - real)
    assert (error <= bound.absolute + bound.relative * np.abs(real)).all()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    form=st.sampled_from(("float16", "bfloat16")),
    shape=shapes,
    seed=seeds,
    cores=st.integers(1, 3),
)
def test_shapes_and_cores(npu: Device, kind: str, form: str, shape: tuple[int, ...], seed: int, cores: int) -> None:
    if form not in BOUNDS[kind]:
        return
    bound = BOUNDS[kind][form]
    rng = np.random.default_rng(seed)
    x = rng.choice(every(form, max(bound.low, -20), min(bound.high, 20)), shape)
    with npu.compile(Activation(kind, shape, form=form), cores=cores) as program:
        y = program(x)
        assert np.array_equal(program(x), y), "a program gives the same result again"
    real = reference(kind, x)
    error = np.abs((from_bfloat16(y) if form == "bfloat16" else y.astype(np.float64)) - real)
    assert (error <= bound.absolute + bound.relative * np.abs(real)).all()


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), scale=scales, shape=shapes, seed=seeds)
def test_int8_is_exact(npu: Device, kind: str, scale: UnaryScales, shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)
    with npu.compile(Activation(kind, shape, form="int8", scales=scale, slope=0.1, bound=2.5)) as program:
        assert np.array_equal(program(x), reference_int8(kind, x, scale, 0.1, 2.5))


def test_int8_reference_is_the_rounded_function() -> None:
    scale = UnaryScales(0.05, 1 / 256, 10, -128)
    results = int8_results("sigmoid", scale)
    real = 1 / (1 + np.exp(-(np.arange(-128, 128) - 10) * 0.05)) * 256 - 128
    assert np.abs(results - np.clip(real, -128, 127)).max() <= 0.5
    assert np.array_equal(int8_results("relu", UnaryScales())[:128], np.zeros(128))
    assert (int8_results("sqrt", UnaryScales())[:128] == 0).all(), "what is not a number counts as zero"


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(STAGED), scale=scales, slope=st.floats(-1.9, 1.9), bound=st.floats(0.1, 30))
def test_int8_formulas_are_close_to_the_function(kind: str, scale: UnaryScales, slope: float, bound: float) -> None:
    x = (np.arange(-128, 128) - scale.x_zero_point) * scale.x
    real = reference(kind, x, slope, bound) / scale.out + scale.out_zero_point
    unit = scale.x / scale.out / 200 + np.abs(x) / scale.out * 2.0**-14
    close = (
        np.abs(int8_results(kind, scale, slope, bound) - np.clip(real, -128, 127)) <= 0.5 + unit + np.abs(real) * 1e-4
    )
    assert close.all()


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(FORMATS), shape=shapes, scale=scales, seed=seeds, cores=st.integers(1, 3))
def test_prelu(npu: Device, form: str, shape: tuple[int, ...], scale: UnaryScales, seed: int, cores: int) -> None:
    rng = np.random.default_rng(seed)
    slopes = rng.uniform(-0.5, 1.5, shape[-1])
    if form == "int8":
        x = rng.integers(-128, 128, shape, dtype=np.int8)
    else:
        values = rng.normal(size=shape).astype(np.float32)
        x = to_bfloat16(values) if form == "bfloat16" else values.astype(np.float16)
    chosen = scale if form == "int8" else None
    with npu.compile(PRelu(shape, slopes, form=form, scales=chosen), cores=cores) as program:
        result = program(x)
    expected = reference_prelu(x, slopes, chosen)
    assert np.array_equal(result, expected)
    if form == "int8":
        value = (x.astype(float) - scale.x_zero_point) * scale.x
        real = np.where(value < 0, value * slopes, value) / scale.out + scale.out_zero_point
        unit = scale.x / scale.out / 256 + np.abs(value) / scale.out * 2.0**-14
        assert (np.abs(result - np.clip(real, -128, 127)) <= 0.51 + unit + np.abs(real) * 1e-3).all()


@pytest.mark.parametrize("name", sorted(TABLES))
@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_no_entry_decodes_to_zero(name: str, form: str) -> None:
    """Entry + 1 is never 0: the hardware would give 4 for it."""
    for upper in (False, True):
        entries = TABLES[name].entries(upper, form)
        assert len(entries) == 513
        assert entries.min() >= 0
        assert entries.max() <= 32767


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("swoosh", (3,)), {}, ValueError, f"not one of {', '.join(KINDS)}"),
        (("relu", (0, 3)), {}, ValueError, "empty tensor"),
        (("leaky_relu", (3,)), {"slope": float("inf")}, ValueError, "not a finite float16"),
        (("relux", (3,)), {"bound": -1.0}, ValueError, "not a positive float16"),
        (("relu", (3,)), {"form": "float32"}, TypeError, "take float16, bfloat16, int8, not float32"),
        (("reciprocal", (3,)), {"form": "bfloat16"}, TypeError, "reciprocal takes float16 and int8, not bfloat16"),
        (("relu", (3,)), {"scales": UnaryScales()}, ValueError, "scales are for int8"),
        (("relu", (3,)), {"form": "int8", "scales": UnaryScales(x=0.0)}, ValueError, "scale x must be finite"),
        (("relu", (3,)), {"form": "int8", "scales": UnaryScales(out_zero_point=200)}, ValueError, "outside the int8"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Activation(*arguments, **options)


@pytest.mark.parametrize(
    ("slopes", "options", "error", "message"),
    [
        ([0.1, 0.2], {}, ValueError, "expected one per channel"),
        ([0.1, 0.2, np.nan], {}, ValueError, "slopes must be finite"),
        ([0.1, 0.2, 2.5], {"form": "int8"}, ValueError, r"within -2\.\.2"),
        ([0.1, 0.2, 0.3], {"form": "int4"}, TypeError, "not int4"),
    ],
)
def test_bad_slopes(slopes: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PRelu((4, 3), np.array(slopes), **options)
