# SPDX-License-Identifier: MIT
"""CNA: the fetch of features and weights into the CBUF.

Evidence: TRM ch. 36; the address formula holds for every open client and for 683 of 683 rows captured from Rockchip's
compiler; the weight layouts are those of Mesa (rkt_coefs.c) and of the matmul clients.
"""

from __future__ import annotations

import numpy as np

from . import dcomp, image
from .cbuf import BANK_BYTES, Content
from .context import Context
from .conv_task import ConvTask
from .errors import IllegalConfig, Unsupported
from .memory import ATOM, Bytes
from .precision import INT4, INT8, INTEGER, Array, byte_size, decode
from .registers import Fields

LINES_PER_GROUP = 4


def _feature_atoms(ctx: Context, f: Fields, task: ConvTask) -> Array:
    """Fetch the feature cube as raw elements [surface][y][x][element], through the one address formula."""
    raw = task.format.raw
    surfaces = byte_size(task.code, task.channels) // ATOM
    lines = 1 if f["GROUP_LINE_OFF"] else LINES_PER_GROUP
    base = f["FEATURE_BASE_ADDR"]
    line_stride = f["LINE_STRIDE"] * ATOM
    row_stride = f["DMA_WIDTH"] * ATOM
    surface_stride = lines * row_stride + f["SURF_STRIDE"] * ATOM
    height, width = task.height, task.width
    if lines == 1 or line_stride == lines * row_stride or height <= lines:
        step = line_stride if lines == 1 else row_stride
        return ctx.port.gather(base, (surfaces, height, width), (surface_stride, step, ATOM), raw)
    full = height // lines
    parts = [
        ctx.port.gather(
            base, (surfaces, full, lines, width), (surface_stride, line_stride, row_stride, ATOM), raw
        ).reshape(surfaces, full * lines, width, -1)
    ]
    if height % lines:
        rest = base + full * line_stride
        parts.append(ctx.port.gather(rest, (surfaces, height % lines, width), (surface_stride, row_stride, ATOM), raw))
    return np.concatenate(parts, axis=1)


