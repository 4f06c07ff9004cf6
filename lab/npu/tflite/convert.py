# SPDX-License-Identifier: MIT
"""Operators of a TensorFlow Lite model as nodes of a graph.

uint8 tensors become int8 by subtracting 128 from values and zero points; the graph's inputs and outputs stay uint8
outside. Fused activations become clamps, paddings become numbers, flattening inside linear layers becomes a reshape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.errors import ExitCode, KitError
from rknpu_userspace.graph import Graph, Tensor
from rknpu_userspace.graph.ir import half_away

from .reader import TfModel, TfOperator, TfTensor

Array = npt.NDArray[Any]
_ACTIVATIONS = {0: "none", 1: "relu", 2: "relu_n1_to_1", 3: "relu6"}
_BYTES = ("int8", "uint8")


def convert(model: TfModel) -> Graph:
    """The graph of a model; KitError naming the operator that stands in the way."""
    return _Converter(model).run()


class _Converter:
    """One conversion: tensors that have been computed so far, by number."""

    def __init__(self, model: TfModel) -> None:
        self._model = model
        self._graph = Graph()
        self._values: dict[int, Tensor] = {}
        self._operator: TfOperator = TfOperator("", (), (), lambda name: None)

    def run(self) -> Graph:
        """Convert everything."""
        with self._at("input"):
            for number in self._model.inputs:
                self._values[number] = self._graph.adopt(self._tensor(number, outside=True))
        for position, operator in enumerate(self._model.operators):
            handler = _HANDLERS.get(operator.kind)
            where = f"operator {position} ({operator.kind})"
            if handler is None:
                raise KitError(ExitCode.FAILED, f"{self._model.path}: {where} runs on neither NPU nor CPU", _SUPPORTED)
            self._operator = operator
            with self._at(where):
                handler(self)
        with self._at("output"):
            for number in self._model.outputs:
                self._graph.output(self._values[number])
        return self._graph

    @contextmanager
    def _at(self, where: str) -> Iterator[None]:
        """What goes wrong inside is a line about that part of the model."""
        try:
            yield
        except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
            said = f"nothing computes tensor {error}" if isinstance(error, KeyError) else error
            hint = "docs/npu.md says which models can be run"
            raise KitError(ExitCode.FAILED, f"{self._model.path}: {where}: {said}", hint) from error

    def info(self, number: int) -> TfTensor:
        """A tensor of the model."""
        return self._model.tensors[number]

    def _tensor(self, number: int, outside: bool = False) -> Tensor:
        info = self.info(number)
        name = info.name or f"tensor{number}"
        shape = info.shape or (1,)
        if info.dtype not in _BYTES:
            if info.dtype != "float32":
                raise ValueError(f"tensor {name!r} is {info.dtype}")
            return Tensor(name, shape, "float32")
        scale, zero_point = _quantisation(info)
        unsigned = info.dtype == "uint8"
        visible = unsigned and (outside or number in self._model.outputs)
        return Tensor(name, shape, "int8", scale, zero_point - 128 * unsigned, visible)

    @property
    def out(self) -> Tensor:
        """The operator's output as it will be."""
        return self._tensor(self._operator.outputs[0])

    def options(self, name: str) -> Any:
        """The operator's options; ValueError when they are missing."""
        options = self._operator.options(name)
        if options is None:
            raise ValueError("its options are missing")
        return options

    def is_constant(self, index: int) -> bool:
        """Whether an input is part of the model."""
        number = self._operator.inputs[index]
        return number not in self._values and self.info(number).data is not None

    def value(self, index: int) -> Tensor:
        """A computed input in int8 (or float32)."""
        number = self._operator.inputs[index]
        if number not in self._values:
            raise ValueError(f"nothing computes its input {index}")
        return self._values[number]

    def quantised(self, index: int = 0) -> Tensor:
        """A computed input that must be int8."""
        tensor = self.value(index)
        if tensor.dtype != "int8":
            raise ValueError("a float model: quantise it to int8 (TensorFlow Lite's post-training quantisation)")
        return tensor

    def constant(self, index: int) -> Array:
        """A constant input as it is stored."""
        data = self.info(self._operator.inputs[index]).data
        if data is None:
            raise ValueError(f"its input {index} is not a constant")
        return data

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self._operator.inputs) and self._operator.inputs[index] >= 0

    def weights(self, index: int) -> tuple[Array, Array, int]:
        """Weights as int8, their scales, their zero point."""
        info = self.info(self._operator.inputs[index])
        data = self.constant(index)
        if info.dtype not in _BYTES:
            raise ValueError(f"its weights are {info.dtype}: quantise the model to int8")
        scales = np.array(info.scales, np.float32)
        if not len(scales) or not np.isfinite(scales).all() or (scales <= 0).any():
            raise ValueError("its weights have no positive scale")
        points = set(info.zero_points) or {0}
        if len(points) > 1:
            raise ValueError("its weights have a zero point per channel")
        unsigned = info.dtype == "uint8"
        values = (data ^ 128).view(np.int8) if unsigned else data
        return values, scales, points.pop() - 128 * unsigned

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        attributes: dict[str, Any] | None = None,
        constants: dict[str, Array] | None = None,
        activation: int = 0,
        output: Tensor | None = None,
    ) -> None:
        """Add the node of the operator."""
        from rknpu_userspace.graph.ir import clamp_of

        result = output or self.out
        own = dict(attributes or {})
        if activation:
            if activation not in _ACTIVATIONS:
                raise ValueError(f"fused activation {activation} is not supported")
            own["clamp"] = clamp_of(_ACTIVATIONS[activation], result)
        self.put(self._graph.node(kind, inputs, result, own, constants, result.name))

    def put(self, tensor: Tensor, index: int = 0) -> None:
        """Note one of the operator's results."""
        self._values[self._operator.outputs[index]] = tensor

    def cut(self, x: Tensor, cuts: Sequence[slice], index: int = 0) -> None:
        """A part of a tensor as a result."""
        out = self._tensor(self._operator.outputs[index])
        ranges = tuple(cut.indices(size) for cut, size in zip(cuts, x.shape, strict=True))
        shape = tuple(len(range(*numbers)) for numbers in ranges)
        if shape == out.shape:
            self.put(self._graph.node("slice", [x], out, {"cuts": ranges}, name=out.name), index)
            return
        inner = replace(out, name=f"{out.name}/cut", shape=shape, unsigned=False)
        self._graph.node("slice", [x], inner, {"cuts": ranges}, name=inner.name)
        self.put(self._graph.node("reshape", [inner], out, name=out.name), index)

    def reshape(self, x: Tensor, shape: Sequence[int], suffix: str) -> Tensor:
        """A reshape in front of or behind the operator's own node."""
        if x.shape == tuple(shape):
            return x
        result = replace(x, name=f"{x.name}/{suffix}", shape=tuple(shape), unsigned=False)
        return self._graph.node("reshape", [x], result, name=result.name)


