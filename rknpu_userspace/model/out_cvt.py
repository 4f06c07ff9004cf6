# SPDX-License-Identifier: MIT
"""OUT_CVT, the output converter of the DPU.

int8 out: ``sat8(round(acc * SCALE / 2^SHIFT) + OFFSET)``, which reproduces 4096 of 4096 outputs of a board capture
(RU teflon-dw-capture). Float out: ``(v + OFFSET) * SCALE * 2^-MINUS_EXP`` and one rounding to the output format.
"""

from __future__ import annotations

import numpy as np

from .errors import Unsupported, require
from .precision import BF16, FP16, FP32, INT8, INT16, INT32, NAMES, Array, encode
from .quirks import Quirks
from .registers import Fields

_RANGE = {INT8: (-128, 127), INT16: (-(1 << 15), (1 << 15) - 1), INT32: (-(1 << 31), (1 << 31) - 1)}
_SHIFT_BITS = 0x3F


def _round(values: Array, mode: str) -> Array:
    if mode == "half_even":
        return np.rint(values)
    if mode == "half_up":
        return np.floor(values + 0.5)
    if mode == "half_away":
        return np.copysign(np.floor(np.abs(values) + 0.5), values)
    return np.floor(values)


def _scaled(values: Array, f: Fields, mode: str) -> Array:
    """Scale, shift and offset of an int32 array, exact in float64: 32 + 16 bits, scaled by a power of two."""
    shift = f["OUT_CVT_SHIFT"] & _SHIFT_BITS
    factor = float(f["OUT_CVT_SCALE"]) * 2.0**-shift
    wide = values.astype(np.float64)
    if f["CVT_TYPE"]:
        return _round((wide + f["OUT_CVT_OFFSET"]) * factor, mode)
    if factor != 1.0:
        wide = _round(wide * factor, mode)
    return wide + f["OUT_CVT_OFFSET"]


def _narrow(values: Array, f: Fields, out: int) -> Array:
    """float32 to the output format."""
    if out in (FP16, BF16):
        require(bool(f["FP32TOFP16_EN"]), f"{NAMES[out]} output without FP32TOFP16_EN")
    return encode(values, out)


def convert_integer(values: Array, f: Fields, quirks: Quirks) -> Array:
    """int32 [pixel][channel] to raw elements of the output format."""
    out = f["OUT_PRECISION"]
    identity = f["OUT_CVT_SCALE"] == 1 and not f["OUT_CVT_SHIFT"] & _SHIFT_BITS and not f["OUT_CVT_OFFSET"]
    if out in _RANGE:
        if identity and out == INT32:
            return values
        mode = "half_up" if f["CVT_ROUND"] else quirks["tie_rounding"]
        result = values if identity else _scaled(values, f, mode)
        return encode(np.clip(result, *_RANGE[out]), out)
    if out not in (FP32, FP16, BF16):
        raise Unsupported(f"DPU OUT_PRECISION {out}")
    result = (
        values if identity else _scaled(values, f, "floor" if quirks["float_out_shift"] == "floor" else "half_even")
    )
    real = result.astype(np.float32)
    if f["MINUS_EXP"]:
        real = real * np.float32(2.0 ** -f["MINUS_EXP"])
    return _narrow(real, f, out)


def convert_float(values: Array, f: Fields, quirks: Quirks) -> Array:
    """float32 [pixel][channel] to raw elements of the output format."""
    out = f["OUT_PRECISION"]
    if f["OUT_CVT_SHIFT"] & _SHIFT_BITS:
        raise Unsupported("DPU OUT_CVT_SHIFT with a float result")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if f["OUT_CVT_OFFSET"]:
            values = values + np.float32(f["OUT_CVT_OFFSET"])
        if f["OUT_CVT_SCALE"] != 1 or f["MINUS_EXP"]:
            values = values * np.float32(f["OUT_CVT_SCALE"] * 2.0 ** -f["MINUS_EXP"])
    if out in (FP32, FP16, BF16):
        return _narrow(values, f, out)
    if out == INT16:
        rounded = _round(np.nan_to_num(values.astype(np.float64), nan=0.0), quirks["tie_rounding"])
        return encode(np.clip(rounded, *_RANGE[out]), out)
    raise Unsupported(f"DPU float result as {NAMES[out]}")