def fetch_features(ctx: Context, f: Fields, task: ConvTask) -> Array:
    """The features as [y][x][channel] in the compute dtype, fetched or reused from the CBUF."""
    masked = f["DATAIN_CHANNEL_REAL"] if ctx.quirks["channel_real"] == "masks" else -1
    geometry = ("features", task.code, task.height, task.width, task.channels, f["ARGB_IN"], masked)
    kept = ctx.cbuf.data
    if f["DATA_REUSE"]:
        why = ctx.cbuf.reusable(kept, 0, task.data_bank, geometry)
        if why or kept is None:
            raise IllegalConfig(f"DATA_REUSE: {why}")
        return kept.decoded
    if image.is_image(f):
        raw, decoded = image.fetch(ctx, f, task)
        ctx.cbuf.store_data(Content(0, task.data_banks_needed, geometry, raw, decoded, True))
        return decoded
    if not f["CVT_BYPASS"]:
        raise Unsupported("CNA input converter on a feature cube")
    atoms = _feature_atoms(ctx, f, task)
    ctx.meter.dma("feature", atoms.nbytes)
    if kept is not None and ctx.cbuf.same(kept, geometry, atoms):
        decoded, raw = kept.decoded, kept.raw
    else:
        raw = atoms.copy()
        values = decode(atoms, task.code, ctx.quirks["nibble_order"] == "high_first")
        cube = np.empty((task.height, task.width, atoms.shape[0], values.shape[-1]), task.format.dtype)
        cube.transpose(2, 0, 1, 3)[...] = values
        decoded = cube.reshape(task.height, task.width, task.channels)
        if masked >= 0:
            # Only the low six bits count: Rockchip's compiler writes the channels of the last group of 64.
            decoded[..., (task.channels - 1) // 64 * 64 + masked % 64 + 1 :] = 0
    ctx.cbuf.store_data(Content(0, task.data_banks_needed, geometry, raw, decoded, True))
    return decoded


def fetch_weights(ctx: Context, f: Fields, task: ConvTask) -> Array:
    """The weights in the compute dtype.

    Integers [kernel][tap * channel], floats [tap * channel][kernel], depthwise [tap][channel].
    """
    geometry = (
        "weights",
        task.code,
        task.depthwise,
        task.kernels,
        task.kernel_height,
        task.kernel_width,
        task.channels,
    )
    kept = ctx.cbuf.weights
    if f["WEIGHT_REUSE"]:
        why = ctx.cbuf.reusable(kept, task.data_bank, task.weight_bank, geometry)
        if why or kept is None:
            raise IllegalConfig(f"WEIGHT_REUSE: {why}")
        return kept.decoded
    raw = _weight_bytes(ctx, f, task)
    if kept is not None and ctx.cbuf.same(kept, geometry, raw):
        decoded, raw = kept.decoded, kept.raw
    else:
        raw = raw.copy()
        decoded = _decode_weights(ctx, raw.view(task.format.raw), task)
    banks = -(-len(raw) // BANK_BYTES)
    content = Content(task.data_bank, min(banks, task.weight_bank), geometry, raw, decoded, banks <= task.weight_bank)
    ctx.cbuf.store_weights(content)
    return decoded


def _decode_weights(ctx: Context, raw: Array, task: ConvTask) -> Array:
    form = task.format
    if task.depthwise:
        return _untile_depthwise(decode(raw, task.code), task)
    kernel = (task.kernel_height, task.kernel_width, task.channels)
    if task.code in INTEGER:
        out = np.empty((task.kernels, *kernel), form.dtype)
        _untile(decode(raw, task.code, ctx.quirks["nibble_order"] == "high_first"), task, out)
        return out.reshape(task.kernels, -1)
    # Reorder the narrow elements first, then widen: the transposition is the expensive half.
    narrow = np.empty((*kernel, task.kernels), form.raw)
    _untile(raw, task, narrow.transpose(3, 0, 1, 2))
    return decode(narrow, task.code).astype(form.dtype).reshape(-1, task.kernels)


def _weight_bytes(ctx: Context, f: Fields, task: ConvTask) -> Bytes:
    size = byte_size(task.code, task.taps * task.channels * task.kernels)
    if f["DECOMP_CONTROL"]:
        return dcomp.read_weights(ctx, f, task.code, size)
    ctx.meter.dma("weight", size)
    return ctx.port.read(f["DECOMPRESS_ADDR0"], size)


def _untile(values: Array, task: ConvTask, store: Array) -> None:
    """Undo the order [k1][c1][kh][kw][k2][c2]; the last groups of kernels and channels are cut short.

    ``store`` [kernel][kh][kw][c] receives the values; it may be a transposed view.
    """
    form = task.format
    kernel = (task.kernel_height, task.kernel_width, task.channels)
    per_kernel = task.taps * task.channels
    full, rest = divmod(task.kernels, form.kernel_group)
    out = store
    split = full * form.kernel_group
    if full:
        target = out[:split].reshape(full, form.kernel_group, *kernel)
        _untile_groups(values[: split * per_kernel].reshape(full, -1), target, form.channel_group)
    if rest:
        target = out[split:].reshape(1, rest, *kernel)
        _untile_groups(values[split * per_kernel :].reshape(1, -1), target, form.channel_group)


def _untile_groups(source: Array, target: Array, channel_group: int) -> None:
    """Kernel groups of one size: ``source`` [k1][rest], ``target`` [k1][k2][kh][kw][c]."""
    groups, kernels, height, width, channels = target.shape
    full, rest = divmod(channels, channel_group)
    cut = full * channel_group * kernels * height * width
    if full:
        tiles = source[:, :cut].reshape(groups, full, height, width, kernels, channel_group)
        part = target[..., : full * channel_group].reshape(groups, kernels, height, width, full, channel_group)
        part.transpose(0, 4, 2, 3, 1, 5)[...] = tiles
    if rest:
        tail = source[:, cut:].reshape(groups, height, width, kernels, rest)
        target[..., full * channel_group :].transpose(0, 2, 3, 1, 4)[...] = tail


def _untile_depthwise(values: Array, task: ConvTask) -> Array:
    """Undo the order [c1][kh][kw][c2]."""
    group = task.format.depthwise_group
    out = np.empty((task.taps, task.channels), task.format.dtype)
    for start in range(0, task.channels, group):
        stop = min(start + group, task.channels)
        out[:, start:stop] = values[start * task.taps : stop * task.taps].reshape(task.taps, stop - start)
    return out


def pad_line(f: Fields, task: ConvTask, quirks_pad: str) -> Array:
    """The padding value of every channel in the compute dtype.

    ``quirks_pad``: byte0 = the low element everywhere; pair = 16-bit pattern over channel pairs; pair_then_byte0 = the
    pattern in channels 0-31 of each 64, byte 0 in channels 32-63. The patterns exist for int8 only.
    """
    bits = f["PAD_VALUE"]
    if task.code == INT4:
        return np.full(task.channels, ((bits & 0xF) ^ 8) - 8, task.format.dtype)
    element = np.array([bits], np.uint32).view(task.format.raw)[:1]
    line = np.full(task.channels, decode(element, task.code)[0], task.format.dtype)
    if task.code == INT8 and quirks_pad != "byte0":
        odd = np.array([bits >> 8 & 0xFF], np.uint8).view(np.int8)[0]
        channel = np.arange(task.channels)
        paired = channel % 2 == 1
        if quirks_pad == "pair_then_byte0":
            paired &= channel % 64 < 32
        line[paired] = odd
    return line