def _quantisation(info: TfTensor) -> tuple[float, int]:
    if len(info.scales) != 1:
        raise ValueError(f"tensor {info.name!r} has {len(info.scales)} scales, expected one")
    scale = info.scales[0]
    if not math.isfinite(scale) or scale <= 0:
        raise ValueError(f"tensor {info.name!r} has the scale {scale}")
    return scale, info.zero_points[0] if info.zero_points else 0


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) of TFLite's SAME padding: the odd one goes behind (padding.h)."""
    span = (kernel - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + span - size)
    return total // 2, total - total // 2


def _window(options: Any, x: Tensor, kernel: Sequence[int], dilation: tuple[int, int]) -> dict[str, Any]:
    """Stride and padding of a convolution or pooling."""
    stride = options.StrideH(), options.StrideW()
    padding = (0, 0, 0, 0)
    if options.Padding() == 0:
        top, bottom = same_padding(x.shape[1], kernel[0], stride[0], dilation[0])
        left, right = same_padding(x.shape[2], kernel[1], stride[1], dilation[1])
        padding = top, left, bottom, right
    return {"stride": stride, "padding": padding}


def _image(c: _Converter) -> Tensor:
    x = c.quantised()
    if len(x.shape) != 4:
        raise ValueError(f"its input has the shape {x.shape}, expected [N, H, W, C]")
    return x


