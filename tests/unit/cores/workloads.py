# SPDX-License-Identifier: MIT
"""Computations whose results must not depend on how the cores are used, and their fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rknpu_userspace import Activation, Binary, Conv2d, Device, Matmul

_INT8 = np.random.default_rng(3).integers
_REAL = np.random.default_rng(4).standard_normal


def _int8(*shape: int) -> np.ndarray:
    return _INT8(-128, 128, shape, np.int8)


def _half(*shape: int) -> np.ndarray:
    return _REAL(shape).astype(np.float16)


X, W = _int8(1, 17, 19, 32), _int8(75, 3, 3, 32)
A, B = _int8(61, 200), _int8(200, 75)
H, K = _half(1, 11, 13, 24), _half(40, 3, 3, 24)
P, Q = _half(37, 96), _half(96, 50)
D = _half(64, 3, 3, 1)
C = _half(1, 15, 15, 64)
S, T = _half(33, 24), _half(33, 24)

OPERATIONS: dict[str, tuple[Callable[[], Any], tuple[np.ndarray, ...]]] = {
    "int8 conv": (
        lambda: Conv2d(W, X.shape, stride=2, padding=1, scale=0.0007, out_dtype="int8", out_zero_point=-3),
        (X,),
    ),
    "int8 matmul": (lambda: Matmul(B, len(A)), (A,)),
    "fp16 conv": (lambda: Conv2d(K, H.shape, padding=1), (H,)),
    "fp16 matmul": (lambda: Matmul(Q, len(P), out_dtype="float16"), (P,)),
    "fp16 depthwise": (lambda: Conv2d(D, C.shape, padding=1, groups=64), (C,)),
    "fp16 add": (lambda: Binary("add", "float16", S.shape, T.shape), (S, T)),
    "fp16 sigmoid": (lambda: Activation("sigmoid", S.shape), (S,)),
}
"""Operation and operands by name."""


def fingerprint(result: np.ndarray) -> str:
    """Of the bytes of a result."""
    return hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()


def run(device: Device, names: list[str] | None = None, **how: Any) -> dict[str, str]:
    """Fingerprints of all results; ``how`` are options of ``Device.compile``."""
    prints = {}
    for name in names or list(OPERATIONS):
        make, operands = OPERATIONS[name]
        with device.compile(make(), **how) as program:
            prints[name] = fingerprint(program(*operands))
    return prints
