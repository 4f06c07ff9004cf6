# SPDX-License-Identifier: MIT
"""CORE: the MAC array (CMAC) and the accumulator (CACC).

Integers are exact: the products of one GEMM are limited to what its dtype sums exactly, partial sums are added as
integers, and the accumulator is 32 bits wide. Floats: exact products, summed in float64, rounded once to fp32. The
hardware's order and width of summation are not known; published measurements agree with fp64 to about 1e-6, and a
result that does not depend on tiling along pixels or kernels, which holds here but for sums that cancel beyond 2^-53.
"""

from __future__ import annotations

import numpy as np

from .cna import ConvTask, fetch_features, fetch_weights, pad_line
from .context import MAX_ELEMENTS, Context
from .errors import IllegalConfig, Unsupported, require
from .precision import INTEGER, Array
from .registers import Fields
from .rounding import shift_right

_BLOCK_ELEMENTS = 1 << 23
"""Elements of the patch matrix that is built at a time."""
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


def check(f: Fields, task: ConvTask) -> None:
    """Check CORE's registers against the convolution that the CNA feeds."""
    if f["RESERVED_0"]:
        raise Unsupported(f"CORE register 0x3030 = {f['RESERVED_0']:#x}")
    require(
        f["PROC_PRECISION"] == task.code,
        f"CORE PROC_PRECISION {f['PROC_PRECISION']} differs from CNA PROC_PRECISION {task.code}",
    )
    require(f["DW_EN"] == int(task.depthwise), f"CORE DW_EN {f['DW_EN']} differs from CNA CONV_MODE")
    width, height, channels = f["DATAOUT_WIDTH"] + 1, f["DATAOUT_HEIGHT"] + 1, f["DATAOUT_CHANNEL"] + 1
    require(
        (width, height) == (task.out_width, task.out_height),
        f"CORE puts out {width}x{height}, CNA {task.out_width}x{task.out_height}",
    )
    require(
        channels >= task.out_channels,
        f"CORE DATAOUT_CHANNEL {channels} is less than the {task.out_channels} channels of the weights",
    )
    require(task.pixels * channels <= MAX_ELEMENTS, "the output of one task does not end before any timeout")


def convolve(ctx: Context, cna: Fields, core: Fields, dpu: Fields, task: ConvTask) -> Array:
    """Accumulators [pixel][channel]: int32 for integer formats, float32 for floats.

    The DPU's registers decide about the zero-point term (OD_BYPASS, OW_OP), which the accumulator adds.
    """
    weights = fetch_weights(ctx, cna, task)
    features = fetch_features(ctx, cna, task)
    ctx.meter.macs = task.macs
    ctx.meter.mac_cycles = task.mac_cycles()
    ctx.guard.check()
    padded = _pad(features, pad_line(cna, task, ctx.quirks["pad_depthwise" if task.depthwise else "pad_direct"]), task)
    total = _depthwise(padded, weights, task) if task.depthwise else _direct(ctx, padded, weights, task)
    if task.code in INTEGER:
        total = _finish_integer(ctx, core, dpu, task, padded, total)
    else:
        if core["CLIP_TRUNCATE"] or (core["QD_EN"] and not dpu["OD_BYPASS"] and dpu["OW_OP"]):
            raise Unsupported("CORE CLIP_TRUNCATE or zero-point term with a float format")
        with np.errstate(over="ignore", invalid="ignore"):
            total = total.astype(np.float32)
    return _widen(total, core["DATAOUT_CHANNEL"] + 1)


def _widen(total: Array, channels: int) -> Array:
    """Channels without a kernel accumulate nothing."""
    if channels == total.shape[1]:
        return total
    wide = np.zeros((total.shape[0], channels), total.dtype)
    wide[:, : total.shape[1]] = total
    return wide


def _pad(features: Array, line: Array, task: ConvTask) -> Array:
    """The input as the windows see it: padding at top and left as told, at bottom and right as the output needs."""
    need_y = (task.out_height - 1) * task.stride_y + (task.kernel_height - 1) * task.dilation_y + 1
    need_x = (task.out_width - 1) * task.stride_x + (task.kernel_width - 1) * task.dilation_x + 1
    top, left = task.pad_top, task.pad_left
    rows, columns = min(task.height, need_y - top), min(task.width, need_x - left)
    if not top and not left and rows == need_y and columns == need_x:
        return features[:rows, :columns]
    if need_y * need_x * task.channels > MAX_ELEMENTS:
        raise IllegalConfig(f"the windows span {need_y}x{need_x} pixels, most of them padding")
    padded = np.empty((need_y, need_x, task.channels), features.dtype)
    padded[...] = line
    if rows > 0 and columns > 0:
        padded[top : top + rows, left : left + columns] = features[:rows, :columns]
    return padded


