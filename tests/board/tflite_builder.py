# SPDX-License-Identifier: MIT
"""TensorFlow Lite models made at test time: quantised convolutions, one after the other, as a flat buffer.

Enough of the format for a delegate's tests: CONV_2D, DEPTHWISE_CONV_2D and ADD with int8 tensors, one scale and zero
point per tensor (field numbers and enumerations of TensorFlow's lite/schema/schema.fbs; encoding of FlatBuffers'
"internals" page). The writer goes top-down: every object is appended behind the table that refers to it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

INT32, UINT8 = 2, 3
"""enum TensorType"""
ADD, CONV_2D, DEPTHWISE_CONV_2D = 0, 3, 4
"""enum BuiltinOperator"""
CONV_OPTIONS, DEPTHWISE_OPTIONS, ADD_OPTIONS = 1, 2, 11
"""union BuiltinOptions"""
PADDING = {"same": 0, "valid": 1}
ACTIVATION = {"none": 0, "relu": 1, "relu6": 3}


@dataclass(frozen=True)
class Scalar:
    """A number inside a table; ``form`` as in `struct`."""

    form: str
    value: float


@dataclass(frozen=True)
class Table:
    """Fields by their number in the schema."""

    fields: dict[int, Any]


class FlatBuffer:
    """Writes a root table; ``bytes(FlatBuffer(root, b"TFL3"))``."""

    def __init__(self, root: Table, identifier: bytes) -> None:
        self._data = bytearray(4) + identifier
        self._refer(0, root)

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def _align(self, size: int) -> None:
        self._data += bytes(-len(self._data) % size)

    def _refer(self, place: int, value: Any) -> None:
        """Append ``value`` and let the offset at ``place`` point to it."""
        struct.pack_into("<I", self._data, place, self._append(value) - place)

    def _append(self, value: Any) -> int:
        if isinstance(value, Table):
            return self._table(value.fields)
        if isinstance(value, str):
            return self._vector(np.frombuffer(value.encode() + b"\0", np.uint8), len(value.encode()))
        if isinstance(value, np.ndarray):
            return self._vector(value, value.size)
        self._align(4)
        start = len(self._data)
        self._data += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for index, item in enumerate(value):
            self._refer(start + 4 + 4 * index, item)
        return start

    def _vector(self, array: NDArray[Any], count: int) -> int:
        """Elements are aligned to 16 bytes, which a buffer's data must be; the length stands before them."""
        self._data += bytes(-(len(self._data) + 4) % 16)
        start = len(self._data)
        self._data += struct.pack("<I", count) + array.tobytes()
        return start

    def _table(self, fields: dict[int, Any]) -> int:
        inline = {slot: value if isinstance(value, Scalar) else Scalar("<I", 0) for slot, value in fields.items()}
        offsets, size = {}, 4
        for slot, scalar in sorted(inline.items(), key=lambda item: -struct.calcsize(item[1].form)):
            offsets[slot] = size
            size += struct.calcsize(scalar.form)
        slots = max(fields, default=-1) + 1
        self._align(2)
        table_of_offsets = len(self._data)
        self._data += struct.pack(f"<HH{slots}H", 4 + 2 * slots, size, *(offsets.get(slot, 0) for slot in range(slots)))
        self._align(4)
        start = len(self._data)
        self._data += struct.pack("<i", start - table_of_offsets) + bytes(size - 4)
        for slot, scalar in inline.items():
            struct.pack_into(scalar.form, self._data, start + offsets[slot], scalar.value)
        for slot, value in fields.items():
            if not isinstance(value, Scalar):
                self._refer(start + offsets[slot], value)
        return start


