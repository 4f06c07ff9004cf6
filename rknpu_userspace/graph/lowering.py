# SPDX-License-Identifier: MIT
"""What a node becomes on the NPU: steps over cubes, and the same arithmetic in numpy, bit for bit.

Making a lowering raises ValueError or TypeError with the reason when the NPU can not do the node as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.ops import elementwise, reference
from rknpu_userspace.ops.conv2d import Conv2d
from rknpu_userspace.ops.convolution import effective_bias
from rknpu_userspace.ops.elementwise import Binary, Scales
from rknpu_userspace.ops.flying import Flow
from rknpu_userspace.ops.pool import average_pool
from rknpu_userspace.ops.steps import ConvStep, Cube, FlyingStep, Step
from rknpu_userspace.plan import make_plan
from rknpu_userspace.quant import INT8_MAX, INT8_MIN, Requant, derive, requantize
from rknpu_userspace.task import ALU_ADD, Stage

from .channels import balance
from .ir import Node, Tensor

Array = npt.NDArray[Any]
FORMATS = ("int8", "float16")
_INT32_MAX = (1 << 31) - 1
MAX_CHANNEL_ERROR = 1.0
"""Steps of the output by which scales per channel may put results off, see ``channels``."""


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


def _relu(node: Node, requant: Requant | None) -> tuple[bool, int | None]:
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
    return True, None if high == INT8_MAX else bound_of(requant, high)


def bound_of(requant: Requant, high: int) -> int | None:
    """The greatest int32 that becomes ``high`` at most, None if all do."""
    factor = requant.multiplier
    value = int((high - requant.offset + 0.5) / factor)
    while round(value * factor) + requant.offset > high:
        value -= 1
    while round((value + 1) * factor) + requant.offset <= high:
        value += 1
    return value if value < _INT32_MAX else None


def _clamped(node: Node, values: Array) -> Array:
    """The reference's end: as ``_relu``, but on the result."""
    if values.dtype == np.int8:
        result: Array = np.clip(values, *node.clamp).astype(np.int8)
        return result
    return np.maximum(values, 0) if node.attributes.get("activation") == "relu" else values


def _single(node: Node) -> Tensor:
    """The only input, an image or a matrix of a format that the NPU works in."""
    (x,) = node.inputs
    if x.dtype not in FORMATS:
        raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
    if len(x.shape) == 4 and x.shape[0] != 1:
        raise ValueError(f"{x.shape[0]} images: a graph's images come one at a time")
    return x


def multipliers(node: Node) -> float | Array:
    """Input scale x weight scale / output scale: a number, or a vector when the channels differ."""
    w_scale = node.constants["w_scale"].astype(np.float64)
    values: Array = w_scale * node.inputs[0].scale / node.output.scale
    return float(values[0]) if (values == values[0]).all() else values


