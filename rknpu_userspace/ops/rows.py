# SPDX-License-Identifier: MIT
"""Softmax, RMS norm and layer norm over the last axis, each as one program of the NPU: float16 or bfloat16.

Rows are pixels, the axis is the channels. A sum over channels is a convolution with ones, whose result a convolution of
one channel spreads over all again, with the element-wise operation behind it (Rockchip's RMSNorm stream). A maximum
over channels goes by halves of the surfaces; within the last atom, a convolution makes eight copies whose lanes are
rotated.

References are the real functions in float64; ``ROW_BOUNDS`` says how far results may be from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.backend import Context
from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.layout import from_bfloat16, to_bfloat16
from rknpu_userspace.plan import limits
from rknpu_userspace.program import Program, Spec
from rknpu_userspace.task import ALU_ADD

from . import checks
from .activation import Bound
from .flying import Flow
from .fused import Behind, PointwiseStep, padded
from .moves import ew_of, moves_of, product, stage
from .pool import extreme_flow
from .schedule import Schedule
from .shares import by_rows
from .steps import Cube, FlyingStep, Step
from .tables import EXP_SHIFTED, value_of
from .views import View, ViewStep, Window

Array = npt.NDArray[Any]
FORMATS = ("float16", "bfloat16")
LANES = 8
MAX_AXIS = limits.MAX_CHANNELS_PER_TASK["float16"]
ROW_BOUNDS: dict[str, dict[str, Bound]] = {
    "softmax": {"float16": Bound(5e-4, 6e-3), "bfloat16": Bound(2e-3, 2e-2)},
    "rms_norm": {"float16": Bound(1e-4, 6e-3), "bfloat16": Bound(1e-3, 2e-2)},
    "layer_norm": {"float16": Bound(1e-2, 8e-3), "bfloat16": Bound(8e-2, 3e-2)},
}
"""|result - real| <= absolute + relative |real|. Inputs: finite, of root mean square 2^-6 to 255; for the norms times
the largest |gamma|, and of layer norm relative to a spread of at least 1/64 of the mean."""


def _ones(outputs: int, channels: int, form: str, value: float = 1.0, first_only: bool = False) -> Array:
    kernels = np.zeros((outputs, channels), np.float32)
    kernels[:, 0 if first_only else slice(None)] = value
    return to_bfloat16(kernels) if form == "bfloat16" else kernels.astype(np.float16)


def _selection(rows: Sequence[int], form: str) -> Array:
    """Kernels that pick one of eight channels each."""
    kernels = np.zeros((len(rows), LANES), np.float32)
    kernels[np.arange(len(rows)), rows] = 1
    return to_bfloat16(kernels) if form == "bfloat16" else kernels.astype(np.float16)


class _Builder:
    """Steps over rows of one length, collected one after the other."""

    def __init__(self, label: str, pixels: int, channels: int, form: str) -> None:
        self.label, self.pixels, self.channels, self.form = label, pixels, channels, form
        self.steps: list[Step] = []

    def cube(self, channels: int = 0, form: str = "") -> Cube:
        """A new cube of ``channels`` (default: the rows' length)."""
        return padded(self.pixels, channels or self.channels, form or self.form)

    def pointwise(self, kernels: Array, reads: Sequence[Cube], target: Cube, behind: Behind | None = None) -> Cube:
        """A 1x1 convolution."""
        self.steps.append(PointwiseStep(self.label, kernels, reads, target, behind))
        return target

    def flying(self, flow: Flow, reads: Sequence[Cube], target: Cube, vector: Array | None = None) -> Cube:
        """A task of the DPU alone."""
        self.steps.append(FlyingStep(self.label, flow, reads, target, vector))
        return target

    def total(self, source: Cube, *, times: float = 1.0, plus: float = 0.0, wide: bool = False) -> Cube:
        """(sum over the axis + plus) times a number, in every lane; ``wide``: float32 that becomes float16."""
        first = value_of(abs(times), source.form)
        second = value_of(abs(times) / first, source.form)
        behind = Behind(
            bs=stage(source.form, add=plus, times=math.copysign(first, times)), bn=stage(source.form, times=second)
        )
        kernels = _ones(INPUT_GROUP, self.channels, source.form)
        if not wide:
            return self.pointwise(kernels, [source], self.cube(INPUT_GROUP), behind)
        sums = self.pointwise(kernels, [source], self.cube(INPUT_GROUP, "float32"), behind)
        return self.flying(Flow("float32", "float16"), [sums], self.cube(INPUT_GROUP, "float16"))

    def moves(self, kind: str, source: Cube) -> Cube:
        """An activation of a small float16 cube."""
        values = [source]
        for move in moves_of(kind, "float16", 0.0, 0.0):
            reads = [values[move.main]] + ([] if move.operand is None else [values[move.operand]])
            values.append(self.flying(move.flow, reads, self.cube(INPUT_GROUP, move.flow.out)))
        return values[-1]

    def own(self, half: Cube) -> Cube:
        """A small float16 cube in the rows' format."""
        if self.form == "float16":
            return half
        return self.flying(Flow("float16", self.form), [half], self.cube(INPUT_GROUP))

    def spread(self, small: Cube, operand: Cube, *, times: bool, target: Cube, gamma: Array | None = None) -> Cube:
        """One number per row, spread over the axis (times ``gamma``), added to or multiplied with a cube."""
        behind = Behind(
            bs=None if gamma is None else stage(self.form, times=1.0, from_memory=True),
            multipliers=gamma,
            ew=ew_of(self.form, times=times),
        )
        first = Cube(self.pixels, LANES, self.form, small, 0)
        kernels = _ones(self.channels, LANES, self.form, first_only=True)
        return self.pointwise(kernels, [first, operand], target, behind)

    def greatest(self, source: Cube) -> Cube:
        """The maximum over the axis, in every lane of an atom."""
        whole, tail = divmod(self.channels, LANES)
        result = self._halve(source, whole) if whole else None
        if tail:
            last = Cube(self.pixels, LANES, self.form, source, whole * LANES)
            picked = self.pointwise(
                _selection([lane % tail for lane in range(LANES)], self.form), [last], self.cube(LANES)
            )
            result = picked if result is None else self._greater(result, 0, picked, 0, 1)
        assert result is not None
        first = Cube(self.pixels, LANES, self.form, result, 0)
        turned = [(lane + turn) % LANES for turn in range(LANES) for lane in range(LANES)]
        return self._halve(self.pointwise(_selection(turned, self.form), [first], self.cube(LANES * LANES)), LANES)

    def _halve(self, cube: Cube, surfaces: int) -> Cube:
        while surfaces > 1:
            half = layout.ceil_div(surfaces, 2)
            cube = self._greater(cube, 0, cube, surfaces - half, half)
            surfaces = half
        return cube

    def _greater(self, a: Cube, at: int, b: Cube, bt: int, surfaces: int) -> Cube:
        """The maximum of two runs of surfaces."""
        target = self.cube(surfaces * LANES)
        line = self.pixels
        window = Window(1, line, surfaces, View(0, line, 1, at), View(0, line), View(0, line, 1, bt))
        self.steps.append(ViewStep(self.label, extreme_flow("max", self.form), (a, b), target, [window]))
        return target


INPUT_GROUP = 16
"""Kernels of a group in the 16-bit formats: the least that a convolution writes."""


def softmax_steps(rows: _Builder, source: Cube, target: Cube) -> None:
    """exp(x - max) / sum."""
    form = rows.form
    largest = rows.greatest(source)
    minus = rows.flying(Flow(form, form, bs=stage(form, times=-1.0)), [largest], rows.cube(LANES))
    below = rows.spread(minus, source, times=False, target=rows.cube())
    # the table holds exp plus its smallest unit, which comes off again here: far below the maximum is exactly 0
    powers = rows.flying(EXP_SHIFTED.flow(form), [below], rows.cube())
    unit = stage(form, add=-EXP_SHIFTED.unit, relu=True)
    powers = rows.flying(Flow(form, form, bs=unit), [powers], rows.cube())
    total = rows.total(powers, wide=True)
    rows.spread(rows.own(rows.moves("reciprocal", total)), powers, times=True, target=target)


def rms_steps(rows: _Builder, source: Cube, target: Cube, gamma: Array | None, epsilon: float) -> None:
    """x gamma / sqrt(mean(x^2) + epsilon). Squares are bfloat16, which has float32's range."""
    squares = rows.flying(product(rows.form, "bfloat16"), [source, source], rows.cube(form="bfloat16"))
    mean = rows.total(squares, times=1 / rows.channels, plus=epsilon * rows.channels, wide=True)
    rows.spread(rows.own(rows.moves("rsqrt", mean)), source, times=True, target=target, gamma=gamma)


def layer_steps(
    rows: _Builder, source: Cube, target: Cube, gamma: Array | None, beta: Array | None, epsilon: float
) -> None:
    """(x - mean) gamma / sqrt(variance + epsilon) + beta. The mean is taken off twice: the first one is rounded."""
    centred = source
    for _ in range(2):
        mean = rows.total(centred, times=-1 / rows.channels)
        centred = rows.spread(mean, centred, times=False, target=rows.cube())
    scaled = target if beta is None else rows.cube()
    rms_steps(rows, centred, scaled, gamma, epsilon)
    if beta is not None:
        flow = Flow(rows.form, rows.form, ew=ew_of(rows.form, algorithm=ALU_ADD, data_mode=0), operand="channel")
        rows.flying(flow, [scaled], target, beta)


class _RowSchedule(Schedule):
    """Rows whose cubes have room for more channels than the rows have."""

    def pack(self, *operands: Array) -> None:
        """Write the rows."""
        layout.pack_cube(self.operand_view(0), operands[0])

    def unpack(self, images: Array) -> None:
        """Read the rows."""
        layout.unpack_cube(self.result_view(0), images)


class RowOperation:
    """What to compile: "softmax", "rms_norm" or "layer_norm" over the last axis of a tensor of ``shape``.

    ``form``: float16 or bfloat16 (uint16 bit patterns). ``gamma`` and ``beta`` (layer norm) are vectors over the axis,
    rounded to the form. The axis has at most 8192 elements. Softmax: finite inputs; where a mask wants -inf, -65504.
    """

    def __init__(
        self,
        kind: str,
        shape: Sequence[int],
        *,
        form: str = "float16",
        gamma: Array | None = None,
        beta: Array | None = None,
        epsilon: float = 1e-5,
    ) -> None:
        if kind not in ROW_BOUNDS:
            raise ValueError(f"{kind!r} is not one of {', '.join(ROW_BOUNDS)}")
        if form not in FORMATS:
            raise TypeError(f"{kind} takes {', '.join(FORMATS)}, not {form}")
        self.kind, self.form, self.shape = kind, form, checks.sizes(shape)
        if not self.shape:
            raise ValueError(f"{kind} needs an axis, a scalar has none")
        limits.check_range("the last axis", self.shape[-1], 1, MAX_AXIS, "sums of one task")
        if kind == "softmax" and (gamma is not None or beta is not None):
            raise ValueError("softmax takes no gamma or beta")
        if kind == "rms_norm" and beta is not None:
            raise ValueError("rms_norm takes no beta")
        if not math.isfinite(epsilon) or not 0 < epsilon < 1:
            raise ValueError(f"epsilon must be between 0 and 1, not {epsilon}")
        self.epsilon = epsilon
        self.gamma, self.beta = self._vector("gamma", gamma), self._vector("beta", beta)

    def _vector(self, name: str, values: Array | None) -> Array | None:
        if values is None:
            return None
        array = checks.plain(name, values)
        if array.shape != self.shape[-1:]:
            raise ValueError(f"{name} has shape {array.shape}, expected {self.shape[-1:]}: one value per element")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} must consist of finite floats")
        return to_bfloat16(array.astype(np.float32)) if self.form == "bfloat16" else array.astype(np.float16)

    @property
    def label(self) -> str:
        """What it is, for errors."""
        return f"{self.kind} of {'x'.join(map(str, self.shape))} {self.form}"

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The steps from one cube to another; both have room for whole kernel groups (``fused.padded``)."""
        rows = _Builder(self.label, source.pixels, self.shape[-1], self.form)
        if self.kind == "softmax":
            softmax_steps(rows, source, target)
        elif self.kind == "rms_norm":
            rms_steps(rows, source, target, self.gamma, self.epsilon)
        else:
            layer_steps(rows, source, target, self.gamma, self.beta, self.epsilon)
        return rows.steps

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program; the rows are dealt out to the cores."""

        def make(context: Context, pixels: int) -> Schedule:
            source, target = (padded(pixels, self.shape[-1], self.form) for _ in range(2))
            return _RowSchedule(context, [source], self.steps(source, target), [target])

        spec = Spec(self.shape, np.dtype(OUTPUTS[self.form].dtype))
        return Program(by_rows(contexts, self.shape, make), [spec], spec)


def reference(
    kind: str, x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5
) -> Array:
    """The real function in float64 over the last axis; uint16 are bfloat16 bit patterns."""
    wide = (from_bfloat16(x) if x.dtype == np.uint16 else x).astype(np.float64)
    if kind == "softmax":
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        result: Array = powers / powers.sum(axis=-1, keepdims=True)
        return result
    if kind == "layer_norm":
        wide = wide - wide.mean(axis=-1, keepdims=True)
    scaled = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + epsilon)
    if gamma is not None:
        scaled = scaled * gamma
    shifted: Array = scaled if beta is None else scaled + beta
    return shifted