@dataclass
class Model:
    """Grows layer by layer; tensors are numbers. Shapes are NHWC, as TensorFlow Lite has them."""

    tensors: list[Table] = field(default_factory=list)
    buffers: list[Table] = field(default_factory=lambda: [Table({})])
    operators: list[Table] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    def _tensor(
        self, shape: tuple[int, ...], kind: int, scale: float, zero_point: int, data: NDArray[Any] | None = None
    ) -> int:
        buffer = 0
        if data is not None:
            buffer = len(self.buffers)
            self.buffers.append(Table({0: np.frombuffer(data.tobytes(), np.uint8)}))
        quantization = Table({2: np.array([scale], "<f4"), 3: np.array([zero_point], "<i8")})
        number = len(self.tensors)
        fields = {0: np.array(shape, "<i4"), 1: Scalar("<b", kind), 2: Scalar("<I", buffer), 3: f"t{number}"}
        self.tensors.append(Table({**fields, 4: quantization}))
        self.shapes.append(shape)
        self.scales.append(scale)
        return number

    def input(self, shape: tuple[int, int, int, int], scale: float, zero_point: int) -> int:
        """An int8 input."""
        number = self._tensor(shape, UINT8, scale, zero_point)
        self.inputs.append(number)
        return number

    def _operator(self, code: int, inputs: list[int], output: int, kind: int, options: dict[int, Scalar]) -> None:
        if code not in self.codes:
            self.codes.append(code)
        fields = {0: Scalar("<I", self.codes.index(code)), 1: np.array(inputs, "<i4"), 2: np.array([output], "<i4")}
        self.operators.append(Table({**fields, 3: Scalar("<B", kind), 4: Table(options)}))

    def conv(
        self,
        source: int,
        weights: NDArray[np.uint8],
        bias: NDArray[np.int32],
        *,
        weight_scale: float,
        weight_zero_point: int = 128,
        scale: float,
        zero_point: int,
        stride: int = 1,
        padding: Literal["same", "valid"] = "same",
        activation: Literal["none", "relu", "relu6"] = "none",
        depthwise: bool = False,
    ) -> int:
        """A convolution; ``weights`` OHWI, or 1HWC when depthwise (int8, zero point 0); returns its output tensor."""
        _, height, width, _ = self.shapes[source]
        kernel = weights.shape[1]
        cut = 0 if padding == "same" else kernel - 1
        channels = weights.shape[3] if depthwise else weights.shape[0]
        shape = (1, -(-(height - cut) // stride), -(-(width - cut) // stride), channels)
        kernel_tensor = self._tensor(weights.shape, UINT8, weight_scale, weight_zero_point, weights)
        bias_tensor = self._tensor(bias.shape, INT32, self.scales[source] * weight_scale, 0, bias.astype("<i4"))
        output = self._tensor(shape, UINT8, scale, zero_point)
        options = {0: Scalar("<b", PADDING[padding]), 1: Scalar("<i", stride), 2: Scalar("<i", stride)}
        number = 4 if depthwise else 3
        options[number] = Scalar("<b", ACTIVATION[activation])
        options |= {number + 1: Scalar("<i", 1), number + 2: Scalar("<i", 1)}
        if depthwise:
            options[3] = Scalar("<i", 1)
        code, kind = (DEPTHWISE_CONV_2D, DEPTHWISE_OPTIONS) if depthwise else (CONV_2D, CONV_OPTIONS)
        self._operator(code, [source, kernel_tensor, bias_tensor], output, kind, options)
        return output

    def add(self, left: int, right: int, *, scale: float, zero_point: int) -> int:
        """The sum of two tensors."""
        output = self._tensor(self.shapes[left], UINT8, scale, zero_point)
        self._operator(ADD, [left, right], output, ADD_OPTIONS, {0: Scalar("<b", 0)})
        return output

    def finish(self, outputs: list[int]) -> bytes:
        """The file."""
        codes = [Table({0: Scalar("<b", code), 2: Scalar("<i", 2), 3: Scalar("<i", code)}) for code in self.codes]
        graph = {0: self.tensors, 1: np.array(self.inputs, "<i4"), 2: np.array(outputs, "<i4"), 3: self.operators}
        root = Table({0: Scalar("<I", 3), 1: codes, 2: [Table({**graph, 4: "main"})], 3: "npulab", 4: self.buffers})
        return bytes(FlatBuffer(root, b"TFL3"))
