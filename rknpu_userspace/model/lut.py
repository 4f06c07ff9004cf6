# SPDX-License-Identifier: MIT
"""The look-up table of the DPU's EW stage: two tables of 513 int16 entries with linear interpolation.

LE covers the index range [LE_START, LE_END], LO [LO_START, LO_END], in steps of 2^INDEX_SELECT. Which table answers
follows NVDLA: a hit in one table alone decides, else the priority bits. Evidence: TRM ch. 36, RN
encodings/dpu-lut-activation.md (configurations that run on boards).
"""

from __future__ import annotations

import numpy as np

from .context import Context
from .errors import IllegalConfig, Unsupported, require_zero
from .lut_tables import ENTRIES, LE, LO
from .precision import Array
from .registers import Fields
from .rounding import shift_right

_MUX_HYBRID = 2


def look_up(ctx: Context, f: Fields, values: Array) -> Array:
    """Interpolated entries as int64, for int32 indices or float32 values that are rounded to indices."""
    require_zero(f, "DPU", ("LUT_ROAD_SEL", "LUT_EXPAND_EN", "LUT_CAL_SEL"))
    if f["LUT_LO_LE_MUX"] != _MUX_HYBRID:
        raise Unsupported(f"DPU LUT_LO_LE_MUX {f['LUT_LO_LE_MUX']} (2 = hybrid)")
    index = _indices(values, ctx.quirks["lut_index_rounding"])
    le, lo = _Table(ctx, f, "LE"), _Table(ctx, f, "LO")
    hit_le, hit_lo = le.hit(index), lo.hit(index)
    over = (index > le.end) & (index > lo.end)
    under = (index < le.start) & (index < lo.start)
    use_lo = np.where(hit_le & hit_lo, bool(f["LUT_HYBRID_PRIORITY"]), hit_lo)
    use_lo = np.where(over, bool(f["LUT_OFLOW_PRIORITY"]), use_lo)
    use_lo = np.where(under, bool(f["LUT_UFLOW_PRIORITY"]), use_lo)
    # Between two ranges that do not touch: the table that lies below extrapolates, as NVDLA's overflow does.
    between = ~(hit_le | hit_lo | over | under)
    use_lo = np.where(between, lo.end < le.start, use_lo)
    return np.where(use_lo, lo.value(index), le.value(index))


def _indices(values: Array, mode: str) -> Array:
    if values.dtype == np.int32:
        return values.astype(np.int64)
    limit = float(1 << 40)
    finite = np.clip(np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=limit, neginf=-limit), -limit, limit)
    return (np.rint(finite) if mode == "half_even" else np.floor(finite)).astype(np.int64)


class _Table:
    """One of the two tables with its range and slopes."""

    def __init__(self, ctx: Context, f: Fields, name: str) -> None:
        self.start, self.end = f[f"LUT_{name}_START"], f[f"LUT_{name}_END"]
        self.step = f[f"LUT_{name}_INDEX_SELECT"]
        self.entries = ctx.lut.entries[LO if name == "LO" else LE].astype(np.int64)
        self.mode = ctx.quirks["lut_interpolation"]
        self.slopes = [
            (f[f"LUT_{name}_SLOPE_{side}_SCALE"], f[f"LUT_{name}_SLOPE_{side}_SHIFT"]) for side in ("UFLOW", "OFLOW")
        ]
        span = self.end - self.start
        if span < 0 or self.step > 32 or span >> self.step > ENTRIES - 1:
            raise IllegalConfig(
                f"table {name}: indices {self.start}..{self.end} in steps of 2^{self.step} exceed {ENTRIES} entries"
            )

    def hit(self, index: Array) -> Array:
        """Whether an index is inside the range."""
        inside: Array = (index >= self.start) & (index <= self.end)
        return inside

    def value(self, index: Array) -> Array:
        """Interpolated inside the range, extended by the slopes outside."""
        offset = np.clip(index, self.start, self.end) - self.start
        low = offset >> self.step
        fraction = offset - (low << self.step)
        below = self.entries[low]
        above = self.entries[np.minimum(low + 1, ENTRIES - 1)]
        inside = below + shift_right((above - below) * fraction, self.step, self.mode)
        (under_scale, under_shift), (over_scale, over_shift) = self.slopes
        under = (index - self.start) * _signed16(under_scale) >> under_shift
        over = (index - self.end) * _signed16(over_scale) >> over_shift
        result: Array = inside + np.where(index < self.start, under, 0) + np.where(index > self.end, over, 0)
        return np.clip(result, -(1 << 31), (1 << 31) - 1)


def _signed16(value: int) -> int:
    return value - (1 << 16) if value >> 15 else value
