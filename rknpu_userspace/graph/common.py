# SPDX-License-Identifier: MIT
"""What the lowerings of all kinds of nodes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rknpu_userspace.ops.steps import Cube, Step
from rknpu_userspace.quant import INT8_MAX, INT8_MIN, Requant

from .ir import Node, Tensor

Array = npt.NDArray[Any]
FORMATS = ("int8", "float16")
_INT32_MAX = (1 << 31) - 1


class Lowering(Protocol):
    """A node as the NPU does it."""

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """The steps from the cubes of the inputs to that of the output."""
        ...

    def reference(self, *inputs: Array) -> Array:
        """What the steps compute: equal for integers, within rounding for floats."""
        ...


def cube_of(tensor: Tensor) -> Cube:
    """A cube of a tensor's own."""
    return Cube(tensor.pixels, tensor.channels, tensor.dtype)


def relu_of(node: Node, requant: Requant | None) -> tuple[bool, int | None]:
    """Whether a node ends in a ReLU, and its upper bound in the units that ``requant`` starts from.

    The requantisation is monotonic and takes 0 to the zero point, so that clamping before it and after it are one.
    """
    if requant is None:
        return node.attributes.get("activation") == "relu", None
    low, high = node.clamp
    if (low, high) == (INT8_MIN, INT8_MAX):
        return False, None
    if low != node.output.zero_point:
        raise ValueError(
            f"a result clamped to {low}..{high}: the NPU clamps at zero ({node.output.zero_point}) and above"
        )
    bound = None if high == INT8_MAX else bound_of(requant, high)
    if bound is not None and round(bound * requant.multiplier) + requant.offset != high:
        raise ValueError(f"a result clamped to {high}, which no sum becomes: its scale is {requant.multiplier:g}")
    return True, bound


def bound_of(requant: Requant, high: int) -> int | None:
    """The greatest int32 that becomes ``high`` at most, None if all do."""
    factor = requant.multiplier
    value = int((high - requant.offset + 0.5) / factor)
    if value > _INT32_MAX:
        return None
    while round(value * factor) + requant.offset > high:
        value -= 1
    while round((value + 1) * factor) + requant.offset <= high:
        value += 1
    return value if value < _INT32_MAX else None


def clamped(node: Node, values: Array) -> Array:
    """The reference's end: as ``_relu``, but on the result."""
    if values.dtype == np.int8:
        result: Array = np.clip(values, *node.clamp).astype(np.int8)
        return result
    return np.maximum(values, 0) if node.attributes.get("activation") == "relu" else values


def single(node: Node) -> Tensor:
    """The only input, an image or a matrix of a format that the NPU works in."""
    (x,) = node.inputs
    if x.dtype not in FORMATS:
        raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
    if len(x.shape) == 4 and x.shape[0] != 1:
        raise ValueError(f"{x.shape[0]} images: a graph's images come one at a time")
    return x
