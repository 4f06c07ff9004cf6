# SPDX-License-Identifier: MIT
"""Requantisation as the NPU's output converter does it: ``sat8(round(acc * SCALE / 2^SHIFT) + OFFSET)``.

SCALE has 15 bits, SHIFT 6, rounding is to nearest with ties to even (OUT_CVT CVT_ROUND = 0). The formula without its
tie rule reproduces a capture from a board bit for bit (RU teflon-dw-capture); the tie rule is the TRM's, and measured
(RN). With a scale per channel, the BS multiplier goes first: ``acc' = round(acc * MUL[c] / 2^14)``, rounded alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SCALE_BITS = 15
MAX_SHIFT = 63
INT8_MIN, INT8_MAX = -128, 127


@dataclass(frozen=True)
class Requant:
    """Integer form of a real multiplier: ``scale / 2^shift``, and the output's zero point."""

    scale: int
    shift: int
    offset: int

    @property
    def multiplier(self) -> float:
        """The real number that the integers stand for."""
        return math.ldexp(self.scale, -self.shift)


@dataclass(frozen=True, eq=False)
class ChannelRequant:
    """A multiplier per output channel: ``multipliers`` int16 in units of 2^-14, times what they have in common."""

    multipliers: npt.NDArray[np.int16]
    common: Requant

    def part(self, start: int, stop: int) -> ChannelRequant:
        """That of channels [start, stop)."""
        return ChannelRequant(self.multipliers[start:stop], self.common)


CHANNEL_SHIFT = 14
"""Shift behind the per-channel multiplier, as Rockchip's compiler sets it."""


def check_zero_point(name: str, value: int) -> int:
    """A zero point of an int8 tensor as an int; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not INT8_MIN <= value <= INT8_MAX:
        raise ValueError(f"{name} {value} is outside the int8 range {INT8_MIN}..{INT8_MAX}")
    return int(value)


def derive(multiplier: float, zero_point: int = 0) -> Requant:
    """The closest 15-bit scale and shift for a real multiplier (input scale x weight scale / output scale).

    ValueError when the multiplier is not finite, not positive, or out of the range that scale and shift can express.
    """
    real = float(multiplier)
    if not math.isfinite(real) or real <= 0:
        raise ValueError(f"the requantisation scale must be finite and positive, not {multiplier}")
    mantissa, exponent = math.frexp(real)
    scale = round(math.ldexp(mantissa, SCALE_BITS))
    shift = SCALE_BITS - exponent
    if scale == 1 << SCALE_BITS:
        scale >>= 1
        shift -= 1
    if shift < 0:
        raise ValueError(f"the requantisation scale {real:g} is too large: the output converter ends at 32767")
    if shift > MAX_SHIFT:
        raise ValueError(
            f"the requantisation scale {real:g} is too small: every accumulator would become the zero point "
            f"(smallest {math.ldexp(1.0, SCALE_BITS - 1 - MAX_SHIFT):g})"
        )
    return Requant(scale, shift, check_zero_point("the output zero point", zero_point))


def derive_channels(multipliers: npt.NDArray[Any], zero_point: int = 0) -> ChannelRequant:
    """Scales per channel, from their real multipliers; ValueError as in ``derive``.

    The largest one uses the whole int16; a channel whose multiplier is smaller by a factor f is off by up to
    2^-16 f of its value.
    """
    real = np.asarray(multipliers, np.float64)
    if real.ndim != 1 or real.size == 0:
        raise ValueError(f"scales per channel must be a vector, not of shape {real.shape}")
    if not np.isfinite(real).all() or (real <= 0).any():
        raise ValueError("every requantisation scale must be finite and positive")
    most = float(real.max())
    top = 32767
    units = np.rint(real / most * top).astype(np.int16)
    return ChannelRequant(units, derive(most * math.ldexp(1 / top, CHANNEL_SHIFT), zero_point))


def scale_channels(accumulators: npt.NDArray[Any], requant: ChannelRequant) -> npt.NDArray[np.float64]:
    """int32 accumulators [..., channel] times their channel's multiplier, rounded, clamped to int32."""
    product: npt.NDArray[np.float64] = accumulators.astype(np.float64) * requant.multipliers
    product *= 2.0**-CHANNEL_SHIFT
    np.rint(product, out=product)
    np.clip(product, -(1 << 31), (1 << 31) - 1, out=product)
    return product


def requantize_channels(accumulators: npt.NDArray[Any], requant: ChannelRequant) -> npt.NDArray[np.int8]:
    """int32 accumulators [..., channel] to int8, bit for bit as the hardware."""
    return requantize(scale_channels(accumulators, requant), requant.common)


def apply(accumulators: npt.NDArray[Any], requant: Requant | ChannelRequant) -> npt.NDArray[np.int8]:
    """Either of the two."""
    if isinstance(requant, ChannelRequant):
        return requantize_channels(accumulators, requant)
    return requantize(accumulators, requant)


def requantize(accumulators: npt.NDArray[Any], requant: Requant) -> npt.NDArray[np.int8]:
    """int32 accumulators to int8, bit for bit as the hardware: acc * scale fits 47 bits and is exact in float64."""
    scaled = accumulators.astype(np.float64)
    scaled *= requant.multiplier
    np.rint(scaled, out=scaled)
    scaled += requant.offset
    np.clip(scaled, INT8_MIN, INT8_MAX, out=scaled)
    return scaled.astype(np.int8)
