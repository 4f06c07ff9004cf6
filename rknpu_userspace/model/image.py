# SPDX-License-Identifier: MIT
"""The first layer: packed images of 1 to 4 channels (ARGB_IN 8..11 with NONALIGN_DMA) and the input converter.

A packed image is rows of pixels without padding between the channels; a row starts LINE_STRIDE pixels after the last.
The channels that the image does not have are zero. Evidence: Mesa rkt_task.c (one channel, int8) and a stream of
Rockchip's compiler (three channels of fp16, 7 pixels in rows of 8).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .context import Context
from .errors import IllegalConfig, Unsupported, require
from .memory import Bytes
from .precision import FP16, INT8, NAMES, Array
from .registers import Fields
from .rounding import shift_right

_ARGB_ONE = 8
_LANES = 4


class ImageTask(Protocol):
    """What of a convolution matters here."""

    @property
    def code(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...


def is_image(f: Fields) -> bool:
    """Whether the registers select a packed image."""
    return bool(f["ARGB_IN"] or f["NONALIGN_DMA"])


def channels(f: Fields) -> int:
    """Channels of a packed image."""
    return f["ARGB_IN"] - _ARGB_ONE + 1


def check(f: Fields, code: int) -> None:
    """Check the combination of the mode's registers."""
    if not _ARGB_ONE <= f["ARGB_IN"] < _ARGB_ONE + _LANES:
        raise Unsupported(f"CNA ARGB_IN {f['ARGB_IN']} (8..11 = 1..4 channels)")
    require(bool(f["NONALIGN_DMA"]) and bool(f["GROUP_LINE_OFF"]), "ARGB_IN needs NONALIGN_DMA and GROUP_LINE_OFF")
    if code not in (INT8, FP16):
        raise Unsupported(f"packed image of {NAMES[code]}")


def fetch(ctx: Context, f: Fields, task: ImageTask) -> tuple[Bytes, Array]:
    """The raw bytes, and the image as [y][x][channel] in the compute dtype, converted, missing channels zero."""
    count = channels(f)
    kind = np.dtype("<f2" if task.code == FP16 else "<u1")
    pixel = count * kind.itemsize
    pitch = f["LINE_STRIDE"] * (pixel if ctx.quirks["nonalign_line_unit"] == "pixels" else 1)
    require(pitch >= task.width * pixel, f"LINE_STRIDE {f['LINE_STRIDE']} is shorter than {task.width} pixels")
    span = (task.height - 1) * pitch + task.width * pixel
    raw = ctx.port.read(f["FEATURE_BASE_ADDR"], span).copy()
    ctx.meter.dma("feature", task.height * task.width * pixel)
    rows = np.ndarray((task.height, task.width * pixel), np.uint8, raw.data, 0, (pitch, 1))
    values = np.ascontiguousarray(rows).view(kind).reshape(task.height, task.width, count)
    converted = _convert(ctx, f, values, task.code)
    cube = np.zeros((task.height, task.width, task.channels), np.float32 if task.code == INT8 else np.float64)
    cube[..., :count] = converted
    return raw, cube


def _convert(ctx: Context, f: Fields, values: Array, code: int) -> Array:
    """The input converter: per channel ``(x * SCALE >> TRUNCATE) + OFFSET``, or with CVT_TYPE the offset first."""
    if f["CVT_BYPASS"]:
        return values.view(np.int8) if code == INT8 else values
    if code != INT8:
        raise Unsupported(f"CNA input converter with {NAMES[code]}")
    wide = (values.view(np.int8) if f["DATA_SIGN"] else values).astype(np.int64)
    mode = ctx.quirks.rounding("truncate_rounding", f["ROUND_TYPE"])
    out = np.empty_like(wide)
    for lane in range(values.shape[-1]):
        scale, offset, shift = f[f"CVT_SCALE{lane}"], f[f"CVT_OFFSET{lane}"], f[f"CVT_TRUNCATE_{lane}"]
        if not f["PER_CHANNEL_CVT_EN"] >> lane & 1:
            raise IllegalConfig(f"the input converter is active, but PER_CHANNEL_CVT_EN leaves out channel {lane}")
        x = wide[..., lane]
        if f["CVT_TYPE"]:
            out[..., lane] = shift_right((x + offset) * scale, shift, mode)
        else:
            out[..., lane] = shift_right(x * scale, shift, mode) + offset
    return np.clip(out, -128, 127)
