# SPDX-License-Identifier: MIT
"""PPU and PPU_RDMA: pooling of a cube in memory, max, min or average.

fp16: the average is ``sum * recip_w * recip_h * 2^-32`` with fp16 reciprocals of 65536 / k. int8: the reciprocals are
integers, 65536 / k, and the product is rounded half to even, which is RN's measured rule (half away from zero but for
ties of even windows). Padding takes part with the padding value. Evidence: RN encodings/ppu-pooling.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .context import MAX_ELEMENTS, Context
from .errors import Unsupported, require, require_zero
from .memory import ATOM, as_atoms
from .precision import FP16, INT8, NAMES, Array, atom_channels
from .registers import Fields
from .rounding import shift_right

AVERAGE, MAXIMUM, MINIMUM = 0, 1, 2
_METHODS = ("avg", "max", "min")
_STORAGE = {INT8: (1, 2), FP16: (2,)}
"""Values of PPU_RDMA IN_PRECISION that work for a PPU PROC_PRECISION, on boards."""
_NAN_EXPONENT = 0x7C00


@dataclass(frozen=True)
class Pool:
    """A pooling as the PPU is told it; sizes in pixels."""

    code: int
    method: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    channels: int
    kernel_height: int
    kernel_width: int
    stride_y: int
    stride_x: int
    pad_top: int
    pad_left: int

    def describe(self) -> str:
        """What is computed, for logs and statistics."""
        return (
            f"{_METHODS[self.method]}pool {self.kernel_height}x{self.kernel_width} s{self.stride_y}x{self.stride_x} "
            f"{NAMES[self.code]} {self.in_height}x{self.in_width}x{self.channels} -> {self.out_height}x{self.out_width}"
        )


def read_config(f: Fields, rdma: Fields) -> Pool:
    """Check the registers and read the geometry."""
    require_zero(f, "PPU", ("USE_CNT", "INDEX_EN", "DPU_FLYIN", "NONALIGN", "MC_SURF_OUT", "SURF_LEN"))
    if not f["FLYING_MODE"]:
        raise Unsupported("PPU FLYING_MODE 0 (input from the DPU)")
    if f["POOLING_METHOD"] > MINIMUM:
        raise Unsupported(f"PPU POOLING_METHOD {f['POOLING_METHOD']}")
    code = f["PROC_PRECISION"]
    if code not in _STORAGE:
        raise Unsupported(f"PPU PROC_PRECISION {code}")
    if rdma["IN_PRECISION"] not in _STORAGE[code]:
        raise Unsupported(f"PPU_RDMA IN_PRECISION {rdma['IN_PRECISION']} with PROC_PRECISION {NAMES[code]}")
    for name in ("CUBE_IN_WIDTH", "CUBE_IN_HEIGHT", "CUBE_IN_CHANNEL"):
        require(f[name] == rdma[name], f"PPU {name} {f[name]} differs from PPU_RDMA's {rdma[name]}")
    require(f["CUBE_IN_CHANNEL"] == f["CUBE_OUT_CHANNEL"], "PPU CUBE_OUT_CHANNEL differs from CUBE_IN_CHANNEL")
    pool = Pool(
        code=code,
        method=f["POOLING_METHOD"],
        in_height=f["CUBE_IN_HEIGHT"] + 1,
        in_width=f["CUBE_IN_WIDTH"] + 1,
        out_height=f["CUBE_OUT_HEIGHT"] + 1,
        out_width=f["CUBE_OUT_WIDTH"] + 1,
        channels=f["CUBE_IN_CHANNEL"] + 1,
        kernel_height=f["KERNEL_HEIGHT"] + 1,
        kernel_width=f["KERNEL_WIDTH"] + 1,
        stride_y=f["KERNEL_STRIDE_HEIGHT"] + 1,
        stride_x=f["KERNEL_STRIDE_WIDTH"] + 1,
        pad_top=f["PAD_TOP"],
        pad_left=f["PAD_LEFT"],
    )
    need_y = (pool.out_height - 1) * pool.stride_y + pool.kernel_height
    need_x = (pool.out_width - 1) * pool.stride_x + pool.kernel_width
    have_y = pool.in_height + pool.pad_top + f["PAD_BOTTOM"]
    have_x = pool.in_width + pool.pad_left + f["PAD_RIGHT"]
    require(
        need_y <= have_y and need_x <= have_x, f"the windows need {need_y}x{need_x}, the input has {have_y}x{have_x}"
    )
    elements = max(pool.in_height * pool.in_width, pool.out_height * pool.out_width) * (pool.channels + 32)
    require(elements <= MAX_ELEMENTS, "a pooling of this size does not end before any timeout")
    return pool


def run(ctx: Context, f: Fields, rdma: Fields) -> None:
    """Read the cube, pool, write."""
    pool = read_config(f, rdma)
    ctx.meter.op = pool.describe()
    if pool.in_height < 4:
        ctx.warn(f"pooling of {pool.in_height} rows: boards are said to misread fewer than 4")
    surfaces = -(-pool.channels // atom_channels(pool.code))
    base = rdma["SRC_BASE_ADDR"]
    require(base % ATOM == 0, f"PPU_RDMA SRC_BASE_ADDR {base:#x} is not 16-byte aligned")
    strides = (rdma["SRC_SURF_STRIDE"], rdma["SRC_LINE_STRIDE"], ATOM)
    kind = "<i1" if pool.code == INT8 else "<f2"
    cube = ctx.port.gather(base, (surfaces, pool.in_height, pool.in_width), strides, kind)
    ctx.meter.dma("ppu_rdma", cube.nbytes)
    window = _pad(f, pool, cube.astype(np.int64 if pool.code == INT8 else np.float64))
    ctx.guard.check()
    result = _average(f, pool, window) if pool.method == AVERAGE else _extreme(pool, window)
    out = as_atoms(result.astype(kind))[..., 0]
    line = ATOM * (pool.out_width + f["NOTCH_ADDR"])
    ctx.port.scatter(f["DST_BASE_ADDR"], out.shape, (f["DST_SURF_STRIDE"], line, ATOM), out)
    ctx.meter.dma("ppu_wdma", out.size * ATOM)
    ctx.meter.dpu_atoms = out.size * pool.kernel_height * pool.kernel_width


def _pad(f: Fields, pool: Pool, cube: Array) -> Array:
    """The input as the windows see it."""
    bits = f["PAD_VALUE_0"]
    if pool.code == INT8:
        value: float = ((bits & 0xFF) ^ 0x80) - 0x80
    else:
        value = float(np.array([bits & 0xFFFF], np.uint16).view(np.float16)[0])
    edges = ((0, 0), (pool.pad_top, f["PAD_BOTTOM"]), (pool.pad_left, f["PAD_RIGHT"]), (0, 0))
    if not any(before or after for before, after in edges):
        return cube
    return np.pad(cube, edges, constant_values=value)


def _taps(pool: Pool, window: Array) -> list[Array]:
    """The input under each kernel position for every output pixel."""
    rows = (pool.out_height - 1) * pool.stride_y + 1
    columns = (pool.out_width - 1) * pool.stride_x + 1
    return [
        window[:, y : y + rows : pool.stride_y, x : x + columns : pool.stride_x]
        for y in range(pool.kernel_height)
        for x in range(pool.kernel_width)
    ]


def _extreme(pool: Pool, window: Array) -> Array:
    taps = _taps(pool, window)
    result = taps[0].copy()
    for tap in taps[1:]:
        (np.maximum if pool.method == MAXIMUM else np.minimum)(result, tap, out=result)
    return result


def _average(f: Fields, pool: Pool, window: Array) -> Array:
    total = np.zeros_like(_taps(pool, window)[0])
    for tap in _taps(pool, window):
        total += tap
    width, height = f["RECIP_KERNEL_WIDTH"], f["RECIP_KERNEL_HEIGHT"]
    if pool.code == INT8:
        # At most 256 taps of 8 bits times two 17-bit factors: 50 bits.
        rounded = shift_right(total * width * height, 32, "half_even")
        return rounded.astype(np.int8)
    for name, bits in (("WIDTH", width), ("HEIGHT", height)):
        require(
            bits < _NAN_EXPONENT, f"RECIP_KERNEL_{name} {bits:#x} is not a finite positive fp16 (65536 / 1 is not one)"
        )
    factors = np.array([width, height], np.uint16).view(np.float16).astype(np.float64)
    scaled: Array = total * (factors[0] * factors[1] * 2.0**-32)
    return scaled
