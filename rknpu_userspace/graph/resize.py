# SPDX-License-Identifier: MIT
"""Images of another size, as TFLite's reference kernels make them (resize_nearest_neighbor.h, resize_bilinear.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_BITS = 10
_ONE = 1 << _BITS


def nearest(x: Array, height: int, width: int, align_corners: bool, half_pixel: bool) -> Array:
    """``x`` [N, H, W, C]: every output pixel is a copy."""
    rows = _nearest(x.shape[1], height, align_corners, half_pixel)
    columns = _nearest(x.shape[2], width, align_corners, half_pixel)
    result: Array = x[:, rows][:, :, columns]
    return result


def _nearest(size: int, out: int, align_corners: bool, half_pixel: bool) -> Array:
    scale = (
        np.float32(size - 1) / np.float32(out - 1) if align_corners and out > 1 else np.float32(size) / np.float32(out)
    )
    place = (np.arange(out, dtype=np.float32) + np.float32(0.5 * half_pixel)) * scale
    whole = np.floor(place + np.float32(0.5)) if align_corners else np.floor(place)
    places: Array = np.clip(whole, 0, size - 1).astype(np.intp)
    return places


def bilinear(x: Array, height: int, width: int, align_corners: bool, half_pixel: bool) -> Array:
    """``x`` [N, H, W, C] of integers: the mean of four pixels with weights of 10 bits; floats: in float32."""
    y0, y1, below = _between(x.shape[1], height, align_corners, half_pixel)
    x0, x1, right = _between(x.shape[2], width, align_corners, half_pixel)
    wide = x.astype(np.int64 if x.dtype.kind == "i" else np.float64)
    below, right = below[:, None, None], right[:, None]
    upper = wide[:, y0][:, :, x0] * (_ONE - right) + wide[:, y0][:, :, x1] * right
    lower = wide[:, y1][:, :, x0] * (_ONE - right) + wide[:, y1][:, :, x1] * right
    total = upper * (_ONE - below) + lower * below
    if x.dtype.kind != "i":
        real: Array = (total / (_ONE * _ONE)).astype(x.dtype)
        return real
    # half is added away from zero, then the fraction is cut off
    rounded: Array = np.sign(total) * ((np.abs(total) + (1 << (2 * _BITS - 1))) >> (2 * _BITS))
    return rounded.astype(x.dtype, copy=False)


def _between(size: int, out: int, align_corners: bool, half_pixel: bool) -> tuple[Array, Array, Array]:
    """Both neighbours of every output position, and its distance from the first in units of 2^-10."""
    if align_corners and out > 1:
        scale = (_ONE * (size - 1) + (out - 1) // 2) // (out - 1)
    else:
        scale = (_ONE * size + out // 2) // out
    place = np.arange(out) * scale
    if half_pixel:
        place = place + scale // 2 - _ONE // 2
    low = np.maximum(np.where(place < 0, -(-place // _ONE), place // _ONE), 0)
    high = np.minimum((place + _ONE - 1) // _ONE, size - 1)
    return low, np.maximum(high, 0), place - _ONE * low
