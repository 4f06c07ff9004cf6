# SPDX-License-Identifier: MIT
"""Integer rounding: arithmetic right shifts with a tie rule, and the width of the integer data path."""

from __future__ import annotations

import numpy as np

from .precision import Array


def shift_right(values: Array, shift: int | Array, mode: str) -> Array:
    """``values / 2^shift`` (int64, shift 0..62) rounded: half_even, half_up (towards +inf), half_away, floor.

    ``shift`` may be an array that broadcasts. Shifts beyond 62 count as 62, which is the same for |values| < 2^61.
    """
    amount = np.minimum(np.asarray(shift, np.int64), 62)
    floor: Array = values >> amount
    if mode == "floor":
        return floor
    rest: Array = values - (floor << amount)
    half = np.where(amount > 0, np.int64(1) << np.maximum(amount - 1, 0), np.int64(1))
    tie: Array = rest == half
    if mode == "half_even":
        tie &= (floor & 1) == 1
    elif mode == "half_away":
        tie &= values >= 0
    elif mode != "half_up":
        raise ValueError(f"rounding mode {mode!r}")
    result: Array = floor + ((rest > half) | tie)
    return result


def to_int32(values: Array, overflow: str) -> Array:
    """int64 to the 32-bit data path: ``wrap`` or ``saturate``."""
    if overflow == "saturate":
        values = np.clip(values, -(1 << 31), (1 << 31) - 1)
    return values.astype(np.int32)
