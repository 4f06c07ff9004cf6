# SPDX-License-Identifier: MIT
"""DPU: BS, BN, EW, OUT_CVT and the write-out of the output cube.

Data travels as [pixel][channel], pixels row by row. Evidence: TRM ch. 36, every open client's registers.
"""

from __future__ import annotations

import numpy as np

from . import ew, out_cvt, stages
from .context import Context
from .conv_task import DEPTHWISE, ConvTask
from .dpu_rdma import Feeds
from .errors import IllegalConfig, Unsupported, require, require_zero
from .memory import ATOM, as_atoms
from .precision import BITS, FP16, INT4, INT16, NAMES, Array, atom_channels
from .registers import Fields

_TO_MEMORY = 2
_DEMONSTRATED = {
    ("int8", "int32"),
    ("int8", "fp32"),
    ("int8", "int8"),
    ("int8", "fp16"),
    ("int4", "int16"),
    ("int16", "int32"),
    ("int16", "int16"),
    ("fp16", "fp16"),
    ("fp16", "fp32"),
    ("bf16", "fp32"),
    ("bf16", "bf16"),
    ("tf32", "fp32"),
}
"""Formats in and out of a convolution that somebody has run on a board."""
_TRANSPOSED_CHANNELS = 32
_TRANSPOSED_HANGS = 16


def check(ctx: Context, f: Fields, task: ConvTask | None) -> None:
    """Check the registers; ``task`` is the convolution that feeds the DPU, None in flying mode."""
    require_zero(f, "DPU", ("SURF_LEN", "NONALIGN", "RGP_TYPE", "TP_EN", "COMB_USE", "MC_SURF_OUT", "MINMAX_CTL"))
    require_zero(f, "DPU", ("RGP_CNTER", "RESERVED_0"))
    if not f["TP_ORG_EN"]:
        require_zero(f, "DPU", ("SIZE_C_WDMA", "TP_PRECISION"))
    if f["OUTPUT_MODE"] != _TO_MEMORY:
        raise Unsupported(f"DPU OUTPUT_MODE {f['OUTPUT_MODE']} (2 = memory)")
    if f["PROC_PRECISION"] not in stages.PROC_CODES:
        raise Unsupported(f"DPU PROC_PRECISION {f['PROC_PRECISION']}")
    if f["OUT_PRECISION"] == INT4 or f["OUT_PRECISION"] >= len(NAMES) - 1:
        raise Unsupported(f"DPU OUT_PRECISION {f['OUT_PRECISION']}")
    require(f["NOTCH_ADDR_0"] == f["NOTCH_ADDR_1"], "NOTCH_ADDR_0 and NOTCH_ADDR_1 differ")
    for left, right in (("WIDTH_WDMA", "WIDTH"), ("HEIGHT_WDMA", "HEIGHT"), ("CHANNEL_WDMA", "CHANNEL")):
        require(f[left] == f[right], f"DPU {left} {f[left]} differs from {right} {f[right]}")
    require(f["DST_BASE_ADDR"] % ATOM == 0, f"DST_BASE_ADDR {f['DST_BASE_ADDR']:#x} is not 16-byte aligned")
    if f["WIDTH"] == 0x1FFF:
        ctx.warn("DPU WIDTH 8192: boards are said to corrupt the tail of a line of the full 13 bits")
    if task is not None:
        _check_conv(ctx, f, task)


def _check_conv(ctx: Context, f: Fields, task: ConvTask) -> None:
    code = task.format.dpu
    require(
        f["IN_PRECISION"] == code and f["PROC_PRECISION"] == code,
        f"DPU precision {f['IN_PRECISION']}/{f['PROC_PRECISION']} after a {NAMES[task.code]} convolution",
    )
    require((f["CONV_MODE"] == DEPTHWISE) == task.depthwise, f"DPU CONV_MODE {f['CONV_MODE']} differs from the CNA's")
    require(
        (f["WIDTH"] + 1, f["HEIGHT"] + 1) == (task.out_width, task.out_height),
        f"DPU expects {f['WIDTH'] + 1}x{f['HEIGHT'] + 1} pixels, CORE puts out {task.out_width}x{task.out_height}",
    )
    formats = (NAMES[task.code], NAMES[f["OUT_PRECISION"]])
    if formats not in _DEMONSTRATED:
        ctx.warn(f"{formats[0]} convolution with {formats[1]} output: nobody has shown it on a board")


def process(ctx: Context, f: Fields, values: Array, feeds: Feeds) -> Array:
    """Run the stages on int32 or float32 data; returns raw elements of the output format."""
    if values.shape[1] != f["CHANNEL"] + 1:
        raise IllegalConfig(f"DPU expects {f['CHANNEL'] + 1} channels, its input has {values.shape[1]}")
    precision = f["PROC_PRECISION"]
    bs = stages.Stage("BS", f, precision, f["BS_MUL_SHIFT_VALUE_NEG"], feeds.bs, ctx.quirks)
    bn = stages.Stage("BN", f, precision, f["BN_MUL_SHIFT_VALUE_NEG"], feeds.bn, ctx.quirks)
    values = bs.run(values)
    ctx.guard.check()
    values = bn.run(values)
    result = ew.run(ctx, f, values, feeds.operand)
    ctx.guard.check()
    if f["TP_ORG_EN"]:
        return result.values
    if result.lut:
        return out_cvt.convert_lut(result.values, f, ctx.quirks)
    if result.values.dtype == np.float32:
        return out_cvt.convert_float(result.values, f, ctx.quirks, result.narrow)
    return out_cvt.convert_integer(result.values, f, ctx.quirks)


