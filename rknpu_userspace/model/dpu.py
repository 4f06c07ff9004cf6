# SPDX-License-Identifier: MIT
"""DPU: BS, BN, EW, OUT_CVT and the write-out of the output cube.

Data travels as [pixel][channel], pixels row by row. Evidence: TRM ch. 36, every open client's registers.
"""

from __future__ import annotations

import numpy as np

from . import out_cvt, stages
from .cna import DEPTHWISE, ConvTask
from .context import Context
from .dpu_rdma import Feeds
from .errors import IllegalConfig, Unsupported, require, require_zero
from .memory import ATOM, as_atoms
from .precision import BITS, INT4, NAMES, Array, atom_channels
from .registers import Fields

_TO_MEMORY = 2


def check(f: Fields, task: ConvTask | None) -> None:
    """Check the registers; ``task`` is the convolution that feeds the DPU, None in flying mode."""
    require_zero(f, "DPU", ("SURF_LEN", "NONALIGN", "RGP_TYPE", "TP_EN", "COMB_USE", "MC_SURF_OUT", "MINMAX_CTL"))
    require_zero(f, "DPU", ("SIZE_C_WDMA", "TP_PRECISION", "RGP_CNTER", "RESERVED_0", "TP_ORG_EN"))
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
    if task is not None:
        _check_conv(f, task)


def _check_conv(f: Fields, task: ConvTask) -> None:
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


def process(ctx: Context, f: Fields, values: Array, feeds: Feeds) -> Array:
    """Run the stages on int32 or float32 data; returns raw elements of the output format."""
    precision = f["PROC_PRECISION"]
    values = stages.run("BS", values, f, precision, f["BS_MUL_SHIFT_VALUE_NEG"], feeds.bs, ctx.quirks)
    ctx.guard.check()
    values = stages.run("BN", values, f, precision, f["BN_MUL_SHIFT_VALUE_NEG"], feeds.bn, ctx.quirks)
    if not f["EW_BYPASS"]:
        raise Unsupported("DPU EW stage")
    ctx.guard.check()
    if values.dtype == np.float32:
        return out_cvt.convert_float(values, f, ctx.quirks)
    return out_cvt.convert_integer(values, f, ctx.quirks)


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


def main_channels(f: Fields, values: Array) -> Array:
    """Check that the data has the channels that the DPU counts."""
    if values.shape[1] != f["CHANNEL"] + 1:
        raise IllegalConfig(f"DPU expects {f['CHANNEL'] + 1} channels, its input has {values.shape[1]}")
    return values
