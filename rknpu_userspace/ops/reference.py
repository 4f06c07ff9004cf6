# SPDX-License-Identifier: MIT
"""Numpy references of the operations: what the NPU is expected to compute, independent of plans and layouts.

Integers are exact (sums are formed in float64 by BLAS, where every partial sum is an integer below 2^53) and clamped to
int32, as accumulator and adder of the hardware do (RN, measured on a board). Floats are formed in float64 and rounded
once to the output format, the answer to measure units in the last place against: the hardware accumulates in something
like float32, so equality is not promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.quant import ChannelRequant, Requant, requantize, scale_channels

from .checks import numbers

Array = npt.NDArray[Any]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]
"""Top, left, bottom, right."""


def finish(
    sums: Array,
    bias: Array | None,
    relu: bool,
    requant: Requant | ChannelRequant | None,
    out_dtype: str,
    *,
    bound: float | None = None,
    slope: float | None = None,
) -> Array:
    """Bias, ReLU, requantisation and the output format, from float64 sums over the last axis of channels.

    ``out_dtype`` is a numpy dtype name. ``bound`` is the upper end of the ReLU, ``slope`` the factor of negative
    values, as the hardware takes them (see ``rectify``).
    """
    kind = np.dtype(out_dtype)
    if requant is None and kind.kind == "f" and (bias is None or bias.dtype.kind == "f"):
        values = rectify(sums if bias is None else sums + bias, relu, bound, slope, False)
        with np.errstate(over="ignore"):
            return values.astype(kind)
    return finish_integers(saturate32(sums if bias is None else sums + bias), relu, requant, kind, bound, slope)


def finish_integers(
    whole: Array,
    relu: bool,
    requant: Requant | ChannelRequant | None,
    kind: npt.DTypeLike,
    bound: float | None = None,
    slope: float | None = None,
) -> Array:
    """What becomes of int32 sums: multipliers per channel, ReLU or slope, then the output converter."""
    if isinstance(requant, ChannelRequant):
        return requantize(rectify(scale_channels(whole, requant), relu, bound, slope, True), requant.common)
    whole = rectify(whole, relu, bound, slope, True)
    return whole.astype(kind) if requant is None else requantize(whole, requant)


def rectify(values: Array, relu: bool, bound: float | None, slope: float | None, integer: bool) -> Array:
    """ReLU up to ``bound``; or ``slope`` times what is negative: of integers, the product rounded to nearest even."""
    if relu:
        values = np.maximum(values, 0)
    if bound is not None:
        values = np.minimum(values, np.array(bound).astype(values.dtype))
    if slope is None:
        return values
    if integer:
        return np.where(values < 0, np.rint(values.astype(np.float64) * slope), values)
    return np.where(values < 0, values * np.array(slope, values.dtype), values)


def saturate32(sums: Array) -> npt.NDArray[np.int32]:
    """Integers of a wider type to int32, clamped."""
    return np.clip(sums, -(1 << 31), (1 << 31) - 1).astype(np.int32)


def matmul(
    a: Array,
    b: Array,
    bias: Array | None = None,
    *,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    relu: bool = False,
    requant: Requant | ChannelRequant | None = None,
    bound: float | None = None,
    slope: float | None = None,
    out_dtype: str = "int32",
) -> Array:
    """``a`` [..., M, K] times ``b`` [..., K, N] with everything that the operation can do behind it."""
    left = a.astype(np.float64) - a_zero_point
    right = b.astype(np.float64) - b_zero_point
    return finish(left @ right, bias, relu, requant, out_dtype, bound=bound, slope=slope)


def conv2d(
    x: Array,
    weights: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    x_zero_point: int = 0,
    w_zero_point: int = 0,
    relu: bool = False,
    requant: Requant | ChannelRequant | None = None,
    bound: float | None = None,
    slope: float | None = None,
    out_dtype: str = "int32",
) -> Array:
    """``x`` [N, H, W, C], ``weights`` [OC, KH, KW, C / groups] to [N, OH, OW, OC]; padding stands for real zeros."""
    top, left, bottom, right = padding
    real = np.pad(x.astype(np.float64) - x_zero_point, ((0, 0), (top, bottom), (left, right), (0, 0)))
    kernels = weights.astype(np.float64) - w_zero_point
    out_channels, kernel_height, kernel_width, per_group = kernels.shape
    span_y, span_x = (kernel_height - 1) * dilation[0] + 1, (kernel_width - 1) * dilation[1] + 1
    out_height = (real.shape[1] - span_y) // stride[0] + 1
    out_width = (real.shape[2] - span_x) // stride[1] + 1
    sums = np.zeros((x.shape[0], out_height, out_width, out_channels))
    step = out_channels // groups
    for y in range(kernel_height):
        for column in range(kernel_width):
            window = _window(real, (y, column), stride, dilation, (out_height, out_width))
            for group in range(groups):
                chosen = slice(group * step, (group + 1) * step)
                part = window[..., group * per_group : (group + 1) * per_group]
                sums[..., chosen] += part @ kernels[chosen, y, column].T
    return finish(sums, bias, relu, requant, out_dtype, bound=bound, slope=slope)


def conv_transpose2d(
    x: Array,
    weights: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pads = (0, 0, 0, 0),
    output_padding: Pair = (0, 0),
    groups: int = 1,
    x_zero_point: int = 0,
    w_zero_point: int = 0,
    relu: bool = False,
    requant: Requant | ChannelRequant | None = None,
    bound: float | None = None,
    slope: float | None = None,
    out_dtype: str = "int32",
) -> Array:
    """``x`` [N, H, W, C], ``weights`` [OC, KH, KW, C / groups]: every pixel adds a copy of the kernel.

    ``padding`` is what is cut off the edges, ``output_padding`` what is added again at bottom and right.
    """
    real = x.astype(np.float64) - x_zero_point
    kernels = weights.astype(np.float64) - w_zero_point
    images, height, width, _ = x.shape
    out_channels, kernel_height, kernel_width, per_group = kernels.shape
    full_y, full_x = (height - 1) * stride[0] + kernel_height, (width - 1) * stride[1] + kernel_width
    sums = np.zeros((images, full_y + output_padding[0], full_x + output_padding[1], out_channels))
    step = out_channels // groups
    for ky in range(kernel_height):
        for kx in range(kernel_width):
            rows = slice(ky, ky + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(kx, kx + (width - 1) * stride[1] + 1, stride[1])
            for group in range(groups):
                chosen = slice(group * step, (group + 1) * step)
                part = real[..., group * per_group : (group + 1) * per_group]
                sums[:, rows, columns, chosen] += part @ kernels[chosen, ky, kx].T
    top, left, bottom, right = padding
    sums = sums[:, top : sums.shape[1] - bottom, left : sums.shape[2] - right]
    return finish(sums, bias, relu, requant, out_dtype, bound=bound, slope=slope)


def _window(real: Array, tap: Pair, stride: Pair, dilation: Pair, out: Pair) -> Array:
    y, x = tap[0] * dilation[0], tap[1] * dilation[1]
    return real[:, y : y + (out[0] - 1) * stride[0] + 1 : stride[0], x : x + (out[1] - 1) * stride[1] + 1 : stride[1]]


def ulp_distance(actual: Array, expected: Array) -> float:
    """Greatest distance in units in the last place of the expected values' format; inf for a NaN or sign mismatch.

    Both arrays have the same float dtype. Values that cancel to almost nothing have tiny units: compare those with
    ``ulp_distance_to`` instead.
    """
    if actual.size == 0:
        return 0.0
    spacing = np.spacing(np.abs(expected)).astype(np.float64)
    return _worst(np.abs(actual.astype(np.float64) - expected.astype(np.float64)) / spacing)


def ulp_distance_to(actual: Array, exact: Array, magnitude: Array) -> float:
    """Distance from a float64 result, in units in the last place of ``magnitude`` (the sum of the terms' absolutes).

    The unit that an accumulation in the output format works with: a result that cancels keeps the errors of its terms.
    """
    if actual.size == 0:
        return 0.0
    with np.errstate(over="ignore"):
        unit = np.spacing(np.maximum(np.abs(exact), magnitude).astype(actual.dtype)).astype(np.float64)
    return _worst(np.abs(actual.astype(np.float64) - exact) / unit)


def _worst(distances: Array) -> float:
    return float("inf") if np.isnan(distances).any() else float(distances.max())


def pair(name: str, value: int | Sequence[int]) -> Pair:
    """An int or two of them as (vertical, horizontal)."""
    found = numbers(name, value, {1: "a number", 2: "(vertical, horizontal)"})
    return found[0], found[-1]


def pads(value: int | Sequence[int]) -> Pads:
    """An int, (vertical, horizontal) or (top, left, bottom, right) as (top, left, bottom, right)."""
    forms = {1: "a number", 2: "(vertical, horizontal)", 4: "(top, left, bottom, right)"}
    found = numbers("padding", value, forms)
    if len(found) < 4:
        return found[0], found[-1], found[0], found[-1]
    return found[0], found[1], found[2], found[3]
