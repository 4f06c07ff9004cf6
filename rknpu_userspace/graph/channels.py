# SPDX-License-Identifier: MIT
"""Scales per channel that the NPU's 16-bit multipliers can not tell apart from zero.

The multipliers are relative to the greatest one. A channel whose own is smaller by a factor of hundreds is left with so
few bits that its results are off by whole steps, and trained networks have such channels (all weights tiny). They get a
multiplier that is greater by an integer factor, and weights and bias divided by it: the rounding of the weights then
counts for little, since the products count for little in the first place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.quant import INT8_MAX, INT8_MIN, derive_channels

Array = npt.NDArray[Any]
ENOUGH = 256
"""A multiplier of at least this is precise enough: half a unit of it is half a step at the end of the range."""
_TOP = 32767
_SPREAD = 256 / math.sqrt(12)
"""Standard deviation of values all over int8."""


@dataclass(frozen=True)
class Balanced:
    """Weights, bias and real multipliers as the NPU gets them.

    ``error``: steps that results are off by because of it, three standard deviations for inputs all over int8.
    """

    weights: Array
    bias: Array | None
    scale: Array
    error: float


def balance(weights: Array, bias: Array | None, scale: Array) -> Balanced:
    """Make up for small multipliers. ``weights`` [kernel][...] int8 with the zero point 0, ``scale`` [kernel]."""
    units = scale / scale.max() * _TOP
    factors = np.where(units < ENOUGH, np.ceil(ENOUGH / units), 1.0)
    shape = (-1, *(1,) * (weights.ndim - 1))
    exact = weights / factors.reshape(shape)
    stored = np.rint(exact).astype(np.int8)
    lost = 3 * _SPREAD * np.sqrt(((exact - stored) ** 2).reshape(len(scale), -1).sum(axis=1))
    if bias is not None:
        bias = np.rint(bias / factors).astype(np.int32)
        lost += np.where(factors > 1, 0.5, 0.0)
    greater = scale * factors
    requant = derive_channels(greater)
    actual = requant.multipliers.astype(np.float64) * math.ldexp(requant.common.multiplier, -14)
    off = np.abs(actual / greater - 1) * (INT8_MAX - INT8_MIN)
    return Balanced(stored, bias, greater, float((off + lost * greater).max()))
