# SPDX-License-Identifier: MIT
"""Requantisation: derivation of scale and shift, and the hardware's formula in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.quant import Requant, derive, requantize


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-48, 32767.0))
def test_derived_scale_is_the_closest(multiplier: float) -> None:
    requant = derive(multiplier)
    assert 1 << 14 <= requant.scale < 1 << 15
    assert 0 <= requant.shift <= 63
    assert abs(requant.multiplier / multiplier - 1) <= 2.0**-15


def by_hand(acc: int, requant: Requant) -> int:
    """sat8(round(acc * scale / 2^shift) + offset), ties to even, in rationals."""
    rounded = round(Fraction(acc * requant.scale, 1 << requant.shift))
    return max(-128, min(127, rounded + requant.offset))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    st.integers(1, 65535),
    st.integers(0, 50),
    st.integers(-128, 127),
)
def test_requantize(accumulators: list[int], scale: int, shift: int, offset: int) -> None:
    requant = Requant(scale, shift, offset)
    result = requantize(np.array(accumulators, np.int32), requant)
    assert result.tolist() == [by_hand(acc, requant) for acc in accumulators]


def test_ties_go_to_even() -> None:
    requant = Requant(1 << 14, 15, 0)
    odd = np.array([-5, -3, -1, 1, 3, 5, 7], np.int32)
    assert requantize(odd, requant).tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_values_of_a_board_capture() -> None:
    """Scale, shift and offset of a depthwise layer captured on a board: saturation and a value in between."""
    requant = Requant(17675, 22, -123)
    assert requantize(np.array([0, 10000, 100000, -100000], np.int32), requant).tolist() == [-123, -81, 127, -128]


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_scales(multiplier: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        derive(multiplier)
