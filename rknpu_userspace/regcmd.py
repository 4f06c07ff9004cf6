# SPDX-License-Identifier: MIT
"""Command words of a task, from its description in ``task``.

A task always writes every register of every block that it uses. The blocks keep two register groups that survive jobs
and processes, so a register left out would take whatever an earlier job, perhaps another program's, left there.

The order of the words is the one that Mesa uses (src/gallium/drivers/rocket/rkt_regcmd.c): 126 words and a trailer of
four for a convolution with DPU and DPU_RDMA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from .isa import BY_NAME, NOP, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Field, pack, write
from .task import DEPTHWISE, TaskConfig

S_POINTER = 0xE
"""POINTER_PP_EN, EXECUTER_PP_EN and PP_MODE: writer and executer alternate between the register groups."""
TRAILER_WORDS = 4
ALIGNMENT = 64
"""Bytes to which command streams are aligned; the register holds bits 31:4, Mesa aligns to 64."""

_Source = Any
"""A description of a block in ``task``."""
_Encoder = Callable[[_Source], list[int]]


@dataclass(frozen=True)
class _Part:
    """A field of a register: the attribute that it shows, and a number to add to it."""

    source: str
    add: int
    field: Field

    def test(self, name: str) -> str:
        """An expression that is not 0 when the value does not fit."""
        field = self.field
        if field.in_bytes:
            return f"{name} & {~field.mask:#x}"
        shown = f"({name} + {self.add + (1 << field.width - 1 if field.signed else 0)})"
        return f"{shown} >> {field.width}"

    def bits(self, name: str) -> str:
        """An expression of the field in its place, for a value that fits."""
        field = self.field
        shown = f"({name} + {self.add})" if self.add else name
        if field.in_bytes:
            return shown
        if field.signed:
            shown = f"({shown} & {(1 << field.width) - 1:#x})"
        return f"{shown} << {field.low}" if field.low else shown


@dataclass(frozen=True)
class _Line:
    """A register: its command word with constant bits, fields, and the attribute that is the whole word, if any."""

    word: int
    parts: tuple[_Part, ...]
    whole: str


def _line(text: str) -> _Line:
    """``REGISTER FIELD=attribute FIELD=attribute-1 FIELD=#constant``, or ``REGISTER =attribute`` for the whole word."""
    name, *items = text.split()
    register = BY_NAME[name]
    parts: list[_Part] = []
    constant = 0
    whole = ""
    for item in items:
        field_name, _, source = item.partition("=")
        if not field_name:
            whole = source
        elif source.startswith("#"):
            constant |= register.field(field_name).encode(int(source[1:]))
        else:
            attribute, minus, number = source.partition("-")
            parts.append(_Part(attribute, -int(number) if minus else 0, register.field(field_name)))
    return _Line(write(register, constant), tuple(parts), whole)


