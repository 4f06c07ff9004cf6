# SPDX-License-Identifier: MIT
"""Layouts against the byte formulas they implement, element by element, and round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace import layout
from rknpu_userspace.formats import INPUTS, OUTPUTS

DTYPES = ("int8", "int32", "float16", "float32", "uint16")
sizes = st.tuples(st.integers(1, 40), st.integers(1, 70))


def numbered(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values that differ, as far as the dtype allows."""
    count = int(np.prod(shape))
    return (np.arange(count) % 249 + 1).astype(dtype).reshape(shape)


@settings(max_examples=50, deadline=None)
@given(size=sizes, dtype=st.sampled_from(DTYPES))
def test_cube_follows_the_formula(size: tuple[int, int], dtype: str) -> None:
    pixels, channels = size
    source = numbered(size, dtype)
    item = source.itemsize
    lanes = 16 // item
    target = np.zeros(-(-channels // lanes) * pixels * 16, np.uint8)
    layout.pack_cube(target, source)
    flat = target.view(dtype)
    for pixel, channel in {(0, 0), (pixels - 1, channels - 1), (pixels // 2, channels // 3)}:
        byte = channel // lanes * pixels * 16 + pixel * 16 + channel % lanes * item
        assert flat[byte // item] == source[pixel, channel]
    assert np.count_nonzero(flat) == source.size
    back = np.empty_like(source)
    layout.unpack_cube(target, back)
    assert np.array_equal(back, source)


@settings(max_examples=50, deadline=None)
@given(size=sizes, dtype=st.sampled_from(DTYPES), cut=st.integers(0, 5))
def test_cube_of_slices(size: tuple[int, int], dtype: str, cut: int) -> None:
    """Sources and targets that are slices of larger arrays, with lines that are not adjacent."""
    pixels, channels = size
    wide = numbered((pixels * 2, channels + cut), dtype)
    source = wide[::2, cut:]
    target = np.zeros(layout.ceil_div(channels, 16 // wide.itemsize) * pixels * 16, np.uint8)
    layout.pack_cube(target, source)
    out = np.zeros_like(wide)
    layout.unpack_cube(target, out[::2, cut:])
    assert np.array_equal(out[::2, cut:], source)
    assert not out[1::2].any()
    assert not out[:, :cut].any()


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 70)), dtype=st.sampled_from(DTYPES))
def test_lines_follow_the_formula(shape: tuple[int, int, int], dtype: str) -> None:
    """Also of an image that is a slice of a larger one, where nothing is adjacent but the channels."""
    height, width, channels = shape
    wide = numbered((height, width + 3, channels + 2), dtype)
    image = wide[:, 1:-2, 1:-1]
    lanes = 16 // wide.itemsize
    surfaces = -(-channels // lanes)
    target = np.zeros(height * surfaces * width * 16, np.uint8)
    layout.pack_lines(target, image)
    flat = target.view(dtype)
    for y, x, channel in {(0, 0, 0), (height - 1, width - 1, channels - 1), (height // 2, width // 3, channels // 2)}:
        atom = (y * surfaces + channel // lanes) * width + x
        assert flat[atom * lanes + channel % lanes] == image[y, x, channel]
    assert np.count_nonzero(flat) == image.size


@settings(max_examples=50, deadline=None)
@given(size=sizes, dtype=st.sampled_from(DTYPES), pad=st.integers(0, 3))
def test_rows(size: tuple[int, int], dtype: str, pad: int) -> None:
    rows, columns = size
    source = numbered(size, dtype)
    line = layout.align(columns * source.itemsize, 16) + 16 * pad
    target = np.zeros(rows * line, np.uint8)
    layout.pack_rows(target, source, line)
    assert np.array_equal(target.reshape(rows, line)[:, : columns * source.itemsize].copy().view(dtype), source)
    back = np.empty_like(source)
    layout.unpack_rows(target, back, line)
    assert np.array_equal(back, source)


def tiles_by_hand(weights: np.ndarray, kernel_group: int, channel_group: int) -> list[int]:
    """The tile order as nested loops: k1, c1, kh, kw, k2, c2."""
    kernels, height, width, channels = weights.shape
    out: list[int] = []
    for k in range(0, kernels, kernel_group):
        for c in range(0, channels, channel_group):
            for y in range(height):
                for x in range(width):
                    out += weights[k : k + kernel_group, y, x, c : c + channel_group].ravel().tolist()
    return out


@pytest.mark.parametrize("name", ["int8", "float16", "bfloat16", "tfloat32"])
@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(st.integers(1, 70), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70)))
def test_weight_tiles(name: str, shape: tuple[int, int, int, int]) -> None:
    form = INPUTS[name]
    weights = numbered(shape, form.dtype)
    kernels, channels = layout.weight_kernels(shape[0]), layout.weight_channels(shape[3], form)
    padded = np.full((kernels, shape[1], shape[2], channels), 7, form.dtype)
    padded[: shape[0], :, :, : shape[3]] = weights
    packed = layout.pack_weights(weights, form, fill=7).view(form.dtype)
    assert packed.tolist() == tiles_by_hand(padded, form.kernel_group, form.channel_group)


def test_weights_of_whole_groups_are_slices() -> None:
    """What tiling along kernels relies on."""
    form = INPUTS["int8"]
    weights = numbered((96, 3, 3, 48), "int8")
    whole = layout.pack_weights(weights, form)
    middle = layout.pack_weights(weights[32:64], form)
    assert np.array_equal(whole[32 * 9 * 48 : 64 * 9 * 48], middle)


def test_documented_int8_matmul_tile() -> None:
    """A at (k / 16) * 64 + m * 16 + k % 16, B at n * 32 + k, C at (n / 4) * 64 + m * 16 + n % 4 * 4."""
    a = numbered((4, 32), "int8")
    target = np.zeros(128, np.uint8)
    layout.pack_cube(target, a)
    assert all(target[k // 16 * 64 + m * 16 + k % 16] == a[m, k].view(np.uint8) for m in range(4) for k in range(32))
    b = numbered((32, 32), "int8")
    packed = layout.pack_weights(b[:, None, None, :], INPUTS["int8"])
    assert all(packed[n * 32 + k] == b[n, k].view(np.uint8) for n in range(32) for k in range(32))
    c = np.arange(4 * 32, dtype=np.int32).reshape(4, 32)
    cube = np.zeros(512, np.uint8)
    layout.pack_cube(cube, c)
    words = cube.view(np.int32)
    assert all(words[(n // 4 * 64 + m * 16 + n % 4 * 4) // 4] == c[m, n] for m in range(4) for n in range(32))


@settings(max_examples=50, deadline=None)
@given(channels=st.integers(1, 200), taps=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_depthwise_weights(channels: int, taps: tuple[int, int]) -> None:
    form = INPUTS["int8"]
    weights = numbered((*taps, channels), "int8")
    packed = layout.pack_depthwise(weights, form).view(np.int8)
    padded = layout.weight_channels(channels, form)
    for y, x, channel in {(0, 0, 0), (taps[0] - 1, taps[1] - 1, channels - 1), (0, taps[1] - 1, channels // 2)}:
        group = channel // 64 * 64
        width = min(64, padded - group)
        at = group * taps[0] * taps[1] + (y * taps[1] + x) * width + channel - group
        assert packed[at] == weights[y, x, channel]
    assert len(packed) == taps[0] * taps[1] * padded


def test_nibbles() -> None:
    values = np.array([[1, -2, 7, -8]], np.int8)
    assert layout.pack_nibbles(values).tolist() == [[0xE1, 0x87]]


def test_sizes() -> None:
    assert layout.cube_bytes(10, 17, INPUTS["int8"]) == 320
    assert layout.cube_bytes(10, 17, OUTPUTS["int32"]) == 800
    assert layout.operand_bytes(5, 4) == 32
