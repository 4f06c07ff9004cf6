# SPDX-License-Identifier: MIT
"""Activations of float16, bfloat16 and int8 tensors of any shape: the DPU's stages, its look-up table, short sequences.

``BOUNDS`` says how far float results may be from the real function; int8 results are those of ``int8_results``. PReLU
with a slope per channel is ``PRelu``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.backend import Context
from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.program import Program, Share, Spec
from rknpu_userspace.quant import CHANNEL_SHIFT, INT8_MAX, INT8_MIN, check_zero_point, derive, requantize
from rknpu_userspace.task import ALU_ADD, PASS, Stage

from . import checks
from .elementwise import pieces_of
from .flying import Flow
from .moves import Move, moves_of, stage
from .schedule import Schedule
from .shares import by_rows, collected
from .steps import Cube, FlyingStep, Step
from .tables import int8_flow, phi, sigmoid

Array = npt.NDArray[Any]
FORMATS = ("float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Bound:
    """|result - real| <= absolute + relative |real| for low <= x <= high."""

    absolute: float
    relative: float
    low: float = -65504.0
    high: float = 65504.0


_HALF, _BRAIN = 2.0**-11, 2.0**-8
"""Relative rounding errors of the formats, doubled for bfloat16's halfway bits."""
BOUNDS: dict[str, dict[str, Bound]] = {
    "relu": {"float16": Bound(0, 0), "bfloat16": Bound(0, 0)},
    "relu6": {"float16": Bound(0, 0), "bfloat16": Bound(0, 0)},
    "relux": {"float16": Bound(0, _HALF), "bfloat16": Bound(0, _BRAIN)},
    "leaky_relu": {"float16": Bound(1e-7, 2 * _HALF), "bfloat16": Bound(0, 2 * _BRAIN)},
    "hardsigmoid": {"float16": Bound(1e-7, 2 * _HALF), "bfloat16": Bound(0, 2 * _BRAIN)},
    "hardswish": {"float16": Bound(1e-7, 2 * _HALF, high=32000), "bfloat16": Bound(0, 2 * _BRAIN)},
    "sigmoid": {"float16": Bound(4e-4, 0), "bfloat16": Bound(4e-4, _BRAIN)},
    "tanh": {"float16": Bound(1.2e-3, 0), "bfloat16": Bound(1.5e-3, _BRAIN)},
    "silu": {"float16": Bound(3e-3, 2 * _HALF, -16), "bfloat16": Bound(4e-3, 2 * _BRAIN, -16)},
    "gelu": {"float16": Bound(2e-3, 2 * _HALF, -16), "bfloat16": Bound(3e-3, 2 * _BRAIN, -16)},
    "softplus": {"float16": Bound(3e-4, 2 * _HALF), "bfloat16": Bound(5e-4, 2 * _BRAIN)},
    "exp": {"float16": Bound(2e-4, 5e-3, -16, 11), "bfloat16": Bound(2e-4, 1e-2, -16, 11)},
    "reciprocal": {"float16": Bound(1e-7, 2 * _HALF, 2**-14)},
    "rsqrt": {"float16": Bound(0, 4 * _HALF, 2**-13), "bfloat16": Bound(0, 4 * _BRAIN, 2**-13)},
    "sqrt": {"float16": Bound(5e-6, 5 * _HALF, 0), "bfloat16": Bound(5e-6, 5 * _BRAIN, 0)},
}
"""What is stated and tested for every kind and float format. Rows without a format: not possible, see ``ops.table``."""
KINDS = tuple(BOUNDS)


@dataclass(frozen=True)
class UnaryScales:
    """Quantisation of an int8 activation: real scales and zero points of input and output."""

    x: float = 1.0
    out: float = 1.0
    x_zero_point: int = 0
    out_zero_point: int = 0

    def check(self) -> None:
        """ValueError or TypeError for scales that are not positive numbers or zero points outside of int8."""
        for name in ("x", "out"):
            checks.positive(f"scale {name}", getattr(self, name))
        for name in ("x_zero_point", "out_zero_point"):
            check_zero_point(name, getattr(self, name))


