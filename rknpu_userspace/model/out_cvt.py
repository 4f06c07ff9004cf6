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

RANGE = {INT8: (-128, 127), INT16: (-(1 << 15), (1 << 15) - 1), INT32: (-(1 << 31), (1 << 31) - 1)}
_SHIFT_BITS = 0x3F
_LUT_ZERO = np.float32(1 << 17)


def _round(values: Array, mode: str) -> Array:
    if mode == "half_even":
        return np.rint(values)
    if mode == "half_up":
        return np.floor(values + 0.5)
    if mode == "half_away":
        return np.copysign(np.floor(np.abs(values) + 0.5), values)
    return np.floor(values)


def _scale(f: Fields, quirks: Quirks) -> int:
    scale = f["OUT_CVT_SCALE"]
    return scale - (1 << 16) if scale >> 15 and quirks["out_scale_sign"] == "signed" else scale


def _scaled(values: Array, f: Fields, mode: str, quirks: Quirks) -> Array:
    """Scale, shift and offset of an int32 array, exact in float64: 32 + 16 bits, scaled by a power of two."""
    factor = _scale(f, quirks) * 2.0 ** -(f["OUT_CVT_SHIFT"] & _SHIFT_BITS)
    wide = values.astype(np.float64)
    if f["CVT_TYPE"]:
        return _round((wide + f["OUT_CVT_OFFSET"]) * factor, mode)
    if factor != 1.0:
        wide = _round(wide * factor, mode)
    return wide + f["OUT_CVT_OFFSET"]


def _narrow(values: Array, f: Fields, out: int, is_narrow: bool = False) -> Array:
    """float32 to the output format."""
    if out in (FP16, BF16) and not is_narrow:
        require(bool(f["FP32TOFP16_EN"]), f"{NAMES[out]} output without FP32TOFP16_EN")
    return encode(values, out)


def convert_integer(values: Array, f: Fields, quirks: Quirks) -> Array:
    """int32 [pixel][channel] to raw elements of the output format."""
    out = f["OUT_PRECISION"]
    identity = f["OUT_CVT_SCALE"] == 1 and not f["OUT_CVT_SHIFT"] & _SHIFT_BITS and not f["OUT_CVT_OFFSET"]
    mode = quirks.rounding("tie_rounding", f["CVT_ROUND"])
    if out in RANGE:
        if identity and out == INT32:
            return values
        result = values if identity else _scaled(values, f, mode, quirks)
        return encode(np.clip(result, *RANGE[out]), out)
    if out not in (FP32, FP16, BF16):
        raise Unsupported(f"DPU OUT_PRECISION {out}")
    if quirks["float_out_shift"] == "floor":
        mode = "floor"
    real = (values if identity else _scaled(values, f, mode, quirks)).astype(np.float32)
    if f["MINUS_EXP"]:
        real = real * np.float32(2.0 ** -f["MINUS_EXP"])
    return _narrow(real, f, out)


def convert_float(values: Array, f: Fields, quirks: Quirks, is_narrow: bool = False) -> Array:
    """float32 [pixel][channel] to raw elements of the output format. ``is_narrow``: already 16 bits wide (divider)."""
    out = f["OUT_PRECISION"]
    if f["OUT_CVT_SHIFT"] & _SHIFT_BITS:
        raise Unsupported("DPU OUT_CVT_SHIFT with a float result")
    factor = np.float32(_scale(f, quirks) * 2.0 ** -f["MINUS_EXP"])
    offset = np.float32(f["OUT_CVT_OFFSET"])
    if f["CVT_TYPE"] and offset:
        values = values + offset
    if factor != 1:
        values = values * factor
    if not f["CVT_TYPE"] and offset:
        values = values + offset
    if out in (FP32, FP16, BF16):
        return _narrow(values, f, out, is_narrow)
    if out == INT16:
        rounded = _round(
            np.nan_to_num(values.astype(np.float64), nan=0.0), quirks.rounding("tie_rounding", f["CVT_ROUND"])
        )
        return encode(np.clip(rounded, *RANGE[out]), out)
    raise Unsupported(f"DPU float result as {NAMES[out]}")


def convert_lut(entries: Array, f: Fields, quirks: Quirks) -> Array:
    """Interpolated table values (integers) of a float task: ``(q + OFFSET) * 2^-MINUS_EXP * SCALE`` as a float.

    The sum is an integer that is turned into a float here, and a zero does not come out as zero (quirk lut_zero).
    """
    total = entries.astype(np.int64) + f["OUT_CVT_OFFSET"]
    real = total.astype(np.float32)
    if quirks["lut_zero"] == "two_to_17":
        real = np.where(total == 0, _LUT_ZERO, real)
    return _narrow(real * np.float32(_scale(f, quirks) * 2.0 ** -f["MINUS_EXP"]), f, f["OUT_PRECISION"])
