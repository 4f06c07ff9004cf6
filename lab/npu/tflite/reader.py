# SPDX-License-Identifier: MIT
"""A TensorFlow Lite file as plain data: tensors, and operators with their options.

The ``tflite`` package parses the flat buffer. FlatBuffers' Python runtime does not verify offsets, so whatever goes
wrong while reading means that the file is damaged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.errors import ExitCode, KitError

Array = npt.NDArray[Any]
IDENTIFIER = b"TFL3"
_MAX_ELEMENTS = 1 << 31
_DAMAGE = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class TfTensor:
    """A tensor; ``data`` for constants. ``axis`` is the dimension of the scales where there are several."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: Array | None


@dataclass(frozen=True)
class TfOperator:
    """An operator; ``inputs`` has -1 for those left out. ``options(name)`` reads the table of that type, if any."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Callable[[str], Any]


@dataclass(frozen=True)
class TfModel:
    """The (only) subgraph of a model."""

    path: Path
    tensors: tuple[TfTensor, ...]
    operators: tuple[TfOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read(path: Path) -> TfModel:
    """Parse a file. KitError when there is none, or it is no model."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise KitError(ExitCode.USAGE, f"{path} can not be read: {reason}", "name a .tflite file") from error
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise KitError(ExitCode.FAILED, f"{path} is not a TensorFlow Lite model", "its bytes 4 to 7 must read TFL3")
    try:
        return _model(path, data)
    except _DAMAGE as error:
        raise KitError(ExitCode.FAILED, f"{path} is damaged or truncated", "convert or copy the model again") from error


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _model(path: Path, data: bytes) -> TfModel:
    import tflite

    root = tflite.Model.GetRootAsModel(data, 0)
    if root.SubgraphsLength() != 1:
        hint = "models with control flow are not supported"
        raise KitError(ExitCode.FAILED, f"{path} has {root.SubgraphsLength()} subgraphs, one is supported", hint)
    graph = root.Subgraphs(0)
    tensors = tuple(_tensor(root, graph.Tensors(index), len(data)) for index in range(graph.TensorsLength()))
    names = _names(tflite.BuiltinOperator)
    operators = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = root.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = names[number]
        if kind == "CUSTOM":
            kind = f"custom {code.CustomCode().decode()}"
        operators.append(
            TfOperator(
                kind, _numbers(operator.InputsAsNumpy()), _numbers(operator.OutputsAsNumpy()), _options(operator)
            )
        )
    model = TfModel(path, tensors, tuple(operators), _numbers(graph.InputsAsNumpy()), _numbers(graph.OutputsAsNumpy()))
    _check(model)
    return model


def _numbers(values: Any) -> tuple[int, ...]:
    """A vector; the parser gives 0 for one that is absent."""
    return () if isinstance(values, int) else tuple(int(value) for value in values)


def _options(operator: Any) -> Callable[[str], Any]:
    def options(name: str) -> Any:
        import tflite

        table = operator.BuiltinOptions()
        if table is None:
            return None
        result = getattr(tflite, name)()
        result.Init(table.Bytes, table.Pos)
        return result

    return options


def _tensor(root: Any, tensor: Any, file_size: int) -> TfTensor:
    import tflite

    dtype = _names(tflite.TensorType)[tensor.Type()].lower()
    shape = _numbers(tensor.ShapeAsNumpy())
    if any(size < 0 for size in shape) or np.prod(shape, dtype=np.float64) > _MAX_ELEMENTS:
        raise ValueError(f"tensor of shape {shape}")
    quantization = tensor.Quantization()
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if quantization is not None:
        values = quantization.ScaleAsNumpy()
        scales = () if isinstance(values, int) else tuple(float(value) for value in values)
        zero_points = _numbers(quantization.ZeroPointAsNumpy())
        axis = quantization.QuantizedDimension()
    name = (tensor.Name() or b"").decode(errors="replace")
    return TfTensor(name, shape, dtype, scales, zero_points, axis, _data(root, tensor, dtype, shape, file_size))


def _data(root: Any, tensor: Any, dtype: str, shape: tuple[int, ...], file_size: int) -> Array | None:
    buffer = root.Buffers(tensor.Buffer())
    if buffer.DataLength() > file_size:
        raise ValueError("a buffer longer than the file")
    raw = buffer.DataAsNumpy()
    if isinstance(raw, int) or not len(raw):
        return None
    try:
        kind = np.dtype(dtype)
    except TypeError:
        return None
    return np.frombuffer(raw.tobytes(), kind).reshape(shape)


def _check(model: TfModel) -> None:
    """ValueError for references to tensors that do not exist."""
    count = len(model.tensors)
    used = [*model.inputs, *model.outputs]
    for operator in model.operators:
        used += [*operator.outputs, *(number for number in operator.inputs if number != -1)]
    if any(not 0 <= number < count for number in used):
        raise ValueError("a tensor that does not exist")