def reference(kind: str, x: Array, slope: float = 0.01, bound: float = 6.0) -> Array:
    """The real function in float64; uint16 operands are bfloat16 bit patterns."""
    wide = (from_bfloat16(x) if x.dtype == np.uint16 else x).astype(np.float64)
    functions: dict[str, Callable[[Array], Array]] = {
        "relu": lambda v: np.maximum(v, 0),
        "relu6": lambda v: np.clip(v, 0, 6),
        "relux": lambda v: np.clip(v, 0, bound),
        "leaky_relu": lambda v: np.where(v < 0, v * slope, v),
        "hardsigmoid": lambda v: np.clip(v + 3, 0, 6) / 6,
        "hardswish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "silu": lambda v: v * sigmoid(v),
        "gelu": lambda v: v * phi(v),
        "softplus": lambda v: np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v))),
        "exp": np.exp,
        "reciprocal": lambda v: 1 / v,
        "rsqrt": lambda v: 1 / np.sqrt(v),
        "sqrt": np.sqrt,
    }
    with np.errstate(all="ignore"):
        return functions[kind](wide)


STAGED = ("relu", "relu6", "relux", "leaky_relu")
"""int8 activations that the DPU's stages do; the others are tables."""
GUARD = 128
"""int8: factor that a value gets before it is bounded or multiplied by its slope, so that nothing is lost."""
MAX_SLOPE = 2.0
"""int8: slopes are int16 in units of 2^-14."""


def slope_units(slopes: Array | float) -> Array:
    """int16 slopes in units of 2^-14."""
    units: Array = np.clip(np.rint(np.asarray(slopes, np.float64) * (1 << CHANNEL_SHIFT)), -32768, 32767)
    return units


def _is_staged(kind: str, slope: float) -> bool:
    return kind in STAGED and (kind != "leaky_relu" or abs(slope) <= MAX_SLOPE)


def _limit(kind: str, scales: UnaryScales, bound: float) -> int | None:
    """The upper end of a ReLU in guarded units, at most an int32."""
    if kind not in ("relu6", "relux"):
        return None
    return min(round((6.0 if kind == "relu6" else bound) / scales.x * GUARD), (1 << 31) - 1)


def _staged_results(kind: str, scales: UnaryScales, slope: float, bound: float) -> npt.NDArray[np.int8]:
    values = (np.arange(INT8_MIN, INT8_MAX + 1) - scales.x_zero_point) * GUARD
    if kind == "leaky_relu":
        values = np.where(values < 0, np.rint(values * slope_units(slope) * 2.0**-CHANNEL_SHIFT), values)
    else:
        values = np.clip(values, 0, _limit(kind, scales, bound))
    return requantize(values, derive(scales.x / scales.out / GUARD, scales.out_zero_point))


def _staged_flow(kind: str, scales: UnaryScales, slope: float, bound: float) -> Flow:
    """BS takes the zero point off, guards and bounds; BN multiplies what is negative; OUT_CVT rescales."""
    limit = _limit(kind, scales, bound)
    relu = kind != "leaky_relu"
    requant = derive(scales.x / scales.out / GUARD, scales.out_zero_point)
    bs = Stage(
        bypass=0,
        alu_bypass=0,
        alu_algorithm=ALU_ADD,
        alu_operand=-scales.x_zero_point,
        mul_bypass=0,
        mul_operand=GUARD,
        relu_bypass=int(not relu),
        relux=int(limit is not None),
        relux_bound=limit or 0,
    )
    bn = PASS if relu else replace(_NEGATIVE, mul_operand=int(slope_units(slope)) & 0xFFFF)
    return Flow(
        "int8", "int8", bs=bs, bn=bn, cvt_offset=requant.offset, cvt_scale=requant.scale, cvt_shift=requant.shift
    )


_NEGATIVE = Stage(bypass=0, mul_bypass=0, mul_shift=CHANNEL_SHIFT, mul_shift_negative=CHANNEL_SHIFT, prelu=1)
"""BN in an int8 task: negative values times a multiplier in units of 2^-14."""


