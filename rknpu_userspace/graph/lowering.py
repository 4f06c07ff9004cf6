# SPDX-License-Identifier: MIT
"""What a node becomes on the NPU: steps over cubes, and the same arithmetic in numpy, bit for bit.

Making a lowering raises ValueError or TypeError with the reason when the NPU can not do the node as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.ops import elementwise
from rknpu_userspace.ops.elementwise import Binary, Scales
from rknpu_userspace.ops.flying import Flow
from rknpu_userspace.ops.steps import Cube, FlyingStep, Step
from rknpu_userspace.quant import Requant, requantize
from rknpu_userspace.task import Stage

from .common import FORMATS, Lowering, clamped, relu_of
from .ir import Node
from .moving import Concat, Reshape, Resize, Slice, rescale
from .weighted import AveragePool, Convolution, MaxPool, Transposed

Array = npt.NDArray[Any]


class Elementwise:
    """Two tensors, a tensor and a pixel, or a tensor and a constant of one pixel."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._scales = None
        a = node.inputs[0]
        constant = node.constants.get("b")
        b_shape = constant.shape if constant is not None else node.inputs[1].shape
        if a.dtype not in FORMATS:
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {a.dtype}")
        whole = a.shape == b_shape == node.output.shape
        vector = not whole and a.shape == node.output.shape and int(np.prod(b_shape)) == b_shape[-1]
        if not whole and not (vector and b_shape[-1] in (1, a.channels) and (constant is not None or b_shape[-1] > 1)):
            raise ValueError(f"operands of {a.shape} and {b_shape}: the NPU takes equal shapes, or one pixel for all")
        if vector and node.kind == "sub":
            raise ValueError("a pixel is not subtracted from all others")
        if a.dtype == "int8":
            self._scales = self._int8_scales()
        self._vector = None
        if constant is not None:
            if whole:
                raise ValueError("a constant of more than one pixel")
            self._vector = np.broadcast_to(constant.reshape(-1), (a.channels,)).astype(a.dtype)
        shape = (a.pixels, a.channels)
        binary = Binary(node.kind, a.dtype, shape, (a.channels,) if vector else shape, scales=self._scales)
        flow = binary.flow()
        requant = Requant(flow.cvt_scale, flow.cvt_shift, flow.cvt_offset) if a.dtype == "int8" else None
        relu, bound = relu_of(node, requant)
        ew = replace(flow.ew, relu_bypass=int(not relu), relux=int(bound is not None), relux_bound=bound or 0)
        self._flow: Flow = replace(flow, ew=ew)

    def _int8_scales(self) -> Scales:
        node = self._node
        a, out = node.inputs[0], node.output
        if "b" in node.constants:
            b_scale, b_zero_point = node.attributes["b_scale"], node.attributes["b_zero_point"]
        else:
            b_scale, b_zero_point = node.inputs[1].scale, node.inputs[1].zero_point
        return Scales(a.scale, b_scale, out.scale, a.zero_point, b_zero_point, out.zero_point)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering. The flow of a difference takes the subtrahend first."""
        operands = tuple(reads)[::-1] if self._node.kind == "sub" else tuple(reads)
        return [FlyingStep(self._node.name, self._flow, operands, target, self._vector)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        a = inputs[0]
        b = inputs[1] if self._vector is None else self._vector
        left, right = np.broadcast_arrays(a, b.reshape(-1) if b.size == a.shape[-1] else b)
        return clamped(self._node, elementwise.reference(self._node.kind, left, right, self._scales))


class Requantize:
    """Other scale and zero point, or an activation, in the DPU's stages."""

    def __init__(self, node: Node) -> None:
        self._node = node
        (x,) = node.inputs
        if x.dtype == "float16":
            self._flow = Flow("float16", "float16", bs=Stage(bypass=0, relu_bypass=int(not relu_of(node, None)[0])))
            return
        if x.dtype != "int8":
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
        self._flow, self._requant = rescale(x, node.output)
        relu, bound = relu_of(node, self._requant)
        stage = replace(self._flow.bs, relu_bypass=int(not relu), relux=int(bound is not None), relux_bound=bound or 0)
        self._flow = replace(self._flow, bs=stage)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return [FlyingStep(self._node.name, self._flow, (reads[0],), target)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        if inputs[0].dtype == np.float16:
            return clamped(self._node, inputs[0])
        wide = inputs[0].astype(np.int32) - self._node.inputs[0].zero_point
        return clamped(self._node, requantize(wide, self._requant))


LOWERINGS: dict[str, Callable[[Node], Lowering]] = {
    "conv2d": Convolution,
    "conv_transpose2d": Transposed,
    "linear": Convolution,
    "average_pool": AveragePool,
    "max_pool": MaxPool,
    "add": Elementwise,
    "sub": Elementwise,
    "mul": Elementwise,
    "max": Elementwise,
    "min": Elementwise,
    "requantize": Requantize,
    "concat": Concat,
    "reshape": Reshape,
    "slice": Slice,
    "resize": Resize,
}


def lower(node: Node) -> Lowering:
    """The lowering of a node; ValueError or TypeError with the reason why there is none."""
    if node.kind not in LOWERINGS:
        raise ValueError("an operation that the NPU has no way for")
    return LOWERINGS[node.kind](node)
