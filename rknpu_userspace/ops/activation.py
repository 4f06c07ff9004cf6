# SPDX-License-Identifier: MIT
"""Activations of float16 tensors: ReLU and its kin in the DPU's stages, others through its look-up table.

The table covers indices -16384..16384 in two halves of 513 int16 entries, interpolated linearly; the index is x times
a scale. A sum of entry and offset that is zero comes out as 2^17 2^-MINUS_EXP (RN dpu-lut-activation.md), so only
functions with positive values are put into it, with an offset of one: tanh, SiLU and GELU are a second task over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.program import Program, RunStats, Share, Spec
from rknpu_userspace.task import ALU_ADD, Elementwise, Lut, Stage

from . import flying
from .elementwise import Binary, pieces_of
from .flying import Flow

Array = npt.NDArray[Any]
ENTRIES = 513
STEP_BITS = 5
LAST = (ENTRIES - 1) << STEP_BITS
FRACTION_BITS = 15
MAX_ERROR = {"sigmoid": 1e-3, "exp": 1e-3, "tanh": 3e-3, "silu": 1e-2, "gelu": 1e-2}
"""Greatest absolute error over [-16, 16] (exp: [-16, 0]), float16 rounding included."""
_LE, _LO = 0x20000, 0x30000


def _bits(value: float) -> int:
    return int(np.float16(value).view(np.uint16))


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@dataclass(frozen=True)
class Table:
    """A function with values in (0, 1], and the range [-reach, reach] that the table covers; constant outside."""

    function: Callable[[Array], Array]
    reach: float

    @property
    def scale(self) -> float:
        """Index units per x: the closest float16."""
        return float(np.float16(LAST / self.reach))

    def entries(self, upper: bool) -> npt.NDArray[np.int64]:
        """513 entries of the lower or upper half, minus the offset of one."""
        index = np.arange(ENTRIES) * (1 << STEP_BITS) - (0 if upper else LAST)
        values = self.function(index / self.scale)
        units: npt.NDArray[np.int64] = np.rint(values * (1 << FRACTION_BITS)).astype(np.int64) - 1
        return np.clip(units, 0, 32767)

    def words(self) -> tuple[int, ...]:
        """Command words that load both halves."""
        words = []
        for config, upper in ((_LE, False), (_LO, True)):
            words.append(write(BY_NAME["DPU_LUT_ACCESS_CFG"], config))
            words += [write(BY_NAME["DPU_LUT_ACCESS_DATA"], int(entry)) for entry in self.entries(upper)]
        return tuple(words)

    def flow(self) -> Flow:
        """The DPU's settings: BN makes the index, EW looks it up, OUT_CVT turns the entry into a float."""
        return Flow(
            "float16",
            "float16",
            bn=Stage(
                bypass=0,
                alu_bypass=0,
                alu_algorithm=ALU_ADD,
                alu_operand=_float_bits(-0.0),
                mul_bypass=0,
                mul_operand=_bits(self.scale),
            ),
            ew=Elementwise(bypass=0, lut_bypass=0),
            lut=Lut(
                config=0x68, info=STEP_BITS << 16 | STEP_BITS << 8, le_start=-LAST, le_end=0, lo_start=0, lo_end=LAST
            ),
            cvt_offset=1,
            cvt_offset_first=1,
            cvt_minus_exp=FRACTION_BITS,
            prologue=self.words(),
        )


def sigmoid(x: Array) -> Array:
    """Logistic function, in the arithmetic of ``x``."""
    result: Array = 1 / (1 + np.exp(-x))
    return result


