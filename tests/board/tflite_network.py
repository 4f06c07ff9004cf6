# SPDX-License-Identifier: MIT
"""Networks as TensorFlow Lite files, made at test time, and TensorFlow Lite's own result for them.

Quantised to int8 (weights per tensor or per channel) or uint8. Numbers of operators and options are those of the schema
(tensorflow/lite/schema/schema.fbs). Output scales follow from the values that the reference interpreter computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray
from tflite_builder import FlatBuffer, Scalar, Table

INT32, UINT8, INT8, FLOAT32 = 2, 3, 9, 0
_STORED: dict[int, str] = {INT32: "<i4", UINT8: "<u1", INT8: "<i1", FLOAT32: "<f4"}
_OPTIONS = tflite.BuiltinOptions
_CODES = tflite.BuiltinOperator


def byte(value: int) -> Scalar:
    """A byte or enumeration."""
    return Scalar("<b", value)


def word(value: int) -> Scalar:
    """An int32."""
    return Scalar("<i", value)


class Network:
    """Grows layer by layer; tensors are numbers, shapes NHWC."""

    def __init__(self, shape: tuple[int, ...], seed: int, kind: int = INT8) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = kind
        self.narrowest = 0.05  # least scale of a channel's weights, relative to the greatest
        self.tensors: list[dict[int, Any]] = []
        self.buffers: list[Table] = [Table({})]
        self.operators: list[Table] = []
        self.codes: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self.quantisation: list[tuple[float, int]] = []
        self.input = self.tensor(shape, 0.02, self.zero(3))
        low = 0 if kind == UINT8 else -128
        self.x = self.rng.integers(low, low + 256, shape).astype(_STORED[kind])

    def zero(self, value: int) -> int:
        """A zero point in the network's own type."""
        return value + 128 if self.kind == UINT8 else value

    def tensor(
        self,
        shape: tuple[int, ...],
        scale: Any = (),
        zero_point: Any = 0,
        data: NDArray[Any] | None = None,
        kind: int | None = None,
        axis: int = 0,
    ) -> int:
        """Any tensor; ``scale`` a number, several, or none."""
        buffer = 0
        if data is not None:
            buffer = len(self.buffers)
            self.buffers.append(Table({0: np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)}))
        number = len(self.tensors)
        scales = np.atleast_1d(np.asarray(scale, "<f4"))
        fields: dict[int, Any] = {0: np.array(shape, "<i4"), 1: byte(self.kind if kind is None else kind)}
        fields |= {2: Scalar("<I", buffer), 3: f"t{number}"}
        if scales.size:
            points = np.broadcast_to(np.asarray(zero_point, "<i8"), scales.shape)
            fields[4] = Table({2: scales, 3: points, 6: word(axis)})
        self.tensors.append(fields)
        self.shapes.append(shape)
        self.quantisation.append((float(scales[0]) if scales.size else 0.0, int(np.ravel(zero_point)[0])))
        return number

    def operator(self, code: str, inputs: list[int], output: int, options: str = "", fields: Any = None) -> int:
        """Any operator."""
        number = getattr(_CODES, code)
        if number not in self.codes:
            self.codes.append(number)
        own: dict[int, Any] = {0: Scalar("<I", self.codes.index(number)), 1: np.array(inputs, "<i4")}
        own[2] = np.array([output], "<i4")
        if options:
            own |= {3: Scalar("<B", getattr(_OPTIONS, options)), 4: Table(fields or {})}
        self.operators.append(Table(own))
        return output

    def finish(self, *outputs: int) -> bytes:
        """The file."""
        versions = [1 if code in (_CODES.HARD_SWISH, _CODES.RESHAPE) else 2 for code in self.codes]
        codes = [
            Table({0: byte(min(code, 127)), 2: word(version), 3: word(code)})
            for code, version in zip(self.codes, versions, strict=True)
        ]
        graph = {0: [Table(fields) for fields in self.tensors], 1: np.array([self.input], "<i4")}
        graph |= {2: np.array(outputs, "<i4"), 3: self.operators, 4: "main"}
        return bytes(FlatBuffer(Table({0: Scalar("<I", 3), 1: codes, 2: [Table(graph)], 4: self.buffers}), b"TFL3"))

    def value(self, tensor: int) -> NDArray[Any]:
        """What TensorFlow Lite computes for a tensor so far."""
        return self.x if tensor == self.input else interpret(self.finish(tensor), self.x)[0]

    def weights(self, shape: tuple[int, ...], per_channel: bool, axis: int) -> tuple[int, Any]:
        """Random weights: tensor and scales."""
        if self.kind == UINT8:
            data = self.rng.integers(1, 256, shape).astype(np.uint8)
            return self.tensor(shape, 0.01, 128, data), 0.01
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale: Any = 0.01
        if per_channel:
            scale = (0.01 * self.narrowest ** self.rng.uniform(0, 1, shape[axis])).astype(np.float32)
        return self.tensor(shape, scale, 0, data, axis=axis), scale

    def bias(self, count: int, source: int, scale: Any) -> int:
        """Random biases."""
        data = self.rng.integers(-2000, 2000, count).astype("<i4")
        return self.tensor(
            (count,), np.float32(self.quantisation[source][0]) * np.asarray(scale, np.float32), 0, data, INT32
        )

    def spread(
        self, code: str, inputs: list[int], shape: tuple[int, ...], options: str, fields: Any, zero: int = 2
    ) -> int:
        """An operator whose output scale makes the values spread over the byte."""
        trial = self.tensor(shape, 1.0 if self.kind != FLOAT32 else (), self.zero(0))
        kept = len(self.operators)
        scale = 0.02
        for _ in range(12):
            self.tensors[trial][4] = Table(
                {2: np.array([scale], "<f4"), 3: np.array([self.zero(zero)], "<i8"), 6: word(0)}
            )
            self.operator(code, inputs, trial, options, fields)
            values = self.value(trial).astype(int)
            del self.operators[kept:]
            low = 0 if self.kind == UINT8 else -128
            # a zero point at the lower end means that a ReLU ends there, as it should
            clipped = np.mean(values >= low + 255) + (0.0 if zero == -128 else np.mean(values <= low))
            if values.std() < 25 and clipped < 0.2:
                scale /= 1.7
            elif clipped > 0.55:
                scale *= 1.9
            else:
                break
        self.quantisation[trial] = scale, self.zero(zero)
        return self.operator(code, inputs, trial, options, fields)

    def conv(
        self,
        source: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        same: bool = True,
        activation: int = 0,
        dilation: int = 1,
        per_channel: bool = True,
        zero: int = 2,
    ) -> int:
        """CONV_2D."""
        depth = self.shapes[source][3]
        weights, scale = self.weights((channels, kernel, kernel, depth), per_channel, 0)
        fields = {0: byte(not same), 1: word(stride), 2: word(stride), 3: byte(activation)}
        fields |= {4: word(dilation), 5: word(dilation)}
        inputs = [source, weights, self.bias(channels, source, scale)]
        shape = (*self._windows(source, (kernel, kernel), stride, same, dilation), channels)
        return self.spread("CONV_2D", inputs, shape, "Conv2DOptions", fields, zero)

    def depthwise(
        self, source: int, kernel: int, *, stride: int = 1, multiplier: int = 1, activation: int = 0, zero: int = 2
    ) -> int:
        """DEPTHWISE_CONV_2D."""
        channels = self.shapes[source][3] * multiplier
        weights, scale = self.weights((1, kernel, kernel, channels), True, 3)
        fields = {0: byte(0), 1: word(stride), 2: word(stride), 3: word(multiplier), 4: byte(activation)}
        fields |= {5: word(1), 6: word(1)}
        inputs = [source, weights, self.bias(channels, source, scale)]
        shape = (*self._windows(source, (kernel, kernel), stride, True, 1), channels)
        return self.spread("DEPTHWISE_CONV_2D", inputs, shape, "DepthwiseConv2DOptions", fields, zero)

    def linear(self, source: int, outputs: int, *, activation: int = 0) -> int:
        """FULLY_CONNECTED over everything that one row holds."""
        size = int(np.prod(self.shapes[source][1:]))
        weights, scale = self.weights((outputs, size), False, 0)
        inputs = [source, weights, self.bias(outputs, source, scale)]
        shape = (self.shapes[source][0], outputs)
        return self.spread("FULLY_CONNECTED", inputs, shape, "FullyConnectedOptions", {0: byte(activation)})

    def binary(self, code: str, left: int, right: int, activation: int = 0) -> int:
        """ADD, SUB, MUL, MAXIMUM or MINIMUM; the last two keep the quantisation of their operands."""
        shape = tuple(np.broadcast_shapes(self.shapes[left], self.shapes[right]))
        if code in ("MAXIMUM", "MINIMUM"):
            output = self.tensor(shape, *self.quantisation[left])
            return self.operator(code, [left, right], output, "MaximumMinimumOptions")
        return self.spread(code, [left, right], shape, f"{code.capitalize()}Options", {0: byte(activation)})

    def pool(self, code: str, source: int, kernel: int, stride: int, same: bool = False) -> int:
        """AVERAGE_POOL_2D or MAX_POOL_2D."""
        fields = {0: byte(not same), 1: word(stride), 2: word(stride), 3: word(kernel), 4: word(kernel), 5: byte(0)}
        shape = (*self._windows(source, (kernel, kernel), stride, same, 1), self.shapes[source][3])
        output = self.tensor(shape, *self.quantisation[source])
        return self.operator(code, [source], output, "Pool2DOptions", fields)

    def like(
        self, code: str, source: int, shape: tuple[int, ...], more: list[int], options: str = "", fields: Any = None
    ) -> int:
        """An operator that keeps the quantisation."""
        output = self.tensor(shape, *self.quantisation[source])
        return self.operator(code, [source, *more], output, options, fields)

    def indices(self, values: Any) -> int:
        """A constant of int32."""
        data = np.asarray(values, "<i4")
        return self.tensor(data.shape, (), 0, data, INT32)

    def softmax(self, source: int) -> int:
        """SOFTMAX with the output that TensorFlow Lite prescribes."""
        output = self.tensor(self.shapes[source], 1 / 256, 0 if self.kind == UINT8 else -128)
        return self.operator("SOFTMAX", [source], output, "SoftmaxOptions", {0: Scalar("<f", 1.0)})

    def _windows(
        self, source: int, kernel: tuple[int, int], stride: int, same: bool, dilation: int
    ) -> tuple[int, int, int]:
        images, height, width, _ = self.shapes[source]
        cut = [0 if same else (size - 1) * dilation for size in kernel]
        return images, -(-(height - cut[0]) // stride), -(-(width - cut[1]) // stride)


def interpret(model: bytes, x: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs of TensorFlow Lite's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]).copy() for detail in interpreter.get_output_details()]
