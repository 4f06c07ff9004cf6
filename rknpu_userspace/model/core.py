# SPDX-License-Identifier: MIT
"""CORE: the MAC array (CMAC) and the accumulator (CACC).

Integers are exact: the products of one GEMM are limited to what its dtype sums exactly, partial sums are added as
integers, and the accumulator clamps to 32 bits at its output. Floats: see ``accumulate``.
"""

from __future__ import annotations

import numpy as np

from .accumulate import add_groups
from .cna import fetch_features, fetch_weights, pad_line
from .context import MAX_ELEMENTS, Context
from .conv_task import ConvTask
from .errors import IllegalConfig, Unsupported, require
from .precision import INT8, INTEGER, Array
from .registers import Fields
from .rounding import shift_right

_BLOCK_ELEMENTS = 1 << 23
"""Elements of the patch matrix that is built at a time."""
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


def check(ctx: Context, f: Fields, dpu: Fields, task: ConvTask) -> None:
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
    if task.code == INT8 and dpu["OUT_PRECISION"] == INT8:
        group = task.format.depthwise_group if task.depthwise else task.format.kernel_group
        require(
            channels % group == 0 or ctx.quirks["partial_kernel_group"] == "completes",
            f"int8 output of {channels} channels ends inside a group of {group}: the task never completes",
        )
        if not f["QD_EN"]:
            ctx.warn("int8 output with QD_EN 0: every working client sets it")


def convolve(ctx: Context, cna: Fields, core: Fields, task: ConvTask, zero_point: Array | int) -> Array:
    """Accumulators [pixel][channel]: int32 for integer formats, float32 for floats.

    ``zero_point`` multiplies the sum of the inputs under each window (CPEND); 0 when the DPU bypasses it.
    """
    weights = fetch_weights(ctx, cna, task)
    features = fetch_features(ctx, cna, task)
    ctx.meter.macs = task.macs
    ctx.meter.mac_cycles = task.mac_cycles()
    ctx.guard.check()
    quirk = "pad_depthwise" if task.depthwise else "pad_direct"
    padded = _pad(_insert_zeros(features, task), pad_line(cna, task, ctx.quirks[quirk]), task)
    if task.code not in INTEGER:
        if core["CLIP_TRUNCATE"]:
            raise Unsupported("CORE CLIP_TRUNCATE with a float format")
        total = _float_sums(ctx, padded, weights, task)
        return _widen(total, core["DATAOUT_CHANNEL"] + 1)
    total = _depthwise(padded, weights, task) if task.depthwise else _direct(ctx, padded, weights, task)
    total = _widen(total, core["DATAOUT_CHANNEL"] + 1)
    return _finish_integer(ctx, core, task, padded, total, zero_point if core["QD_EN"] else 0)


def _widen(total: Array, channels: int) -> Array:
    """Channels without a kernel accumulate nothing."""
    if channels == total.shape[1]:
        return total
    wide = np.zeros((total.shape[0], channels), total.dtype)
    wide[:, : total.shape[1]] = total
    return wide


def _insert_zeros(features: Array, task: ConvTask) -> Array:
    """The input of a transposed convolution: zeros between the pixels."""
    if task.insert_y == 1 and task.insert_x == 1:
        return features
    height, width = (task.height - 1) * task.insert_y + 1, (task.width - 1) * task.insert_x + 1
    if height * width * task.channels > MAX_ELEMENTS:
        raise IllegalConfig("a transposed convolution of this size does not end before any timeout")
    dilated = np.zeros((height, width, task.channels), features.dtype)
    dilated[:: task.insert_y, :: task.insert_x] = features
    return dilated


def _pad(features: Array, line: Array, task: ConvTask) -> Array:
    """The input as the windows see it: padding at top and left as told, at bottom and right as the output needs."""
    need_y = (task.out_height - 1) * task.stride_y + (task.kernel_height - 1) * task.dilation_y + 1
    need_x = (task.out_width - 1) * task.stride_x + (task.kernel_width - 1) * task.dilation_x + 1
    top, left = task.pad_top, task.pad_left
    rows, columns = min(features.shape[0], need_y - top), min(features.shape[1], need_x - left)
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


