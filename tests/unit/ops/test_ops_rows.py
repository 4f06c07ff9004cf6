# SPDX-License-Identifier: MIT
"""Softmax and the norms on the model: within the stated bounds of the real functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.ops.rows import FORMATS, MAX_AXIS, ROW_BOUNDS, RowOperation, reference

seeds = st.integers(0, 2**32 - 1)
axis = st.sampled_from((1, 2, 7, 8, 9, 15, 16, 17, 64, 127)) | st.integers(1, 400)


def stored(form: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in a format, and what they really are."""
    if form == "bfloat16":
        return to_bfloat16(values), from_bfloat16(to_bfloat16(values))
    half = values.astype(np.float16)
    return half, half.astype(np.float32)


def check(npu: Device, kind: str, form: str, shape: tuple[int, ...], values: np.ndarray, cores: int) -> None:
    rng = np.random.default_rng(1)
    gamma = beta = None
    if kind != "softmax":
        gamma = stored(form, rng.uniform(-1, 1, shape[-1]).astype(np.float32))[1]
    if kind == "layer_norm":
        beta = stored(form, rng.normal(size=shape[-1]).astype(np.float32))[1]
    x, _ = stored(form, values)
    with npu.compile(RowOperation(kind, shape, form=form, gamma=gamma, beta=beta), cores=cores) as program:
        y = program(x)
        assert np.array_equal(program(x), y), "a program gives the same result again"
    assert y.dtype == x.dtype
    real = reference(kind, x, gamma, beta)
    error = np.abs((from_bfloat16(y) if form == "bfloat16" else y.astype(np.float64)) - real)
    bound = ROW_BOUNDS[kind][form]
    assert (error <= bound.absolute + bound.relative * np.abs(real)).all()


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(sorted(ROW_BOUNDS)),
    form=st.sampled_from(FORMATS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), axis),
    spread=st.sampled_from((0.05, 1.0, 30.0)),
    offset=st.sampled_from((0.0, -2.0)),
    seed=seeds,
    cores=st.integers(1, 3),
)
def test_random_rows(
    npu: Device, kind: str, form: str, shape: tuple[int, ...], spread: float, offset: float, seed: int, cores: int
) -> None:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * spread + offset
    check(npu, kind, form, shape, values, cores)


@pytest.mark.parametrize("kind", sorted(ROW_BOUNDS))
@pytest.mark.parametrize("shape", [(3, MAX_AXIS), (5000, 9), (130, 1001)])
def test_long_and_many_rows(npu: Device, kind: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    check(npu, kind, "float16", shape, values, 1)


def test_softmax_far_below_the_maximum_is_zero(npu: Device) -> None:
    """A thousand small terms must not add up to something."""
    x = np.full((2, 1000), -65504, np.float16)
    x[0, 17], x[1, 999] = 3, 65504
    with npu.compile(RowOperation("softmax", x.shape)) as program:
        y = program(x)
    assert np.array_equal(y, (x > -65504).astype(np.float16))


def test_every_task_ends_with_the_interrupt_of_the_dpu(npu: Device) -> None:
    with npu.compile(RowOperation("layer_norm", (4, 100)), cores=1) as program:
        assert program.jobs == 1, "nothing waits for the host in between"
        assert program.tasks > 10


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("norm", (3, 3)), {}, ValueError, "not one of softmax, rms_norm, layer_norm"),
        (("softmax", (3, 3)), {"form": "int8"}, TypeError, "softmax takes float16, bfloat16, not int8"),
        (("softmax", (3, 0)), {}, ValueError, "empty tensor"),
        (("softmax", (3, 8193)), {}, ValueError, "last axis 8193 is outside 1..8192"),
        (("softmax", (3, 3)), {"gamma": np.ones(3)}, ValueError, "softmax takes no gamma"),
        (("rms_norm", (3, 3)), {"beta": np.ones(3)}, ValueError, "rms_norm takes no beta"),
        (("layer_norm", (3, 3)), {"gamma": np.ones(4)}, ValueError, r"gamma has shape \(4,\), expected \(3,\)"),
        (("layer_norm", (3, 3)), {"beta": np.full(3, np.nan)}, ValueError, "beta must consist of finite floats"),
        (("layer_norm", (3, 3)), {"epsilon": 0.0}, ValueError, "epsilon must be between 0 and 1"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RowOperation(*arguments, **options)
