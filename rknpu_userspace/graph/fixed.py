# SPDX-License-Identifier: MIT
"""Fixed-point arithmetic of TFLite's reference kernels (tensorflow/lite/kernels/internal/common.h), over arrays.

A real multiplier is a 31-bit fraction and a power of two. It is applied in two roundings, half away from zero each: the
high half of the doubled product, then the shift.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir import half_away

Array = npt.NDArray[Any]
_INT32 = (-(1 << 31), (1 << 31) - 1)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """(31-bit fraction, shift left): real = fraction x 2^(shift - 31)."""
    if real == 0.0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    fraction = half_away(math.ldexp(mantissa, 31))
    if fraction == 1 << 31:
        fraction >>= 1
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return (1 << 31) - 1, 30
    return fraction, shift


def doubling_high_multiply(values: Array, fraction: Array | int) -> npt.NDArray[np.int64]:
    """``(values * fraction * 2) >> 32``, rounded to nearest, ties away from zero; both operands are int32."""
    product = values.astype(np.int64) * fraction
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    result: npt.NDArray[np.int64] = np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
    return np.clip(result, *_INT32)


def rounding_shift(values: Array, shift: Array | int) -> npt.NDArray[np.int64]:
    """Division by 2^shift, rounded to nearest, ties away from zero."""
    mask = (np.int64(1) << np.asarray(shift, np.int64)) - 1
    remainder = values & mask
    threshold = (mask >> 1) + (values < 0)
    result: npt.NDArray[np.int64] = (values >> shift) + (remainder > threshold)
    return result


def multiply(values: Array, fraction: Array | int, shift: Array | int) -> npt.NDArray[np.int64]:
    """``values`` times the real number that fraction and shift stand for (MultiplyByQuantizedMultiplier)."""
    left, right = np.maximum(shift, 0), np.maximum(np.negative(shift), 0)
    wide = np.clip(values.astype(np.int64) << np.asarray(left, np.int64), *_INT32)
    return rounding_shift(doubling_high_multiply(wide, fraction), right)
