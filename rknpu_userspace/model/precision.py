# SPDX-License-Identifier: MIT
"""Number formats: codes of the register fields, raw dtypes, and decoding into the dtype that the model computes in.

int8 and int4 are computed in float32, which is exact while sums stay below 2^24 (``core`` splits them so that they do);
int16 and all floats in float64, which holds products of 24-bit mantissas exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INT8, INT16, FP16, BF16, INT32, FP32, INT4, TF32 = range(8)
"""Precision codes; 4 and 5 exist in the DPU only, 7 in CNA and CORE only."""
NAMES = ("int8", "int16", "fp16", "bf16", "int32", "fp32", "int4", "tf32")
BITS = (8, 16, 16, 16, 32, 32, 4, 32)
INTEGER = frozenset({INT8, INT16, INT32, INT4})


class MacFormat(NamedTuple):
    """An operand format of the MAC array.

    ``kernel_group`` and ``channel_group`` are the tile of the weight layout, ``depthwise_group`` the channels per group
    in depthwise mode (0: not demonstrated), ``dpu`` the DPU's code for what arrives there, ``exact_terms`` the number
    of products that ``dtype`` sums exactly.
    """

    raw: str
    dtype: str
    kernel_group: int
    channel_group: int
    depthwise_group: int
    dpu: int
    exact_terms: int


MAC_FORMATS: dict[int, MacFormat] = {
    INT8: MacFormat("<i1", "<f4", 32, 32, 64, INT8, 1 << 10),
    INT16: MacFormat("<i2", "<f8", 16, 32, 0, INT16, 1 << 22),
    FP16: MacFormat("<f2", "<f8", 16, 32, 32, FP16, 1 << 22),
    BF16: MacFormat("<u2", "<f8", 16, 32, 32, BF16, 1 << 22),
    INT4: MacFormat("<u1", "<f4", 64, 32, 0, INT4, 1 << 18),
    TF32: MacFormat("<u4", "<f8", 16, 16, 0, FP32, 1 << 22),
}
_OUT_DTYPES = {INT8: "<i1", INT16: "<i2", FP16: "<f2", BF16: "<u2", INT32: "<i4", FP32: "<f4"}
_TF32_KEPT = 0xFFFFE000


def atom_channels(code: int) -> int:
    """Channels per 16-byte atom."""
    return 128 // BITS[code]


def byte_size(code: int, count: int) -> int:
    """Bytes of ``count`` packed elements."""
    return count * BITS[code] // 8


def unpack_nibbles(raw: Array, high_first: bool) -> Array:
    """int4 pairs along the last axis to int8, two's complement."""
    signed = raw.view(np.int8)
    low = (signed << 4) >> 4
    high = signed >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*raw.shape[:-1], raw.shape[-1] * 2)


def bf16_to_float32(raw: Array) -> Array:
    """uint16 bit patterns to float32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def tf32_to_float32(raw: Array) -> Array:
    """uint32 bit patterns of fp32 to float32 with the low 13 mantissa bits dropped (HM tests/test_mm_tf32.cpp)."""
    return (raw & np.uint32(_TF32_KEPT)).view(np.float32)


def decode(raw: Array, code: int, high_first: bool = False) -> Array:
    """Raw elements (dtype ``MAC_FORMATS[code].raw``) to an array whose cast to the compute dtype is exact."""
    if code == INT4:
        return unpack_nibbles(raw, high_first)
    if code == BF16:
        return bf16_to_float32(raw)
    if code == TF32:
        return tf32_to_float32(raw)
    return raw


def float32_to_bf16(values: Array) -> Array:
    """float32 to bf16 bit patterns (uint16), nearest even, NaN kept a NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> 16) | np.uint32(0x40), rounded).astype(np.uint16)


def encode(values: Array, code: int) -> Array:
    """float32 or in-range integers to raw elements of an output format."""
    if code == BF16:
        return float32_to_bf16(values)
    return values.astype(_OUT_DTYPES[code])


def register_float(bits: int) -> np.float32:
    """A register word that holds an fp32."""
    return np.uint32(bits & 0xFFFFFFFF).view(np.float32)
