# SPDX-License-Identifier: MIT
"""Tensors and nodes of a graph, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.quant import INT8_MAX, INT8_MIN, check_zero_point

Array = npt.NDArray[Any]
DTYPES = ("int8", "float16", "float32", "int32")
"""Formats of a graph's tensors. The NPU computes int8 and float16; the others are what the host makes of them."""
ACTIVATIONS = ("none", "relu", "relu6", "relu_n1_to_1")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: real = scale x (stored - zero_point) for int8.

    ``unsigned``: outside of the graph the tensor is uint8, that is, stored + 128.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    zero_point: int = 0
    unsigned: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeError(f"tensor {self.name!r}: {self.dtype} is not one of {', '.join(DTYPES)}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"tensor {self.name!r} is empty or a scalar (shape {self.shape})")
        if self.dtype == "int8":
            if not math.isfinite(self.scale) or self.scale <= 0:
                raise ValueError(f"tensor {self.name!r}: the scale must be finite and positive, not {self.scale}")
            check_zero_point(f"the zero point of tensor {self.name!r}", self.zero_point)

    @property
    def pixels(self) -> int:
        """Elements per channel; the last dimension is that of the channels."""
        return math.prod(self.shape[:-1])

    @property
    def channels(self) -> int:
        """Size of the last dimension."""
        return self.shape[-1]

    @property
    def outside(self) -> np.dtype[Any]:
        """Dtype of the arrays that callers pass and get."""
        return np.dtype("uint8" if self.unsigned else self.dtype)


@dataclass(frozen=True, eq=False)
class Node:
    """An operation. Attributes are numbers, strings and tuples of numbers; constants are arrays."""

    kind: str
    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)

    @property
    def clamp(self) -> tuple[int, int]:
        """Least and greatest int8 of the result, what a fused activation comes down to."""
        low, high = self.attributes.get("clamp", (INT8_MIN, INT8_MAX))
        return int(low), int(high)


def clamp_of(activation: str, tensor: Tensor) -> tuple[int, int]:
    """Range of the stored values that an activation leaves, as TFLite computes it (kernel_util.cc)."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    low, high = INT8_MIN, INT8_MAX
    real = {"relu": (0.0, None), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0)}.get(activation, (None, None))
    if real[0] is not None:
        low = max(low, tensor.zero_point + half_away(real[0] / tensor.scale))
    if real[1] is not None:
        high = min(high, tensor.zero_point + half_away(real[1] / tensor.scale))
    return low, high


def half_away(value: float) -> int:
    """Round to nearest, ties away from zero, as C's ``round``."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
