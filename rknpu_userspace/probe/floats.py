# SPDX-License-Identifier: MIT
"""Floating point: the order in which products are summed, special values, and what rounding makes of halves."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rig import Array, Experiment, Finding, Rig, decide
from .tasks import Convolution, Flying

_SEED = 588
_GROUP = 32


def _predictions(x: Array, w: Array) -> dict[str, Array]:
    """x [pixel][k], w [kernel][k] in float64: groups of 32 rounded and added in fp32, or one rounding at the end."""
    grouped = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, x.shape[1], _GROUP):
        part = x[:, start : start + _GROUP] @ w[:, start : start + _GROUP].T
        grouped = grouped + part.astype(np.float32)
    return {"groups_of_32": grouped, "once": (x @ w.T).astype(np.float32)}


def _accumulation(rig: Rig) -> Finding:
    rng = np.random.default_rng(_SEED)
    x = rng.standard_normal((8, 4, 512)).astype(np.float16)
    w = rng.standard_normal((32, 1, 1, 512)).astype(np.float16)
    seen = Convolution("float16", "float32").run(rig, x, w).out.reshape(32, 32)
    expected = _predictions(x.reshape(32, 512).astype(np.float64), w.reshape(32, 512).astype(np.float64))
    found = decide("float_accumulation", seen, expected, least=0.9)
    for out in range(16):  # boards are said to round output lane 0 differently now and then
        share = float(np.mean(seen[:, out::16] == expected["groups_of_32"][:, out::16]))
        found.observed.setdefault("groups_of_32_by_lane", []).append(round(share, 4))
    return found


def _bits(values: Array) -> Array:
    """Bit patterns, all NaNs alike."""
    kind = np.uint16 if values.dtype == np.float16 else np.uint32
    return np.where(np.isnan(values), kind(0x7FFF), np.ascontiguousarray(values).view(kind))


def _compare(name: str, seen: Array, expected: Array, ran: bool) -> dict[str, Any]:
    if not ran:
        return {name: "does not complete"}
    wrong = np.flatnonzero(_bits(seen).reshape(-1) != _bits(expected).reshape(-1))
    rows = [[int(_bits(seen).reshape(-1)[i]), int(_bits(expected).reshape(-1)[i])] for i in wrong[:16].tolist()]
    return {name: {"wrong": len(wrong), "of": seen.size, "first": rows}}


def _conversions(rig: Rig) -> Finding:
    """All fp16 patterns to fp32, halves from fp32 to fp16, int32 to fp32, all against IEEE 754 nearest even."""
    data: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        patterns = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(-1, 8)
        result = Flying("float16", "float32").run(rig, patterns)
        data |= _compare("fp16 to fp32", result.out, patterns.astype(np.float32), result.run.done)
        halves = ((np.arange(4096, dtype=np.uint32) << 12) + 0x38001000).view(np.float32)
        tiny = np.float32(2.0**-25) * np.arange(-64, 64, dtype=np.float32)
        large = np.array([65503.0, 65504.0, 65519.0, 65520.0, np.inf, -np.inf, np.nan, -0.0], np.float32)
        reals = np.concatenate([halves, -halves, tiny, large]).reshape(-1, 4)
        result = Flying("float32", "float16").run(rig, reals)
        data |= _compare("fp32 to fp16", result.out, reals.astype(np.float16), result.run.done)
        integers = np.concatenate([2**24 + np.arange(64), -(2**24) - np.arange(64), 2**31 - 1 - np.arange(128)])
        result = Flying("int32", "float32").run(rig, integers.reshape(-1, 4))
        expected = integers.reshape(-1, 4).astype(np.int32).astype(np.float32)
        data |= _compare("int32 to fp32", result.out, expected, result.run.done)
    fine = [name for name, row in data.items() if isinstance(row, dict) and row["wrong"] == 0]
    return Finding(f"nearest even: {', '.join(fine) or 'none'}", {}, {"conversions": data})


def _cancellation(rig: Rig) -> Finding:
    """Two products that cancel but for a small rest, subnormal operands, infinities: fp16 to fp32, K = 2."""
    pairs = [(60000.0, -60000.0), (1.0, 2.0**-11), (2.0**-24, 2.0**-24), (65504.0, 65504.0), (np.inf, 1.0)]
    pairs += [(np.inf, -np.inf), (2.0**-14, -(2.0**-24)), (0.0, -0.0)]
    x = np.zeros((1, len(pairs), 8), np.float16)
    x[0, :, :2] = pairs
    w = np.zeros((16, 1, 1, 8), np.float16)
    w[:, 0, 0, :2] = np.random.default_rng(_SEED).standard_normal((16, 2))
    w[0, 0, 0, :2] = 1.0
    w[1, 0, 0, :2] = 2.0**-24
    with np.errstate(all="ignore"):
        result = Convolution("float16", "float32").run(rig, x, w)
        exact = x[0].astype(np.float64) @ w[:, 0, 0].astype(np.float64).T
        data = _compare("two products", result.out[0], exact.astype(np.float32), result.run.done)
    return Finding("sums of two products compared with one rounding", {}, data)


EXPERIMENTS = (
    Experiment(
        "float-sums",
        10,
        "in which order are float products summed, and when rounded?",
        ("float_accumulation",),
        _accumulation,
    ),
    Experiment("float-conversions", 10, "are conversions IEEE 754 nearest even, specials included?", (), _conversions),
    Experiment("float-specials", 10, "cancellation, subnormals and infinities in sums", (), _cancellation),
)
