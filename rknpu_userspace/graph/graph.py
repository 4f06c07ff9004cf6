# SPDX-License-Identifier: MIT
"""Graphs: operations with named tensors between them, built one after the other, compiled as one program.

    graph = Graph()
    x = graph.input("image", (1, 56, 56, 64), scale=0.02, zero_point=-3)
    y = graph.conv2d(x, weights, bias, padding=1, w_scale=0.01, scale=0.03, activation="relu")
    y = graph.add(y, x, scale=0.04)
    graph.output(y)
    with npu.compile(graph) as program:
        result = program(image)

Tensors are int8 with a scale and a zero point each, or float16. What the NPU can not do, the host does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.ops.reference import Pads, Pair, pads, pair

from .ir import Node, Tensor, clamp_of

if TYPE_CHECKING:
    from .program import GraphProgram

Array = npt.NDArray[Any]
BINARY = ("add", "sub", "mul", "max", "min")


class Graph:
    """Operations in the order in which they were added. ``nodes``, ``inputs`` and ``outputs`` can be read."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._known: set[Tensor] = set()
        self._names: set[str] = set()

    def input(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: str = "int8",
        scale: float = 1.0,
        zero_point: int = 0,
        unsigned: bool = False,
    ) -> Tensor:
        """A tensor that every run is given."""
        return self.adopt(Tensor(self._unique(name), tuple(map(int, shape)), dtype, scale, zero_point, unsigned))

    def adopt(self, tensor: Tensor) -> Tensor:
        """A tensor as an input."""
        self._names.add(tensor.name)
        self._known.add(tensor)
        self.inputs.append(tensor)
        return tensor

    def output(self, tensor: Tensor) -> None:
        """Name a tensor as a result."""
        self._check(tensor)
        self.outputs.append(tensor)

    def node(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        output: Tensor,
        attributes: dict[str, Any] | None = None,
        constants: dict[str, Array] | None = None,
        name: str = "",
    ) -> Tensor:
        """Add an operation as it is; returns its output. The methods below check more."""
        for tensor in inputs:
            self._check(tensor)
        if output in self._known:
            raise ValueError(f"tensor {output.name!r} is computed twice")
        self._known.add(output)
        label = name or f"{kind} {output.name}"
        self.nodes.append(Node(kind, label, tuple(inputs), output, attributes or {}, constants or {}))
        return output

    def _check(self, tensor: Tensor) -> None:
        if tensor not in self._known:
            raise ValueError(f"tensor {tensor.name!r} is not (yet) one of this graph")

    def _unique(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

    def _like(self, x: Tensor, kind: str, shape: Sequence[int], options: dict[str, Any]) -> Tensor:
        """The result of an operation: of the dtype of ``x``, quantised as it is unless the options say otherwise."""
        scale = options.pop("scale", x.scale)
        zero_point = options.pop("zero_point", x.zero_point)
        name = self._unique(options.pop("name", f"{kind}{len(self.nodes)}"))
        unsigned = bool(options.pop("unsigned", False))
        if options:
            raise TypeError(f"{kind} takes no {', '.join(options)}")
        return Tensor(name, tuple(map(int, shape)), x.dtype, float(scale), zero_point, unsigned)

    def conv2d(
        self,
        x: Tensor,
        weights: Array,
        bias: Array | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        w_scale: float | Array = 1.0,
        w_zero_point: int = 0,
        activation: str = "none",
        **output: Any,
    ) -> Tensor:
        """``x`` [1, H, W, C], ``weights`` [OC, KH, KW, C / groups]; ``w_scale`` one number, or one per output channel.

        ``bias`` is int32 in units of input scale x weight scale, or float. ``output``: scale, zero_point, name.
        """
        if len(x.shape) != 4 or weights.ndim != 4:
            raise ValueError(f"a convolution takes x [N, H, W, C] and weights [OC, KH, KW, C], not {x.shape}")
        attributes: dict[str, Any] = {
            "stride": pair("stride", stride),
            "padding": pads(padding),
            "dilation": pair("dilation", dilation),
            "groups": int(groups),
            "w_zero_point": int(w_zero_point),
        }
        shape = _windows(x.shape, weights.shape[1:3], attributes)
        result = self._like(x, "conv2d", (*shape, weights.shape[0]), output)
        return self._weighted("conv2d", x, weights, bias, w_scale, activation, attributes, result)

    def conv_transpose2d(
        self,
        x: Tensor,
        weights: Array,
        bias: Array | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        w_scale: float | Array = 1.0,
        w_zero_point: int = 0,
        activation: str = "none",
        **output: Any,
    ) -> Tensor:
        """``weights`` [OC, KH, KW, C]; ``padding`` is cut off the result, ``output_padding`` stays below and right."""
        attributes: dict[str, Any] = {
            "stride": pair("stride", stride),
            "padding": pads(padding),
            "output_padding": pair("output_padding", output_padding),
            "w_zero_point": int(w_zero_point),
        }
        cut, more = attributes["padding"], attributes["output_padding"]
        sizes = [
            (x.shape[1 + axis] - 1) * attributes["stride"][axis]
            + weights.shape[1 + axis]
            - cut[axis]
            - cut[axis + 2]
            + more[axis]
            for axis in (0, 1)
        ]
        result = self._like(x, "conv_transpose2d", (x.shape[0], *sizes, weights.shape[0]), output)
        return self._weighted("conv_transpose2d", x, weights, bias, w_scale, activation, attributes, result)

    def linear(
        self,
        x: Tensor,
        weights: Array,
        bias: Array | None = None,
        *,
        w_scale: float | Array = 1.0,
        w_zero_point: int = 0,
        activation: str = "none",
        **output: Any,
    ) -> Tensor:
        """``x`` [..., K] times ``weights`` [N, K] transposed."""
        if weights.ndim != 2 or weights.shape[1] != x.shape[-1]:
            raise ValueError(f"a linear layer of x {x.shape} takes weights [N, {x.shape[-1]}], not {weights.shape}")
        result = self._like(x, "linear", (*x.shape[:-1], weights.shape[0]), output)
        attributes = {"w_zero_point": int(w_zero_point)}
        return self._weighted("linear", x, weights, bias, w_scale, activation, attributes, result)

    def _weighted(
        self,
        kind: str,
        x: Tensor,
        weights: Array,
        bias: Array | None,
        w_scale: float | Array,
        activation: str,
        attributes: dict[str, Any],
        result: Tensor,
    ) -> Tensor:
        constants = {"weights": np.asarray(weights), "w_scale": np.atleast_1d(np.asarray(w_scale, np.float32))}
        if bias is not None:
            constants["bias"] = np.asarray(bias)
        if len(constants["w_scale"]) not in (1, weights.shape[0]):
            raise ValueError(f"w_scale must be a number or {weights.shape[0]} of them")
        return self.node(kind, [x], result, {**attributes, **_activation(activation, result)}, constants, result.name)

    def binary(self, kind: str, a: Tensor, b: Tensor, *, activation: str = "none", **output: Any) -> Tensor:
        """ "add", "sub", "mul", "max" or "min" of two tensors that broadcast, each with a scale of its own."""
        if kind not in BINARY:
            raise ValueError(f"{kind!r} is not one of {', '.join(BINARY)}")
        if a.dtype != b.dtype:
            raise TypeError(f"a is {a.dtype} and b is {b.dtype}")
        result = self._like(a, kind, np.broadcast_shapes(a.shape, b.shape), output)
        return self.node(kind, [a, b], result, _activation(activation, result), name=result.name)

    def binary_constant(
        self,
        kind: str,
        a: Tensor,
        b: Array,
        *,
        b_scale: float = 1.0,
        b_zero_point: int = 0,
        activation: str = "none",
        **output: Any,
    ) -> Tensor:
        """The same with a constant ``b``, which is not larger than ``a``."""
        if kind not in BINARY:
            raise ValueError(f"{kind!r} is not one of {', '.join(BINARY)}")
        if np.broadcast_shapes(a.shape, b.shape) != a.shape:
            raise ValueError(f"a constant of shape {b.shape} does not broadcast to {a.shape}")
        result = self._like(a, kind, a.shape, output)
        attributes = {"b_scale": float(b_scale), "b_zero_point": int(b_zero_point), **_activation(activation, result)}
        return self.node(kind, [a], result, attributes, {"b": np.asarray(b)}, result.name)

    def add(self, a: Tensor, b: Tensor, **options: Any) -> Tensor:
        """``binary("add", ...)``: also a residual connection of tensors with different scales."""
        return self.binary("add", a, b, **options)

    def average_pool(
        self,
        x: Tensor,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        **options: Any,
    ) -> Tensor:
        """Mean over windows; padding does not count."""
        return self._pool("average_pool", x, kernel, stride, padding, options)

    def max_pool(
        self,
        x: Tensor,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        **options: Any,
    ) -> Tensor:
        """Maximum over windows; padding does not count. The result is quantised as the input is."""
        return self._pool("max_pool", x, kernel, stride, padding, options)

    def _pool(
        self,
        kind: str,
        x: Tensor,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: int | Sequence[int],
        options: dict[str, Any],
    ) -> Tensor:
        if len(x.shape) != 4:
            raise ValueError(f"pooling takes [N, H, W, C], not {x.shape}")
        size = pair("kernel", kernel)
        attributes: dict[str, Any] = {
            "kernel": size,
            "stride": size if stride is None else pair("stride", stride),
            "padding": pads(padding),
            "dilation": (1, 1),
        }
        activation = options.pop("activation", "none")
        result = self._like(x, kind, (*_windows(x.shape, size, attributes), x.shape[3]), options)
        del attributes["dilation"]
        if kind == "max_pool" and (result.scale, result.zero_point) != (x.scale, x.zero_point):
            raise ValueError("the result of a maximum is quantised as its input is")
        return self.node(kind, [x], result, {**attributes, **_activation(activation, result)}, name=result.name)

    def requantize(self, x: Tensor, *, activation: str = "none", **output: Any) -> Tensor:
        """The same values with another scale and zero point, or clamped by an activation."""
        result = self._like(x, "requantize", x.shape, output)
        return self.node("requantize", [x], result, _activation(activation, result), name=result.name)

    def table(self, x: Tensor, values: Array, **output: Any) -> Tensor:
        """Any function of int8: ``values`` are the 256 results for -128..127."""
        if x.dtype != "int8" or values.shape != (256,) or values.dtype != np.int8:
            raise ValueError("a table maps int8 to int8: 256 values of int8")
        result = self._like(x, "table", x.shape, output)
        return self.node("table", [x], result, {}, {"values": values}, result.name)

    def softmax(self, x: Tensor, *, beta: float = 1.0, **output: Any) -> Tensor:
        """Over the last dimension; by default with the scale 1/256 and zero point -128 that TFLite prescribes."""
        options = {"scale": 1 / 256, "zero_point": -128, **output} if x.dtype == "int8" else output
        result = self._like(x, "softmax", x.shape, options)
        return self.node("softmax", [x], result, {"beta": float(beta)}, name=result.name)

    def pad(self, x: Tensor, padding: Sequence[Sequence[int]], **output: Any) -> Tensor:
        """Zeros around: (before, after) for every dimension."""
        edges = [(int(before), int(after)) for before, after in padding]
        if len(edges) != len(x.shape) or min(min(edge) for edge in edges) < 0:
            raise ValueError(f"padding of shape {x.shape} takes {len(x.shape)} pairs of numbers of at least 0")
        shape = [size + before + after for size, (before, after) in zip(x.shape, edges, strict=True)]
        result = self._like(x, "pad", shape, output)
        return self.node("pad", [x], result, {"edges": tuple(edges)}, name=result.name)

    def reshape(self, x: Tensor, shape: Sequence[int], **output: Any) -> Tensor:
        """Another shape of as many elements, in C order."""
        result = self._like(x, "reshape", np.empty(x.shape, np.bool_).reshape(tuple(shape)).shape, output)
        return self.node("reshape", [x], result, {}, name=result.name)

    def transpose(self, x: Tensor, order: Sequence[int], **output: Any) -> Tensor:
        """Dimensions in another order."""
        if sorted(order) != list(range(len(x.shape))):
            raise ValueError(f"{tuple(order)} is no order of {len(x.shape)} dimensions")
        result = self._like(x, "transpose", [x.shape[axis] for axis in order], output)
        return self.node("transpose", [x], result, {"order": tuple(map(int, order))}, name=result.name)

    def concat(self, tensors: Sequence[Tensor], *, axis: int = -1, activation: str = "none", **output: Any) -> Tensor:
        """Side by side along an axis."""
        if not tensors:
            raise ValueError("nothing to concatenate")
        axis %= len(tensors[0].shape)
        shape = list(tensors[0].shape)
        for tensor in tensors[1:]:
            rest = [size for index, size in enumerate(tensor.shape) if index != axis]
            if rest != [size for index, size in enumerate(shape) if index != axis]:
                raise ValueError(f"{tensor.shape} and {tuple(shape)} differ in more than dimension {axis}")
            shape[axis] += tensor.shape[axis]
        result = self._like(tensors[0], "concat", shape, output)
        attributes = {"axis": axis, **_activation(activation, result)}
        return self.node("concat", tensors, result, attributes, name=result.name)

    def slice(self, x: Tensor, cuts: Sequence[Sequence[int]], **output: Any) -> Tensor:
        """A part: (first, stop) or (first, stop, step) for every dimension, none negative."""
        ranges = tuple((int(cut[0]), int(cut[1]), int(cut[2]) if len(cut) > 2 else 1) for cut in cuts)
        sizes = [len(range(first, stop, step)) for first, stop, step in ranges]
        legal = [0 <= a < b <= size and c > 0 for (a, b, c), size in zip(ranges, x.shape, strict=False)]
        if len(ranges) != len(x.shape) or not all(legal):
            raise ValueError(f"{ranges} are no parts of {x.shape}")
        result = self._like(x, "slice", sizes, output)
        return self.node("slice", [x], result, {"cuts": ranges}, name=result.name)

    def upsample(self, x: Tensor, factor: int | Sequence[int], **output: Any) -> Tensor:
        """Every pixel ``factor`` times, (vertical, horizontal)."""
        down, right = pair("factor", factor)
        if len(x.shape) != 4 or min(down, right) < 1:
            raise ValueError(f"upsampling takes [N, H, W, C] and positive factors, not {x.shape} and {factor}")
        shape = (x.shape[0], x.shape[1] * down, x.shape[2] * right, x.shape[3])
        result = self._like(x, "resize", shape, output)
        attributes = {"method": "nearest", "align_corners": 0, "half_pixel": 0}
        return self.node("resize", [x], result, attributes, name=result.name)

    def dequantize(self, x: Tensor, *, name: str = "") -> Tensor:
        """int8 or float16 to float32."""
        label = self._unique(name or f"dequantize{len(self.nodes)}")
        return self.node("dequantize", [x], Tensor(label, x.shape, "float32"), name=label)

    def quantize(
        self, x: Tensor, *, scale: float, zero_point: int = 0, name: str = "", unsigned: bool = False
    ) -> Tensor:
        """float32 to int8."""
        label = self._unique(name or f"quantize{len(self.nodes)}")
        result = Tensor(label, x.shape, "int8", scale, zero_point, unsigned)
        return self.node("quantize", [x], result, name=label)

    def compile(self, contexts: Sequence[Context]) -> GraphProgram:
        """Make the program: all of the graph that the NPU can do on one core, the rest on the host."""
        from .program import GraphProgram

        return GraphProgram(self, contexts[0])


def _activation(activation: str, result: Tensor) -> dict[str, Any]:
    if result.dtype == "int8":
        return {"clamp": clamp_of(activation, result)} if activation != "none" else {}
    if activation not in ("none", "relu"):
        raise ValueError(f"a {result.dtype} tensor can have relu fused, not {activation}")
    return {"activation": activation} if activation != "none" else {}


def _windows(shape: Sequence[int], kernel: Sequence[int], attributes: dict[str, Any]) -> tuple[int, int, int]:
    """(N, OH, OW) of a convolution or pooling."""
    stride: Pair = attributes["stride"]
    edges: Pads = attributes["padding"]
    dilation: Pair = attributes["dilation"]
    sizes = []
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        spare = shape[1 + axis] + edges[axis] + edges[axis + 2] - span
        if spare < 0 or stride[axis] < 1:
            raise ValueError(f"a window of {span} with stride {stride[axis]} does not fit {shape[1:3]}, padded {edges}")
        sizes.append(spare // stride[axis] + 1)
    return shape[0], sizes[0], sizes[1]