def _direct(ctx: Context, padded: Array, weights: Array, task: ConvTask, integer: bool = True) -> Array:
    """Sums over taps and channels in one dtype: int64, float64, or the int32 that float32 held exactly."""
    limit = max(1, min(task.format.exact_terms, _BLOCK_ELEMENTS // task.pixels))
    channels = task.channels
    per_block = max(1, limit // channels)
    channel_step = min(channels, limit)
    parts = -(-task.taps // per_block) * -(-channels // channel_step)
    total: Array | None = None
    for first in range(0, task.taps, per_block):
        taps = range(first, min(first + per_block, task.taps))
        for channel in range(0, channels, channel_step):
            stop = min(channel + channel_step, channels)
            patches = _patches(padded, task, taps, channel, stop)
            ctx.guard.check()
            span = slice(first * channels + channel, taps[-1] * channels + stop)
            part = patches @ (weights[:, span].T if integer else weights[span])
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


def _float_sums(ctx: Context, padded: Array, weights: Array, task: ConvTask) -> Array:
    """float32 sums of a float format."""
    if not task.depthwise and ctx.quirks["float_accumulation"] == "groups_of_32":
        return _grouped(ctx, padded, weights, task)
    exact = _depthwise(padded, weights, task) if task.depthwise else _direct(ctx, padded, weights, task, integer=False)
    return exact.astype(np.float32)


def _grouped(ctx: Context, padded: Array, weights: Array, task: ConvTask) -> Array:
    """float32 sums of groups of channels, taps inside: see ``accumulate``."""
    total = np.zeros((task.pixels, task.kernels), np.float32)
    channels, size = task.channels, task.format.channel_group
    starts = range(0, channels, size)
    if task.taps == 1:
        columns = [slice(c, min(c + size, channels)) for c in starts]
        patches = _patches(padded, task, range(1), 0, channels)
        add_groups(total, patches, weights, [(column, column) for column in columns])
        return total
    taps_at_once = max(1, _BLOCK_ELEMENTS // (task.pixels * size))
    for channel in starts:
        stop = min(channel + size, channels)
        width = stop - channel
        for first in range(0, task.taps, taps_at_once):
            taps = range(first, min(first + taps_at_once, task.taps))
            patches = _patches(padded, task, taps, channel, stop)
            ctx.guard.check()
            groups = [
                (slice(i * width, (i + 1) * width), slice(tap * channels + channel, tap * channels + stop))
                for i, tap in enumerate(taps)
            ]
            add_groups(total, patches, weights, groups)
    return total


def _depthwise(padded: Array, weights: Array, task: ConvTask) -> Array:
    """Per-channel sums over the taps: int64 or float64."""
    kind = np.int64 if task.code in INTEGER else np.float64
    total = np.zeros((task.out_height, task.out_width, task.channels), np.float64)
    for tap in range(task.taps):
        total += _window(padded, task, tap).astype(np.float64) * weights[tap]
    return total.reshape(task.pixels, task.channels).astype(kind)


def _input_sums(padded: Array, task: ConvTask) -> Array:
    """Sum of the inputs under each window, padding included, int64: [pixel][1], or per channel in depthwise mode."""
    per_pixel = padded if task.depthwise else padded.sum(axis=2, keepdims=True, dtype=np.float64)
    depth = per_pixel.shape[2]
    total = np.zeros((task.out_height, task.out_width, depth), np.int64)
    for tap in range(task.taps):
        total += _window(per_pixel, task, tap).astype(np.int64)
    return total.reshape(task.pixels, depth)


def _finish_integer(
    ctx: Context, core: Fields, task: ConvTask, padded: Array, total: Array, zero_point: Array | int
) -> Array:
    """Zero-point term, truncation, and the 32 bits of the accumulator's output, in this order."""
    if np.any(zero_point):
        sums = _input_sums(padded, task)
        if task.depthwise:
            sums = _widen(sums, total.shape[1])
        total = total.astype(np.int64) + zero_point * sums
    if core["CLIP_TRUNCATE"]:
        mode = ctx.quirks.rounding("truncate_rounding", core["ROUND_TYPE"])
        total = shift_right(total.astype(np.int64), core["CLIP_TRUNCATE"], mode)
    if total.dtype == np.int32:
        return total
    if ctx.quirks["accumulator_overflow"] == "saturate":
        total = np.clip(total, INT32_MIN, INT32_MAX)
    return total.astype(np.int32)
