# SPDX-License-Identifier: MIT
"""The BS and BN stages of the DPU: ALU, multiplier, ReLU, per element or per channel.

In the integer domain values are int32 (DPU precision int8, int16, int32, int4), in the float domain float32 with every
operation rounded once. BS works ALU then MUL, which Rockchip's RMSNorm stream proves; BN is a quirk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import IllegalConfig, Unsupported
from .precision import BF16, FP16, FP32, INT32, INTEGER, NAMES, Array, bf16_to_float32, register_float
from .quirks import Quirks
from .registers import Fields
from .rounding import shift_right, to_int32

ALU_MAX, ALU_MIN, ALU_ADD, ALU_DIV, ALU_MINUS = range(5)


@dataclass
class Operands:
    """Per-channel operands from memory, None where the stream has none.

    ``alu`` int32 or float32; ``mul`` raw 16-bit patterns (uint16), ``zero_point`` int16.
    """

    alu: Array | None = None
    mul: Array | None = None
    zero_point: Array | None = None


def multiplier(bits: Array, precision: int) -> Array:
    """16-bit multiplier patterns (uint16) as numbers: int64, or float32.

    int16 for integers; bf16 when the DPU works in bf16; fp16 for fp16, fp32 and int32 with a float operand.
    """
    if precision == BF16:
        return bf16_to_float32(bits)
    if precision in (FP16, FP32):
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.int16).astype(np.int64)


def run(
    name: str, values: Array, f: Fields, precision: int, shift_neg: int, operands: Operands, quirks: Quirks
) -> Array:
    """Apply stage ``name`` (BS or BN) to [pixel][channel]."""
    if f[f"{name}_BYPASS"]:
        return values
    order = "alu_mul" if name == "BS" else quirks["bn_order"]
    steps = (_alu, _mul) if order == "alu_mul" else (_mul, _alu)
    for step in steps:
        values = step(name, values, f, precision, shift_neg, operands, quirks)
    return relu(values, f, name, precision)


def relu(values: Array, f: Fields, name: str, precision: int) -> Array:
    """ReLU and the upper bound ReLUX of a stage."""
    if f[f"{name}_RELU_BYPASS"]:
        return values
    zero = values.dtype.type(0)
    values = np.maximum(values, zero)
    if f[f"{name}_RELUX_EN"]:
        bound = f[f"{name}_RELUX_CMP_DAT"]
        limit = values.dtype.type(bound) if precision in INTEGER else register_float(bound)
        values = np.minimum(values, limit)
    return values


def _alu(
    name: str, values: Array, f: Fields, precision: int, shift_neg: int, operands: Operands, quirks: Quirks
) -> Array:
    if f[f"{name}_ALU_BYPASS"]:
        return values
    algorithm = f[f"{name}_ALU_ALGO"]
    if algorithm not in (ALU_ADD, ALU_MINUS):
        raise Unsupported(f"DPU {name}_ALU_ALGO {algorithm}")
    integer = precision in INTEGER
    if f[f"{name}_ALU_SRC"]:
        if operands.alu is None:
            raise IllegalConfig(f"{name} waits for an ALU operand from memory that DPU_RDMA does not read")
        operand = operands.alu
    elif integer:
        operand = np.array(f[f"{name}_ALU_OPERAND"], np.int32)
    else:
        operand = np.array(register_float(f[f"{name}_ALU_OPERAND"]))
    if not integer:
        with np.errstate(over="ignore", invalid="ignore"):
            return values + operand if algorithm == ALU_ADD else values - operand
    if quirks["dpu_int_overflow"] == "wrap":
        return values + operand if algorithm == ALU_ADD else values - operand
    wide = values.astype(np.int64)
    return to_int32(wide + operand if algorithm == ALU_ADD else wide - operand, "saturate")


def _mul(
    name: str, values: Array, f: Fields, precision: int, shift_neg: int, operands: Operands, quirks: Quirks
) -> Array:
    if f[f"{name}_MUL_BYPASS"]:
        return values
    if f[f"{name}_TRUNCATE_SRC"]:
        raise Unsupported(f"DPU {name}_TRUNCATE_SRC (multiplier shift from memory)")
    if f[f"{name}_MUL_SRC"]:
        if operands.mul is None:
            raise IllegalConfig(f"{name} waits for a MUL operand from memory that DPU_RDMA does not read")
        bits = operands.mul
    else:
        bits = np.array([f[f"{name}_MUL_OPERAND"]], np.uint16)
    shift = f[f"{name}_MUL_SHIFT_VALUE"]
    prelu = bool(f[f"{name}_MUL_PRELU"])
    factor = multiplier(bits, precision)
    if precision in INTEGER:
        return _mul_integer(values, factor, shift, shift_neg, prelu, quirks)
    if shift or shift_neg:
        raise Unsupported(f"DPU {name}_MUL_SHIFT_VALUE with {NAMES[precision]}")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        product = values * factor
    return np.where(values < 0, product, values) if prelu else product


def _mul_integer(values: Array, factor: Array, shift: int, shift_neg: int, prelu: bool, quirks: Quirks) -> Array:
    """int32 x int16, shifted right by one amount for negative inputs and another for the rest."""
    product = values.astype(np.int64) * factor
    mode = quirks["mul_shift_rounding"]
    negative = values < 0
    if quirks["mul_shift_neg"] == "ignored" or shift == shift_neg:
        scaled = shift_right(product, shift, mode)
    else:
        scaled = shift_right(product, np.where(negative, shift_neg, shift), mode)
    if prelu:
        scaled = np.where(negative, scaled, values)
    return to_int32(scaled, quirks["dpu_int_overflow"])


def is_float(precision: int) -> bool:
    """Whether the DPU works in floats."""
    return precision not in INTEGER


DOMAIN = {True: np.float32, False: np.int32}
"""dtype of the data between the stages, by ``is_float``."""
PROC_CODES = frozenset({*INTEGER, FP16, BF16, FP32, INT32})
"""Precision codes that the DPU knows."""
