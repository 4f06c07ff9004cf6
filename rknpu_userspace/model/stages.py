# SPDX-License-Identifier: MIT
"""The BS and BN stages of the DPU: ALU, multiplier, ReLU, per element or per channel.

In the integer domain values are int32 (DPU precision int8, int16, int32, int4), in the float domain float32 with every
operation rounded once. BS works ALU then MUL, which Rockchip's RMSNorm stream and RN's per-channel probe prove; BN is
a quirk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import IllegalConfig, Unsupported
from .precision import BF16, FP16, FP32, INT32, INTEGER, NAMES, Array, bf16_to_float32, register_float
from .quirks import Quirks
from .registers import Fields
from .rounding import shift_right, to_int32

ALU_MAX, ALU_MIN, ALU_ADD, ALU_DIV, ALU_MINUS, ALU_ABS, ALU_NEG, ALU_FLOOR, ALU_CEIL = range(9)
PROC_CODES = frozenset({*INTEGER, FP16, BF16, FP32, INT32})
"""Precision codes that the DPU knows."""


@dataclass
class Operands:
    """Per-channel operands from memory, None where the stream has none.

    ``alu`` int32 or float32; ``mul`` raw 16-bit patterns (uint16), ``zero_point`` int16.
    """

    alu: Array | None = None
    mul: Array | None = None
    zero_point: Array | None = None


@dataclass(frozen=True)
class Stage:
    """One of the two stages while a task runs. ``shift_neg`` stands in DATA_FORMAT."""

    name: str
    fields: Fields
    precision: int
    shift_neg: int
    operands: Operands
    quirks: Quirks

    def field(self, name: str) -> int:
        """A field of this stage's registers."""
        return self.fields[f"{self.name}_{name}"]

    @property
    def integer(self) -> bool:
        """Whether the DPU works in integers."""
        return self.precision in INTEGER

    def run(self, values: Array) -> Array:
        """Apply the stage to [pixel][channel]."""
        if self.field("BYPASS"):
            return values
        if self.name == "BS" or self.quirks["bn_order"] == "alu_mul":
            values = self._mul(self._alu(values))
        else:
            values = self._alu(self._mul(values))
        return relu(values, self.fields, self.name)

    def _alu(self, values: Array) -> Array:
        if self.field("ALU_BYPASS"):
            return values
        algorithm = self.field("ALU_ALGO")
        if algorithm not in (ALU_ADD, ALU_MINUS):
            raise Unsupported(f"DPU {self.name}_ALU_ALGO {algorithm}")
        if self.field("ALU_SRC"):
            if self.operands.alu is None:
                raise IllegalConfig(f"{self.name} waits for an ALU operand from memory that DPU_RDMA does not read")
            operand = self.operands.alu
        elif self.integer:
            operand = np.array(self.field("ALU_OPERAND"), np.int32)
        else:
            operand = np.array(register_float(self.field("ALU_OPERAND")))
        return add(values, operand, algorithm == ALU_MINUS, self.quirks)

    def _mul(self, values: Array) -> Array:
        if self.field("MUL_BYPASS"):
            return values
        if self.field("TRUNCATE_SRC"):
            raise Unsupported(f"DPU {self.name}_TRUNCATE_SRC (multiplier shift from memory)")
        if self.field("MUL_SRC"):
            if self.operands.mul is None:
                raise IllegalConfig(f"{self.name} waits for a MUL operand from memory that DPU_RDMA does not read")
            bits = self.operands.mul
        else:
            bits = np.array([self.field("MUL_OPERAND")], np.uint16)
        shift = self.field("MUL_SHIFT_VALUE")
        if not self.integer and (shift or self.shift_neg):
            raise Unsupported(f"DPU {self.name}_MUL_SHIFT_VALUE with {NAMES[self.precision]}")
        factor = multiplier(bits, self.precision)
        return multiply(values, factor, shift, self.shift_neg, bool(self.field("MUL_PRELU")), self.quirks)


def multiplier(bits: Array, precision: int) -> Array:
    """16-bit multiplier patterns (uint16) as numbers: int64, or float32.

    int16 for integers; bf16 when the DPU works in bf16; fp16 for fp16 and fp32.
    """
    if precision == BF16:
        return bf16_to_float32(bits)
    if precision in (FP16, FP32):
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.int16).astype(np.int64)


def add(values: Array, operand: Array, minus: bool, quirks: Quirks) -> Array:
    """Sum or difference in the domain of ``values`` (int32 or float32)."""
    if values.dtype == np.float32:
        result = values - operand if minus else values + operand
        return result.astype(np.float32, copy=False)
    if quirks["dpu_int_overflow"] == "wrap":
        wrapped: Array = values - operand if minus else values + operand
        return wrapped
    wide = values.astype(np.int64)
    return to_int32(wide - operand if minus else wide + operand, "saturate")


def multiply(values: Array, factor: Array, shift: int, shift_neg: int, prelu: bool, quirks: Quirks) -> Array:
    """Product; integers are shifted right afterwards, by one amount for negative products and another for the rest."""
    if values.dtype == np.float32:
        real: Array = values * factor
        return np.where(values < 0, real, values) if prelu else real
    product = values.astype(np.int64) * factor
    mode = quirks["mul_shift_rounding"]
    sign = quirks["mul_shift_sign"]
    if sign == "ignored" or shift == shift_neg:
        scaled = shift_right(product, shift, mode) if shift else product
    else:
        negative = product < 0 if sign == "product" else values < 0
        scaled = shift_right(product, np.where(negative, shift_neg, shift), mode)
    if prelu:
        scaled = np.where(values < 0, scaled, values)
    return to_int32(scaled, quirks["dpu_int_overflow"])


def relu(values: Array, f: Fields, name: str) -> Array:
    """ReLU and the upper bound ReLUX of a stage."""
    if f[f"{name}_RELU_BYPASS"]:
        return values
    values = np.maximum(values, values.dtype.type(0))
    if f[f"{name}_RELUX_EN"]:
        bound = f[f"{name}_RELUX_CMP_DAT"]
        limit = np.int32(bound) if values.dtype == np.int32 else register_float(bound)
        values = np.minimum(values, limit)
    return values