def _bias(c: _Converter, constants: dict[str, Array]) -> dict[str, Array]:
    if c.has(2):
        constants["bias"] = c.constant(2).astype(np.int32)
    return constants


def _conv(c: _Converter, depthwise: bool) -> None:
    x = _image(c)
    options = c.options("DepthwiseConv2DOptions" if depthwise else "Conv2DOptions")
    weights, scales, zero_point = c.weights(1)
    groups = 1
    if depthwise:
        weights = weights.reshape(*weights.shape[1:], 1).transpose(2, 0, 1, 3)
        groups = x.channels
    elif weights.shape[3] != x.channels:
        groups = x.channels // weights.shape[3]
    dilation = options.DilationHFactor(), options.DilationWFactor()
    attributes: dict[str, Any] = _window(options, x, weights.shape[1:3], dilation)
    attributes |= {"dilation": dilation, "groups": groups, "w_zero_point": zero_point}
    if c.info(c._operator.inputs[0]).dtype == "uint8":
        attributes["float_product"] = 1
    constants = _bias(c, {"weights": np.ascontiguousarray(weights), "w_scale": scales})
    c.emit("conv2d", [x], attributes, constants, options.FusedActivationFunction())


def _linear(c: _Converter) -> None:
    x = c.quantised()
    options = c.options("FullyConnectedOptions")
    weights, scales, zero_point = c.weights(1)
    flat = c.reshape(x, (math.prod(x.shape) // weights.shape[1], weights.shape[1]), "flat")
    constants = _bias(c, {"weights": weights, "w_scale": scales})
    out = c.out
    plain = replace(out, shape=(flat.shape[0], weights.shape[0]))
    activation = options.FusedActivationFunction()
    if plain.shape == out.shape:
        c.emit("linear", [flat], {"w_zero_point": zero_point}, constants, activation)
        return
    inner = replace(plain, name=f"{out.name}/flat", unsigned=False)
    c.emit("linear", [flat], {"w_zero_point": zero_point}, constants, activation, inner)
    c.emit("reshape", [inner])


def _binary(c: _Converter, kind: str, options_name: str) -> None:
    options = c._operator.options(options_name) if options_name else None
    activation = options.FusedActivationFunction() if options is not None else 0
    if not c.is_constant(0) and not c.is_constant(1):
        a, b = c.quantised(0), c.quantised(1)
        if a.shape != c.out.shape and b.shape == c.out.shape and kind != "sub":
            a, b = b, a
        c.emit(kind, [a, b], activation=activation)
        return
    index = int(c.is_constant(1))
    if kind == "sub" and not index:
        raise ValueError("a tensor subtracted from a constant is not supported")
    values, scales, zero_point = c.weights(index)
    if len(scales) != 1:
        raise ValueError("a constant with several scales")
    attributes = {"b_scale": float(scales[0]), "b_zero_point": zero_point}
    c.emit(kind, [c.quantised(1 - index)], attributes, {"b": values}, activation)


def _pool(c: _Converter, kind: str) -> None:
    x = _image(c)
    options = c.options("Pool2DOptions")
    kernel = options.FilterHeight(), options.FilterWidth()
    attributes = {"kernel": kernel, **_window(options, x, kernel, (1, 1))}
    attributes["from_uint8"] = int(c.info(c._operator.inputs[0]).dtype == "uint8")
    c.emit(kind, [x], attributes, activation=options.FusedActivationFunction())


def _mean(c: _Converter) -> None:
    x = _image(c)
    axes = sorted(int(axis) % 4 for axis in c.constant(1).reshape(-1))
    if axes != [1, 2]:
        raise ValueError(f"a mean over the dimensions {axes}, expected height and width")
    out = c.out
    shape = (x.shape[0], 1, 1, x.shape[3])
    kernel = x.shape[1:3]
    attributes = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0), "mean": 1}
    if out.shape == shape:
        c.emit("average_pool", [x], attributes)
        return
    inner = replace(out, name=f"{out.name}/kept", shape=shape, unsigned=False)
    c.emit("average_pool", [x], attributes, output=inner)
    c.emit("reshape", [inner])


