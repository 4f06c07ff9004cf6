# SPDX-License-Identifier: MIT
"""Frozen descriptions of what a task programs, block by block, in terms of pixels, channels, bytes and addresses.

``regcmd`` turns them into command words. Names say what a register means; which register it is, the tables there say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .isa import Block, enable_mask

DIRECT, DEPTHWISE = 0, 3
"""Convolution modes of CNA and DPU."""
ALU_MAX, ALU_MIN, ALU_ADD, ALU_DIV, ALU_MINUS = range(5)
"""Algorithms of the DPU's ALUs."""


@dataclass(frozen=True)
class Conv:
    """CNA and CORE: one convolution tile. Sizes in pixels and channels, strides and gaps in 16-byte atoms."""

    precision: int
    height: int
    width: int
    channels: int
    channels_real: int
    out_height: int
    out_width: int
    out_channels: int
    kernels: int
    kernel_height: int
    kernel_width: int
    bytes_per_kernel: int
    data_banks: int
    weight_banks: int
    data_entries: int
    feature_address: int
    weight_address: int
    line_stride: int
    surface_stride: int
    dma_width: int
    dma_height: int
    mode: int = DIRECT
    stride_y: int = 1
    stride_x: int = 1
    dilation_y: int = 1
    dilation_x: int = 1
    insert_y: int = 1
    insert_x: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_value: int = 0
    line_by_line: int = 0
    grains: int = 0
    data_reuse: int = 0
    weight_reuse: int = 0
    zero_point_path: int = 0
    clip_truncate: int = 0
    argb: int = 0
    packed_pixels: int = 0
    convert_bypass: int = 1
    convert_type: int = 1
    convert_sign: int = 1
    convert_truncate: int = 0
    convert_scale: int = 1
    convert_offset: int = 0
    convert_channels: int = 0

    @property
    def out_pixels(self) -> int:
        """Output pixels of the tile."""
        return self.out_height * self.out_width

    @property
    def weight_bytes(self) -> int:
        """Bytes of all kernels."""
        return self.bytes_per_kernel * self.kernels

    @property
    def transposed(self) -> int:
        """1 where zeros are inserted between the pixels of the input."""
        return int(self.insert_y > 1 or self.insert_x > 1)

    @property
    def depthwise(self) -> int:
        """1 in depthwise mode."""
        return int(self.mode == DEPTHWISE)


@dataclass(frozen=True)
class Stage:
    """BS or BN of the DPU. The default passes data through."""

    bypass: int = 1
    alu_bypass: int = 1
    alu_from_memory: int = 0
    alu_algorithm: int = 0
    alu_operand: int = 0
    mul_bypass: int = 1
    mul_from_memory: int = 0
    mul_operand: int = 0
    mul_shift: int = 0
    mul_shift_negative: int = 0
    prelu: int = 0
    relu_bypass: int = 1
    relux: int = 0
    relux_bound: int = 0


@dataclass(frozen=True)
class Elementwise:
    """EW of the DPU. The default passes data through."""

    bypass: int = 1
    op_bypass: int = 1
    multiply: int = 0
    from_memory: int = 0
    lut_bypass: int = 1
    convert_bypass: int = 1
    relu_bypass: int = 1
    relux: int = 0
    relux_bound: int = 0
    algorithm: int = 0
    operand_size: int = 0
    data_mode: int = 0
    convert_type: int = 0
    convert_offset: int = 0
    convert_scale: int = 1
    convert_shift: int = 0
    truncate: int = 0


@dataclass(frozen=True)
class Lut:
    """Look-up stage of the DPU: index ranges and slopes. The default is what tasks without one write."""

    config: int = 0
    info: int = 0
    le_start: int = 0
    le_end: int = 0
    lo_start: int = 0
    lo_end: int = 0
    le_slope_scale: int = 0
    le_slope_shift: int = 0
    lo_slope_scale: int = 0
    lo_slope_shift: int = 0


PASS = Stage()
PASS_EW = Elementwise()
NO_LUT = Lut()


@dataclass(frozen=True)
class Dpu:
    """DPU: post-processing and write-out. Addresses and strides in bytes, ``notch`` in atoms."""

    in_precision: int
    precision: int
    out_precision: int
    height: int
    width: int
    channels: int
    channels_real: int
    address: int
    surface_stride: int
    group_atoms: int
    notch: int = 0
    mode: int = DIRECT
    flying: int = 0
    zero_point_bypass: int = 1
    zero_point: int = 0
    bs: Stage = PASS
    bn: Stage = PASS
    ew: Elementwise = PASS_EW
    lut: Lut = NO_LUT
    cvt_offset: int = 0
    cvt_scale: int = 1
    cvt_narrow: int = 0
    cvt_shift: int = 0
    cvt_minus_exp: int = 0
    cvt_offset_first: int = 0
    to_memory: int = 2

    @property
    def surface_add(self) -> int:
        """Bytes between kernel groups."""
        return self.group_atoms * self.surface_stride


@dataclass(frozen=True)
class Rdma:
    """DPU_RDMA: operands from memory. Its sizes are the DPU's; addresses and gaps in bytes."""

    bs_use: int = 0
    bs_address: int = 0
    bn_use: int = 0
    bn_address: int = 0
    main_disable: int = 1
    main_address: int = 0
    main_surface_gap: int = 0
    main_line_notch: int = 0
    operand_disable: int = 1
    operand_address: int = 0
    operand_mode: int = 0
    operand_size: int = 0
    operand_surface: int = 0
    operand_surface_gap: int = 0
    operand_line_notch: int = 0
    comb_use: int = 0
    flying: int = 0
    mode: int = 0
    widen_float16: int = 0
    precision: int = 0
    in_precision: int = 0


@dataclass(frozen=True)
class Pool:
    """PPU and PPU_RDMA: pooling from memory to memory. Addresses and strides in bytes."""

    method: int
    precision: int
    in_size: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_y: int
    stride_x: int
    source_address: int
    source_line: int
    source_surface: int
    address: int
    surface_stride: int
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    pad_value: int = 0
    recip_height: int = 0
    recip_width: int = 0


@dataclass(frozen=True)
class TaskConfig:
    """Everything that a task programs: a convolution (conv, dpu, rdma), a flying DPU task (dpu, rdma) or a pooling."""

    conv: Conv | None = None
    dpu: Dpu | None = None
    rdma: Rdma | None = None
    pool: Pool | None = None

    @property
    def enable(self) -> int:
        """Mask of the blocks that take part."""
        return _enable(self.conv is not None, self.dpu is not None, self.rdma is not None, self.pool is not None)


@lru_cache
def _enable(conv: bool, dpu: bool, rdma: bool, pool: bool) -> int:
    blocks = (Block.CNA, Block.CORE) * conv + (Block.DPU,) * dpu + (Block.DPU_RDMA,) * rdma
    return enable_mask(*blocks, *(Block.PPU, Block.PPU_RDMA) * pool)
