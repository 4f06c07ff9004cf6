# SPDX-License-Identifier: MIT
"""Checks of what callers pass in, with errors that say what would be accepted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.formats import COMBINATIONS, INPUTS, OUTPUTS
from rknpu_userspace.quant import Requant, check_zero_point, derive

Array = npt.NDArray[Any]


def operand(name: str, value: Any, dimensions: tuple[int, ...]) -> Array:
    """An int8 or float16 array with one of the given numbers of dimensions and no empty one."""
    array = np.asarray(value)
    if array.dtype.name not in COMBINATIONS or array.dtype.name == "int16":
        hint = ""
        if array.dtype.kind == "f":
            hint = "; convert it with .astype(numpy.float16)"
        elif array.dtype == np.uint8:
            hint = "; store it as (u ^ 0x80).view(numpy.int8) and lower its zero point by 128"
        raise TypeError(f"{name} has dtype {array.dtype}, the NPU takes int8 or float16 here{hint}")
    if array.ndim not in dimensions:
        expected = " or ".join(str(number) for number in dimensions)
        raise ValueError(f"{name} has {array.ndim} dimensions, expected {expected}")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}): the NPU has no empty tensors")
    return array


def same_format(left: str, right: str, a: Array, b: Array) -> str:
    """The common format name of two operands; TypeError when they differ."""
    if a.dtype != b.dtype:
        raise TypeError(f"{left} is {a.dtype} and {right} is {b.dtype}: the NPU multiplies operands of one format only")
    return str(a.dtype.name)


def out_format(form: str, out_dtype: npt.DTypeLike | None, requant: bool) -> str:
    """The output format's name; the default is int8 with a scale, else the widest."""
    if out_dtype is None:
        return "int8" if requant and form == "int8" else COMBINATIONS[form][0]
    name = np.dtype(out_dtype).name
    if name not in COMBINATIONS[form]:
        raise TypeError(f"{form} operands can give {', '.join(COMBINATIONS[form])}, not {name}")
    return name


def requantisation(form: str, out: str, scale: Any, zero_point: int) -> Requant | None:
    """The requantisation of an int8 output, from its real multiplier."""
    if out != "int8":
        if scale is not None:
            raise ValueError(f"scale is for int8 output, the output is {out}")
        if zero_point:
            raise ValueError(f"an output zero point is for int8 output, the output is {out}")
        return None
    if scale is None:
        raise ValueError("int8 output needs scale = input scale x weight scale / output scale")
    if isinstance(scale, (str, bytes)) or np.ndim(scale) != 0:
        raise TypeError("scale must be one number (per tensor)")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite and positive, not {scale}")
    return derive(float(scale), zero_point)


def bias_vector(form: str, bias: Any, channels: int) -> Array | None:
    """Bias as the DPU adds it: int32 for integers, float32 for floats."""
    if bias is None:
        return None
    array = np.asarray(bias)
    if array.shape != (channels,):
        raise ValueError(f"bias has shape {array.shape}, expected ({channels},): one value per output channel")
    if INPUTS[form].is_float:
        if array.dtype.kind not in "fiu":
            raise TypeError(f"bias has dtype {array.dtype}, expected a float")
        if not np.isfinite(array).all():
            raise ValueError("bias has values that are not finite")
        return np.ascontiguousarray(array, np.float32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"bias has dtype {array.dtype}, expected integers (int32) in accumulator units")
    limits = np.iinfo(np.int32)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise ValueError("bias has values outside the int32 range of the accumulator")
    return np.ascontiguousarray(array, np.int32)


def zero_point(form: str, name: str, value: int) -> int:
    """A zero point; floats have none."""
    if form != "int8":
        if value:
            raise ValueError(f"{name} is for int8 operands, not {form}")
        return 0
    return check_zero_point(name, value)


def dtype_of(out: str) -> np.dtype[Any]:
    """numpy dtype of an output format."""
    return np.dtype(OUTPUTS[out].dtype)