def _group_atoms(f: Fields, task: ConvTask | None, surfaces: int) -> int:
    """Output atoms per pixel and kernel group, as the writer counts them (SIZE_E + 1)."""
    require(
        f["SIZE_E_0"] == f["SIZE_E_1"] == f["SIZE_E_2"],
        f"SIZE_E_0..2 differ: {f['SIZE_E_0']}, {f['SIZE_E_1']}, {f['SIZE_E_2']}",
    )
    atoms = f["SIZE_E_0"] + 1
    if task is None:
        return atoms
    form = task.format
    kernels = form.depthwise_group if task.depthwise else form.kernel_group
    per_group = kernels * BITS[f["OUT_PRECISION"]] // 8 // ATOM
    require(
        atoms == per_group or surfaces <= min(atoms, per_group),
        f"SIZE_E {atoms - 1}: a kernel group of {kernels} {NAMES[f['OUT_PRECISION']]} channels is {per_group} atoms",
    )
    return atoms


def write_out(ctx: Context, f: Fields, raw: Array, task: ConvTask | None) -> None:
    """Write the cube: atom s of pixel (x, y) goes to DST + s * DST_SURF_STRIDE + 16 * (y * (W + NOTCH) + x).

    Kernel groups are SURFACE_ADD apart, which equals (SIZE_E + 1) * DST_SURF_STRIDE in every working client.
    """
    if f["TP_ORG_EN"]:
        _write_transposed(ctx, f, raw, task)
        return
    width, height, channels = f["WIDTH"] + 1, f["HEIGHT"] + 1, f["CHANNEL"] + 1
    lanes = atom_channels(f["OUT_PRECISION"])
    surfaces = -(-channels // lanes)
    if channels % lanes:
        padded = np.full((raw.shape[0], surfaces * lanes), f["OFFSET_PEND"], np.int64).astype(raw.dtype)
        padded[:, :channels] = raw
        raw = padded
    atoms = as_atoms(raw).reshape(height, width, surfaces).transpose(2, 0, 1)
    group = _group_atoms(f, task, surfaces)
    surface_stride, group_stride = f["DST_SURF_STRIDE"], f["SURF_ADD"]
    line = ATOM * (width + f["NOTCH_ADDR_0"])
    base = f["DST_BASE_ADDR"]
    if surfaces <= group or group_stride == group * surface_stride:
        ctx.port.scatter(base, (surfaces, height, width), (surface_stride, line, ATOM), atoms)
    else:
        ctx.warn(f"SURFACE_ADD {group_stride:#x} is not (SIZE_E + 1) x DST_SURF_STRIDE {surface_stride:#x}")
        for start in range(0, surfaces, group):
            part = atoms[start : start + group]
            at = (base + start // group * group_stride) % (1 << 32)
            ctx.port.scatter(at, part.shape, (surface_stride, line, ATOM), part)
    ctx.meter.dma("wdma", atoms.size * ATOM)
    ctx.meter.dpu_atoms = atoms.size


def _write_transposed(ctx: Context, f: Fields, values: Array, task: ConvTask | None) -> None:
    """The writer of TP_ORG_EN: int16 sums of an int16 matmul, in an order of its own, low 16 bits of the sum.

    Element (m, n) goes to slot 4 m + (n/4) % 4 + (n/16) * 4 M + (n % 4) * 16 M. Known for 32 output channels; with 16
    everything is written, but the task does not complete (RN encodings/output-transpose-int16.md).
    """
    if task is None or task.code != INT16 or f["OUT_PRECISION"] not in (INT16, FP16) or not f["TP_PRECISION"]:
        raise Unsupported("DPU TP_ORG_EN other than int16 sums of an int16 convolution")
    pixels, channels = values.shape
    if channels not in (_TRANSPOSED_CHANNELS, _TRANSPOSED_HANGS):
        raise Unsupported(f"DPU TP_ORG_EN with {channels} channels (32 are known)")
    require(f["SIZE_E_0"] == 7, f"TP_ORG_EN with SIZE_E {f['SIZE_E_0']}: 7 is what completes")
    m = np.arange(pixels)[:, None]
    n = np.arange(channels)[None, :]
    slot = 4 * m + n // 4 % 4 + n // 16 * 4 * pixels + n % 4 * 16 * pixels
    size = int(slot.max()) + 1
    require(size % 8 == 0, f"TP_ORG_EN with {pixels} rows does not fill whole atoms")
    flat = np.frombuffer(ctx.port.read(f["DST_BASE_ADDR"], 2 * size).tobytes(), np.uint16).copy()
    flat[slot] = values.astype(np.int64).astype(np.uint16)
    atoms = as_atoms(flat)
    ctx.port.scatter(f["DST_BASE_ADDR"], atoms.shape, (ATOM,), atoms)
    ctx.meter.dma("wdma", 2 * values.size)
    ctx.meter.dpu_atoms = values.size // 8
    require(channels != _TRANSPOSED_HANGS, "TP_ORG_EN with 16 channels writes everything and does not complete")
