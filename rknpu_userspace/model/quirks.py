# SPDX-License-Identifier: MIT
"""Behaviour that public sources leave open or contradict: one named switch each, with the evidence for its default.

A JSON file ``{"quirks": {name: value, ...}}`` (or just the inner object), as measured on a board, replaces defaults.
Source names: TRM = RK3588 technical reference manual part 1 chapter 36; RN/RU = rockchip-npu-notes and
rocket-userspace by gregordinary; HM = rknpu2_matmul_open by happyme531; WQ = orangepi5plus-npu by widgetii; Mesa =
src/gallium/drivers/rocket; NVDLA = the open design whose structure this NPU shares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quirk:
    """One open question."""

    name: str
    default: str
    alternatives: tuple[str, ...]
    evidence: str
    experiment: str

    @property
    def values(self) -> tuple[str, ...]:
        """All legal values, the default first."""
        return (self.default, *self.alternatives)


def _q(name: str, values: str, evidence: str, experiment: str) -> Quirk:
    default, *alternatives = values.split()
    return Quirk(name, default, tuple(alternatives), evidence, experiment)


TABLE: tuple[Quirk, ...] = (
    _q(
        "core0_banks",
        "pc0_data1 all0 all1",
        "core 0 has two IOMMU banks (device tree), which DMA uses which is not stated; the driver programs both alike",
        "map a page in one domain only for reading commands, provoke a data fault, read PAGE_FAULT_ADDR of both banks",
    ),
    _q(
        "task_dma_base",
        "stall add",
        "TRM: added to every DMA address of the task; RN measured that a non-zero value stalls; every client writes 0",
        "task with TASK_DMA_BASE_ADDR = 4096 and all addresses lowered by 4096",
    ),
    _q(
        "chain_without_link",
        "hang done",
        "RN: a missing PC_BASE_ADDRESS link stops after the first task; whether it interrupts then is not said",
        "TASK_NUMBER 2 with a first task that has no link: time and PC_INTERRUPT_RAW_STATUS",
    ),
    _q(
        "irq_blocks",
        "all last",
        "TRM: each block and group has its own bit in the raw status; the driver looks at the DPU bits only",
        "read PC_INTERRUPT_RAW_STATUS after a convolution",
    ),
    _q(
        "ppu_irq",
        "ppu ppu_and_dpu",
        "RU's pooling tests pass on the stock driver, which ignores PPU bits; a patch for RK3576 says the DPU bits are "
        "never set by a pooling task",
        "pooling task: elapsed time and PC_INTERRUPT_RAW_STATUS",
    ),
    _q(
        "tie_rounding",
        "half_even half_up half_away",
        "output converter, bit 30 clear; TRM: half to even, measured so on RK3576 (RU); WQ: half up; NVDLA: half away",
        "int8 1x1 convolution with SCALE 2^14, SHIFT 15 and odd accumulators of both signs",
    ),
    _q(
        "truncate_rounding",
        "half_even half_up half_away",
        "CLIP_TRUNCATE, bit 6 clear; TRM: half to even; WQ uses half up",
        "int8 -> int32 with CLIP_TRUNCATE 1 and odd accumulators of both signs",
    ),
    _q(
        "mul_shift_rounding",
        "half_up half_even half_away floor",
        "shift after the BS and BN multipliers; the TRM names no rule; WQ's guide-bit half up equals TFLite on a board",
        "BS MUL with operand 1, shift 1 and odd accumulators of both signs, int32 output",
    ),
    _q(
        "mul_shift_neg",
        "negative_values ignored",
        "Rockchip's compiler always writes the same number to MUL_SHIFT_VALUE and to MUL_SHIFT_VALUE_NEG (14/14, 1/1)",
        "BS MUL with operand 1, shift 1, NEG shift 3 and accumulators of both signs",
    ),
    _q(
        "float_out_shift",
        "floor nearest",
        "RN: int8 -> fp32 with OUT_CVT_SHIFT 1 floors; the int8 output rounds to nearest",
        "int8 -> fp32 with SHIFT 1 and odd accumulators of both signs",
    ),
    _q(
        "bn_order",
        "mul_alu alu_mul",
        "RN measured index = x * BN_MUL + BN_ALU for the look-up table; BS is ALU then MUL by Rockchip's own streams",
        "int32 flying task with BN ALU +3 and MUL x2",
    ),
    _q(
        "accumulator_overflow",
        "saturate wrap",
        "RN saw int16 sums saturate at int32; HM treats int8 sums as wrapping (not reachable with legal int8 sizes)",
        "int16 matmul whose sums exceed 2^31",
    ),
    _q(
        "dpu_int_overflow",
        "wrap saturate",
        "HM: int32 element-wise add is exact modulo 2^32; NVDLA saturates its stages",
        "int32 flying add of 2^31 - 1 and 1",
    ),
    _q(
        "pad_direct",
        "byte0 pair",
        "Mesa writes the value sign-extended: only byte 0 is right in every lane, and its padded models are right",
        "3x3 convolution with PAD_CON1 = 0x04030201 and one-hot weights, C = 64",
    ),
    _q(
        "pad_depthwise",
        "pair_then_byte0 byte0 pair",
        "board capture of a depthwise task (RU teflon-dw-capture): 16-bit pattern by channel parity in channels 0-31, "
        "byte 0 in channels 32-63 of a group; 4096 of 4096 outputs fit",
        "depthwise 3x3 with PAD_CON1 = 0x04030201, C = 128",
    ),
    _q(
        "channel_real",
        "ignored masks",
        "Rockchip's compiler writes (C - 1) mod 64, clients write C - 1; nobody has tested garbage in the padded lanes",
        "C = 32, CHANNEL_REAL 4, garbage in lanes 5..31",
    ),
    _q(
        "nibble_order",
        "low_first high_first",
        "RU: low nibble first; HM: even element in the high nibble; a product cannot tell them apart",
        "int4 1x1 convolution with a single non-zero nibble",
    ),
    _q(
        "subnormals",
        "kept flushed",
        "HM: an fp16 coefficient of 2^-24 multiplies exactly in the element-wise stage; MAC inputs are not tested",
        "fp16 K = 1 with subnormal operands",
    ),
)
BY_NAME = {quirk.name: quirk for quirk in TABLE}


class Quirks:
    """The answers in force: defaults, and what a measurement replaced."""

    def __init__(self, chosen: Mapping[str, str] | None = None) -> None:
        self._values = {quirk.name: quirk.default for quirk in TABLE}
        for name, value in (chosen or {}).items():
            if name not in BY_NAME:
                raise ValueError(f"unknown quirk {name!r}; known: {', '.join(sorted(BY_NAME))}")
            if value not in BY_NAME[name].values:
                raise ValueError(f"quirk {name}: {value!r} is not one of {', '.join(BY_NAME[name].values)}")
            self._values[name] = value

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def as_dict(self) -> dict[str, str]:
        """All values in force, by name."""
        return dict(self._values)

    @classmethod
    def load(cls, path: Path) -> Quirks:
        """Read a JSON file; ValueError says what is wrong with it."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"quirks file {path}: {error}") from error
        values = document.get("quirks", document) if isinstance(document, dict) else None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"quirks file {path}: expected an object of names and string values")
        try:
            return cls(values)
        except ValueError as error:
            raise ValueError(f"quirks file {path}: {error}") from error
