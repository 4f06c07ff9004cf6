# SPDX-License-Identifier: MIT
"""Behaviour that public sources leave open or contradict: one named switch each, with the evidence for its default.

A JSON file ``{"quirks": {name: value, ...}}`` (or just the inner object), as measured on a board, replaces defaults.
The first value of each row is the default. The short names of sources stand in the package's docstring.
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


_FRONT_END = (
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
        "s_pointer_core",
        "checked ignored",
        "RN, 24 of 24 jobs: CNA and CORE S_POINTER without the bits of the own core make the task hang; TRM: reserved",
        "rewrite CNA S_POINTER to 0xE in the stream of a job on core 1",
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
)
_CONVOLUTION = (
    _q(
        "float_accumulation",
        "groups_of_32 once",
        "RN, 1.3e8 fp16 outputs of three cores bit for bit: products of a group of 32 channels summed exactly, "
        "rounded to fp32, group sums added in fp32 in order; but output lane 0 of 16 is sometimes one bit lower",
        "fp16 matmul, K = 512, random operands, against both models",
    ),
    _q(
        "accumulator_overflow",
        "saturate wrap",
        "RN: int16 sums up to 2^35 come out clamped to int32; HM treats int8 sums as wrapping (no legal int8 size can)",
        "int16 matmul whose sums exceed 2^31",
    ),
    _q(
        "truncate_rounding",
        "half_even half_up half_away floor",
        "CLIP_TRUNCATE, ROUND_TYPE clear; TRM: half to even; WQ uses half up",
        "int8 -> int32 with CLIP_TRUNCATE 1 and odd accumulators of both signs",
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
        "captures (RU teflon-dw-capture; RN corner probe): odd channels among the first 32 of each 64 read byte 1, "
        "all others byte 0",
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
        "nonalign_line_unit",
        "pixels bytes",
        "packed images: Mesa writes max(W, 16) for one byte a pixel, Rockchip's compiler 8 for 7 pixels of 3 x fp16",
        "3-channel int8 image with LINE_STRIDE W and 3 W",
    ),
    _q(
        "partial_kernel_group",
        "hang completes",
        "RN: int8 output whose channels end inside a group of 32 (depthwise 64): that group is not written, a hang",
        "int8 -> int8 with DATAOUT_CHANNEL 48",
    ),
)
_DPU = (
    _q(
        "tie_rounding",
        "half_even half_up half_away",
        "output converter, CVT_ROUND clear; TRM and RN (RK3588, 128 ties, two shifts): half to even; WQ: half up",
        "int8 1x1 convolution with SCALE 2^14, SHIFT 15 and odd accumulators of both signs",
    ),
    _q(
        "round_bit_set",
        "half_away half_up",
        "a rounding bit that is set; RN (RK3588, 128 ties): half away from zero; TRM: 'carry 1 no matter'",
        "as tie_rounding with bit 30 set",
    ),
    _q(
        "out_scale_sign",
        "signed unsigned",
        "RN: OUT_CVT_SCALE 0x8000 multiplies by -32768, 64 of 64 elements at two scales",
        "int8 requantisation with SCALE 0x8000",
    ),
    _q(
        "float_out_shift",
        "nearest floor",
        "integer sums to floats with OUT_CVT_SHIFT: RN measured half to even through fp32 output, its older note "
        "says floor",
        "int8 -> fp32 with SHIFT 1 and odd accumulators of both signs",
    ),
    _q(
        "mul_shift_rounding",
        "half_even half_up half_away floor",
        "shift after the BS and BN multipliers; RN: half to even explains 9216 of 9216 elements, half up 9174",
        "BS MUL with operand 1, shift 1 and odd accumulators of both signs, int32 output",
    ),
    _q(
        "mul_shift_sign",
        "product input ignored",
        "RN: MUL_SHIFT_VALUE shifts non-negative products, MUL_SHIFT_VALUE_NEG negative ones, 9216 of 9216 elements",
        "BS MUL with operand -1, shift 1, NEG shift 3 and accumulators of both signs",
    ),
    _q(
        "bn_order",
        "mul_alu alu_mul",
        "RN measured index = x * BN_MUL + BN_ALU for the look-up table; BS is ALU then MUL by Rockchip's own streams",
        "int32 flying task with BN ALU +3 and MUL x2",
    ),
    _q(
        "dpu_int_overflow",
        "saturate wrap",
        "RN: BS products and element-wise sums saturate at int32 on every element; HM calls its int32 sums modular",
        "int32 flying add of 2^31 - 1 and 1",
    ),
    _q(
        "ew_cvt_rounding",
        "half_even half_up half_away floor",
        "operand converter of EW, EW_CVT_ROUND clear; TRM: half to even; nobody has measured it",
        "int8 residual add with CVT_SCALE 1, CVT_SHIFT 1 and odd operands",
    ),
    _q(
        "ew_unary",
        "main operand",
        "ABS, NEG, FLOOR and CEIL of EW_ALU_ALGO are named by the TRM only; which input they take is not said",
        "fp16 flying task with EW_ALU_ALGO 5..8, main and operand different",
    ),
    _q(
        "lut_index_rounding",
        "half_even floor",
        "fp32 to the integer index of the look-up table: no source",
        "dump all entries through a ramp with index scale 1 and half steps",
    ),
    _q(
        "lut_interpolation",
        "floor half_even half_up",
        "rounding of the linear interpolation between two entries: no source",
        "table 0, 1, 0, 1 ... with index step 32 and a ramp",
    ),
    _q(
        "lut_zero",
        "two_to_17 zero",
        "RN sees +4 where an entry is 0 (MINUS_EXP 15), +128 (10) and +16 (13) where the decoded value is 0, flat runs "
        "and x = 0 of signed outputs alike: all are 2^17 x 2^-MINUS_EXP, so entry + offset = 0 decodes as 2^17",
        "table with entries 0, offset 0, MINUS_EXP 10, 13 and 15",
    ),
)
TABLE: tuple[Quirk, ...] = _FRONT_END + _CONVOLUTION + _DPU
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

    def rounding(self, name: str, bit: int) -> str:
        """Rounding mode of a unit: quirk ``name`` while its rounding bit is clear."""
        return self._values["round_bit_set"] if bit else self._values[name]

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
