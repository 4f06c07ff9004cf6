# SPDX-License-Identifier: MIT
"""Rules that a task's registers must keep, as far as they can be told from the registers alone.

Evidence: RK3588 TRM ch. 36 and what every working client writes; a task that breaks one hangs or computes nonsense.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import BY_NAME, REGISTERS, Block

Registers = dict[int, int]
"""Register words by offset."""

_BITS = (8, 16, 16, 16, 32, 32, 4, 32)
_UNWRITTEN = ("S_STATUS", "S_POINTER", "OPERATION_ENABLE", "CLK_GATE", "MAC_GATING")


_Get = Callable[[str, str], int]


def value(registers: Registers, register: str, name: str) -> int:
    """A field of a task's register; 0 if the task has never been given it."""
    entry = BY_NAME[register]
    return entry.field(name).decode(registers.get(entry.offset, 0))


def broken_rules(registers: Registers, blocks: list[Block], written: set[int]) -> list[str]:
    """One line for every rule that the task breaks. ``written`` are the offsets that its own words contain."""
    get = partial(value, registers)
    problems = []
    if Block.CNA in blocks:
        problems += _cna(get)
        if Block.DPU in blocks:
            problems += _conv_chain(get)
    if Block.DPU in blocks:
        problems += _writer(get)
    if Block.DPU_RDMA in blocks and Block.DPU in blocks:
        problems += _rdma(get)
    return problems + _omitted(blocks, written)


def _cna(get: _Get) -> list[str]:
    problems = []
    data, weight = get("CNA_CBUF_CON0", "DATA_BANK"), get("CNA_CBUF_CON0", "WEIGHT_BANK")
    if data + weight != 12:
        problems.append(f"DATA_BANK {data} + WEIGHT_BANK {weight} is not 12")
    for register, name in (
        ("CNA_DATA_SIZE0", "DATAIN_WIDTH"),
        ("CNA_DATA_SIZE0", "DATAIN_HEIGHT"),
        ("CNA_DATA_SIZE1", "DATAIN_CHANNEL"),
        ("CNA_DATA_SIZE3", "DATAOUT_ATOMICS"),
        ("CNA_WEIGHT_SIZE2", "WEIGHT_KERNELS"),
        ("CNA_CONV_CON3", "CONV_X_STRIDE"),
        ("CNA_CONV_CON3", "CONV_Y_STRIDE"),
    ):
        if get(register, name) == 0:
            problems.append(f"{name} is zero")
    bits = _BITS[get("CNA_CONV_CON1", "PROC_PRECISION")]
    channels = get("CNA_DATA_SIZE1", "DATAIN_CHANNEL")
    taps = get("CNA_WEIGHT_SIZE2", "WEIGHT_HEIGHT") * get("CNA_WEIGHT_SIZE2", "WEIGHT_WIDTH")
    per_kernel = taps * channels * bits // 8
    if get("CNA_WEIGHT_SIZE1", "WEIGHT_BYTES_PER_KERNEL") != per_kernel:
        problems.append(f"WEIGHT_BYTES_PER_KERNEL is not {per_kernel}")
    kernels = get("CNA_WEIGHT_SIZE2", "WEIGHT_KERNELS")
    if get("CNA_WEIGHT_SIZE0", "WEIGHT_BYTES") != per_kernel * kernels:
        problems.append(f"WEIGHT_BYTES is not {kernels} kernels of {per_kernel} bytes")
    entries = get("CNA_CBUF_CON1", "DATA_ENTRIES")
    line = get("CNA_DATA_SIZE0", "DATAIN_WIDTH") * channels * bits // 8
    if not get("CNA_CONV_CON1", "ARGB_IN") and entries * 64 < line:
        problems.append(f"DATA_ENTRIES {entries} is less than the {-(-line // 64)} of a line")
    need = -(-entries * 64 * get("CNA_DATA_SIZE0", "DATAIN_HEIGHT") // 32768)
    if need > data:
        problems.append(f"the features take {need} banks, DATA_BANK is {data}")
    if get("CNA_CBUF_CON0", "FC_DATA_BANK"):
        problems.append("FC_DATA_BANK is not 0")
    return problems


def _conv_chain(get: _Get) -> list[str]:
    problems = []
    if get("CORE_MISC_CFG", "PROC_PRECISION") != get("CNA_CONV_CON1", "PROC_PRECISION"):
        problems.append("CORE and CNA differ in PROC_PRECISION")
    width, height = get("CORE_DATAOUT_SIZE_0", "DATAOUT_WIDTH"), get("CORE_DATAOUT_SIZE_0", "DATAOUT_HEIGHT")
    if (width, height) != (get("DPU_DATA_CUBE_WIDTH", "WIDTH"), get("DPU_DATA_CUBE_HEIGHT", "HEIGHT")):
        problems.append("CORE and DPU differ in output size")
    if (width + 1) * (height + 1) != get("CNA_DATA_SIZE3", "DATAOUT_ATOMICS"):
        problems.append("DATAOUT_ATOMICS is not CORE's output width x height")
    return problems


def _writer(get: _Get) -> list[str]:
    problems = []
    group = get("DPU_BS_OW_CFG", "SIZE_E_0") + 1
    stride = get("DPU_DST_SURF_STRIDE", "DST_SURF_STRIDE")
    if get("DPU_SURFACE_ADD", "SURF_ADD") != group * stride:
        problems.append(f"SURFACE_ADD is not (SIZE_E + 1) x DST_SURF_STRIDE = {group * stride:#x}")
    if get("DPU_DST_BASE_ADDR", "DST_BASE_ADDR") % 16:
        problems.append("DST_BASE_ADDR is not a multiple of 16")
    return problems


def _rdma(get: _Get) -> list[str]:
    problems = []
    feature = "DPU_RDMA_RDMA_FEATURE_MODE_CFG"
    flying = get(feature, "FLYING_MODE")
    if not flying and not get(feature, "MRDMA_DISABLE") and not get(feature, "COMB_USE"):
        problems.append("MRDMA is enabled without a taker (not flying, COMB_USE 0): the task hangs")
    if flying != get("DPU_FEATURE_MODE_CFG", "FLYING_MODE"):
        problems.append("DPU and DPU_RDMA differ in FLYING_MODE")
    return problems


def _omitted(blocks: list[Block], written: set[int]) -> list[str]:
    """Registers that the task leaves as an earlier job left them; in one line."""
    missing = [
        register.name
        for register in REGISTERS
        if register.block in blocks and register.offset not in written and not register.name.endswith(_UNWRITTEN)
    ]
    if not missing:
        return []
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    return [f"not written, taken from an earlier task: {', '.join(missing[:4])}{more}"]