def _window(padded: Array, task: ConvTask, tap: int) -> Array:
    """The input pixel under one tap for every output pixel: [y][x][channel]."""
    y, x = divmod(tap, task.kernel_width)
    y *= task.dilation_y
    x *= task.dilation_x
    return padded[
        y : y + (task.out_height - 1) * task.stride_y + 1 : task.stride_y,
        x : x + (task.out_width - 1) * task.stride_x + 1 : task.stride_x,
    ]


def _direct(ctx: Context, padded: Array, weights: Array, task: ConvTask) -> Array:
    """Sums over taps and channels: int64, float64, or the int32 that float32 held exactly."""
    limit = max(1, min(task.format.exact_terms, _BLOCK_ELEMENTS // task.pixels))
    channels = task.channels
    per_block = max(1, limit // channels)
    channel_step = min(channels, limit)
    integer = task.code in INTEGER
    parts = -(-task.taps // per_block) * -(-channels // channel_step)
    total: Array | None = None
    for first in range(0, task.taps, per_block):
        taps = range(first, min(first + per_block, task.taps))
        for channel in range(0, channels, channel_step):
            stop = min(channel + channel_step, channels)
            patches = _patches(padded, task, taps, channel, stop)
            ctx.guard.check()
            columns = weights[:, first * channels + channel : taps[-1] * channels + stop]
            with np.errstate(over="ignore", invalid="ignore"):
                part = patches @ columns.T
            if integer:
                part = part.astype(np.int32 if parts == 1 and part.dtype == np.float32 else np.int64)
            total = part if total is None else np.add(total, part, out=total)
    if total is None:
        raise IllegalConfig("a convolution without taps")
    return total


def _patches(padded: Array, task: ConvTask, taps: range, channel: int, stop: int) -> Array:
    """Patch matrix [pixel][tap * channel] of some taps, one strided copy per tap; no copy for a 1x1 kernel."""
    pixels = task.pixels
    if len(taps) == 1:
        return _window(padded, task, taps[0])[..., channel:stop].reshape(pixels, stop - channel)
    patches = np.empty((task.out_height, task.out_width, len(taps), stop - channel), padded.dtype)
    for index, tap in enumerate(taps):
        patches[:, :, index] = _window(padded, task, tap)[..., channel:stop]
    return patches.reshape(pixels, -1)


def _depthwise(padded: Array, weights: Array, task: ConvTask) -> Array:
    """Per-channel sums over the taps: int64 or float64."""
    kind = np.int64 if task.code in INTEGER else np.float64
    total = np.zeros((task.out_height, task.out_width, task.channels), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for tap in range(task.taps):
            total += _window(padded, task, tap).astype(np.float64) * weights[tap]
    return total.reshape(task.pixels, task.channels).astype(kind)


def _input_sums(padded: Array, task: ConvTask) -> Array:
    """Sum of the inputs under each window, int64: [pixel][1], or per channel in depthwise mode."""
    per_pixel = padded if task.depthwise else padded.sum(axis=2, keepdims=True, dtype=np.float64)
    depth = per_pixel.shape[2]
    total = np.zeros((task.out_height, task.out_width, depth), np.int64)
    for tap in range(task.taps):
        total += _window(per_pixel, task, tap).astype(np.int64)
    return total.reshape(task.pixels, depth)


def _finish_integer(ctx: Context, core: Fields, dpu: Fields, task: ConvTask, padded: Array, total: Array) -> Array:
    """Zero-point term, truncation, and the 32 bits of the accumulator, in this order."""
    if core["QD_EN"] and not dpu["OD_BYPASS"] and dpu["OW_OP"]:
        total = total.astype(np.int64) + dpu["OW_OP"] * _input_sums(padded, task)
    if core["CLIP_TRUNCATE"]:
        mode = "half_up" if core["ROUND_TYPE"] else ctx.quirks["truncate_rounding"]
        total = shift_right(total.astype(np.int64), core["CLIP_TRUNCATE"], mode)
    if total.dtype == np.int32:
        return total
    if ctx.quirks["accumulator_overflow"] == "saturate":
        total = np.clip(total, INT32_MIN, INT32_MAX)
    return total.astype(np.int32)
