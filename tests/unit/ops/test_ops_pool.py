# SPDX-License-Identifier: MIT
"""Pooling on the model: maximum and minimum bit for bit, the average as a requantised sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.pool import FORMATS, Pool2d, average_pool, average_pool_inside
from rknpu_userspace.ops.pool import reference as pool_reference
from rknpu_userspace.ops.schedule import Schedule
from rknpu_userspace.ops.steps import Addresses, Cube
from rknpu_userspace.quant import derive


def images(form: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if form in ("int8", "int32"):
        limits = np.iinfo(form)
        return rng.integers(limits.min, limits.max, shape, dtype=form, endpoint=True)
    values = rng.normal(size=shape).astype(np.float32)
    return to_bfloat16(values) if form == "bfloat16" else values.astype(np.float16)


def expected_of(kind: str, form: str, x: np.ndarray, kernel: Any, stride: Any, padding: Any) -> np.ndarray:
    if form == "bfloat16":
        return to_bfloat16(pool_reference(kind, from_bfloat16(x), kernel, stride, padding))
    return pool_reference(kind, x, kernel, stride, padding)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(("max", "min")),
    form=st.sampled_from(FORMATS),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 15), st.integers(1, 15), st.integers(1, 50)),
    choice=st.data(),
    stride=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    cores=st.integers(1, 3),
)
def test_extremes(
    npu: Device, kind: str, form: str, shape: Any, choice: st.DataObject, stride: Any, cores: int
) -> None:
    kernel = tuple(choice.draw(st.integers(1, min(9, size))) for size in shape[1:3])
    padding = tuple(choice.draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    x = images(form, shape, 3)
    with npu.compile(Pool2d(kind, form, shape, kernel, stride=stride, padding=padding), cores=cores) as program:
        assert np.array_equal(program(x), expected_of(kind, form, x, kernel, stride, padding))


@pytest.mark.parametrize(
    ("form", "shape", "kernel", "stride", "padding"),
    [
        ("int8", (1, 112, 112, 64), 3, 2, 1),
        ("float16", (1, 9, 5000, 9), (2, 3), (1, 2), 0),
        ("int8", (1, 300, 3, 17), (2, 1), (1, 2), 0),
        ("bfloat16", (1, 21, 37, 40), (21, 37), 1, 0),
        ("float16", (1, 6, 6, 4200), 2, 2, 0),
    ],
)
def test_large_images(npu: Device, form: str, shape: Any, kernel: Any, stride: Any, padding: Any) -> None:
    """Lines, columns and channels beyond the fields of one task; windows of the whole image."""
    x = images(form, shape, 5)
    operation = Pool2d("max", form, shape, kernel, stride=stride, padding=padding)
    with npu.compile(operation, cores=1) as program:
        assert np.array_equal(
            program(x), expected_of("max", form, x, operation.kernel, operation.stride, operation.padding)
        )
        # every task ends with the DPU's interrupt, so none waits for the driver's timeout
        assert all(config.enable == 0x18 for config in configs(program))


def configs(program: Any) -> list[Any]:
    unit = program._shares[0].unit
    places = [tuple(0 for _ in step.reads) for step in unit.steps]
    return [
        task for step, reads in zip(unit.steps, places, strict=True) for task, _ in step.tasks(Addresses(reads, (), 0))
    ]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(("max", "min")),
    form=st.sampled_from(("int8", "float16")),
    shape=st.tuples(st.integers(1, 2), st.integers(4, 15), st.integers(4, 15), st.integers(1, 50)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    choice=st.data(),
)
def test_extremes_on_the_ppu(
    npu: Device, kind: str, form: str, shape: Any, kernel: Any, stride: Any, choice: st.DataObject
) -> None:
    padding = tuple(choice.draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    x = images(form, shape, 3)
    operation = Pool2d(kind, form, shape, kernel, stride=stride, padding=padding, engine="ppu")
    with npu.compile(operation) as program:
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


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(("int8", "float16", "bfloat16")),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40)),
    choice=st.data(),
    stride=st.integers(1, 4),
    as_steps=st.booleans(),
)
def test_average_without_padding(
    npu: Device, form: str, shape: Any, choice: st.DataObject, stride: int, as_steps: bool
) -> None:
    kernel = tuple(choice.draw(st.integers(1, min(5, size))) for size in shape[1:3])
    padding = tuple(choice.draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    x = images(form, shape, 4)
    options: dict[str, Any] = {"stride": stride, "padding": padding}
    given: dict[str, Any] = {"scale": 0.8, "x_zero_point": 5, "out_zero_point": -3} if form == "int8" else {}
    operation = average_pool_inside(form, shape, kernel, **options, **given)
    result = (
        stepwise(npu, operation, x) if as_steps else npu.avg_pool2d(x, kernel, count_padding=False, **options, **given)
    )
    real = x.astype(np.float64) if form != "bfloat16" else from_bfloat16(x).astype(np.float64)
    edges = ((0, 0), (padding[0], padding[2]), (padding[1], padding[3]), (0, 0))
    wide = np.pad(real - given.get("x_zero_point", 0), edges, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(wide, kernel, axis=(1, 2))[:, ::stride, ::stride]
    mean = np.nanmean(windows, axis=(-2, -1))
    assert result.shape == mean.shape
    if form == "int8":
        assert np.abs(result - np.clip(mean * 0.8 - 3, -128, 127)).max() <= 0.51
    else:
        magnitude = np.nanmean(np.abs(windows), axis=(-2, -1))
        values = from_bfloat16(result) if form == "bfloat16" else result.astype(np.float64)
        unit = 2.0**-7 if form == "bfloat16" else 2.0**-10
        assert (np.abs(values - mean) <= 1.5 * unit * magnitude + 1e-7).all()


def stepwise(npu: Device, operation: Any, x: np.ndarray) -> np.ndarray:
    """Every image through the steps of a schedule."""
    _, height, width, channels = operation.in_shape
    _, out_height, out_width, outputs = operation.out_shape
    source = Cube(height * width, channels, operation.form)
    target = Cube(out_height * out_width, outputs, operation.out)
    schedule = Schedule(npu.contexts(1)[0], [source], operation.steps(source, target), [target])
    result = np.empty(operation.out_shape, x.dtype)
    for image, out in zip(x, result, strict=True):
        schedule.pack(image)
        schedule.start()
        schedule.wait(60.0)
        schedule.unpack(out)
    schedule.close()
    return result


def test_global_average(npu: Device) -> None:
    """The window is the image: no stride limit applies."""
    x = images("float16", (1, 13, 11, 40), 2)
    with npu.compile(average_pool("float16", x.shape, (13, 11))) as program:
        assert np.allclose(program(x)[0, 0, 0], x.astype(float).mean(axis=(0, 1, 2)), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("mean", "int8", (1, 8, 8, 8), 2), {}, ValueError, "max, min, not 'mean'"),
        (("max", "int16", (1, 8, 8, 8), 2), {}, TypeError, "takes int8, int32, float16, bfloat16, not int16"),
        (("max", "int32", (1, 8, 8, 8), 2), {"engine": "ppu"}, TypeError, "on the PPU takes int8, float16, not int32"),
        (("max", "int8", (1, 8, 8, 8), 2), {"engine": "gpu"}, ValueError, "engine must be dpu or ppu"),
        (("max", "int8", (1, 8, 8, 8), 2), {"stride": 0}, ValueError, "vertical stride 0 is not positive"),
        (("max", "int8", (8, 8, 8), 2), {}, ValueError, r"must be \(N, H, W, C\)"),
        (("max", "int8", (1, 40, 40, 8), 17), {"engine": "ppu"}, ValueError, "vertical kernel 17 is outside 1..16"),
        (("max", "int8", (1, 8, 8, 8), 2), {"padding": 2}, ValueError, "top padding 2 is outside 0..1"),
        (("max", "int8", (1, 3, 3, 8), 4), {}, ValueError, "vertical kernel 4 is outside 1..3"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pool2d(*arguments, **options)
