# SPDX-License-Identifier: MIT
"""DPU_RDMA: the feeds of the DPU from memory: main data, BS and BN operands, element-wise operand.

MRDMA:  SRC + 16 * (y * (W + LINE_NOTCH) + x) + s * (16 * W * H + SURF_NOTCH)
ERDMA:  EW  + 16 * (y * (W + EW_LINE_NOTCH) + x) + s * (EW_SURF_STRIDE + EW_SURF_NOTCH)     per pixel
        EW  + channel * bytes                                                               per channel

COMB_USE 5, with a convolution as the main data: atom a of the operand is read by MRDMA when a is even, by ERDMA when a
is odd, s = a / 2. Evidence: Mesa's residual add, RU's K-accumulation, HM's fused products, Rockchip's RMSNorm stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .context import MAX_ELEMENTS, Context
from .errors import IllegalConfig, Unsupported, require, require_zero
from .ew import SIZE_8, SIZE_16, SIZE_32, RawOperand
from .memory import ATOM
from .precision import BF16, FP16, FP32, INT8, INT16, INT32, INTEGER, NAMES, Array, atom_channels, bf16_to_float32
from .registers import Fields
from .stages import Operands

_USE_ALU, _USE_ZERO_POINT, _USE_MUL, _USE_TRT = 1, 2, 4, 8
_USE_ALL = _USE_ALU | _USE_ZERO_POINT | _USE_MUL
_CHUNK_CHANNELS, _CHUNK_BYTES = 8, 64
_COMB_SPLIT = 5
_PER_CHANNEL, _PER_PIXEL = 0, 1
_SIZE_DTYPE = {SIZE_8: "<u1", SIZE_16: "<u2", SIZE_32: "<u4"}
_MAIN_DTYPE = {INT8: "<i1", INT16: "<i2", FP16: "<f2", BF16: "<u2", INT32: "<i4", FP32: "<f4"}


@dataclass
class Feeds:
    """What DPU_RDMA delivers. ``main``: [pixel][channel] in the DPU's domain."""

    main: Array | None = None
    bs: Operands = field(default_factory=Operands)
    bn: Operands = field(default_factory=Operands)
    operand: RawOperand | None = None


def check(f: Fields, dpu: Fields) -> None:
    """Check the registers against the DPU's."""
    require_zero(f, "DPU_RDMA", ("UNPOOLING_EN", "ERDMA_SURF_MODE", "ERDMA_NONALIGN"))
    for name in ("WIDTH", "HEIGHT", "CHANNEL"):
        require(f[name] == dpu[name], f"DPU_RDMA {name} {f[name]} differs from the DPU's {dpu[name]}")
    flying, comb, mrdma = f["FLYING_MODE"], f["COMB_USE"], not f["MRDMA_DISABLE"]
    require(flying == dpu["FLYING_MODE"], f"DPU_RDMA FLYING_MODE {flying} differs from the DPU's {dpu['FLYING_MODE']}")
    if flying:
        require(mrdma, "FLYING_MODE with MRDMA_DISABLE: nothing feeds the DPU")
        require(not comb & 1, f"COMB_USE {comb} with FLYING_MODE never completes")
        if comb not in (0, 4):
            raise Unsupported(f"DPU_RDMA COMB_USE {comb} with FLYING_MODE")
        return
    if comb == 0:
        require(not mrdma, "the main feed (MRDMA) is enabled, but nothing consumes it: not flying and COMB_USE 0")
        return
    if comb != _COMB_SPLIT:
        raise Unsupported(f"DPU_RDMA COMB_USE {comb} after a convolution")
    require(mrdma and not f["ERDMA_DISABLE"], "COMB_USE 5 needs both MRDMA and ERDMA")


