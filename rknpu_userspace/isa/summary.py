# SPDX-License-Identifier: MIT
"""What a task computes, read from its registers: "conv 3x3 s2 int8 28x28x32 -> 14x14x64 int8, bias, ReLU, requant"."""

from __future__ import annotations

from . import Block
from .rules import Registers, value

PRECISIONS = ("int8", "int16", "fp16", "bf16", "int32", "fp32", "int4", "tf32")
_ALGORITHMS = ("max", "min", "add", "div", "sub", "abs", "neg", "floor", "ceil")
_POOLS = ("average", "max", "min")


def summarise(registers: Registers, blocks: list[Block], tile: tuple[int, int] | None = None) -> str:
    """One line; ``tile`` is (number, count) of a part of an operation."""
    if not blocks:
        return "nothing"
    if Block.PPU in blocks:
        return _pool(registers)
    if Block.DPU not in blocks:
        return " + ".join(block.name for block in blocks)
    head = _conv(registers) if Block.CNA in blocks else _flying(registers)
    part = [f"tile {tile[0]}/{tile[1]}"] if tile else []
    return ", ".join([f"{head} {_format(registers, 'OUT_PRECISION')}", *part, *_stages(registers)])


def _format(registers: Registers, name: str) -> str:
    return PRECISIONS[value(registers, "DPU_DATA_FORMAT", name)]


def _size(registers: Registers) -> str:
    height = value(registers, "DPU_DATA_CUBE_HEIGHT", "HEIGHT") + 1
    width = value(registers, "DPU_DATA_CUBE_WIDTH", "WIDTH") + 1
    return f"{height}x{width}x{value(registers, 'DPU_DATA_CUBE_CHANNEL', 'CHANNEL') + 1}"


def _conv(registers: Registers) -> str:
    height, width = (value(registers, "CNA_WEIGHT_SIZE2", f"WEIGHT_{side}") for side in ("HEIGHT", "WIDTH"))
    stride = tuple(value(registers, "CNA_CONV_CON3", f"CONV_{axis}_STRIDE") for axis in "YX")
    dilation = tuple(value(registers, "CNA_CONV_CON3", f"ATROUS_{axis}_DILATION") + 1 for axis in "YX")
    rows, columns = (value(registers, "CNA_DATA_SIZE0", f"DATAIN_{side}") for side in ("HEIGHT", "WIDTH"))
    channels = value(registers, "CNA_DATA_SIZE1", "DATAIN_CHANNEL")
    precision = PRECISIONS[value(registers, "CNA_CONV_CON1", "PROC_PRECISION")]
    kind = "depthwise conv" if value(registers, "CNA_CONV_CON1", "CONV_MODE") == 3 else "conv"
    words = [f"{kind} {height}x{width} s{stride[0]}" + (f"x{stride[1]}" if stride[0] != stride[1] else "")]
    if dilation != (1, 1):
        words.append(f"d{dilation[0]}x{dilation[1]}")
    words.append(f"{precision} {rows}x{columns}x{channels} -> {_size(registers)}")
    return " ".join(words)


def _flying(registers: Registers) -> str:
    name = PRECISIONS[value(registers, "DPU_DATA_FORMAT", "IN_PRECISION")]
    return f"element-wise {name} {_size(registers)} ->"


def _stages(registers: Registers) -> list[str]:
    words = []
    for stage in ("BS", "BN"):
        config = f"DPU_{stage}_CFG"
        if value(registers, config, f"{stage}_BYPASS"):
            continue
        memory = value(registers, config, f"{stage}_ALU_SRC")
        if not value(registers, config, f"{stage}_ALU_BYPASS"):
            algorithm = value(registers, config, f"{stage}_ALU_ALGO")
            name = _ALGORITHMS[algorithm] if algorithm < len(_ALGORITHMS) else f"algorithm {algorithm}"
            words.append("bias" if memory and name == "add" else f"{stage} {name}")
        if not value(registers, config, f"{stage}_MUL_BYPASS"):
            per_channel = value(registers, f"DPU_{stage}_MUL_CFG", f"{stage}_MUL_SRC")
            words.append("per-channel scale" if per_channel else f"{stage} multiply")
        if not value(registers, config, f"{stage}_RELU_BYPASS"):
            words.append("ReLUX" if value(registers, config, f"{stage}_RELUX_EN") else "ReLU")
    words += _elementwise(registers)
    scale = value(registers, "DPU_OUT_CVT_SCALE", "OUT_CVT_SCALE")
    shift = value(registers, "DPU_OUT_CVT_SHIFT", "OUT_CVT_SHIFT")
    if scale != 1 or shift:
        words.append(f"requant {scale}/2^{shift}")
    return words


def _elementwise(registers: Registers) -> list[str]:
    if value(registers, "DPU_EW_CFG", "EW_BYPASS"):
        return []
    words = []
    if not value(registers, "DPU_EW_CFG", "EW_OP_BYPASS"):
        algorithm = value(registers, "DPU_EW_CFG", "EW_ALU_ALGO")
        name = _ALGORITHMS[algorithm] if algorithm < len(_ALGORITHMS) else f"algorithm {algorithm}"
        words.append("operand mul" if value(registers, "DPU_EW_CFG", "EW_OP_TYPE") else f"operand {name}")
    if not value(registers, "DPU_EW_CFG", "EW_LUT_BYPASS"):
        words.append("look-up table")
    if not value(registers, "DPU_EW_CFG", "EW_RELU_BYPASS"):
        words.append("ReLU")
    return words


def _pool(registers: Registers) -> str:
    method = value(registers, "PPU_OPERATION_MODE_CFG", "POOLING_METHOD")
    kernel = [value(registers, "PPU_POOLING_KERNEL_CFG", f"KERNEL_{side}") + 1 for side in ("HEIGHT", "WIDTH")]
    stride = [value(registers, "PPU_POOLING_KERNEL_CFG", f"KERNEL_STRIDE_{side}") + 1 for side in ("HEIGHT", "WIDTH")]
    sizes = []
    for way in ("IN", "OUT"):
        parts = (
            value(registers, f"PPU_DATA_CUBE_{way}_{side}", f"CUBE_{way}_{side}") + 1
            for side in ("HEIGHT", "WIDTH", "CHANNEL")
        )
        sizes.append("x".join(str(part) for part in parts))
    precision = PRECISIONS[value(registers, "PPU_DATA_FORMAT", "PROC_PRECISION")]
    name = _POOLS[method] if method < len(_POOLS) else f"method {method}"
    return f"{name} pool {kernel[0]}x{kernel[1]} s{stride[0]}x{stride[1]} {precision} {sizes[0]} -> {sizes[1]}"
