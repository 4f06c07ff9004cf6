# SPDX-License-Identifier: MIT
"""What the hardware does not complete: illegal configurations, unknown registers, faults; and random streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import CONV, CONV_RDMA, INT8, Bench, Conv, Task, pack_cube, pack_weights

from rknpu_userspace.isa import REGISTERS, Block, pack, write
from rknpu_userspace.model.quirks import Quirks


def small(bench: Bench, mask: int = CONV_RDMA, writable: bool = True) -> tuple[Conv, Task]:
    rng = np.random.default_rng(1)
    conv = Conv(INT8, 4, 4, 32, 32)
    conv.feature = bench.put(pack_cube(rng.integers(-9, 9, (4, 4, 32)), INT8))
    conv.weights = bench.put(pack_weights(rng.integers(-9, 9, (32, 1, 1, 32)), INT8))
    conv.dst = bench.alloc(conv.out_bytes(), writable)
    return conv, conv.task(mask)


ILLEGAL = [
    ("DATA_BANK 1 + WEIGHT_BANK 1 is not 12", {"CNA_CBUF_CON0": 0x11}),
    ("DATA_BANK or WEIGHT_BANK is zero", {"CNA_CBUF_CON0": 0xC0}),
    ("FC_DATA_BANK 1", {"CNA_CBUF_CON0": 0x1B1}),
    ("DATA_ENTRIES 1", {"CNA_CBUF_CON1": 1}),
    ("CBUF banks", {"CNA_CBUF_CON1": 0x3FFF}),
    ("DATAIN_WIDTH is zero", {"CNA_DATA_SIZE0": 4}),
    ("DATAIN_CHANNEL is zero", {"CNA_DATA_SIZE1": 0}),
    ("not a multiple of the 16 channels", {"CNA_DATA_SIZE1": 31}),
    ("DMA_CHANNEL 16", {"CNA_FC_DATA_SIZE1": 16}),
    ("the DMA fetches 3x4", {"CNA_FC_DATA_SIZE0": 0x30004}),
    ("WEIGHT_KERNELS is zero", {"CNA_WEIGHT_SIZE2": 0x01010000}),
    ("WEIGHT_BYTES 1025", {"CNA_WEIGHT_SIZE0": 1025}),
    ("WEIGHT_BYTES_PER_KERNEL 31", {"CNA_WEIGHT_SIZE1": 31}),
    ("CONV_X_STRIDE is zero", {"CNA_CONV_CON3": 0x8}),
    ("DATAOUT_ATOMICS 15 is not a multiple", {"CNA_DATA_SIZE3": 15}),
    ("FEATURE_BASE_ADDR 0x1001 is not 16-byte aligned", {"CNA_FEATURE_DATA_ADDR": 0x1001}),
    ("CORE PROC_PRECISION 2 differs", {"CORE_MISC_CFG": 0x200}),
    ("CORE DW_EN 1 differs", {"CORE_MISC_CFG": 0x2}),
    ("CORE puts out 4x9", {"CORE_DATAOUT_SIZE_0": 0x80003}),
    ("DATAOUT_CHANNEL 16 is less", {"CORE_DATAOUT_SIZE_1": 15}),
    ("DPU precision 2/2", {"DPU_DATA_FORMAT": 0x88000002}),
    ("DPU expects 3x4 pixels", {"DPU_DATA_CUBE_WIDTH": 2, "DPU_WDMA_SIZE_1": 0x30002}),
    ("DPU WIDTH_WDMA 1 differs", {"DPU_WDMA_SIZE_1": 0x30001}),
    ("DPU expects 64 channels", {"DPU_DATA_CUBE_CHANNEL": 0x3F, "DPU_WDMA_SIZE_0": 0x3F}),
    ("SIZE_E 1", {"DPU_BS_OW_CFG": 0x126}),
    ("SIZE_E_0..2 differ", {"DPU_BS_OW_CFG": 0x7E6}),
    ("NOTCH_ADDR_0 and NOTCH_ADDR_1 differ", {"DPU_DATA_CUBE_NOTCH_ADDR": 1}),
    ("fp16 output without FP32TOFP16_EN", {"DPU_DATA_FORMAT": 0x40000000, "DPU_BS_OW_CFG": 0x36E}),
    ("BS waits for an ALU operand", {"DPU_BS_CFG": 0x20150}),
    ("the main feed (MRDMA) is enabled", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x7800}),
    ("DPU_RDMA WIDTH 0 differs", {"DPU_RDMA_RDMA_DATA_CUBE_WIDTH": 0}),
    ("COMB_USE 5 needs both", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x7D00}),
    ("CNA_S_POINTER has the bits of core 1", {}),
]
RESIZED = {"DPU expects 3x4 pixels", "DPU expects 64 channels"}


@pytest.mark.parametrize(("rule", "registers"), ILLEGAL, ids=[rule for rule, _ in ILLEGAL])
def test_illegal_configuration_hangs_and_names_the_rule(bench: Bench, rule: str, registers: dict[str, int]) -> None:
    conv, task = small(bench, CONV if rule in RESIZED else CONV_RDMA)
    before = bench.get(conv.dst, conv.out_bytes())
    task.regs.update(registers)
    words = task.words()
    if "S_POINTER" in rule:
        words = np.concatenate([np.array([pack(0x0201, 0x1004, 0x1000000E)], np.uint64), words])
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "hang"
    assert result.reason.startswith("illegal configuration: ")
    assert rule in result.reason
    assert result.irq_bits == 0
    assert any(rule in line and line.startswith("core 0: hang") for line in bench.lines)
    assert np.array_equal(bench.get(conv.dst, conv.out_bytes()), before)


UNSUPPORTED = [
    ("CNA NN_MODE", {"CNA_CONV_CON3": 0x10000009}),
    ("input converter on a feature cube", {"CNA_CVT_CON0": 8}),
    ("ARGB_IN 1 ", {"CNA_CONV_CON1": 0x60001000}),
    ("DECOMP_CONTROL 3", {"CNA_DCOMP_CTRL": 3}),
    ("CONV_MODE 5", {"CNA_CONV_CON1": 5}),
    ("FC_SKIP_EN", {"CNA_FC_CON0": 1}),
    ("IN_PRECISION 2 with PROC_PRECISION 0", {"CNA_CONV_CON1": 0x20}),
    ("CORE register 0x3030", {"CORE_RESERVED_3030": 1}),
    ("DPU RESERVED_0", {"DPU_RESERVED_40C4": 7}),
    ("DPU TP_EN", {"DPU_FEATURE_MODE_CFG": 0x400001E4}),
    ("DPU MINMAX_CTL", {"DPU_DATA_CUBE_HEIGHT": 0x400003}),
    ("OUT_PRECISION 7", {"DPU_DATA_FORMAT": 0xE0000000}),
    ("BS_ALU_ALGO 7", {"DPU_BS_CFG": 0x70050}),
    ("BS_TRUNCATE_SRC", {"DPU_BS_CFG": 0x42, "DPU_BS_MUL_CFG": 2}),
    ("brdma DATA_USE 0xf", {"DPU_RDMA_RDMA_BRDMA_CFG": 0x1E}),
    ("UNPOOLING_EN", {"DPU_RDMA_RDMA_SRC_DMA_CFG": 1 << 12}),
    ("COMB_USE 2", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x7A10}),
]


@pytest.mark.parametrize(("what", "registers"), UNSUPPORTED, ids=[what for what, _ in UNSUPPORTED])
def test_what_is_not_modelled_is_reported_by_name(bench: Bench, what: str, registers: dict[str, int]) -> None:
    _, task = small(bench)
    task.regs.update(registers)
    result = bench.run(task)
    assert result.outcome == "hang"
    assert result.reason.startswith("not modelled: ")
    assert what in result.reason


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (pack(0x0201, 0x1ABC, 0), "no register at 0x1abc of CNA"),
        (pack(0x0201, 0x4010, 0), "no register at 0x4010 of CNA"),
        (pack(0x0401, 0x2000, 1), "unknown target 0x0401"),
        (pack(0x0601, 0x1010, 1), "unknown target 0x0601"),
        (pack(0x0000, 0x1010, 1), "unknown target 0x0000"),
        (pack(0x1001, 0x4040, 0x13F), "DPU_BS_CFG = 0x13f has undocumented bits 0xc"),
        (pack(0x0101, 0x0020, 0x300), "PC_INTERRUPT_MASK in a command stream"),
        (pack(0x0201, 0x1008, 1), "CNA_OPERATION_ENABLE in a command stream"),
        (pack(0x0081, 0x0008, 0x80), "operation enable with offset 0x8 and mask 0x80"),
    ],
)
def test_unknown_words_are_reported(bench: Bench, word: int, text: str) -> None:
    _, task = small(bench)
    words = np.concatenate([np.array([word], np.uint64), task.words()])
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "hang"
    assert text in result.reason


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (0x08, "needs CNA and CORE"),
        (0x0C, "needs CNA and CORE"),
        (0x05, "no block puts out data"),
        (0x00, "no block puts out data"),
    ],
)
def test_missing_blocks(bench: Bench, mask: int, text: str) -> None:
    _, task = small(bench, CONV)
    words = task.words()
    words[-1] = pack(0x81, 8, mask)
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "hang"
    assert text in result.reason


def test_stream_without_enable_or_sync(bench: Bench) -> None:
    _, task = small(bench)
    words = task.words()
    result = bench.machine.run_task(0, bench.put(words[:-2]), len(words) - 2)
    assert "enables no block" in result.reason
    bench.machine.reset(0)
    words[-2] = 0
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert "0x0041" in result.reason


@pytest.mark.parametrize("core", [0, 1])
def test_faults(bench: Bench, core: int) -> None:
    data_bank = 1 if core == 0 else 0
    result = bench.machine.run_task(core, 0x3000000, 10)
    assert result.outcome == "fault"
    assert result.fault is not None
    assert (result.fault.address, result.fault.write, result.fault.bank) == (0x3000000, False, 0)
    for name, write_fault in (
        ("CNA_FEATURE_DATA_ADDR", False),
        ("CNA_DCOMP_ADDR0", False),
        ("DPU_DST_BASE_ADDR", True),
    ):
        bench.machine.reset(core)
        _, task = small(bench)
        task.regs[name] = 0x2FFFFF0
        bench.memory.map(0x2FFF000, 4096)
        result = bench.run(task, core)
        assert result.outcome == "fault", name
        assert result.fault is not None
        assert (result.fault.address, result.fault.write, result.fault.bank) == (0x3000000, write_fault, data_bank)
        assert "0x03000000" in result.reason


def test_write_to_read_only_memory(bench: Bench) -> None:
    conv, task = small(bench, writable=False)
    result = bench.run(task)
    assert result.outcome == "fault"
    assert result.fault is not None
    assert result.fault.write
    assert result.fault.address == conv.dst
    assert not bench.get(conv.dst, conv.out_bytes()).any()


def test_task_dma_base_stalls(bench: Bench) -> None:
    _, task = small(bench)
    words = task.words()
    result = bench.machine.cores[0].run_job(bench.put(words), len(words), 1, 0x1000)
    assert result.outcome == "hang"
    assert "PC_TASK_DMA_BASE_ADDR" in result.reason


def test_quirks_reject_nonsense(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="unknown quirk 'colour'"):
        Quirks({"colour": "red"})
    with pytest.raises(ValueError, match="'red' is not one of half_even"):
        Quirks({"tie_rounding": "red"})


# Streams of random words

_BLOCKS = (Block.CNA, Block.CORE, Block.DPU, Block.DPU_RDMA, Block.PPU, Block.PPU_RDMA)
_WRITABLE = [r for r in REGISTERS if r.block in _BLOCKS and r.offset - r.block.base > 8]
_RAW = st.integers(0, (1 << 64) - 1)
_INTERESTING = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 64), st.sampled_from([0x1000, 0x10000, 0xFFFFFFF0]))


@st.composite
def register_writes(draw: st.DrawFn) -> int:
    register = draw(st.sampled_from(_WRITABLE))
    return write(register, draw(_INTERESTING) & register.known_mask)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(_RAW, register_writes()), max_size=12),
    st.sampled_from([0x0D, 0x1D, 0x18, 0x60, 0x7F]),
    st.booleans(),
)
def test_random_streams_never_crash_and_never_write_outside(words: list[int], mask: int, mutate: bool) -> None:
    """Noise, and a working task with a few registers overwritten: an outcome in every case, no stray byte."""
    bench = Bench(1 << 20)
    conv, task = small(bench)
    task.mask = 0x7F
    stream = task.words()[:-2].tolist() if mutate else []
    stream += [*words, pack(0x41, 0, 0), pack(0x81, 8, mask)]
    at = bench.put(np.array(stream, np.uint64))
    before = bench.memory.ram.copy()
    result = bench.machine.run_task(0, at, len(stream))
    assert result.outcome in ("done", "hang", "fault")
    assert (result.outcome == "done") == (result.reason == "")
    allowed = np.zeros(len(before), bool)
    allowed[conv.dst // 4096 * 4096 : conv.dst // 4096 * 4096 + 4096] = True
    assert np.array_equal(bench.memory.ram[~allowed], before[~allowed])