def feed(ctx: Context, f: Fields, dpu: Fields) -> Feeds:
    """Read what the registers ask for."""
    feeds = Feeds()
    channels = dpu["CHANNEL"] + 1
    if f["BRDMA_DATA_USE"] and not f["BRDMA_DISABLE"]:
        feeds.bs = _operands(ctx, "brdma", f["BRDMA_DATA_USE"], f["BS_BASE_ADDR"], channels, dpu)
    if f["NRDMA_DATA_USE"] and not f["NRDMA_DISABLE"]:
        feeds.bn = _operands(ctx, "nrdma", f["NRDMA_DATA_USE"], f["BN_BASE_ADDR"], channels, dpu)
    if f["FLYING_MODE"]:
        feeds.main = _main(ctx, f, dpu)
    if not f["ERDMA_DISABLE"]:
        feeds.operand = _operand(ctx, f, dpu)
    return feeds


def operand_bytes(use: int, channels: int) -> int:
    """Bytes of the per-channel operands that a DATA_USE field asks for; 0 for a use that is not known."""
    chunks = -(-channels // _CHUNK_CHANNELS)
    return {_USE_ALU: 4 * channels, _USE_MUL: 2 * channels, _USE_ALL: _CHUNK_BYTES * chunks}.get(use, 0)


def _operands(ctx: Context, unit: str, use: int, base: int, channels: int, dpu: Fields) -> Operands:
    """Per-channel operands of BS or BN; ``use`` says what the stream holds."""
    require(base % ATOM == 0, f"{unit} base {base:#x} is not 16-byte aligned")
    alu_kind = np.int32 if dpu["PROC_PRECISION"] in INTEGER else np.float32
    size = operand_bytes(use, channels)
    if not size or (use == _USE_ALL and unit != "brdma"):
        raise Unsupported(f"DPU_RDMA {unit} DATA_USE {use:#x}")
    raw = ctx.port.read(base, size)
    ctx.meter.dma(unit, size)
    if use == _USE_ALU:
        return Operands(alu=raw.view(alu_kind).copy())
    if use == _USE_MUL:
        return Operands(mul=raw.view(np.uint16).copy())
    chunks = raw.reshape(-1, _CHUNK_BYTES)
    alu, zero_point, mul = (np.ascontiguousarray(chunks[:, a:b]) for a, b in ((0, 32), (32, 48), (48, 64)))
    return Operands(
        alu=alu.view(alu_kind).reshape(-1)[:channels],
        zero_point=zero_point.view(np.int16).reshape(-1)[:channels],
        mul=mul.view(np.uint16).reshape(-1)[:channels],
    )


def _cube(ctx: Context, unit: str, base: int, atoms: int, f: Fields, notch: int, stride: int, dtype: str) -> Array:
    """Atoms of a cube in memory as [surface][y][x][element]."""
    require(base % ATOM == 0, f"{unit} base {base:#x} is not 16-byte aligned")
    width, height = f["WIDTH"] + 1, f["HEIGHT"] + 1
    data = ctx.port.gather(base, (atoms, height, width), (stride, ATOM * (width + notch), ATOM), dtype)
    ctx.meter.dma(unit, data.nbytes)
    return data


def _flat(cube: Array, channels: int) -> Array:
    """[surface][y][x][element] to [pixel][channel]."""
    surfaces, height, width, lanes = cube.shape
    return cube.transpose(1, 2, 0, 3).reshape(height * width, surfaces * lanes)[:, :channels]


def _main(ctx: Context, f: Fields, dpu: Fields) -> Array:
    """The main data of a flying task."""
    precision, proc = f["IN_PRECISION"], dpu["PROC_PRECISION"]
    if precision not in _MAIN_DTYPE:
        raise Unsupported(f"DPU_RDMA IN_PRECISION {precision}")
    if (precision in INTEGER) != (proc in INTEGER):
        raise Unsupported(f"{NAMES[precision]} main data with PROC_PRECISION {NAMES[proc]}")
    if precision in (FP16, BF16) and not f["MRDMA_FP16TOFP32_EN"]:
        raise Unsupported("16-bit float main data without MRDMA_FP16TOFP32_EN")
    channels = dpu["CHANNEL"] + 1
    pixels = (f["WIDTH"] + 1) * (f["HEIGHT"] + 1)
    require(channels * pixels <= MAX_ELEMENTS, "the input of one task does not end before any timeout")
    surfaces = -(-channels // atom_channels(precision))
    stride = ATOM * pixels + f["SURF_NOTCH_ADDR"]
    raw = _cube(ctx, "mrdma", f["SRC_BASE_ADDR"], surfaces, f, f["LINE_NOTCH_ADDR"], stride, _MAIN_DTYPE[precision])
    data = _flat(raw, channels)
    if precision == BF16:
        return bf16_to_float32(data)
    return data.astype(np.int32 if precision in INTEGER else np.float32)


def _operand(ctx: Context, f: Fields, dpu: Fields) -> RawOperand:
    """The element-wise operand as raw elements."""
    size, mode = f["ERDMA_DATA_SIZE"], f["ERDMA_DATA_MODE"]
    if size not in _SIZE_DTYPE:
        raise Unsupported("DPU_RDMA ERDMA_DATA_SIZE 0 (4-bit operand)")
    if mode not in (_PER_CHANNEL, _PER_PIXEL):
        raise Unsupported(f"DPU_RDMA ERDMA_DATA_MODE {mode}")
    if not dpu["EW_BYPASS"] and not dpu["EW_OP_BYPASS"]:
        require(
            (dpu["EW_DATA_MODE"] == 1) == (mode == _PER_PIXEL),
            f"EW_DATA_MODE {dpu['EW_DATA_MODE']} with ERDMA_DATA_MODE {mode}",
        )
        if f["FLYING_MODE"]:
            require(
                dpu["ORIG_CHANNEL"] == dpu["CHANNEL"],
                f"element-wise operand with ORIG_CHANNEL {dpu['ORIG_CHANNEL']}, CHANNEL {dpu['CHANNEL']}: the lanes "
                "above ORIG_CHANNEL would be wrong",
            )
    dtype = np.dtype(_SIZE_DTYPE[size])
    channels = dpu["CHANNEL"] + 1
    base = f["EW_BASE_ADDR"]
    if mode == _PER_CHANNEL:
        require(base % ATOM == 0, f"erdma base {base:#x} is not 16-byte aligned")
        raw = ctx.port.read(base, channels * dtype.itemsize)
        ctx.meter.dma("erdma", len(raw))
        return RawOperand(raw.view(dtype).reshape(1, channels).copy(), size)
    atoms = -(-channels * dtype.itemsize // ATOM)
    step = f["EW_SURF_STRIDE"] + f["EW_SURF_NOTCH"]
    if f["COMB_USE"] == _COMB_SPLIT:
        return RawOperand(_flat(_split(ctx, f, atoms, step, str(dtype.str)), channels), size)
    if not f["FLYING_MODE"]:
        raise Unsupported("an operand per pixel for a convolution without COMB_USE 5")
    cube = _cube(ctx, "erdma", base, atoms, f, f["EW_LINE_NOTCH_ADDR"], step, str(dtype.str))
    return RawOperand(_flat(cube, channels), size)


def _split(ctx: Context, f: Fields, atoms: int, step: int, dtype: str) -> Array:
    """COMB_USE 5: even atoms through MRDMA, odd ones through ERDMA."""
    pixels = (f["WIDTH"] + 1) * (f["HEIGHT"] + 1)
    stride = ATOM * pixels + f["SURF_NOTCH_ADDR"]
    even = _cube(ctx, "mrdma", f["SRC_BASE_ADDR"], -(-atoms // 2), f, f["LINE_NOTCH_ADDR"], stride, dtype)
    out = np.empty((atoms, *even.shape[1:]), even.dtype)
    out[0::2] = even
    if atoms > 1:
        out[1::2] = _cube(ctx, "erdma", f["EW_BASE_ADDR"], atoms // 2, f, f["EW_LINE_NOTCH_ADDR"], step, dtype)
    return out


def zero_points(f: Fields, feeds: Feeds) -> Array | int:
    """The zero-point operand (CPEND): the register, or one per channel from memory with OW_SRC."""
    if not f["OW_SRC"]:
        return f["OW_OP"]
    if feeds.bs.zero_point is None:
        raise IllegalConfig("OW_SRC: the zero-point operand waits for memory that DPU_RDMA does not read")
    return feeds.bs.zero_point.astype(np.int64)
