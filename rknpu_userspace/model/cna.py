# SPDX-License-Identifier: MIT
"""CNA: the fetch of features and weights into the CBUF, and the geometry of a convolution.

Evidence: TRM ch. 36; the address formula holds for every open client and for 683 of 683 rows captured from Rockchip's
compiler; the weight layouts are those of Mesa (rkt_coefs.c) and of the matmul clients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cbuf import BANK_BYTES, BANKS, ENTRY_BYTES, Content
from .context import MAX_MACS, Context
from .errors import IllegalConfig, Unsupported, require, require_zero
from .memory import ATOM, Bytes
from .precision import INT4, INT8, MAC_FORMATS, NAMES, Array, MacFormat, atom_channels, byte_size, decode
from .registers import Fields

DIRECT, DEPTHWISE = 0, 3
LINES_PER_GROUP = 4
_NON_ZERO = (
    "DATAIN_WIDTH",
    "DATAIN_HEIGHT",
    "DATAIN_CHANNEL",
    "DATAOUT_WIDTH",
    "DATAOUT_ATOMICS",
    "WEIGHT_KERNELS",
    "WEIGHT_WIDTH",
    "WEIGHT_HEIGHT",
    "CONV_X_STRIDE",
    "CONV_Y_STRIDE",
)


@dataclass(frozen=True)
class ConvTask:
    """A convolution as the CNA is told it: sizes in pixels, channels padded to the 16-byte atom."""

    depthwise: bool
    code: int
    height: int
    width: int
    channels: int
    kernel_height: int
    kernel_width: int
    kernels: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    pad_top: int
    pad_left: int
    out_height: int
    out_width: int
    data_bank: int
    weight_bank: int
    data_banks_needed: int

    @property
    def format(self) -> MacFormat:
        """The operand format."""
        return MAC_FORMATS[self.code]

    @property
    def taps(self) -> int:
        """Kernel height x width."""
        return self.kernel_height * self.kernel_width

    @property
    def pixels(self) -> int:
        """Output pixels of this task."""
        return self.out_height * self.out_width

    @property
    def out_channels(self) -> int:
        """Channels that leave the MAC array."""
        return self.channels if self.depthwise else self.kernels

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.pixels * self.taps * self.channels * (1 if self.depthwise else self.kernels)

    def mac_cycles(self) -> int:
        """Cycles of the MAC array, see ``cost``."""
        form = self.format
        if self.depthwise:
            return self.pixels * self.taps * -(-self.channels // form.depthwise_group)
        groups = -(-self.kernels // form.kernel_group) * -(-self.channels // form.channel_group)
        return self.pixels * self.taps * groups

    def describe(self) -> str:
        """What is computed, for logs and statistics."""
        kind = "dwconv" if self.depthwise else "conv"
        return (
            f"{kind} {self.kernel_height}x{self.kernel_width} s{self.stride_y}x{self.stride_x} {NAMES[self.code]} "
            f"{self.height}x{self.width}x{self.channels} -> {self.out_height}x{self.out_width}x{self.out_channels}"
        )


def read_config(f: Fields) -> ConvTask:
    """Check the register group and read the geometry from it.

    Raises IllegalConfig for what breaks a rule of the hardware, Unsupported for what is not modelled.
    """
    require_zero(f, "CNA", ("DECONV", "DECONV_X_STRIDE", "DECONV_Y_STRIDE", "NN_MODE", "SURF_MODE", "FC_SKIP_EN"))
    require_zero(f, "CNA", ("CSC_DO_EN", "CSC_WO_EN", "CMD_FIFO_SRST", "DATA_OFFSET", "WEIGHT_OFFSET"))
    code = f["PROC_PRECISION"]
    if code not in MAC_FORMATS or f["IN_PRECISION"] != code:
        raise Unsupported(f"CNA IN_PRECISION {f['IN_PRECISION']} with PROC_PRECISION {code}")
    if f["CONV_MODE"] not in (DIRECT, DEPTHWISE):
        raise Unsupported(f"CNA CONV_MODE {f['CONV_MODE']}")
    depthwise = f["CONV_MODE"] == DEPTHWISE
    if depthwise and not MAC_FORMATS[code].depthwise_group:
        raise Unsupported(f"depthwise convolution in {NAMES[code]}")
    _check_sizes(f, code)
    atomics, out_width = f["DATAOUT_ATOMICS"], f["DATAOUT_WIDTH"]
    require(atomics % out_width == 0, f"DATAOUT_ATOMICS {atomics} is not a multiple of DATAOUT_WIDTH {out_width}")
    task = ConvTask(
        depthwise=depthwise,
        code=code,
        height=f["DATAIN_HEIGHT"],
        width=f["DATAIN_WIDTH"],
        channels=f["DATAIN_CHANNEL"],
        kernel_height=f["WEIGHT_HEIGHT"],
        kernel_width=f["WEIGHT_WIDTH"],
        kernels=f["WEIGHT_KERNELS"],
        stride_y=f["CONV_Y_STRIDE"],
        stride_x=f["CONV_X_STRIDE"],
        dilation_y=f["ATROUS_Y_DILATION"] + 1,
        dilation_x=f["ATROUS_X_DILATION"] + 1,
        pad_top=f["PAD_TOP"],
        pad_left=f["PAD_LEFT"],
        out_height=atomics // out_width,
        out_width=out_width,
        data_bank=f["DATA_BANK"],
        weight_bank=f["WEIGHT_BANK"],
        data_banks_needed=_data_banks(f, code),
    )
    _check_weights(f, task)
    require(task.macs <= MAX_MACS, f"{task.macs} multiply-accumulates in one task do not end before any timeout")
    return task


def _check_sizes(f: Fields, code: int) -> None:
    for name in _NON_ZERO:
        require(f[name] != 0, f"CNA {name} is zero")
    require(
        f["DATAIN_CHANNEL"] % atom_channels(code) == 0,
        f"DATAIN_CHANNEL {f['DATAIN_CHANNEL']} is not a multiple of the {atom_channels(code)} channels of an atom",
    )
    require(
        f["DMA_CHANNEL"] == f["DATAIN_CHANNEL"],
        f"DMA_CHANNEL {f['DMA_CHANNEL']} differs from DATAIN_CHANNEL {f['DATAIN_CHANNEL']}",
    )
    require(
        f["DMA_WIDTH"] >= f["DATAIN_WIDTH"] and f["DMA_HEIGHT"] >= f["DATAIN_HEIGHT"],
        f"the DMA fetches {f['DMA_WIDTH']}x{f['DMA_HEIGHT']}, less than the {f['DATAIN_WIDTH']}x{f['DATAIN_HEIGHT']} "
        "of DATA_SIZE0",
    )
    for name in ("FEATURE_BASE_ADDR", "DECOMPRESS_ADDR0"):
        require(f[name] % ATOM == 0, f"CNA {name} {f[name]:#x} is not 16-byte aligned")


def _data_banks(f: Fields, code: int) -> int:
    """CBUF banks that the features take; checks the bank fields."""
    data, weight = f["DATA_BANK"], f["WEIGHT_BANK"]
    require(data + weight == BANKS, f"DATA_BANK {data} + WEIGHT_BANK {weight} is not {BANKS}")
    require(data > 0 and weight > 0, "DATA_BANK or WEIGHT_BANK is zero")
    require(f["FC_DATA_BANK"] == 0, f"FC_DATA_BANK {f['FC_DATA_BANK']} is not 0")
    line = byte_size(code, f["DATAIN_WIDTH"] * f["DATAIN_CHANNEL"])
    need = -(-line // ENTRY_BYTES)
    entries = f["DATA_ENTRIES"]
    # Too few never works. Too many: Mesa does so for int8 (40 for W = 40, C = 40) and works; fp16 goes wrong (RU).
    legal = entries >= need if code == INT8 else entries == need
    require(legal, f"DATA_ENTRIES {entries} for a line of {line} bytes, which takes {need}")
    banks = -(-entries * ENTRY_BYTES * f["DATAIN_HEIGHT"] // BANK_BYTES)
    require(banks <= data, f"the features take {banks} CBUF banks, DATA_BANK is {data}")
    return banks


def _check_weights(f: Fields, task: ConvTask) -> None:
    per_kernel = byte_size(task.code, task.taps * task.channels)
    require(
        f["WEIGHT_BYTES_PER_KERNEL"] == per_kernel,
        f"WEIGHT_BYTES_PER_KERNEL {f['WEIGHT_BYTES_PER_KERNEL']} is not the {per_kernel} of the kernel size",
    )
    require(
        f["WEIGHT_BYTES"] == per_kernel * task.kernels,
        f"WEIGHT_BYTES {f['WEIGHT_BYTES']} is not {task.kernels} kernels of {per_kernel} bytes",
    )
    if task.depthwise:
        require(task.kernels == 1, f"WEIGHT_KERNELS {task.kernels} in depthwise mode is not 1")
        return
    group = min(task.kernels, task.format.kernel_group) * per_kernel
    require(
        group <= task.weight_bank * BANK_BYTES,
        f"a kernel group of {group} bytes does not fit the {task.weight_bank} weight banks",
    )


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
    if f["ARGB_IN"] or f["NONALIGN_DMA"]:
        raise Unsupported("CNA ARGB_IN / NONALIGN_DMA (packed image input)")
    if not f["CVT_BYPASS"]:
        raise Unsupported("CNA input converter")
    geometry = ("features", task.code, task.height, task.width, task.channels)
    kept = ctx.cbuf.data
    if f["DATA_REUSE"]:
        why = ctx.cbuf.reusable(kept, 0, task.data_bank, geometry)
        if why or kept is None:
            raise IllegalConfig(f"DATA_REUSE: {why}")
        return kept.decoded
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
    ctx.cbuf.store_data(Content(0, task.data_banks_needed, geometry, raw, decoded, True))
    return decoded


def fetch_weights(ctx: Context, f: Fields, task: ConvTask) -> Array:
    """The weights in the compute dtype: [kernel][tap * channel], or [tap][channel] in depthwise mode."""
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
        values = decode(raw.view(task.format.raw), task.code, ctx.quirks["nibble_order"] == "high_first")
        decoded = _untile_depthwise(values, task) if task.depthwise else _untile(values, task)
    banks = -(-len(raw) // BANK_BYTES)
    content = Content(task.data_bank, min(banks, task.weight_bank), geometry, raw, decoded, banks <= task.weight_bank)
    ctx.cbuf.store_weights(content)
    return decoded


def _weight_bytes(ctx: Context, f: Fields, task: ConvTask) -> Bytes:
    if f["DECOMP_CONTROL"]:
        raise Unsupported(f"CNA DECOMP_CONTROL {f['DECOMP_CONTROL']} (compressed weights)")
    size = byte_size(task.code, task.taps * task.channels * task.kernels)
    ctx.meter.dma("weight", size)
    return ctx.port.read(f["DECOMPRESS_ADDR0"], size)


def _untile(values: Array, task: ConvTask) -> Array:
    """Undo the order [k1][c1][kh][kw][k2][c2]; the last groups of kernels and channels are cut short."""
    form = task.format
    kernel = (task.kernel_height, task.kernel_width, task.channels)
    per_kernel = task.taps * task.channels
    full, rest = divmod(task.kernels, form.kernel_group)
    out = np.empty((task.kernels, *kernel), form.dtype)
    split = full * form.kernel_group
    if full:
        target = out[:split].reshape(full, form.kernel_group, *kernel)
        _untile_groups(values[: split * per_kernel].reshape(full, -1), target, form.channel_group)
    if rest:
        target = out[split:].reshape(1, rest, *kernel)
        _untile_groups(values[split * per_kernel :].reshape(1, -1), target, form.channel_group)
    return out.reshape(task.kernels, per_kernel)


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