def int8_results(kind: str, scales: UnaryScales, slope: float = 0.01, bound: float = 6.0) -> npt.NDArray[np.int8]:
    """The int8 result for every int8 input -128..127, as the NPU gives it.

    Of the staged kinds, an integer formula; of the others the real function, rounded to nearest even and clamped, where
    what is not a number is 0.
    """
    if _is_staged(kind, slope):
        return _staged_results(kind, scales, slope, bound)
    real = (np.arange(INT8_MIN, INT8_MAX + 1) - scales.x_zero_point) * scales.x
    values = np.nan_to_num(reference(kind, real, slope, bound), nan=0.0, posinf=1e30, neginf=-1e30)
    units = np.rint(values / scales.out) + scales.out_zero_point
    results: npt.NDArray[np.int8] = np.clip(units, INT8_MIN, INT8_MAX).astype(np.int8)
    return results


def reference_int8(
    kind: str, x: Array, scales: UnaryScales, slope: float = 0.01, bound: float = 6.0
) -> npt.NDArray[np.int8]:
    """What the NPU gives for an int8 tensor, bit for bit."""
    values: npt.NDArray[np.int8] = int8_results(kind, scales, slope, bound)[x.astype(np.int64) - INT8_MIN]
    return values


class Activation:
    """What to compile: one of ``KINDS`` over a tensor of any shape.

    ``form``: float16, bfloat16 (uint16 bit patterns) or int8, which takes ``scales``. ``slope`` is leaky_relu's,
    ``bound`` relux's. Accuracy and domains of the float forms: ``BOUNDS``.
    """

    def __init__(
        self,
        kind: str,
        shape: Sequence[int],
        *,
        form: str = "float16",
        slope: float = 0.01,
        bound: float = 6.0,
        scales: UnaryScales | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"activation {kind!r} is not one of {', '.join(KINDS)}")
        if form not in FORMATS:
            raise TypeError(f"activations take {', '.join(FORMATS)}, not {form}")
        if form != "int8" and form not in BOUNDS[kind]:
            raise TypeError(f"{kind} takes {', '.join(BOUNDS[kind])} and int8, not {form}: the divider gives float16")
        if scales is not None and form != "int8":
            raise ValueError(f"scales are for int8, not {form}")
        self.kind, self.form, self.shape = kind, form, checks.sizes(shape)
        if not math.isfinite(slope) or abs(slope) > 65504:
            raise ValueError(f"slope {slope} is not a finite float16")
        if not math.isfinite(bound) or not 0 < bound <= 65504:
            raise ValueError(f"bound {bound} is not a positive float16")
        self.slope, self.bound = slope, bound
        self.scales = scales or UnaryScales()
        self.scales.check()

    @property
    def label(self) -> str:
        """What it is, for errors."""
        return f"{self.kind} of {'x'.join(map(str, self.shape))} {self.form}"

    def moves(self) -> list[Move]:
        """The tasks over the whole tensor."""
        if self.form == "int8" and _is_staged(self.kind, self.slope):
            return [Move(_staged_flow(self.kind, self.scales, self.slope, self.bound))]
        if self.form == "int8":
            return [Move(int8_flow(int8_results(self.kind, self.scales, self.slope, self.bound)))]
        return moves_of(self.kind, self.form, self.slope, self.bound)

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The steps from one cube to another of the same size."""
        moves = self.moves()
        values = [source, *(Cube(source.pixels, source.channels, move.flow.out) for move in moves[:-1]), target]
        steps: list[Step] = []
        for number, move in enumerate(moves):
            reads = [values[move.main]] + ([] if move.operand is None else [values[move.operand]])
            steps.append(FlyingStep(self.label, move.flow, reads, values[number + 1]))
        return steps

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program; the elements are dealt out to the cores."""
        pieces = pieces_of(math.prod(self.shape), len(contexts))
        shares = collected(
            Share(_Stream(context, self, stop - start), _cut(start, stop), _into(start, stop))
            for context, (start, stop) in zip(contexts, pieces, strict=False)
        )
        spec = Spec(self.shape, np.dtype(OUTPUTS[self.form].dtype))
        return Program(shares, [spec], spec)


class _Stream(Schedule):
    """Some elements of a tensor, an atom's worth of channels wide, whatever its shape is."""

    def __init__(self, context: Context, operation: Activation, elements: int) -> None:
        lanes = OUTPUTS[operation.form].atom_channels
        source, target = (Cube(layout.ceil_div(elements, lanes), lanes, operation.form) for _ in range(2))
        super().__init__(context, [source], operation.steps(source, target), [target])

    def pack(self, *operands: Array) -> None:
        """Write the elements."""
        flat = np.ascontiguousarray(operands[0]).reshape(-1).view(np.uint8)
        self.operand_view(0)[: len(flat)] = flat

    def unpack(self, images: Array) -> None:
        """Read the elements into a contiguous array."""
        images.reshape(-1)[...] = self.result_view(0)[: images.nbytes].view(images.dtype)


