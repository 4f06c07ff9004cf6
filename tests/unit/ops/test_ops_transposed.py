# SPDX-License-Identifier: MIT
"""Transposed convolutions, packed images, and what follows the sums: upper bounds and slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.conv2d import Conv2d
from rknpu_userspace.ops.matmul import Matmul
from rknpu_userspace.ops.schedule import Schedule
from rknpu_userspace.ops.steps import Cube
from rknpu_userspace.ops.transposed import ConvTranspose2d
from rknpu_userspace.quant import derive, derive_channels

seeds = st.integers(0, 2**32 - 1)
channel = st.sampled_from((1, 3, 15, 16, 17, 33)) | st.integers(1, 70)


@st.composite
def geometry(draw: st.DrawFn) -> dict[str, Any]:
    stride = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    kernel = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    padding = tuple(draw(st.integers(0, kernel[side % 2] - 1)) for side in range(4))
    more = tuple(draw(st.integers(0, min(padding[2 + axis], stride[axis] - 1))) for axis in (0, 1))
    full = [(size[axis] - 1) * stride[axis] + kernel[axis] - padding[axis] - padding[axis + 2] for axis in (0, 1)]
    if min(full) < 1:
        padding, more = (0, 0, 0, 0), (0, 0)
    return {"stride": stride, "kernel": kernel, "size": size, "padding": padding, "output_padding": more}


@settings(max_examples=40, deadline=None)
@given(shape=geometry(), ic=channel, oc=channel, zero=st.sampled_from((0, 7)), seed=seeds, cores=st.integers(1, 3))
def test_transposed_int8(
    npu: Device, shape: dict[str, Any], ic: int, oc: int, zero: int, seed: int, cores: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel, size = shape.pop("kernel"), shape.pop("size")
    x = rng.integers(-128, 128, (2, *size, ic), dtype=np.int8)
    w = rng.integers(-128, 128, (oc, *kernel, ic), dtype=np.int8)
    bias = rng.integers(-500, 500, oc)
    points = {"x_zero_point": zero, "w_zero_point": -3}
    with npu.compile(ConvTranspose2d(w, x.shape, bias=bias, **shape, **points), cores=cores) as program:
        assert np.array_equal(program(x), reference.conv_transpose2d(x, w, bias, **shape, **points))
    scaled = ConvTranspose2d(w, x.shape, bias=bias, scale=3e-4, out_zero_point=5, **shape, **points)
    with npu.compile(scaled, cores=cores) as program:
        expected = reference.conv_transpose2d(x, w, bias, requant=derive(3e-4, 5), out_dtype="int8", **shape, **points)
        assert np.array_equal(program(x), expected)


@settings(max_examples=40, deadline=None)
@given(shape=geometry(), ic=channel, oc=channel, brain=st.booleans(), seed=seeds)
def test_transposed_floats(npu: Device, shape: dict[str, Any], ic: int, oc: int, brain: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, size = shape.pop("kernel"), shape.pop("size")
    x, w = (rng.normal(size=part).astype(np.float32) for part in ((1, *size, ic), (oc, *kernel, ic)))
    if brain:
        x, w = from_bfloat16(to_bfloat16(x)), from_bfloat16(to_bfloat16(w))
        operation = ConvTranspose2d(w, x.shape, format="bfloat16", **shape)
        with npu.compile(operation) as program:
            result = program(to_bfloat16(x))
    else:
        x, w = x.astype(np.float16), w.astype(np.float16)
        with npu.compile(ConvTranspose2d(w, x.shape, **shape)) as program:
            result = program(x)
    exact = reference.conv_transpose2d(x, w, out_dtype="float64", **shape)
    magnitude = reference.conv_transpose2d(np.abs(x), np.abs(w), out_dtype="float64", **shape)
    assert reference.ulp_distance_to(result, exact, magnitude) <= 4


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(2, 5), per=st.tuples(st.integers(1, 20), st.integers(1, 20)), zero=st.sampled_from((0, 4)))
def test_transposed_groups(npu: Device, groups: int, per: tuple[int, int], zero: int) -> None:
    rng = np.random.default_rng(groups)
    x = rng.integers(-128, 128, (1, 4, 5, groups * per[0]), dtype=np.int8)
    w = rng.integers(-128, 128, (groups * per[1], 3, 3, per[0]), dtype=np.int8)
    options: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1, 1, 1), "groups": groups, "x_zero_point": zero}
    with npu.compile(ConvTranspose2d(w, x.shape, **options)) as program:
        assert np.array_equal(program(x), reference.conv_transpose2d(x, w, **options))


@pytest.mark.parametrize(("stride", "zero", "whole"), [(2, 0, True), (8, 0, True), (3, 0, False), (2, 1, False)])
def test_which_way_it_goes(stride: int, zero: int, whole: bool) -> None:
    w = np.ones((4, 4, 4, 4), np.int8)
    operation = ConvTranspose2d(w, (1, 4, 4, 4), stride=stride, x_zero_point=zero)
    assert (operation.inserted is not None) == whole


@settings(max_examples=40, deadline=None)
@given(shape=geometry(), ic=channel, oc=channel, zero=st.sampled_from((0, 7)), out=st.sampled_from(("int8", "int32")))
def test_transposed_steps(npu: Device, shape: dict[str, Any], ic: int, oc: int, zero: int, out: str) -> None:
    """As part of a schedule: the NPU puts the phases together."""
    rng = np.random.default_rng(ic)
    kernel, size = shape.pop("kernel"), shape.pop("size")
    x = rng.integers(-128, 128, (1, *size, ic), dtype=np.int8)
    w = rng.integers(-128, 128, (oc, *kernel, ic), dtype=np.int8)
    scaled: dict[str, Any] = {"scale": 1e-3} if out == "int8" else {}
    operation = ConvTranspose2d(w, x.shape, x_zero_point=zero, **shape, **scaled)
    _, height, width, channels = operation.out_shape
    source, target = Cube(size[0] * size[1], ic, "int8"), Cube(height * width, channels, out)
    schedule = Schedule(npu.contexts(1)[0], [source], operation.steps(source, target), [target])
    schedule.pack(x)
    schedule.start()
    schedule.wait(60.0)
    result = np.empty(operation.out_shape, out)
    schedule.unpack(result)
    schedule.close()
    requant = derive(1e-3) if out == "int8" else None
    assert np.array_equal(
        result, reference.conv_transpose2d(x, w, x_zero_point=zero, requant=requant, out_dtype=out, **shape)
    )


def test_a_transposed_convolution_larger_than_the_cbuf(npu: Device) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (1, 90, 101, 96), dtype=np.int8)
    w = rng.integers(-128, 128, (40, 4, 4, 96), dtype=np.int8)
    options: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
    with npu.compile(ConvTranspose2d(w, x.shape, **options), cores=2) as program:
        assert np.array_equal(program(x), reference.conv_transpose2d(x, w, **options))
        assert program.tasks > 2


@settings(max_examples=60, deadline=None)
@given(
    image=st.sampled_from(("int8", "uint8", "float16")),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    outputs=st.integers(1, 40),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padded=st.booleans(),
    seed=seeds,
    cores=st.integers(1, 3),
)
def test_packed_images(
    npu: Device,
    image: str,
    channels: int,
    size: tuple[int, int],
    outputs: int,
    kernel: int,
    stride: int,
    padded: bool,
    seed: int,
    cores: int,
) -> None:
    rng = np.random.default_rng(seed)
    kernel = min(kernel, *size)
    padding = kernel // 2 if padded else 0
    shape = (2, *size, channels)
    options: dict[str, Any] = {"stride": (stride, stride), "padding": (padding,) * 4}
    if image == "float16":
        x = rng.integers(-8, 9, shape).astype(np.float16)
        w = rng.integers(-8, 9, (outputs, kernel, kernel, channels)).astype(np.float16)
        out = "float32"
    else:
        x = rng.integers(0, 256, shape).astype(np.uint8).view(image)
        w = rng.integers(-128, 128, (outputs, kernel, kernel, channels), dtype=np.int8)
        options |= {"x_zero_point": 131 if image == "uint8" else -9, "w_zero_point": 2}
        out = "int32"
    operation = Conv2d(w, shape, image=image, **options)
    with npu.compile(operation, cores=cores) as program:
        assert np.array_equal(program(x), reference.conv2d(x, w, out_dtype=out, **options))
    assert operation.problem().in_bytes < operation.problem().stored_channels * x.size // channels * x.itemsize * 16


def test_a_camera_image(npu: Device) -> None:
    """More lines than the CBUF holds."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (1, 480, 641, 3)).astype(np.uint8)
    w = rng.integers(-128, 128, (16, 3, 3, 3), dtype=np.int8)
    options: dict[str, Any] = {"stride": (2, 2), "padding": (0, 1, 1, 0), "x_zero_point": 128}
    with npu.compile(Conv2d(w, x.shape, image="uint8", scale=0.001, **options), cores=1) as program:
        assert np.array_equal(program(x), reference.conv2d(x, w, requant=derive(0.001), out_dtype="int8", **options))
        assert program.tasks > 2


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(channel, st.integers(1, 3000), channel),
    per_channel=st.booleans(),
    choice=st.sampled_from(("relu", "bound", "slope")),
    seed=seeds,
)
def test_after_integer_sums(
    npu: Device, shape: tuple[int, int, int], per_channel: bool, choice: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, inner, columns = shape
    a = rng.integers(-128, 128, (rows, inner), dtype=np.int8)
    b = rng.integers(-128, 128, (inner, columns), dtype=np.int8)
    scale: Any = rng.uniform(1e-4, 1e-3, columns) if per_channel else 5e-4
    requant = derive_channels(scale, 3) if per_channel else derive(scale, 3)
    options: dict[str, Any] = {
        "relu": {"relu": True},
        "bound": {"relu": True, "bound": 9001},
        "slope": {"slope": 819 / 16384},
    }[choice]
    with npu.compile(Matmul(b, rows, scale=scale, out_zero_point=3, **options)) as program:
        assert np.array_equal(program(a), reference.matmul(a, b, requant=requant, out_dtype="int8", **options))
    with npu.compile(Matmul(b, rows, **options)) as program:
        assert np.array_equal(program(a), reference.matmul(a, b, **options))


@settings(max_examples=40, deadline=None)
@given(
    inner=st.sampled_from((1, 31, 64, 9000)),
    form=st.sampled_from(("float16", "bfloat16", "tfloat32")),
    choice=st.sampled_from(("bound", "slope")),
    seed=seeds,
)
def test_after_float_sums(npu: Device, inner: int, form: str, choice: str, seed: int) -> None:
    """Small integers, so that all sums are exact."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-4, 5, part).astype(np.float32) for part in ((5, inner), (inner, 20)))
    options: dict[str, Any] = {"bound": {"relu": True, "bound": 6.0}, "slope": {"slope": 0.25}}[choice]
    expected = reference.matmul(a, b, out_dtype="float32", **options)
    if form == "float16":
        a, b = a.astype(np.float16), b.astype(np.float16)
    assert np.array_equal(npu.matmul(a, b, format=None if form == "float16" else form, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 5.0}, "needs relu=True"),
        ({"relu": True, "bound": -5.0}, "must be finite and positive"),
        ({"relu": True, "bound": 0.5}, "not an int32 in accumulator units"),
        ({"relu": True, "slope": 0.1}, "exclude each other"),
        ({"slope": 2.0}, "outside -1.99994..1.99994"),
        ({"slope": float("nan")}, "slope nan is outside"),
    ],
)
def test_bad_rectifiers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matmul(np.ones((3, 3), np.int8), 3, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stride": 0}, ValueError, "vertical stride 0 is outside 1..31"),
        ({"padding": 3}, ValueError, "vertical padding 3 is outside 0..2"),
        ({"output_padding": 1}, ValueError, "vertical output padding 1 is outside 0..0"),
        ({"dilation": 2}, TypeError, "takes no dilation"),
        ({"padding": 2}, ValueError, "nothing is left"),
    ],
)
def test_bad_transposed(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ConvTranspose2d(np.ones((3, 3, 3, 3), np.int8), (1, 1, 1, 3), **options)


@pytest.mark.parametrize(
    ("image", "channels", "error", "message"),
    [
        ("rgb", 3, ValueError, "image must be int8, uint8, float16"),
        ("float16", 3, TypeError, "takes float16 weights, not int8"),
        ("uint8", 5, ValueError, "1 to 4 channels in one group, not 5"),
    ],
)
def test_bad_images(image: str, channels: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Conv2d(np.ones((3, 3, 3, channels), np.int8), (1, 5, 5, channels), image=image)