def _reshape(c: _Converter) -> None:
    x, out = c.quantised(), c.out
    if math.prod(x.shape) != math.prod(out.shape):
        raise ValueError(f"{x.shape} does not fit {out.shape}")
    c.emit("reshape", [x])


def _pad(c: _Converter) -> None:
    x = c.quantised()
    edges = tuple((int(before), int(after)) for before, after in c.constant(1))
    if c.has(2):
        value, _, _ = c.weights(2)
        if int(value.reshape(-1)[0]) != x.zero_point:
            raise ValueError("padding with something else than zero")
    c.emit("pad", [x], {"edges": edges})


def _concat(c: _Converter) -> None:
    options = c.options("ConcatenationOptions")
    inputs = [c.quantised(index) for index in range(len(c._operator.inputs))]
    axis = options.Axis() % len(inputs[0].shape)
    c.emit("concat", inputs, {"axis": axis}, activation=options.FusedActivationFunction())


def _slice(c: _Converter) -> None:
    x = c.quantised()
    begin, size = c.constant(1).reshape(-1), c.constant(2).reshape(-1)
    c.cut(x, [slice(int(a), int(a + n) if n >= 0 else None) for a, n in zip(begin, size, strict=True)])


def _strided_slice(c: _Converter) -> None:
    x = c.quantised()
    options = c.options("StridedSliceOptions")
    if options.EllipsisMask() or options.NewAxisMask():
        raise ValueError("an ellipsis or a new axis")
    begin, end, step = (c.constant(index).reshape(-1) for index in (1, 2, 3))
    if (step < 1).any():
        raise ValueError("a negative stride")
    cuts = [slice(None)] * len(x.shape)
    for axis in range(len(begin)):
        first = None if options.BeginMask() >> axis & 1 else int(begin[axis])
        last = None if options.EndMask() >> axis & 1 else int(end[axis])
        if options.ShrinkAxisMask() >> axis & 1:
            first = int(begin[axis]) % x.shape[axis]
            last = first + 1
        cuts[axis] = slice(first, last, int(step[axis]))
    c.cut(x, cuts)


def _split(c: _Converter) -> None:
    axis, x = int(c.constant(0).reshape(-1)[0]), c.quantised(1)
    axis %= len(x.shape)
    count = len(c._operator.outputs)
    step = x.shape[axis] // count
    for index in range(count):
        cuts = [slice(None)] * len(x.shape)
        cuts[axis] = slice(index * step, (index + 1) * step)
        c.cut(x, cuts, index)


def _resize(c: _Converter, method: str) -> None:
    x = _image(c)
    options = c.options("ResizeBilinearOptions" if method == "bilinear" else "ResizeNearestNeighborOptions")
    corners, half = int(options.AlignCorners()), int(options.HalfPixelCenters())
    c.emit("resize", [x], {"method": method, "align_corners": corners, "half_pixel": half})