def _cut(start: int, stop: int) -> Callable[[Array], tuple[Array, ...]]:
    return lambda x: (x.reshape(-1)[start:stop],)


def _into(start: int, stop: int) -> Callable[[Array], Array]:
    return lambda y: y.reshape(-1)[start:stop]


def reference_prelu(x: Array, slopes: Array, scales: UnaryScales | None = None) -> Array:
    """What the NPU computes over [..., C], bit for bit; uint16 are bfloat16 bit patterns."""
    if x.dtype == np.int8:
        scales = scales or UnaryScales()
        value = (x.astype(np.int64) - scales.x_zero_point) * GUARD
        scaled = np.rint(value * (slope_units(slopes) * 2.0**-CHANNEL_SHIFT)).astype(np.int64)
        return requantize(
            np.where(value < 0, scaled, value), derive(scales.x / scales.out / GUARD, scales.out_zero_point)
        )
    if x.dtype == np.uint16:
        wide = from_bfloat16(x)
        return to_bfloat16(np.where(wide < 0, wide * from_bfloat16(to_bfloat16(slopes.astype(np.float32))), wide))
    wide = x.astype(np.float32)
    return np.where(wide < 0, wide * slopes.astype(np.float16).astype(np.float32), wide).astype(np.float16)


class PRelu:
    """x, or x times its channel's slope where x is negative, over [..., C].

    ``slopes`` [C]: rounded to the form's own format; int8: to multiples of 2^-14, -2 <= slope < 2.
    """

    def __init__(
        self, shape: Sequence[int], slopes: Array, *, form: str = "float16", scales: UnaryScales | None = None
    ) -> None:
        if form not in FORMATS:
            raise TypeError(f"PReLU takes {', '.join(FORMATS)}, not {form}")
        if scales is not None and form != "int8":
            raise ValueError(f"scales are for int8, not {form}")
        self.form, self.shape = form, checks.sizes(shape)
        self.slopes = np.asarray(slopes, np.float64)
        if not self.shape or self.slopes.shape != self.shape[-1:]:
            raise ValueError(f"slopes have shape {self.slopes.shape}, expected one per channel of {self.shape}")
        most = MAX_SLOPE if form == "int8" else 65504.0
        if not np.isfinite(self.slopes).all() or np.abs(self.slopes).max() > most:
            raise ValueError(f"slopes must be finite and within -{most:g}..{most:g}")
        self.scales = scales or UnaryScales()
        self.scales.check()

    @property
    def label(self) -> str:
        """What it is, for errors."""
        return f"PReLU of {'x'.join(map(str, self.shape))} {self.form}"

    def _flow(self) -> Flow:
        if self.form != "int8":
            return Flow(self.form, self.form, bs=stage(self.form, times=1.0, prelu=True, from_memory=True))
        flow = _staged_flow("leaky_relu", self.scales, 0.0, 0.0)
        return replace(flow, bn=replace(_NEGATIVE, mul_from_memory=1))

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The step from one cube to another of the same size."""
        vector: Array
        if self.form == "int8":
            vector = slope_units(self.slopes).astype(np.int16)
        elif self.form == "bfloat16":
            vector = to_bfloat16(self.slopes.astype(np.float32))
        else:
            vector = self.slopes.astype(np.float16)
        unit = "bn" if self.form == "int8" else "bs"
        return [FlyingStep(self.label, self._flow(), [source], target, vector, unit)]

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program; the pixels are dealt out to the cores."""

        def make(context: Context, pixels: int) -> Schedule:
            source, target = (Cube(pixels, self.shape[-1], self.form) for _ in range(2))
            return Schedule(context, [source], self.steps(source, target), [target])

        spec = Spec(self.shape, np.dtype(OUTPUTS[self.form].dtype))
        return Program(by_rows(contexts, self.shape, make), [spec], spec)