class Convolution:
    """conv2d and linear: one direct or depthwise convolution, other groups with zeros between them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = _single(node)
        weights = node.constants["weights"]
        if node.kind == "linear":
            shape: tuple[int, ...] = (1, x.pixels, 1, x.channels)
            weights = weights[:, None, None, :]
        else:
            shape = x.shape
        attributes = node.attributes
        groups = attributes.get("groups", 1)
        w_zero_point = attributes.get("w_zero_point", 0)
        if groups > 1 and not groups == shape[3] == len(weights):
            weights, groups = dense(weights, groups, w_zero_point), 1
        options: dict[str, Any] = {
            name: attributes[name] for name in ("stride", "padding", "dilation") if name in attributes
        }
        options |= {"bias": node.constants.get("bias"), "groups": groups}
        if x.dtype == "int8":
            options |= {"x_zero_point": x.zero_point, "w_zero_point": w_zero_point}
            options |= {"scale": multipliers(node), "out_zero_point": node.output.zero_point}
            if isinstance(options["scale"], np.ndarray):
                weights = self._balanced(weights, options)
        else:
            options["out_dtype"] = "float16"
        self.operation = Conv2d(weights, shape, **options)
        self._options = options
        relu, bound = _relu(node, self.operation.post.common)
        self.operation.post = replace(self.operation.post, relu=relu, bound=bound)
        plan = make_plan(self.operation.problem(), 1, whole_sums=True)
        effective_bias(plan, self.operation.constants)

    @staticmethod
    def _balanced(weights: Array, options: dict[str, Any]) -> Array:
        """Weights, and bias and scales among the options, as far as 16-bit multipliers can express them."""
        if options["w_zero_point"]:
            raise ValueError("scales per channel, and a zero point of the weights")
        found = balance(weights, options["bias"], options["scale"])
        if found.error > MAX_CHANNEL_ERROR:
            raise ValueError(f"the channels' scales differ so much that results may be off by {found.error:.1f}")
        options |= {"bias": found.bias, "scale": found.scale}
        return found.weights

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return [ConvStep(self._node.name, self.operation, reads[0], target)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        operation = self.operation
        names = ("stride", "padding", "dilation", "groups", "x_zero_point", "w_zero_point")
        result = reference.conv2d(
            inputs[0].reshape(operation.in_shape),
            operation.weights,
            operation.bias,
            requant=operation.post.requant,
            out_dtype=operation.out,
            **{name: self._options[name] for name in names if name in self._options},
        )
        return _clamped(self._node, result).reshape(self._node.output.shape)


def dense(weights: Array, groups: int, fill: int) -> Array:
    """Weights of a convolution in groups as those of one over all channels; ``fill`` stands for zero."""
    outputs, height, width, per_group = weights.shape
    wide = np.full((outputs, height, width, per_group * groups), fill, weights.dtype)
    step = outputs // groups
    for group in range(groups):
        rows = slice(group * step, (group + 1) * step)
        wide[rows, :, :, group * per_group : (group + 1) * per_group] = weights[rows]
    return wide


class AveragePool:
    """A depthwise convolution with ones."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = _single(node)
        if any(node.attributes["padding"]):
            raise ValueError("windows at the border have fewer elements to average")
        options: dict[str, Any] = {"stride": node.attributes["stride"]}
        if x.dtype == "int8":
            options |= {"scale": x.scale / node.output.scale, "x_zero_point": x.zero_point}
            options["out_zero_point"] = node.output.zero_point
        self.operation = average_pool(x.dtype, x.shape, node.attributes["kernel"], **options)
        relu, bound = _relu(node, self.operation.post.common)
        self.operation.post = replace(self.operation.post, relu=relu, bound=bound)
        make_plan(self.operation.problem(), 1, whole_sums=True)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return [ConvStep(self._node.name, self.operation, reads[0], target)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        operation = self.operation
        result = reference.conv2d(
            inputs[0],
            operation.weights,
            stride=operation.stride,
            groups=operation.groups,
            x_zero_point=operation.x_zero_point,
            requant=operation.post.requant,
            out_dtype=operation.out,
        )
        return _clamped(self._node, result)


class MaxPool:
    """Maximum along the lines, then along the columns, of shifted copies: the PPU's interrupts reach no driver.

    A copy is a depthwise convolution with a single one in its kernel, which also does stride and padding; the maximum
    of two copies is an element-wise task. All of it ends with the interrupt that the mainline driver waits for.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._x = _single(node)
        if self._x.dtype != "int8":
            raise TypeError("maxima of float16 windows: padding would be zeros")
        kernel, stride = node.attributes["kernel"], node.attributes["stride"]
        top, left, bottom, right = node.attributes["padding"]
        self._across = [
            self._copy(self._x.shape, 1, tap, kernel, stride, (0, left, 0, right)) for tap in range(kernel[1])
        ]
        shape = self._across[0].out_shape
        self._down = [self._copy(shape, 0, tap, kernel, stride, (top, 0, bottom, 0)) for tap in range(kernel[0])]
        if node.clamp != (INT8_MIN, INT8_MAX):
            raise ValueError("an activation behind a maximum")
        for operation in (*self._across, *self._down):
            make_plan(operation.problem(), 1, whole_sums=True)

    @staticmethod
    def _copy(
        shape: Sequence[int], axis: int, tap: int, kernel: Sequence[int], stride: Sequence[int], edges: Sequence[int]
    ) -> Conv2d:
        """Element ``tap`` of every window along an axis; what is outside counts as the least int8."""
        size = [1, 1]
        size[axis] = kernel[axis]
        steps = [1, 1]
        steps[axis] = stride[axis]
        weights = np.zeros((shape[3], *size, 1), np.int8)
        weights.reshape(shape[3], -1)[:, tap] = 1
        least: dict[str, Any] = {"x_zero_point": INT8_MIN, "out_zero_point": INT8_MIN}
        return Conv2d(weights, shape, groups=shape[3], stride=steps, padding=edges, scale=1.0, **least)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        steps: list[Step] = []
        middle = self._maximum(steps, self._across, reads[0], None)
        self._maximum(steps, self._down, middle, target)
        return steps

    def _maximum(self, steps: list[Step], copies: Sequence[Conv2d], source: Cube, target: Cube | None) -> Cube:
        _, height, width, channels = copies[0].out_shape
        name = self._node.name
        best: Cube | None = None
        for index, operation in enumerate(copies):
            is_last = index == len(copies) - 1
            copy = target if is_last and best is None and target else Cube(height * width, channels, "int8")
            steps.append(ConvStep(f"{name}: shift {index + 1} of {len(copies)}", operation, source, copy))
            if best is None:
                best = copy
                continue
            result = target if is_last and target else Cube(height * width, channels, "int8")
            flow = Binary("max", "int8", (height * width, channels)).flow()
            steps.append(FlyingStep(f"{name}: maximum {index} of {len(copies) - 1}", flow, (best, copy), result))
            best = result
        if best is None:
            raise ValueError("a window without elements")
        return best

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        from rknpu_userspace.ops import pool

        attributes = self._node.attributes
        return pool.reference("max", inputs[0], attributes["kernel"], attributes["stride"], attributes["padding"])


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
        relu, bound = _relu(node, requant)
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
        return _clamped(self._node, elementwise.reference(self._node.kind, left, right, self._scales))


class Requantize:
    """Other scale and zero point, or an activation, in the DPU's stages."""

    def __init__(self, node: Node) -> None:
        self._node = node
        (x,) = node.inputs
        if x.dtype == "float16":
            self._flow = Flow("float16", "float16", bs=Stage(bypass=0, relu_bypass=int(not _relu(node, None)[0])))
            return
        if x.dtype != "int8":
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
        self._flow, self._requant = rescale(x, node.output)
        relu, bound = _relu(node, self._requant)
        stage = replace(self._flow.bs, relu_bypass=int(not relu), relux=int(bound is not None), relux_bound=bound or 0)
        self._flow = replace(self._flow, bs=stage)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return [FlyingStep(self._node.name, self._flow, (reads[0],), target)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        if inputs[0].dtype == np.float16:
            return _clamped(self._node, inputs[0])
        wide = inputs[0].astype(np.int32) - self._node.inputs[0].zero_point
        return _clamped(self._node, requantize(wide, self._requant))


def rescale(x: Tensor, out: Tensor) -> tuple[Flow, Requant]:
    """The flow from one int8 quantisation to another, and what its output converter does."""
    requant = derive(x.scale / out.scale, out.zero_point)
    stage = Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, alu_operand=-x.zero_point)
    flow = Flow("int8", "int8", bs=stage, cvt_offset=requant.offset, cvt_scale=requant.scale, cvt_shift=requant.shift)
    return flow, requant


class Concat:
    """Channels side by side: every input is written, or copied, to its place in the output's cube."""

    def __init__(self, node: Node) -> None:
        self._node = node
        out = node.output
        if node.attributes["axis"] != len(out.shape) - 1:
            raise ValueError("tensors are put side by side along the channels only")
        if out.dtype not in FORMATS:
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {out.dtype}")
        if node.clamp != (INT8_MIN, INT8_MAX) or "activation" in node.attributes:
            raise ValueError("an activation behind a concatenation")
        per_atom = OUTPUTS[out.dtype].atom_channels
        for tensor in node.inputs[:-1]:
            if tensor.channels % per_atom:
                raise ValueError(f"{tensor.channels} channels are no whole atoms of {per_atom}")
        self.starts = np.cumsum([0] + [tensor.channels for tensor in node.inputs[:-1]]).tolist()

    def is_in_place(self, index: int) -> bool:
        """Whether an input is quantised as the output is, so that it may be computed where it belongs."""
        x, out = self._node.inputs[index], self._node.output
        return (x.scale, x.zero_point) == (out.scale, out.zero_point)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """Copies of what does not lie there yet."""
        steps: list[Step] = []
        for index, (tensor, cube, start) in enumerate(zip(self._node.inputs, reads, self.starts, strict=True)):
            if cube.parent is target:
                continue
            slot = Cube(target.pixels, tensor.channels, target.form, target, start)
            flow = rescale(tensor, self._node.output)[0] if tensor.dtype == "int8" else Flow(target.form, target.form)
            steps.append(FlyingStep(f"{self._node.name}: input {index + 1}", flow, (cube,), slot))
        return steps

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        parts = []
        for tensor, values in zip(self._node.inputs, inputs, strict=True):
            if tensor.dtype == "int8":
                wide = values.astype(np.int32) - tensor.zero_point
                values = requantize(wide, rescale(tensor, self._node.output)[1])
            parts.append(values)
        return np.concatenate(parts, axis=-1)


class Reshape:
    """No step at all: the cube of the input is that of the output."""

    def __init__(self, node: Node) -> None:
        x, out = node.inputs[0], node.output
        if x.dtype not in FORMATS:
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
        if (x.pixels, x.channels) != (out.pixels, out.channels):
            raise ValueError(f"{x.shape} to {out.shape} moves channels to pixels or back")
        self._shape = out.shape

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """None."""
        return []

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        return inputs[0].reshape(self._shape)


LOWERINGS: dict[str, Callable[[Node], Lowering]] = {
    "conv2d": Convolution,
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
}


def lower(node: Node) -> Lowering:
    """The lowering of a node; ValueError or TypeError with the reason why there is none."""
    if node.kind not in LOWERINGS:
        raise ValueError("an operation that the NPU has no way for")
    return LOWERINGS[node.kind](node)
