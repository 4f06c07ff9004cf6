# SPDX-License-Identifier: MIT
"""Convolutions, linear layers and pooling on the NPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.ops import arguments, pool, reference
from rknpu_userspace.ops.conv2d import Conv2d
from rknpu_userspace.ops.convolution import effective_bias
from rknpu_userspace.ops.pool import average_pool, average_pool_inside
from rknpu_userspace.ops.steps import ConvStep, Cube, Step
from rknpu_userspace.ops.transposed import ConvTranspose2d
from rknpu_userspace.plan import make_plan
from rknpu_userspace.quant import INT8_MAX, INT8_MIN, ChannelRequant

from .channels import balance
from .common import clamped, cube_of, relu_of, single
from .ir import Node

Array = npt.NDArray[Any]
MAX_CHANNEL_ERROR = 1.0
"""Steps of the output by which scales per channel may put results off, see ``channels``."""


def multipliers(node: Node) -> float | Array:
    """Input scale x weight scale / output scale: a number, or a vector when the channels differ."""
    w_scale = node.constants["w_scale"].astype(np.float64)
    values: Array = w_scale * node.inputs[0].scale / node.output.scale
    return float(values[0]) if (values == values[0]).all() else values


def balanced(weights: Array, options: dict[str, Any]) -> Array:
    """Weights, and bias and scales among the options, as far as 16-bit multipliers can express them."""
    if options["w_zero_point"]:
        raise ValueError("scales per channel, and a zero point of the weights")
    found = balance(weights, options["bias"], options["scale"])
    if found.error > MAX_CHANNEL_ERROR:
        raise ValueError(f"the channels' scales differ so much that results may be off by {found.error:.1f}")
    options |= {"bias": found.bias, "scale": found.scale}
    return found.weights


class OneConvolution:
    """A node that is one convolution of one image."""

    _node: Node
    operation: Conv2d

    def _end(self) -> None:
        """The activation behind the sums; ValueError when the NPU can not do it alone."""
        relu, bound = relu_of(self._node, self.operation.post.common)
        self.operation.post = replace(self.operation.post, relu=relu, bound=bound)
        plan = make_plan(self.operation.problem(), 1, whole_sums=True)
        effective_bias(plan, self.operation.constants)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return [ConvStep(self._node.name, self.operation, reads[0], target)]


class Convolution(OneConvolution):
    """conv2d and linear: one direct or depthwise convolution, other groups with zeros between them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = single(node)
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
                weights = balanced(weights, options)
        else:
            options["out_dtype"] = "float16"
        self.operation = Conv2d(weights, shape, **options)
        self._options = options
        self._end()

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
        return clamped(self._node, result).reshape(self._node.output.shape)


def dense(weights: Array, groups: int, fill: int) -> Array:
    """Weights of a convolution in groups as those of one over all channels; ``fill`` stands for zero."""
    outputs, height, width, per_group = weights.shape
    wide = np.full((outputs, height, width, per_group * groups), fill, weights.dtype)
    step = outputs // groups
    for group in range(groups):
        rows = slice(group * step, (group + 1) * step)
        wide[rows, :, :, group * per_group : (group + 1) * per_group] = weights[rows]
    return wide


class Transposed:
    """A convolution that inserts zeros where those are zeros, else one for every phase of the stride, put together."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = single(node)
        attributes, constants = node.attributes, node.constants
        options: dict[str, Any] = {name: attributes[name] for name in ("stride", "padding", "output_padding")}
        options["bias"] = constants.get("bias")
        self._weights = constants["weights"]
        if x.dtype == "int8":
            options |= {"x_zero_point": x.zero_point, "w_zero_point": attributes.get("w_zero_point", 0)}
            options |= {"scale": multipliers(node), "out_zero_point": node.output.zero_point}
            if isinstance(options["scale"], np.ndarray):
                self._weights = balanced(self._weights, options)
        else:
            options["out_dtype"] = "float16"
        self._operation = ConvTranspose2d(self._weights, x.shape, **options)
        self._requant = arguments.requantisation(
            self._operation.out, options.get("scale"), node.output.zero_point, len(self._weights)
        )
        common = self._requant.common if isinstance(self._requant, ChannelRequant) else self._requant
        relu, bound = relu_of(node, common)
        if relu:
            options |= {"relu": True, "bound": bound}
            self._operation = ConvTranspose2d(self._weights, x.shape, **options)
        self._options = options
        self.steps([cube_of(x)], cube_of(node.output))  # some are possible from the host only

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return self._operation.steps(reads[0], target)

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        names = ("stride", "padding", "output_padding", "bias", "x_zero_point", "w_zero_point", "relu", "bound")
        options = {name: self._options[name] for name in names if name in self._options}
        out = self._operation.out
        return reference.conv_transpose2d(inputs[0], self._weights, requant=self._requant, out_dtype=out, **options)


class AveragePool(OneConvolution):
    """A depthwise convolution with ones; where windows reach beyond the image, one for each of its borders."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = single(node)
        kernel = node.attributes["kernel"]
        options: dict[str, Any] = {"stride": node.attributes["stride"]}
        if x.dtype == "int8":
            options |= {"scale": x.scale / node.output.scale, "x_zero_point": x.zero_point}
            options["out_zero_point"] = node.output.zero_point
        padding = node.attributes["padding"]
        self._borders = (
            average_pool_inside(x.dtype, x.shape, kernel, padding=padding, **options) if any(padding) else None
        )
        if self._borders is None:
            self.operation = average_pool(x.dtype, x.shape, kernel, **options)
            self._end()
            return
        for piece in self._borders.pieces:
            self.operation = piece.operation
            self._end()

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return super().steps(reads, target) if self._borders is None else self._borders.steps(reads[0], target)

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        if self._borders is None:
            return clamped(self._node, _mean(self.operation, inputs[0]))
        out = np.empty(self._borders.out_shape, inputs[0].dtype)
        for piece in self._borders.pieces:
            part = inputs[0][:, piece.source[0], piece.source[1]]
            out[:, piece.target[0], piece.target[1]] = _mean(piece.operation, part)
        return clamped(self._node, out)


def _mean(operation: Conv2d, x: Array) -> Array:
    """What a depthwise convolution with ones computes."""
    return reference.conv2d(
        x,
        operation.weights,
        stride=operation.stride,
        groups=operation.groups,
        x_zero_point=operation.x_zero_point,
        requant=operation.post.requant,
        out_dtype=operation.out,
    )


class MaxPool:
    """Element-wise maxima of shifted views (see ``ops.pool``): the pooling unit's interrupts reach no driver."""

    def __init__(self, node: Node) -> None:
        x = single(node)
        if node.clamp != (INT8_MIN, INT8_MAX) or "activation" in node.attributes:
            raise ValueError("an activation behind a maximum")
        attributes = node.attributes
        options = {name: attributes[name] for name in ("stride", "padding")}
        self._pool = pool.Pool2d("max", x.dtype, x.shape, attributes["kernel"], **options)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        return self._pool.steps(reads[0], target)

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        return pool.reference("max", inputs[0], self._pool.kernel, self._pool.stride, self._pool.padding)
