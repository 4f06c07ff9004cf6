# SPDX-License-Identifier: MIT
"""EW, the element-wise stage of the DPU: a second operand per pixel, per channel or from registers; look-up table.

The operand arrives as the DPU's PROC precision has it: int8/int16/int32, fp16, bf16 or fp32. A float ALU operand of 16
bits reaches the adder through the operand converter, which must be live; a multiplier operand must bypass it. Evidence:
HM and RU (programs that run on boards), RN encodings/sdp-stage-precision.md (ew_int_probe).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .context import Context
from .errors import IllegalConfig, Unsupported, require, require_zero
from .lut import look_up
from .precision import BF16, FP16, FP32, INTEGER, NAMES, Array, bf16_to_float32
from .quirks import Quirks
from .registers import Fields
from .rounding import shift_right, to_int32
from .stages import (
    ALU_ABS,
    ALU_ADD,
    ALU_CEIL,
    ALU_DIV,
    ALU_FLOOR,
    ALU_MAX,
    ALU_MIN,
    ALU_MINUS,
    ALU_NEG,
    add,
    multiply,
    relu,
)

SIZE_8, SIZE_16, SIZE_32 = 1, 2, 3
_UNARY = (ALU_ABS, ALU_NEG, ALU_FLOOR, ALU_CEIL)
_REGISTERS = 8


@dataclass
class RawOperand:
    """What ERDMA delivers: raw elements [pixel or 1][channel] (uint8/uint16/uint32) of a data size."""

    raw: Array
    size: int


@dataclass
class EwResult:
    """``lut``: the values are table entries. ``narrow``: the values are already rounded to fp16."""

    values: Array
    lut: bool = False
    narrow: bool = False


def run(ctx: Context, f: Fields, values: Array, operand: RawOperand | None) -> EwResult:
    """Apply the stage to [pixel][channel]."""
    if f["EW_BYPASS"]:
        return EwResult(values)
    require_zero(f, "DPU", ("EW_BINARY_EN",))
    narrow = False
    if not f["EW_OP_BYPASS"]:
        values = _operate(ctx, f, values, operand)
        narrow = not f["EW_OP_TYPE"] and f["EW_ALU_ALGO"] == ALU_DIV
    is_lut = not f["EW_LUT_BYPASS"]
    if is_lut:
        if f["OUT_CVT_OFFSET"] < 0 and ctx.quirks["lut_zero"] == "two_to_17":
            ctx.warn("look-up table with OUT_CVT_OFFSET < 0: results that decode to 0 come out as 2^(17 - MINUS_EXP)")
        entries = look_up(ctx, f, values)
        if values.dtype == np.float32:
            require(bool(f["EW_RELU_BYPASS"]), "EW ReLU after a look-up table in a float task")
            return EwResult(entries, lut=True)
        values = entries.astype(np.int32)
    return EwResult(relu(values, f, "EW"), narrow=narrow)


def _operate(ctx: Context, f: Fields, values: Array, operand: RawOperand | None) -> Array:
    algorithm = f["EW_ALU_ALGO"]
    if f["EW_OP_TYPE"]:
        factor = _factor(ctx, f, values, operand)
        shift, shift_neg = f["EW_TRUNCATE"], f["EW_TRUNCATE_NEG"]
        if values.dtype == np.float32 and (shift or shift_neg):
            raise Unsupported("DPU EW_TRUNCATE in a float task")
        return multiply(values, factor, min(shift, 62), min(shift_neg, 62), bool(f["EW_MUL_PRELU"]), ctx.quirks)
    if f["EW_TRUNCATE"] or f["EW_TRUNCATE_NEG"] or f["EW_MUL_PRELU"]:
        raise Unsupported("DPU EW_TRUNCATE or EW_MUL_PRELU with the EW ALU")
    if algorithm in _UNARY and ctx.quirks["ew_unary"] == "main":
        return _unary(values, algorithm, ctx.quirks)
    second = _addend(ctx, f, values, operand)
    if algorithm in _UNARY:
        return _unary(np.broadcast_to(second, values.shape).astype(values.dtype), algorithm, ctx.quirks)
    if algorithm == ALU_MAX:
        return np.maximum(values, second)
    if algorithm == ALU_MIN:
        return np.minimum(values, second)
    if algorithm in (ALU_ADD, ALU_MINUS):
        return add(values, second, algorithm == ALU_MINUS, ctx.quirks)
    if algorithm == ALU_DIV and values.dtype == np.float32:
        return (values / second).astype(np.float16).astype(np.float32)
    raise Unsupported(f"DPU EW_ALU_ALGO {algorithm} with {values.dtype}")


def _unary(values: Array, algorithm: int, quirks: Quirks) -> Array:
    if algorithm == ALU_ABS:
        if values.dtype == np.float32:
            return np.abs(values)
        return to_int32(np.abs(values.astype(np.int64)), quirks["dpu_int_overflow"])
    if algorithm == ALU_NEG:
        if values.dtype == np.float32:
            return -values
        return to_int32(-values.astype(np.int64), quirks["dpu_int_overflow"])
    if values.dtype != np.float32:
        return values
    return np.floor(values) if algorithm == ALU_FLOOR else np.ceil(values)


def _from_registers(f: Fields, channels: int, precision: int) -> RawOperand:
    """Register operands: one per lane of eight."""
    words = np.array([f[f"EW_OPERAND_{lane}"] & 0xFFFFFFFF for lane in range(_REGISTERS)], np.uint32)
    wide = np.tile(words, -(-channels // _REGISTERS))[:channels].reshape(1, channels)
    if precision in (FP16, BF16):
        return RawOperand(wide.astype(np.uint16), SIZE_16)
    return RawOperand(wide, SIZE_32)


def _raw(f: Fields, values: Array, operand: RawOperand | None) -> RawOperand:
    if not f["EW_OP_SRC"]:
        return _from_registers(f, values.shape[1], f["PROC_PRECISION"])
    if operand is None:
        raise IllegalConfig("EW waits for an operand from memory that DPU_RDMA does not read")
    if f["EDATA_SIZE"] not in (0, operand.size):
        raise Unsupported(f"EDATA_SIZE {f['EDATA_SIZE']} with ERDMA_DATA_SIZE {operand.size}")
    return operand


def _integers(operand: RawOperand) -> Array:
    kind = {SIZE_8: np.int8, SIZE_16: np.int16, SIZE_32: np.int32}[operand.size]
    return operand.raw.view(kind)


def _floats(operand: RawOperand, precision: int) -> Array:
    """Operand of a float ALU."""
    if operand.size == SIZE_32:
        return operand.raw.view(np.float32)
    if operand.size != SIZE_16:
        raise Unsupported(f"an 8-bit EW operand with {NAMES[precision]}")
    if precision == BF16:
        return bf16_to_float32(operand.raw)
    return operand.raw.view(np.float16).astype(np.float32)


def _addend(ctx: Context, f: Fields, values: Array, operand: RawOperand | None) -> Array:
    """The second input of the ALU, in the domain of ``values``."""
    precision = f["PROC_PRECISION"]
    raw = _raw(f, values, operand)
    if precision in INTEGER:
        integers = _integers(raw)
        if f["EW_OP_CVT_BYPASS"]:
            return integers.astype(np.int32)
        return _convert(ctx, f, integers)
    if f["EW_OP_CVT_BYPASS"]:
        if raw.size == SIZE_16:
            ctx.warn("a 16-bit float operand with EW_OP_CVT_BYPASS does not reach the ALU: taken as 0")
            return np.zeros((1, 1), np.float32)
    elif f["EW_OP_CVT_SCALE"] != 1 or f["EW_OP_CVT_SHIFT"] or f["EW_OP_CVT_OFFSET"]:
        raise Unsupported("EW operand converter with a float operand and scale, shift or offset")
    return _floats(raw, precision)


def _convert(ctx: Context, f: Fields, operand: Array) -> Array:
    """Operand converter: ``(e + OFFSET) * SCALE >> SHIFT`` (EW_CVT_TYPE 1) or ``(e * SCALE >> SHIFT) + OFFSET``."""
    scale = f["EW_OP_CVT_SCALE"]
    scale = scale - (1 << 16) if scale >> 15 and ctx.quirks["out_scale_sign"] == "signed" else scale
    shift, offset = f["EW_OP_CVT_SHIFT"], f["EW_OP_CVT_OFFSET"]
    mode = ctx.quirks.rounding("ew_cvt_rounding", f["EW_CVT_ROUND"])
    wide = operand.astype(np.int64)
    if f["EW_CVT_TYPE"]:
        result = shift_right((wide + offset) * scale, shift, mode)
    else:
        result = shift_right(wide * scale, shift, mode) + offset
    return to_int32(result, ctx.quirks["dpu_int_overflow"])


def _factor(ctx: Context, f: Fields, values: Array, operand: RawOperand | None) -> Array:
    """The second input of the multiplier: 16 bits wide, the low half of a 32-bit element."""
    precision = f["PROC_PRECISION"]
    raw = _raw(f, values, operand)
    if precision in INTEGER:
        integers = _integers(raw)
        if raw.size == SIZE_32:
            integers = integers.astype(np.int16)
        if f["EW_OP_CVT_BYPASS"]:
            return integers.astype(np.int64)
        return _convert(ctx, f, integers).astype(np.int64)
    require(bool(f["EW_OP_CVT_BYPASS"]), "EW MUL of floats with the operand converter live never completes")
    if raw.size == SIZE_32:
        halves = raw.raw.astype(np.uint16)
    elif raw.size == SIZE_16:
        halves = raw.raw
    else:
        raise Unsupported(f"an 8-bit EW operand with {NAMES[precision]}")
    if precision == BF16:
        return bf16_to_float32(halves)
    if precision in (FP16, FP32):
        return halves.view(np.float16).astype(np.float32)
    raise Unsupported(f"EW MUL with {NAMES[precision]}")
