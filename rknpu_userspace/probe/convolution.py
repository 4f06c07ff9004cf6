# SPDX-License-Identifier: MIT
"""The convolution's front: padding, padded channels, packed images, short tiles, formats, and a capture."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np

from rknpu_userspace.ops.reference import conv2d, matmul

from .rig import Array, Experiment, Finding, Rig, Words, decide, poke, sample
from .tasks import Convolution, Flying

_PATTERN = 0x04030201
_SEED = 588


def _pad_direct(rig: Rig) -> Finding:
    channels = 64
    w = np.zeros((channels, 3, 3, channels), np.int8)
    w[np.arange(channels), 0, 0, np.arange(channels)] = 1
    x = np.zeros((4, 4, channels), np.int8)
    task = Convolution("int8", "int32", (3, 3), pad=(1, 1, 1, 1), conv={"pad_value": _PATTERN})
    seen = task.run(rig, x, w).out[0, 0]
    return decide("pad_direct", seen, {"byte0": np.ones(channels), "pair": 1 + np.arange(channels) % 2})


def _pad_depthwise(rig: Rig) -> Finding:
    channels = 128
    w = np.zeros((3, 3, channels), np.int8)
    w[0, 0] = 1
    x = np.zeros((4, 4, channels), np.int8)
    dpu: dict[str, object] = {"zero_point_bypass": 0}
    conv = {"pad_value": _PATTERN}
    task = Convolution("int8", "int8", (3, 3), pad=(1, 1, 1, 1), depthwise=True, conv=conv, dpu=dpu)
    seen = task.run(rig, x, w).out[0, 0]
    number = np.arange(channels)
    pair = 1 + number % 2
    predictions = {
        "pair_then_byte0": np.where(number % 64 < 32, pair, 1),
        "byte0": np.ones(channels),
        "pair": pair,
    }
    return decide("pad_depthwise", seen, predictions)


def _channel_real(rig: Rig) -> Finding:
    x = np.arange(1, 33, dtype=np.int8).reshape(1, 1, 32)
    w = np.ones((32, 1, 1, 32), np.int8)
    seen = Convolution("int8", "int32", conv={"channels_real": 5}).run(rig, x, w).out
    everything, masked = int(x.sum()), int(x[..., :5].sum())
    return decide(
        "channel_real", seen, {"ignored": np.full(seen.shape, everything), "masks": np.full(seen.shape, masked)}
    )


def _image(rig: Rig) -> Finding:
    """Two rows of a packed image; the second is looked for in both places that the stride can mean."""
    width, count = 16, 3
    pitch = count * width
    memory = np.zeros(pitch * count * 2, np.uint8)
    memory[:pitch] = 7
    memory[pitch : 2 * pitch] = 11
    memory[count * pitch : (count + 1) * pitch] = 13
    w = np.zeros((32, 1, 1, 16), np.int8)
    w[:, :, :, 0] = 1
    conv = {
        "argb": 7 + count,
        "packed_pixels": 1,
        "line_by_line": 1,
        "line_stride": pitch,
        "surface_stride": pitch,
        "data_entries": width * 2,
    }
    x = np.zeros((2, width, count), np.int8)
    result = Convolution("int8", "int32", channels=16, conv=conv).run(rig, x, w, features=memory)
    if not result.run.done:
        return Finding("the packed image does not complete", {}, {"error": result.run.error}, "none")
    seen = result.out[1, :, 0]
    predictions = {"pixels": np.full(width, 13), "bytes": np.full(width, 11)}
    return decide("nonalign_line_unit", seen, predictions)


def _partial_group(rig: Rig) -> Finding:
    x, w = np.ones((2, 2, 16), np.int8), np.ones((48, 1, 1, 16), np.int8)
    task = Convolution("int8", "int8", kernels=48, dpu={"zero_point_bypass": 0})
    result = task.run(rig, x, w)
    answer = "completes" if result.run.done else "hang"
    data: dict[str, Any] = {"seconds": round(result.run.seconds, 4)}
    if result.run.done:
        data["right_of_192"] = int(np.count_nonzero(result.out == 16))
    return Finding(
        f"int8 output of 48 channels: {answer}", {"partial_kernel_group": answer}, {"partial_kernel_group": data}
    )


def _accumulator(rig: Rig) -> Finding:
    counts = np.arange(1, 9)
    x = np.zeros((1, 16, 32), np.int16)
    for column, (sign, count) in enumerate((s, c) for s in (1, -1) for c in counts):
        x[0, column, :count] = sign * 32767
    w = np.full((16, 1, 1, 32), 32767, np.int16)
    result = Convolution("int16", "int32").run(rig, x, w)
    if not result.run.done:
        return Finding("int16 to int32 does not complete", {}, {"error": result.run.error}, "none")
    exact = x[0].astype(np.int64).sum(axis=1) * 32767
    wrapped = exact.astype(np.uint64).astype(np.uint32).view(np.int32)
    clamped = np.clip(exact, -(2**31), 2**31 - 1)
    return decide("accumulator_overflow", result.out[0, :, 0], {"saturate": clamped, "wrap": wrapped})


def _short_tiles(rig: Rig) -> Finding:
    """1, 2 and 3 rows as height, four lines fetched at a time: the stride between surfaces is negative."""
    rng = np.random.default_rng(_SEED)
    w = rng.integers(-128, 128, (32, 1, 1, 64), np.int8)
    wrong: dict[str, Any] = {}
    for rows in (1, 2, 3):
        x = rng.integers(-128, 128, (rows, 1, 64), np.int8)
        result = Convolution("int8", "int32").run(rig, x, w)
        exact = matmul(x[:, 0], w[:, 0, 0].T, out_dtype="int32")
        wrong[str(rows)] = int(np.count_nonzero(result.out[:, 0] != exact)) if result.run.done else "hang"
    fine = not any(wrong.values())
    answer = "1, 2 and 3 rows are right" if fine else f"wrong elements by rows: {wrong}"
    return Finding(answer, {}, {"wrong_by_rows": wrong})


def _formats(rig: Rig) -> Finding:
    """Combinations of formats that sources disagree about, by numbers of kernels."""
    rng = np.random.default_rng(_SEED)
    wrong: dict[str, Any] = {}
    for form, out, most, counts in (("int16", "int32", 1000, (16, 32, 64)), ("int8", "float16", 9, (32, 64))):
        x = rng.integers(-most, most, (4, 4, 32))
        for count in counts:
            w = rng.integers(-most, most, (count, 1, 1, 32))
            task = Convolution(form, out)
            dtype = task.input.dtype
            result = task.run(rig, x.astype(dtype), w.astype(dtype))
            exact = (x.reshape(16, 32) @ w.reshape(count, 32).T).reshape(4, 4, count)
            bad = int(np.count_nonzero(result.out[..., :count] != exact))
            wrong[f"{form} to {out}, {count} kernels"] = bad if result.run.done else "hang"
    fine = [name for name, bad in wrong.items() if bad == 0]
    return Finding(f"right: {', '.join(fine) or 'none'}", {}, {"wrong": wrong, "nibbles": _nibbles(rig)})


def _nibbles(rig: Rig) -> Any:
    """int4 through the DPU alone, where its order would show: products swap the channels of both operands alike."""

    def as_int4(words: Words) -> Words:
        words = poke(words, "DPU_DATA_FORMAT", IN_PRECISION=6, PROC_PRECISION=6)
        return poke(words, "DPU_RDMA_RDMA_FEATURE_MODE_CFG", IN_PRECISION=6, PROC_PRECISION=6)

    main = np.full((4, 16), 0x21, np.int8)
    result = Flying("int8", "int16", change=as_int4).run(rig, main)
    return sample(result.out) if result.run.done else f"does not complete: {result.run.error}"


def _encoded(data: Array) -> dict[str, Any]:
    raw = np.ascontiguousarray(data)
    return {
        "shape": list(raw.shape),
        "dtype": raw.dtype.name,
        "sha256": hashlib.sha256(raw.tobytes()).hexdigest(),
        "base64": base64.b64encode(raw.tobytes()).decode("ascii"),
    }


def _capture(rig: Rig) -> Finding:
    """A direct int8 convolution with random operands and padding: the tensors, and whether numpy agrees."""
    rng = np.random.default_rng(_SEED)
    x = rng.integers(-128, 128, (11, 13, 32), np.int8)
    w = rng.integers(-128, 128, (32, 3, 3, 32), np.int8)
    task = Convolution("int8", "int32", (3, 3), 2, (1, 1, 1, 1))
    result = task.run(rig, x, w)
    exact = conv2d(x[None], w, stride=(2, 2), padding=(1, 1, 1, 1), out_dtype="int32")[0]
    wrong = int(np.count_nonzero(result.out != exact)) if result.run.done else result.out.size
    data = {"x": _encoded(x), "weights": _encoded(w), "out": _encoded(result.out), "wrong": wrong}
    return Finding(f"{wrong} of {result.out.size} elements differ from numpy", {}, {"capture": data})


EXPERIMENTS = (
    Experiment("pad-direct", 3, "which byte of PAD_CON1 pads a channel, direct?", ("pad_direct",), _pad_direct),
    Experiment(
        "pad-depthwise", 3, "which byte of PAD_CON1 pads a channel, depthwise?", ("pad_depthwise",), _pad_depthwise
    ),
    Experiment(
        "channel-real", 4, "are channels above CHANNEL_REAL left out of the sum?", ("channel_real",), _channel_real
    ),
    Experiment("formats", 8, "int16 to int32 and int8 to fp16 by number of kernels; int4's nibbles", (), _formats),
    Experiment("short-tiles", 12, "are 1, 2 and 3 rows right with a negative surface stride?", (), _short_tiles),
    Experiment("capture", 13, "a direct 3x3 convolution of stride 2 with its tensors", (), _capture),
    Experiment("accumulator", 14, "does the accumulator saturate or wrap?", ("accumulator_overflow",), _accumulator),
    Experiment(
        "image-stride", 14, "in which unit is the line stride of a packed image?", ("nonalign_line_unit",), _image
    ),
    Experiment(
        "partial-group",
        14,
        "does int8 output complete whose channels end inside a kernel group?",
        ("partial_kernel_group",),
        _partial_group,
    ),
)