class _Table:
    """The registers of a block, and the function that encodes them all: straight-line code made once per table.

    A task has some 130 words of 250 fields; walking the table for each of them would take four times as long.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(_line(text) for text in lines)
        self.encode: _Encoder = self._compiled()

    def __len__(self) -> int:
        return len(self.lines)

    def _compiled(self) -> _Encoder:
        names: dict[str, str] = {}
        tests, words = [], []
        for line in self.lines:
            bits = [hex(line.word)]
            if line.whole:
                name = names.setdefault(line.whole, f"v{len(names)}")
                bits.append(f"({name} & 0xFFFFFFFF) << 16")
            for part in line.parts:
                name = names.setdefault(part.source, f"v{len(names)}")
                tests.append(part.test(name))
                bits.append(f"({part.bits(name)}) << 16")
            words.append(" | ".join(bits))
        code = [
            "def encode(source):",
            *(f"    {name} = source.{attribute}" for attribute, name in names.items()),
            f"    if {' | '.join(tests) or 0}:",
            "        explain(source)",
            f"    return [{', '.join(words)}]",
        ]
        scope: dict[str, Any] = {"explain": self._explain}
        exec("\n".join(code), scope)  # the text is made of this module's own tables
        encode: _Encoder = scope["encode"]
        return encode

    def _explain(self, source: _Source) -> None:
        """Raise ValueError for the first field that does not fit."""
        for line in self.lines:
            for part in line.parts:
                part.field.encode(attrgetter(part.source)(source) + part.add)


_CONV_CON1 = (
    "CNA_CONV_CON1 CONV_MODE=mode IN_PRECISION=precision PROC_PRECISION=precision ARGB_IN=argb "
    "DECONV=transposed GROUP_LINE_OFF=line_by_line NONALIGN_DMA=packed_pixels"
)
_CBUF_CON0 = (
    "CNA_CBUF_CON0 DATA_BANK=data_banks WEIGHT_BANK=weight_banks DATA_REUSE=data_reuse WEIGHT_REUSE=weight_reuse"
)
_PREAMBLE = _Table((_CBUF_CON0, "CNA_DCOMP_REGNUM", "CNA_DCOMP_CTRL", _CONV_CON1))
_CNA = _Table(
    (
        _CONV_CON1,
        "CNA_CONV_CON2 FEATURE_GRAINS=grains",
        "CNA_CONV_CON3 CONV_X_STRIDE=stride_x CONV_Y_STRIDE=stride_y DECONV_X_STRIDE=insert_x-1 "
        "DECONV_Y_STRIDE=insert_y-1 ATROUS_X_DILATION=dilation_x-1 "
        "ATROUS_Y_DILATION=dilation_y-1",
        "CNA_DATA_SIZE0 DATAIN_HEIGHT=height DATAIN_WIDTH=width",
        "CNA_DATA_SIZE1 DATAIN_CHANNEL=channels DATAIN_CHANNEL_REAL=channels_real-1",
        "CNA_DATA_SIZE2 DATAOUT_WIDTH=out_width",
        "CNA_DATA_SIZE3 DATAOUT_ATOMICS=out_pixels",
        "CNA_WEIGHT_SIZE0 WEIGHT_BYTES=weight_bytes",
        "CNA_WEIGHT_SIZE1 WEIGHT_BYTES_PER_KERNEL=bytes_per_kernel",
        "CNA_WEIGHT_SIZE2 WEIGHT_KERNELS=kernels WEIGHT_HEIGHT=kernel_height WEIGHT_WIDTH=kernel_width",
        _CBUF_CON0,
        "CNA_CBUF_CON1 DATA_ENTRIES=data_entries",
        "CNA_CVT_CON0 CVT_BYPASS=convert_bypass CVT_TYPE=convert_type DATA_SIGN=convert_sign "
        "CVT_TRUNCATE_0=convert_truncate CVT_TRUNCATE_1=convert_truncate CVT_TRUNCATE_2=convert_truncate "
        "CVT_TRUNCATE_3=convert_truncate",
        "CNA_CVT_CON1 CVT_OFFSET0=convert_offset CVT_SCALE0=convert_scale",
        "CNA_CVT_CON2 CVT_OFFSET1=convert_offset CVT_SCALE1=convert_scale",
        "CNA_CVT_CON3 CVT_OFFSET2=convert_offset CVT_SCALE2=convert_scale",
        "CNA_CVT_CON4 CVT_OFFSET3=convert_offset CVT_SCALE3=convert_scale",
        "CNA_FC_CON0",
        "CNA_FC_CON1",
        "CNA_PAD_CON0 PAD_TOP=pad_top PAD_LEFT=pad_left",
        "CNA_FEATURE_DATA_ADDR FEATURE_BASE_ADDR=feature_address",
        "CNA_FC_CON2",
        "CNA_DMA_CON0 DATA_BURST_LEN=#15 WEIGHT_BURST_LEN=#15",
        "CNA_DMA_CON1 LINE_STRIDE=line_stride",
        "CNA_DMA_CON2 SURF_STRIDE=surface_stride",
        "CNA_FC_DATA_SIZE0 DMA_HEIGHT=dma_height DMA_WIDTH=dma_width",
        "CNA_FC_DATA_SIZE1 DMA_CHANNEL=channels",
        "CNA_DCOMP_CTRL",
        "CNA_DCOMP_REGNUM",
        "CNA_DCOMP_ADDR0 DECOMPRESS_ADDR0=weight_address",
        *(f"CNA_DCOMP_AMOUNT{lane}" for lane in range(16)),
        "CNA_CVT_CON5 PER_CHANNEL_CVT_EN=convert_channels",
        "CNA_PAD_CON1 PAD_VALUE=pad_value",
        "CORE_MISC_CFG QD_EN=zero_point_path DW_EN=depthwise PROC_PRECISION=precision",
        "CORE_DATAOUT_SIZE_0 DATAOUT_WIDTH=out_width-1 DATAOUT_HEIGHT=out_height-1",
        "CORE_DATAOUT_SIZE_1 DATAOUT_CHANNEL=out_channels-1",
        "CORE_CLIP_TRUNCATE CLIP_TRUNCATE=clip_truncate",
        "CORE_RESERVED_3030",
    )
)


def _stage(name: str, prefix: str) -> tuple[str, ...]:
    return (
        f"DPU_{name}_CFG {name}_BYPASS={prefix}.bypass {name}_ALU_BYPASS={prefix}.alu_bypass "
        f"{name}_MUL_BYPASS={prefix}.mul_bypass {name}_MUL_PRELU={prefix}.prelu "
        f"{name}_RELU_BYPASS={prefix}.relu_bypass {name}_RELUX_EN={prefix}.relux "
        f"{name}_ALU_SRC={prefix}.alu_from_memory {name}_ALU_ALGO={prefix}.alu_algorithm",
        f"DPU_{name}_ALU_CFG {name}_ALU_OPERAND={prefix}.alu_operand",
        f"DPU_{name}_MUL_CFG {name}_MUL_SRC={prefix}.mul_from_memory {name}_MUL_SHIFT_VALUE={prefix}.mul_shift "
        f"{name}_MUL_OPERAND={prefix}.mul_operand",
        f"DPU_{name}_RELUX_CMP_VALUE {name}_RELUX_CMP_DAT={prefix}.relux_bound",
    )


_DPU = _Table(
    (
        "DPU_FEATURE_MODE_CFG FLYING_MODE=flying OUTPUT_MODE=to_memory CONV_MODE=mode BURST_LEN=#15",
        "DPU_DATA_FORMAT PROC_PRECISION=precision BS_MUL_SHIFT_VALUE_NEG=bs.mul_shift_negative "
        "BN_MUL_SHIFT_VALUE_NEG=bn.mul_shift_negative IN_PRECISION=in_precision OUT_PRECISION=out_precision",
        "DPU_OFFSET_PEND",
        "DPU_DST_BASE_ADDR DST_BASE_ADDR=address",
        "DPU_DST_SURF_STRIDE DST_SURF_STRIDE=surface_stride",
        "DPU_DATA_CUBE_WIDTH WIDTH=width-1",
        "DPU_DATA_CUBE_HEIGHT HEIGHT=height-1",
        "DPU_DATA_CUBE_NOTCH_ADDR NOTCH_ADDR_0=notch NOTCH_ADDR_1=notch",
        "DPU_DATA_CUBE_CHANNEL CHANNEL=channels-1 ORIG_CHANNEL=channels_real-1",
        *_stage("BS", "bs"),
        "DPU_BS_OW_CFG OD_BYPASS=zero_point_bypass SIZE_E_0=group_atoms-1 SIZE_E_1=group_atoms-1 "
        "SIZE_E_2=group_atoms-1",
        "DPU_BS_OW_OP OW_OP=zero_point",
        "DPU_WDMA_SIZE_0 CHANNEL_WDMA=channels-1",
        "DPU_WDMA_SIZE_1 WIDTH_WDMA=width-1 HEIGHT_WDMA=height-1",
        *_stage("BN", "bn"),
        "DPU_EW_CFG EW_BYPASS=ew.bypass EW_OP_BYPASS=ew.op_bypass EW_OP_TYPE=ew.multiply EW_OP_SRC=ew.from_memory "
        "EW_LUT_BYPASS=ew.lut_bypass EW_OP_CVT_BYPASS=ew.convert_bypass EW_RELU_BYPASS=ew.relu_bypass "
        "EW_RELUX_EN=ew.relux EW_ALU_ALGO=ew.algorithm EDATA_SIZE=ew.operand_size EW_DATA_MODE=ew.data_mode "
        "EW_CVT_TYPE=ew.convert_type",
        "DPU_EW_CVT_OFFSET_VALUE EW_OP_CVT_OFFSET=ew.convert_offset",
        "DPU_EW_CVT_SCALE_VALUE EW_OP_CVT_SCALE=ew.convert_scale EW_OP_CVT_SHIFT=ew.convert_shift "
        "EW_TRUNCATE=ew.truncate",
        "DPU_EW_RELUX_CMP_VALUE EW_RELUX_CMP_DAT=ew.relux_bound",
        "DPU_OUT_CVT_OFFSET OUT_CVT_OFFSET=cvt_offset",
        "DPU_OUT_CVT_SCALE OUT_CVT_SCALE=cvt_scale FP32TOFP16_EN=cvt_narrow",
        "DPU_OUT_CVT_SHIFT OUT_CVT_SHIFT=cvt_shift MINUS_EXP=cvt_minus_exp CVT_TYPE=cvt_offset_first",
        *(f"DPU_EW_OP_VALUE_{lane}" for lane in range(8)),
        "DPU_SURFACE_ADD SURF_ADD=surface_add",
        "DPU_RESERVED_40C4",
        "DPU_LUT_ACCESS_CFG",
        "DPU_LUT_ACCESS_DATA",
        "DPU_LUT_CFG =lut.config",
        "DPU_LUT_INFO =lut.info",
        "DPU_LUT_LE_START LUT_LE_START=lut.le_start",
        "DPU_LUT_LE_END LUT_LE_END=lut.le_end",
        "DPU_LUT_LO_START LUT_LO_START=lut.lo_start",
        "DPU_LUT_LO_END LUT_LO_END=lut.lo_end",
        "DPU_LUT_LE_SLOPE_SCALE =lut.le_slope_scale",
        "DPU_LUT_LE_SLOPE_SHIFT =lut.le_slope_shift",
        "DPU_LUT_LO_SLOPE_SCALE =lut.lo_slope_scale",
        "DPU_LUT_LO_SLOPE_SHIFT =lut.lo_slope_shift",
    )
)
_RDMA_SIZES = _Table(
    (
        "DPU_RDMA_RDMA_DATA_CUBE_WIDTH WIDTH=width-1",
        "DPU_RDMA_RDMA_DATA_CUBE_HEIGHT HEIGHT=height-1",
        "DPU_RDMA_RDMA_DATA_CUBE_CHANNEL CHANNEL=channels-1",
    )
)
_HEIGHT_LINE = 1
_EW_LINE_NOTCH = BY_NAME["DPU_RDMA_RDMA_DATA_CUBE_HEIGHT"].field("EW_LINE_NOTCH_ADDR")
"""The only field of these registers that is not a size of the DPU's."""
_RDMA = _Table(
    (
        "DPU_RDMA_RDMA_SRC_BASE_ADDR SRC_BASE_ADDR=main_address",
        "DPU_RDMA_RDMA_BRDMA_CFG BRDMA_DATA_USE=bs_use",
        "DPU_RDMA_RDMA_BS_BASE_ADDR BS_BASE_ADDR=bs_address",
        "DPU_RDMA_RDMA_NRDMA_CFG NRDMA_DATA_USE=bn_use",
        "DPU_RDMA_RDMA_BN_BASE_ADDR BN_BASE_ADDR=bn_address",
        "DPU_RDMA_RDMA_ERDMA_CFG ERDMA_DISABLE=operand_disable ERDMA_DATA_SIZE=operand_size "
        "ERDMA_DATA_MODE=operand_mode",
        "DPU_RDMA_RDMA_EW_BASE_ADDR EW_BASE_ADDR=operand_address",
        "DPU_RDMA_RDMA_EW_SURF_STRIDE EW_SURF_STRIDE=operand_surface",
        "DPU_RDMA_RDMA_FEATURE_MODE_CFG FLYING_MODE=flying CONV_MODE=mode MRDMA_FP16TOFP32_EN=widen_float16 "
        "MRDMA_DISABLE=main_disable PROC_PRECISION=precision COMB_USE=comb_use BURST_LEN=#15 "
        "IN_PRECISION=in_precision",
        "DPU_RDMA_RDMA_SRC_DMA_CFG LINE_NOTCH_ADDR=main_line_notch",
        "DPU_RDMA_RDMA_SURF_NOTCH SURF_NOTCH_ADDR=main_surface_gap",
        "DPU_RDMA_RDMA_PAD_CFG",
        "DPU_RDMA_RDMA_WEIGHT M_WEIGHT=#1 B_WEIGHT=#1 N_WEIGHT=#1 E_WEIGHT=#1",
        "DPU_RDMA_RDMA_EW_SURF_NOTCH EW_SURF_NOTCH=operand_surface_gap",
    )
)
_PPU = _Table(
    (
        "PPU_DATA_CUBE_IN_WIDTH CUBE_IN_WIDTH=width-1",
        "PPU_DATA_CUBE_IN_HEIGHT CUBE_IN_HEIGHT=height-1",
        "PPU_DATA_CUBE_IN_CHANNEL CUBE_IN_CHANNEL=channels-1",
        "PPU_DATA_CUBE_OUT_WIDTH CUBE_OUT_WIDTH=out_width-1",
        "PPU_DATA_CUBE_OUT_HEIGHT CUBE_OUT_HEIGHT=out_height-1",
        "PPU_DATA_CUBE_OUT_CHANNEL CUBE_OUT_CHANNEL=channels-1",
        "PPU_OPERATION_MODE_CFG POOLING_METHOD=method FLYING_MODE=#1",
        "PPU_POOLING_KERNEL_CFG KERNEL_WIDTH=kernel_width-1 KERNEL_HEIGHT=kernel_height-1 "
        "KERNEL_STRIDE_WIDTH=stride_x-1 KERNEL_STRIDE_HEIGHT=stride_y-1",
        "PPU_RECIP_KERNEL_WIDTH RECIP_KERNEL_WIDTH=recip_width",
        "PPU_RECIP_KERNEL_HEIGHT RECIP_KERNEL_HEIGHT=recip_height",
        "PPU_POOLING_PADDING_CFG PAD_LEFT=pad_left PAD_TOP=pad_top PAD_RIGHT=pad_right PAD_BOTTOM=pad_bottom",
        "PPU_PADDING_VALUE_1_CFG PAD_VALUE_0=pad_value",
        "PPU_PADDING_VALUE_2_CFG",
        "PPU_DST_BASE_ADDR =address",
        "PPU_DST_SURF_STRIDE =surface_stride",
        "PPU_DATA_FORMAT PROC_PRECISION=precision INDEX_ADD=surface_stride",
        "PPU_MISC_CTRL BURST_LEN=#15",
        "PPU_RDMA_RDMA_CUBE_IN_WIDTH CUBE_IN_WIDTH=width-1",
        "PPU_RDMA_RDMA_CUBE_IN_HEIGHT CUBE_IN_HEIGHT=height-1",
        "PPU_RDMA_RDMA_CUBE_IN_CHANNEL CUBE_IN_CHANNEL=channels-1",
        "PPU_RDMA_RDMA_SRC_BASE_ADDR =source_address",
        "PPU_RDMA_RDMA_SRC_LINE_STRIDE =source_line",
        "PPU_RDMA_RDMA_SRC_SURF_STRIDE =source_surface",
        "PPU_RDMA_RDMA_DATA_FORMAT IN_PRECISION=in_size",
    )
)


