# SPDX-License-Identifier: MIT
"""Checks of what callers pass in, with errors that say what would be accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.formats import COMBINATIONS, INPUTS, OUTPUTS
from rknpu_userspace.layout import to_bfloat16
from rknpu_userspace.quant import CHANNEL_SHIFT, ChannelRequant, Requant, check_zero_point, derive, derive_channels

from . import checks
from .tables import value_of

Array = npt.NDArray[Any]

_STORED = {"int8": "int8", "float16": "float16"}
"""Formats that a dtype stands for by itself."""


_LISTED = 4
"""Numbers of dimensions that an error lists one by one."""


def operand(name: str, value: Any, dimensions: tuple[int, ...], form: str | None = None) -> Array:
    """An array in the storage dtype of ``form`` (default: what its dtype stands for), with none of its sizes zero.

    float32 becomes bfloat16 (rounded to nearest even) where that is asked for; tfloat32 takes float32 as it is, the
    NPU drops the low 13 bits.
    """
    array = checks.plain(name, value)
    if form is None:
        if array.dtype.name not in _STORED:
            raise TypeError(f"{name} has dtype {array.dtype}, the NPU takes int8 or float16 here{_hint(array.dtype)}")
    else:
        array = _converted(name, array, form)
    if array.ndim not in dimensions:
        many = len(dimensions) > _LISTED
        expected = f"at least {dimensions[0]}" if many else " or ".join(str(number) for number in dimensions)
        raise ValueError(f"{name} has {array.ndim} dimensions, expected {expected}")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}): the NPU has no empty tensors")
    return array


def _hint(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return "; convert it with .astype(numpy.float16), or name format='bfloat16' or 'tfloat32'"
    if dtype == np.uint8:
        return "; store it as (u ^ 0x80).view(numpy.int8) and lower its zero point by 128"
    return ""


def _converted(name: str, array: Array, form: str) -> Array:
    if form not in INPUTS:
        raise ValueError(f"format {form!r} is not one of {', '.join(INPUTS)}")
    if form == "bfloat16" and array.dtype == np.float32:
        return to_bfloat16(array)
    expected = np.dtype(INPUTS[form].dtype)
    if array.dtype != expected:
        also = " (bit patterns) or float32" if form == "bfloat16" else ""
        raise TypeError(f"{name} has dtype {array.dtype}, format {form} takes {expected}{also}")
    if form == "int4" and array.size and (array.min() < -8 or array.max() > 7):
        raise ValueError(f"{name} has values outside -8..7, the range of int4")
    return array


def format_of(array: Array, form: str | None) -> str:
    """The format of an operand that ``operand`` has accepted."""
    return form or str(array.dtype.name)


def same_format(left: str, right: str, a: Array, b: Array) -> None:
    """TypeError when two operands differ in dtype."""
    if a.dtype != b.dtype:
        raise TypeError(f"{left} is {a.dtype} and {right} is {b.dtype}: the NPU multiplies operands of one format only")


def out_format(form: str, out_dtype: npt.DTypeLike | None, requant: bool) -> str:
    """The output format's name; the default is int8 with a scale, else the widest."""
    if out_dtype is None:
        return "int8" if requant and form == "int8" else COMBINATIONS[form][0]
    name = "bfloat16" if isinstance(out_dtype, str) and out_dtype == "bfloat16" else np.dtype(out_dtype).name
    if name not in COMBINATIONS[form]:
        raise TypeError(f"{form} operands can give {', '.join(COMBINATIONS[form])}, not {name}")
    return name


def requantisation(out: str, scale: Any, zero_point: int, channels: int) -> Requant | ChannelRequant | None:
    """The requantisation of an int8 output, from its real multiplier, or one for every channel."""
    if out != "int8":
        if scale is not None:
            raise ValueError(f"scale is for int8 output, the output is {out}")
        if zero_point:
            raise ValueError(f"an output zero point is for int8 output, the output is {out}")
        return None
    if scale is None:
        raise ValueError("int8 output needs scale = input scale x weight scale / output scale")
    values = checks.plain("scale", scale)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"scale must be a number or a vector of them, not {type(scale).__name__}")
    if values.ndim == 0:
        return derive(float(values), zero_point)
    if values.shape != (channels,):
        raise ValueError(f"scale has shape {values.shape}, expected one number or ({channels},)")
    return derive_channels(values, zero_point)


def bias_vector(form: str, bias: Any, channels: int) -> Array | None:
    """Bias as the DPU adds it: int32 for integers, float32 for floats."""
    if bias is None:
        return None
    array = checks.plain("bias", bias)
    if array.shape != (channels,):
        raise ValueError(f"bias has shape {array.shape}, expected ({channels},): one value per output channel")
    if INPUTS[form].is_float:
        if array.dtype.kind not in "fiu":
            raise TypeError(f"bias has dtype {array.dtype}, expected a float")
        if not np.isfinite(array).all():
            raise ValueError("bias has values that are not finite")
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(narrow).all():
            raise ValueError(f"bias has values beyond float32's largest, {np.finfo(np.float32).max:g}")
        return narrow
    if array.dtype.kind not in "iu":
        raise TypeError(f"bias has dtype {array.dtype}, expected integers (int32) in accumulator units")
    limits = np.iinfo(np.int32)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise ValueError("bias has values outside the int32 range of the accumulator")
    return np.ascontiguousarray(array, np.int32)


def rectifier(form: str, relu: bool, bound: float | None, slope: float | None) -> dict[str, Any]:
    """Checked ReLU, its upper end and the slope of negative values, the slope rounded as the multiplier takes it.

    Integers: ``bound`` is a positive int32 in the units that the requantisation starts from, ``slope`` a multiple of
    2^-14 within -2..2. Floats: both are numbers of the format.
    """
    is_float = INPUTS[form].is_float
    if bound is not None:
        if not relu:
            raise ValueError("bound is the upper end of a ReLU: it needs relu=True")
        if not np.isfinite(bound) or bound <= 0:
            raise ValueError(f"bound must be finite and positive, not {bound}")
        if not is_float and (int(bound) != bound or bound >= 1 << 31):
            raise ValueError(f"bound {bound} is not an int32 in accumulator units")
    if slope is None:
        return {"relu": relu, "bound": bound, "slope": None}
    if relu:
        raise ValueError("slope and relu exclude each other")
    most = 65504.0 if is_float else 2.0 - 2.0**-CHANNEL_SHIFT
    if not np.isfinite(slope) or abs(slope) > most:
        raise ValueError(f"slope {slope} is outside -{most:g}..{most:g}")
    rounded = value_of(slope, form) if is_float else round(slope * (1 << CHANNEL_SHIFT)) * 2.0**-CHANNEL_SHIFT
    return {"relu": False, "bound": None, "slope": rounded}


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
