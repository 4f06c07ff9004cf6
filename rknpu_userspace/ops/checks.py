# SPDX-License-Identifier: MIT
"""Checks of single arguments: whole numbers, shapes, scales, and arrays that are plain memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def whole(name: str, value: Any) -> int:
    """An integer; TypeError for anything else, floats without a fraction and booleans included."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def numbers(name: str, value: Any, forms: dict[int, str]) -> tuple[int, ...]:
    """One integer, or as many as ``forms`` allows: what each count means, by count (1: a single number)."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return (whole(name, value),)
    found = tuple(whole(name, number) for number in value)
    if len(found) < 2 or len(found) not in forms:
        raise ValueError(f"{name} must be {' or '.join(forms.values())}, not {value!r}")
    return found


def shape(name: str, value: Any, axes: str) -> tuple[int, ...]:
    """A shape of whole numbers from 1 on, one for every name in ``axes`` ("N H W C")."""
    expected = f"({', '.join(axes.split())})"
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)) or len(value) != len(axes.split()):
        raise ValueError(f"{name} must be {expected}, not {value!r}")
    sizes = tuple(whole(f"{axis} of {name}", size) for axis, size in zip(axes.split(), value, strict=True))
    if min(sizes) < 1:
        raise ValueError(f"{name} {sizes} is empty: the NPU has no empty tensors, every size is 1 or more")
    return sizes


def sizes(value: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor with any number of dimensions, none of them empty."""
    found = tuple(whole("a size", size) for size in value)
    if any(size < 1 for size in found):
        raise ValueError(f"empty tensor (shape {found}): the NPU has no empty tensors")
    return found


def positive(name: str, value: Any) -> float:
    """A real scale: a finite number above 0."""
    if isinstance(value, (bool, np.bool_, str)) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        real = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    if not np.isfinite(real) or real <= 0:
        raise ValueError(f"{name} must be finite and positive, not {value}")
    return real


def plain(name: str, value: Any) -> Array:
    """An array in the machine's byte order. TypeError for masked arrays, whose gaps the NPU knows nothing of."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill its gaps first, with .filled(value)")
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