def _pointer(register: str) -> int:
    return write(BY_NAME[register], S_POINTER)


_DPU_POINTER = _pointer("DPU_S_POINTER")
_RDMA_POINTER = _pointer("DPU_RDMA_RDMA_S_POINTER")
_POOL_POINTERS = [_pointer("PPU_S_POINTER"), _pointer("PPU_RDMA_RDMA_S_POINTER")]
_SYNC = pack(TARGET_SYNC, 0, 0)
_LAST_TASK = write(BY_NAME["PC_REGISTER_AMOUNTS"], 0)


@lru_cache
def _trailer(enable: int) -> tuple[int, ...]:
    """The last words: no task after this one, and the start of the blocks."""
    return NOP, _LAST_TASK, _SYNC, pack(TARGET_ENABLE, OPERATION_ENABLE, enable)


def encode(task: TaskConfig, prologue: tuple[int, ...] = ()) -> npt.NDArray[np.uint64]:
    """The task's command words, trailer included. ``prologue`` words (a look-up table) come first.

    Raises ValueError naming register field and range when a value does not fit.
    """
    words = list(prologue)
    preamble: list[int] = []
    body: list[int] = []
    if task.conv is not None:
        preamble, body = _PREAMBLE.encode(task.conv), _CNA.encode(task.conv)
    words += preamble
    if task.dpu is not None:
        words.append(_DPU_POINTER)
    if task.rdma is not None:
        words.append(_RDMA_POINTER)
    words += body
    if task.dpu is not None:
        words += _DPU.encode(task.dpu)
        if task.rdma is not None:
            sizes = _RDMA_SIZES.encode(task.dpu)
            sizes[_HEIGHT_LINE] |= _EW_LINE_NOTCH.encode(task.rdma.operand_line_notch) << 16
            words += sizes
            words += _RDMA.encode(task.rdma)
    if task.pool is not None:
        words += _POOL_POINTERS
        words += _PPU.encode(task.pool)
    words += _trailer(task.enable)
    return np.array(words, np.uint64)


def word_count(task: TaskConfig, prologue: int = 0) -> int:
    """Number of words that ``encode`` returns."""
    count = prologue + TRAILER_WORDS
    if task.conv is not None:
        count += len(_PREAMBLE) + len(_CNA)
    if task.dpu is not None:
        count += len(_DPU) + 1
    if task.rdma is not None:
        count += len(_RDMA_SIZES) + len(_RDMA) + 1
    if task.pool is not None:
        count += len(_PPU) + len(_POOL_POINTERS)
    return count


__all__ = ["ALIGNMENT", "DEPTHWISE", "S_POINTER", "TRAILER_WORDS", "encode", "word_count"]