def _transposed(c: _Converter) -> None:
    options = c.options("TransposeConvOptions")
    x, out = c.quantised(2), c.out
    weights, scales, zero_point = c.weights(1)
    stride = options.StrideH(), options.StrideW()
    full = [(x.shape[1 + axis] - 1) * stride[axis] + weights.shape[1 + axis] for axis in (0, 1)]
    cut = [max(0, full[axis] - out.shape[1 + axis]) for axis in (0, 1)]
    if options.Padding() != 0 and any(cut):
        raise ValueError(f"an output of {out.shape} with VALID padding")
    before = [size // 2 for size in cut]
    padding = (before[0], before[1], cut[0] - before[0], cut[1] - before[1])
    more = tuple(max(0, out.shape[1 + axis] - full[axis]) for axis in (0, 1))
    attributes = {"stride": stride, "padding": padding, "output_padding": more, "w_zero_point": zero_point}
    constants = {"weights": weights, "w_scale": scales}
    if c.has(3):
        constants["bias"] = c.constant(3).astype(np.int32)
    c.emit("conv_transpose2d", [x], attributes, constants, options.FusedActivationFunction())


def _softmax(c: _Converter) -> None:
    c.emit("softmax", [c.quantised()], {"beta": float(c.options("SoftmaxOptions").Beta())})


def _transpose(c: _Converter) -> None:
    c.emit("transpose", [c.quantised()], {"order": tuple(int(axis) for axis in c.constant(1).reshape(-1))})


def _quantize(c: _Converter) -> None:
    x = c.value(0)
    c.emit("quantize" if x.dtype == "float32" else "requantize", [x])


def _table(function: Callable[[Array], Array]) -> Callable[[_Converter], None]:
    """A function of int8 as its 256 results, each rounded once."""

    def handler(c: _Converter) -> None:
        x, out = c.quantised(), c.out
        real = (np.arange(-128, 128) - x.zero_point) * x.scale
        units = function(real) / out.scale
        stored = [half_away(float(unit)) + out.zero_point for unit in units]
        c.emit("table", [x], {}, {"values": np.clip(stored, -128, 127).astype(np.int8)})

    return handler


def _leaky_relu(c: _Converter) -> None:
    alpha = c.options("LeakyReluOptions").Alpha()
    _table(lambda x: np.where(x < 0, x * alpha, x))(c)


_HANDLERS: dict[str, Callable[[_Converter], None]] = {
    "CONV_2D": lambda c: _conv(c, False),
    "DEPTHWISE_CONV_2D": lambda c: _conv(c, True),
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _linear,
    "ADD": lambda c: _binary(c, "add", "AddOptions"),
    "SUB": lambda c: _binary(c, "sub", "SubOptions"),
    "MUL": lambda c: _binary(c, "mul", "MulOptions"),
    "MAXIMUM": lambda c: _binary(c, "max", ""),
    "MINIMUM": lambda c: _binary(c, "min", ""),
    "AVERAGE_POOL_2D": lambda c: _pool(c, "average_pool"),
    "MAX_POOL_2D": lambda c: _pool(c, "max_pool"),
    "MEAN": _mean,
    "SOFTMAX": _softmax,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "CONCATENATION": _concat,
    "TRANSPOSE": _transpose,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "SPLIT": _split,
    "RESIZE_NEAREST_NEIGHBOR": lambda c: _resize(c, "nearest"),
    "RESIZE_BILINEAR": lambda c: _resize(c, "bilinear"),
    "QUANTIZE": _quantize,
    "DEQUANTIZE": lambda c: c.emit("dequantize", [c.quantised()]),
    "RELU": lambda c: c.emit("requantize", [c.quantised()], activation=1),
    "RELU_N1_TO_1": lambda c: c.emit("requantize", [c.quantised()], activation=2),
    "RELU6": lambda c: c.emit("requantize", [c.quantised()], activation=3),
    "LOGISTIC": _table(lambda x: 1 / (1 + np.exp(-x))),
    "TANH": _table(np.tanh),
    "HARD_SWISH": _table(lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "ELU": _table(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "LEAKY_RELU": _leaky_relu,
}
OPERATORS = tuple(_HANDLERS)
_SUPPORTED = f"supported operators: {', '.join(OPERATORS)}"
