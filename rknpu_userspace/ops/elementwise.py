# SPDX-License-Identifier: MIT
"""Element-wise operations of two tensors of one shape, or of a tensor and a vector over its last axis.

float16 (add, sub, mul, max, min, div), bfloat16 (the same but div), int32 (add, sub, max, min; clamped) and int8 with
scales and zero points (add, sub, mul, max, min). Evidence: EW settings that clients have run on boards (HM, RU,
Rockchip's streams); in bfloat16 only the product has been shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.layout import ceil_div, from_bfloat16, to_bfloat16
from rknpu_userspace.program import Program, Share, Spec
from rknpu_userspace.quant import Requant, check_zero_point, derive, requantize
from rknpu_userspace.task import ALU_ADD, ALU_DIV, ALU_MAX, ALU_MIN, ALU_MINUS, PASS, Elementwise, Stage

from . import checks, flying
from .flying import Flow

Array = npt.NDArray[Any]
OPERATIONS = {
    "float16": ("add", "sub", "mul", "max", "min", "div"),
    "bfloat16": ("add", "sub", "mul", "max", "min"),
    "int32": ("add", "sub", "max", "min"),
    "int8": ("add", "sub", "mul", "max", "min"),
}
_ALGORITHM = {"add": ALU_ADD, "max": ALU_MAX, "min": ALU_MIN, "div": ALU_DIV}
_MINUS_ONE = {"float16": 0xBC00, "bfloat16": 0xBF80}
_SIZE = {1: 1, 2: 2, 4: 3}
MAX_WEIGHT = 32767
"""Integer weight of the int8 operand with the larger scale; the other's is in proportion, rounded to an integer. So the
sum needs one rounding only, and the smaller operand is off by up to half a unit of the larger scale / 32767."""


@dataclass(frozen=True)
class Scales:
    """Quantisation of an int8 operation: real scales and zero points of both operands and of the result."""

    a: float = 1.0
    b: float = 1.0
    out: float = 1.0
    a_zero_point: int = 0
    b_zero_point: int = 0
    out_zero_point: int = 0

    def check(self) -> None:
        """ValueError or TypeError for scales that are not positive numbers or zero points outside of int8."""
        for name in ("a", "b", "out"):
            checks.positive(f"scale {name}", getattr(self, name))
        for name in ("a_zero_point", "b_zero_point", "out_zero_point"):
            check_zero_point(name, getattr(self, name))

    def weights(self) -> tuple[int, int, Requant]:
        """Integer weights of both operands of a sum, and the requantisation of the weighted sum."""
        unit = max(self.a, self.b) / MAX_WEIGHT
        weights = round(self.a / unit), round(self.b / unit)
        return *weights, derive(unit / self.out, self.out_zero_point)

    def product(self) -> Requant:
        """The requantisation of a product."""
        return derive(self.a * self.b / self.out, self.out_zero_point)


def reference(kind: str, a: Array, b: Array, scales: Scales | None = None, relu: bool = False) -> Array:
    """What the NPU computes, bit for bit: floats in float32 and rounded once, int32 clamped, int8 as ``Scales`` says.

    bfloat16 operands are uint16 bit patterns, and so is their result.
    """
    if a.dtype == np.int8:
        return _reference_int8(kind, a.astype(np.int64), b.astype(np.int64), scales or Scales(), relu)
    if a.dtype == np.int32:
        x, y = a.astype(np.int64), b.astype(np.int64)
        exact = {"add": np.add, "sub": np.subtract, "max": np.maximum, "min": np.minimum}[kind](x, y)
        clamped: Array = np.clip(np.maximum(exact, 0) if relu else exact, -(1 << 31), (1 << 31) - 1).astype(np.int32)
        return clamped
    functions: dict[str, Callable[..., Array]] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "max": np.maximum,
        "min": np.minimum,
        "div": np.divide,
    }
    brain = a.dtype == np.uint16
    left, right = (from_bfloat16(v) if brain else v.astype(np.float32) for v in (a, b))
    with np.errstate(all="ignore"):
        wide = functions[kind](left, right)
        if kind == "div":
            wide = wide.astype(np.float16).astype(np.float32)
        if relu:
            wide = np.maximum(wide, 0)
        return to_bfloat16(wide) if brain else wide.astype(np.float16)


def _reference_int8(kind: str, a: Array, b: Array, scales: Scales, relu: bool) -> Array:
    x, y = a - scales.a_zero_point, b - scales.b_zero_point
    if kind == "mul":
        total, requant = x * y, scales.product()
    else:
        left, right, requant = scales.weights()
        x, y = x * left, y * right
        total = {"add": np.add, "sub": np.subtract, "max": np.maximum, "min": np.minimum}[kind](x, y)
    return requantize(np.maximum(total, 0) if relu else total, requant)


class Binary:
    """What to compile: an operation, the shapes of both operands and their format.

    ``b_shape`` equals ``a_shape``, or is (C,) with C the last size of ``a_shape``; other shapes that broadcast are for
    the caller to expand. ``relu`` is applied to the result before it is narrowed.
    """

    def __init__(
        self,
        kind: str,
        form: str,
        a_shape: Sequence[int],
        b_shape: Sequence[int] | None = None,
        *,
        relu: bool = False,
        scales: Scales | None = None,
    ) -> None:
        if form not in OPERATIONS:
            raise TypeError(f"element-wise operations take {', '.join(OPERATIONS)}, not {form}")
        if kind not in OPERATIONS[form]:
            raise ValueError(f"{form} can {', '.join(OPERATIONS[form])}, not {kind!r}")
        if scales is not None and form != "int8":
            raise ValueError(f"scales are for int8, not {form}")
        self.kind, self.form, self.relu = kind, form, relu
        self.scales = scales or Scales()
        self.scales.check()
        self.a_shape = tuple(a_shape)
        self.b_shape = self.a_shape if b_shape is None else tuple(b_shape)
        if 0 in self.a_shape or 0 in self.b_shape:
            raise ValueError(f"empty operand (shapes {self.a_shape}, {self.b_shape}): the NPU has no empty tensors")
        self.per_channel = self.b_shape != self.a_shape
        if self.per_channel and (not self.a_shape or self.b_shape != self.a_shape[-1:]):
            raise ValueError(f"shape {self.b_shape} is neither that of a, {self.a_shape}, nor one value per channel")
        if self.per_channel and kind == "sub":
            raise ValueError("a vector can not be subtracted: add its negative")

    def flow(self) -> Flow:
        """The DPU's settings. A difference adds the negated second operand, which is the main data then."""
        operand = "channel" if self.per_channel else "pixel"
        if self.form == "int8":
            return self._flow_int8(operand)
        ew = self._elementwise()
        bs = PASS
        if self.kind == "sub" and self.form in _MINUS_ONE:
            bs = Stage(bypass=0, mul_bypass=0, mul_operand=_MINUS_ONE[self.form])
        narrow = 0 if self.kind == "div" else None
        return Flow(self.form, self.form, bs=bs, ew=ew, operand=operand, cvt_narrow=narrow)

    def _elementwise(self) -> Elementwise:
        size = OUTPUTS[self.form].nbytes
        multiply = int(self.kind == "mul")
        algorithm = ALU_MINUS if self.kind == "sub" and self.form == "int32" else _ALGORITHM.get(self.kind, ALU_ADD)
        return Elementwise(
            bypass=0,
            op_bypass=0,
            multiply=multiply,
            from_memory=1,
            convert_bypass=int(multiply or self.form == "int32"),
            relu_bypass=int(not self.relu),
            algorithm=0 if multiply else algorithm,
            operand_size=0 if self.form == "bfloat16" else _SIZE[size],
            data_mode=int(not self.per_channel),
        )

    def _flow_int8(self, operand: str) -> Flow:
        """Both operands lose their zero points and get integer weights (a product: none) before they meet."""
        scales = self.scales
        if self.kind == "mul":
            main, other, requant = 1, 1, scales.product()
        else:
            main, other, requant = scales.weights()
        main_zero, other_zero = scales.a_zero_point, scales.b_zero_point
        if self.kind == "sub":
            main, other = -other, main
            main_zero, other_zero = other_zero, main_zero
        bs = Stage(
            bypass=0,
            alu_bypass=0,
            alu_algorithm=ALU_ADD,
            alu_operand=-main_zero,
            mul_bypass=0,
            mul_operand=main & 0xFFFF,
        )
        ew = Elementwise(
            bypass=0,
            op_bypass=0,
            multiply=int(self.kind == "mul"),
            from_memory=1,
            convert_bypass=0,
            relu_bypass=int(not self.relu),
            algorithm=_ALGORITHM.get(self.kind, ALU_ADD) if self.kind != "mul" else 0,
            operand_size=_SIZE[1],
            data_mode=int(not self.per_channel),
            convert_type=1,
            convert_offset=-other_zero,
            convert_scale=other,
        )
        return Flow(
            "int8",
            "int8",
            bs=bs,
            ew=ew,
            operand=operand,
            cvt_offset=requant.offset,
            cvt_scale=requant.scale,
            cvt_shift=requant.shift,
        )

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program: both operands in, the result out."""
        swap = self.kind == "sub" and self.form != "int32"
        label = f"element-wise {self.kind} {self.form} {'x'.join(map(str, self.a_shape))}"
        channels = self.a_shape[-1] if self.per_channel else 0
        count = int(np.prod(self.a_shape)) // (channels or 1)
        pieces = pieces_of(count, len(contexts))
        sizes = [(stop - start, channels) for start, stop in pieces]
        parts = flying.build(contexts, self.flow(), sizes, label)
        shares = [
            Share(part, _source(start, stop, channels, swap), _target(start, stop, channels))
            for part, (start, stop) in zip(parts, pieces, strict=True)
        ]
        dtype = np.dtype(OUTPUTS[self.form].dtype)
        return Program(shares, [Spec(self.a_shape, dtype), Spec(self.b_shape, dtype)], Spec(self.a_shape, dtype))


def pieces_of(count: int, cores: int) -> list[tuple[int, int]]:
    """Cut a count into at most ``cores`` ranges; streams are cut at multiples of 16 elements."""
    step = ceil_div(ceil_div(count, cores), 16) * 16
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _source(start: int, stop: int, channels: int, swap: bool) -> Callable[..., tuple[Array, ...]]:
    def cut(a: Array, b: Array) -> tuple[Array, ...]:
        if channels:
            return a.reshape(-1, channels)[start:stop], b
        pair = a.reshape(-1)[start:stop], b.reshape(-1)[start:stop]
        return pair[::-1] if swap else pair

    return cut


def _target(start: int, stop: int, channels: int) -> Callable[[Array], Array]:
    return lambda y: y.reshape(-1, channels)[start:stop] if channels else y.reshape(-1)[start:stop]