def _phi(x: Array) -> Array:
    """Distribution function of the normal distribution."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.ravel(x)]).reshape(np.shape(x))


TABLES = {
    "sigmoid": Table(sigmoid, 10.0),
    "double_sigmoid": Table(lambda x: sigmoid(2 * x), 5.0),
    "normal": Table(_phi, 5.0),
    "exp": Table(lambda x: np.exp(np.minimum(x, 0)), 16.0),
}


def reference(kind: str, x: Array, slope: float = 0.01) -> Array:
    """The real function in float64."""
    wide = x.astype(np.float64)
    functions: dict[str, Callable[[Array], Array]] = {
        "relu": lambda v: np.maximum(v, 0),
        "relu6": lambda v: np.clip(v, 0, 6),
        "leaky_relu": lambda v: np.where(v < 0, v * slope, v),
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "silu": lambda v: v * sigmoid(v),
        "gelu": lambda v: v * _phi(v),
        "exp": np.exp,
    }
    return functions[kind](wide)


def _stage_flow(kind: str, slope: float) -> Flow | None:
    """Settings of what needs no table."""
    if kind == "relu":
        return Flow("float16", "float16", bs=Stage(bypass=0, relu_bypass=0))
    if kind == "relu6":
        return Flow("float16", "float16", bs=Stage(bypass=0, relu_bypass=0, relux=1, relux_bound=_float_bits(6.0)))
    if kind == "leaky_relu":
        return Flow("float16", "float16", bs=Stage(bypass=0, mul_bypass=0, prelu=1, mul_operand=_bits(slope)))
    return None


KINDS = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "exp")


class Activation:
    """What to compile: one of ``KINDS`` over a float16 tensor. ``slope`` is that of leaky_relu; exp wants x <= 0."""

    def __init__(self, kind: str, shape: Sequence[int], *, slope: float = 0.01) -> None:
        if kind not in KINDS:
            raise ValueError(f"activation {kind!r} is not one of {', '.join(KINDS)}")
        self.kind, self.shape = kind, tuple(int(size) for size in shape)
        if 0 in self.shape:
            raise ValueError(f"empty tensor (shape {self.shape}): the NPU has no empty tensors")
        if not math.isfinite(slope) or abs(slope) > 65504:
            raise ValueError(f"slope {slope} is not a finite float16")
        self.slope = slope

    def compile(self, contexts: Sequence[Context]) -> Program | Composed:
        """Make the program."""
        simple = _stage_flow(self.kind, self.slope)
        if simple is not None:
            return self._stream(contexts, simple)
        if self.kind in ("sigmoid", "exp"):
            return self._stream(contexts, TABLES[self.kind].flow())
        table = {"tanh": "double_sigmoid", "silu": "sigmoid", "gelu": "normal"}[self.kind]
        first = self._stream(contexts, TABLES[table].flow())
        try:
            if self.kind == "tanh":
                stage = Stage(
                    bypass=0,
                    alu_bypass=0,
                    alu_algorithm=ALU_ADD,
                    alu_operand=_float_bits(-0.5),
                    mul_bypass=0,
                    mul_operand=_bits(2.0),
                )
                second = self._stream(contexts, Flow("float16", "float16", bs=stage))
            else:
                second = Binary("mul", "float16", self.shape).compile(contexts)
        except BaseException:
            first.close()
            raise
        return Composed(first, second)

    def _stream(self, contexts: Sequence[Context], flow: Flow) -> Program:
        pieces = pieces_of(math.prod(self.shape), len(contexts))
        label = f"{self.kind} of {'x'.join(map(str, self.shape))} float16"
        parts = flying.build(contexts, flow, [(stop - start, 0) for start, stop in pieces], label)
        shares = [
            Share(part, _cut(start, stop), _into(start, stop))
            for part, (start, stop) in zip(parts, pieces, strict=True)
        ]
        spec = Spec(self.shape, np.dtype(np.float16))
        return Program(shares, [spec], spec)


def _cut(start: int, stop: int) -> Callable[[Array], tuple[Array, ...]]:
    return lambda x: (x.reshape(-1)[start:stop],)


def _into(start: int, stop: int) -> Callable[[Array], Array]:
    return lambda y: y.reshape(-1)[start:stop]


class Composed:
    """Two programs: the second takes the first's result, and the input as well if it takes two arrays."""

    def __init__(self, first: Program, second: Program) -> None:
        self._first, self._second = first, second
        self.inputs, self.output = first.inputs, second.output

    @property
    def last(self) -> RunStats:
        """Cost of the last run of both."""
        a, b = self._first.last, self._second.last
        return RunStats(a.jobs + b.jobs, a.tasks + b.tasks, a.npu_seconds + b.npu_seconds, a.seconds + b.seconds)

    def __call__(self, x: Array) -> Array:
        """Run both."""
        middle = self._first(x)
        return self._second(middle, x) if len(self._second.inputs) == 2 else self._second(middle)

    def close(self) -> None:
        """Give the buffers back."""
        self._first.close()
        self._second.close()

    def __enter__(self) -> Composed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
