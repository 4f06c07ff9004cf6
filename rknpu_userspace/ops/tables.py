# SPDX-License-Identifier: MIT
"""Contents and settings of the DPU's look-up table.

The table covers indices -16384..16384 in two halves of 513 int16 entries, interpolated linearly; the index is x times
a scale. Evidence: configurations that run on boards (RN encodings/dpu-lut-activation.md, RU).

Floats: a sum of entry and offset that is zero comes out as 2^17 2^-MINUS_EXP (RN), so only functions with positive
values are put into the table, with an offset of one. int8: the index is 128 x, so every one of the 256 inputs meets an
entry of its own, which holds the result: any function is exact. (The table in an integer task is TRM ch. 36; no public
client has shown it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.task import ALU_ADD, Elementwise, Lut, Stage

from .flying import Flow

Array = npt.NDArray[Any]
ENTRIES = 513
STEP_BITS = 5
LAST = (ENTRIES - 1) << STEP_BITS
FRACTION_BITS = 15
_LE, _LO = 0x20000, 0x30000
_INT8_SCALE = LAST // 128
_RANGES = Lut(config=0x68, info=STEP_BITS << 16 | STEP_BITS << 8, le_start=-LAST, le_end=0, lo_start=0, lo_end=LAST)


def bits_of(value: float, form: str) -> int:
    """A multiplier operand: bf16 bits where the DPU works in bf16, else fp16 bits."""
    if form == "bfloat16":
        return int(to_bfloat16(np.array([value], np.float32))[0])
    return int(np.float16(value).view(np.uint16))


def value_of(value: float, form: str) -> float:
    """The real number that ``bits_of`` stands for."""
    if form == "bfloat16":
        return float(from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0])
    return float(np.float16(value))


def float_bits(value: float) -> int:
    """An ALU operand: fp32 bits."""
    return int(np.float32(value).view(np.uint32))


def words_of(halves: tuple[Array, Array]) -> tuple[int, ...]:
    """Command words that load the lower and the upper half."""
    words = []
    for config, entries in zip((_LE, _LO), halves, strict=True):
        words.append(write(BY_NAME["DPU_LUT_ACCESS_CFG"], config))
        words += [write(BY_NAME["DPU_LUT_ACCESS_DATA"], int(entry) & 0xFFFF) for entry in entries]
    return tuple(words)


@dataclass(frozen=True)
class Table:
    """A function with values in (0, 1], and the range [-reach, reach] that the table covers; constant outside."""

    function: Callable[[Array], Array]
    reach: float
    shifted: bool = False
    """Whether all values are one ``unit`` too large, so that 0 can be told."""
    unit = 2.0**-FRACTION_BITS

    def scale(self, form: str) -> float:
        """Index units per x: the closest number of the multiplier's format."""
        return value_of(LAST / self.reach, form)

    def entries(self, upper: bool, form: str = "float16") -> npt.NDArray[np.int64]:
        """513 entries of the lower or upper half, minus the offset of one."""
        index = np.arange(ENTRIES) * (1 << STEP_BITS) - (0 if upper else LAST)
        values = self.function(index / self.scale(form))
        units: npt.NDArray[np.int64] = np.rint(values * (1 << FRACTION_BITS)).astype(np.int64) - int(not self.shifted)
        return np.clip(units, 0, 32767)

    def flow(self, form: str = "float16", out: str | None = None) -> Flow:
        """The DPU's settings: BN makes the index, EW looks it up, OUT_CVT turns the entry into a float."""
        return Flow(
            form,
            out or form,
            bn=Stage(
                bypass=0,
                alu_bypass=0,
                alu_algorithm=ALU_ADD,
                alu_operand=float_bits(-0.0),
                mul_bypass=0,
                mul_operand=bits_of(self.scale(form), form),
            ),
            ew=Elementwise(bypass=0, lut_bypass=0),
            lut=_RANGES,
            cvt_offset=1,
            cvt_offset_first=1,
            cvt_minus_exp=FRACTION_BITS,
            prologue=words_of((self.entries(False, form), self.entries(True, form))),
        )


def int8_flow(results: npt.NDArray[np.int8]) -> Flow:
    """A task that replaces every int8 x by ``results[x + 128]``."""
    at = np.arange(ENTRIES) / 4
    padded = np.append(results, results[-1]).astype(np.float64)
    lower, upper = (np.rint(np.interp(at + start, np.arange(257), padded)) for start in (0, 128))
    return Flow(
        "int8",
        "int8",
        bn=Stage(bypass=0, mul_bypass=0, mul_operand=_INT8_SCALE),
        ew=Elementwise(bypass=0, lut_bypass=0),
        lut=_RANGES,
        prologue=words_of((lower.astype(np.int64), upper.astype(np.int64))),
    )


def sigmoid(x: Array) -> Array:
    """Logistic function, in the arithmetic of ``x``."""
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-x))
    return result


def phi(x: Array) -> Array:
    """Distribution function of the normal distribution."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.ravel(x)]).reshape(np.shape(x))


EXP_PARTS, EXP_UNIT = 4, 16
"""exp(x) is computed as (16 g)^4 with g = exp(x / 4) / 16, which is at most 1 as far as float16 reaches."""
TABLES = {
    "sigmoid": Table(sigmoid, 10.0),
    "double_sigmoid": Table(lambda x: sigmoid(2 * x), 5.0),
    "normal": Table(phi, 5.0),
    "exp_part": Table(lambda x: np.minimum(np.exp(x / EXP_PARTS) / EXP_UNIT, 1), 16.0),
    "softplus_part": Table(lambda x: np.log1p(np.exp(-np.abs(x))), 10.0),
}
EXP_SHIFTED = Table(lambda x: np.exp(np.minimum(x, 0)), 16.0, shifted=True)
"""exp(x) for x <= 0."""
