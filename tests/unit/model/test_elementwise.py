# SPDX-License-Identifier: MIT
"""The DPU on data from memory and after a convolution: element-wise operations, operand feeds, BS and BN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    FP16,
    INT4,
    INT8,
    INT16,
    Bench,
    Conv,
    Flying,
    Task,
    numbers,
    pack_cube,
    pack_dpu,
    pack_weights,
    reference_conv,
    run_conv,
    run_flying,
    stored,
    unpack_cube,
)

from rknpu_userspace.model.quirks import Quirks

SHARED = Bench(32 << 20)
FLOATS = {"add": 0x108202C0, "mul": 0x108003C4, "max": 0x108002C0, "min": 0x108102C0, "minus": 0x108402C0}
FLOAT_OPS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "max": np.maximum,
    "min": np.minimum,
    "minus": lambda a, b: a - b,
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FLOATS)),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([1, 7, 8, 24, 33]),
    st.booleans(),
    st.integers(0, 1 << 20),
)
def test_fp16_with_two_operands(op: str, width: int, height: int, channels: int, vector: bool, seed: int) -> None:
    """Per pixel, or one operand per channel (DATA_MODE 0)."""
    SHARED.memory.unmap(0, SHARED.memory.size)
    SHARED._next = 0x1000
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((height, width, channels)).astype(np.float16)
    b = rng.standard_normal((1, 1, channels) if vector else a.shape).astype(np.float16)
    ew, erdma = FLOATS[op], 0x40000008
    operand = pack_dpu(b, "fp16")
    if vector:
        ew, erdma, operand = ew & ~(1 << 28), 8, b.reshape(-1)
    result, y = run_flying(SHARED, Flying("fp16", width, channels, height), a, operand, ew, erdma)
    assert result.outcome == "done", result.reason
    expected = FLOAT_OPS[op](a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    assert np.array_equal(y, expected)


def test_bf16_product_and_other_output_formats(bench: Bench, rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((1, 8, 16)).astype(np.float32) for _ in range(2))
    for out in ("bf16", "fp16", "fp32"):
        shape = Flying("bf16", 8, 16, out=out)
        result, y = run_flying(bench, shape, a, pack_dpu(b, "bf16"), 0x100003C4, 0x40000008)
        assert result.outcome == "done", result.reason
        product = numbers(stored(a, "bf16"), "bf16") * numbers(stored(b, "bf16"), "bf16")
        assert np.array_equal(y.astype(np.float32), numbers(stored(product, out), out))


def test_main_precision_is_the_rdmas_operand_precision_the_dpus(bench: Bench, rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((1, 4, 8)).astype(np.float32) for _ in range(2))
    shape = Flying("bf16", 4, 8, main="fp16", out="fp16")
    result, y = run_flying(bench, shape, a, pack_dpu(b, "bf16"), 0x108003C4, 0x40000008)
    assert result.outcome == "done", result.reason
    expected = a.astype(np.float16).astype(np.float32) * numbers(stored(b, "bf16"), "bf16")
    assert np.array_equal(y, expected.astype(np.float16))


INT_RANGE = {"int8": 127, "int16": 32767, "int32": 2147483647}
SIZE = {"int8": 1, "int16": 2, "int32": 3}


@pytest.mark.parametrize("kind", ["int8", "int16", "int32"])
@pytest.mark.parametrize(("op", "bits"), [("add", 2 << 16), ("minus", 4 << 16), ("max", 1 << 21), ("min", 0x210000)])
def test_integers_are_exact_and_saturate(bench: Bench, rng: np.random.Generator, kind: str, op: str, bits: int) -> None:
    """The whole precision bundle says integer; int32 operands lie beyond 2^24, where floats are not exact."""
    top = INT_RANGE[kind]
    lanes = 16 // np.dtype(kind).itemsize
    a, b = (rng.integers(-top - 1, top, (1, 32, lanes), endpoint=True) for _ in range(2))
    ew = 1 << 28 | SIZE[kind] << 22 | 0x2C0 | bits | (0x100 if kind == "int32" else 0)
    result, y = run_flying(bench, Flying(kind, 32, lanes), a, pack_dpu(b, kind), ew, 1 << 30 | SIZE[kind] << 2)
    assert result.outcome == "done", result.reason
    exact = {"add": a + b, "minus": a - b, "max": np.maximum(a, b), "min": np.minimum(a, b)}[op]
    assert np.array_equal(y, np.clip(exact, -top - 1, top))


def test_int32_add_wraps_by_quirk(rng: np.random.Generator) -> None:
    bench = Bench(quirks=Quirks({"dpu_int_overflow": "wrap"}))
    a, b = np.full((1, 4, 4), 2147483647), np.full((1, 4, 4), 5)
    result, y = run_flying(bench, Flying("int32", 4, 4), a, pack_dpu(b, "int32"), 0x10C203C0, 0x4000000C)
    assert result.outcome == "done", result.reason
    assert (y == -2147483644).all()


def test_int32_multiplier_reads_16_bits(bench: Bench, rng: np.random.Generator) -> None:
    a, b = rng.integers(-1000, 1000, (1, 8, 4)), rng.integers(-(1 << 31), (1 << 31) - 1, (1, 8, 4))
    result, y = run_flying(bench, Flying("int32", 8, 4), a, pack_dpu(b, "int32"), 0x10C003C4, 0x4000000C)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, a * b.astype(np.int32).astype(np.int16))


def test_fp32_times_half_per_channel_and_per_pixel(bench: Bench) -> None:
    """(float(sum) * half(a)) * half(w), each product rounded to fp32; the coefficient is the low half of 32 bits."""
    rng = np.random.default_rng(3)
    sums = rng.integers(-(1 << 26), 1 << 26, (1, 8, 4)).astype(np.float32)
    coefficient = rng.standard_normal((1, 8, 4)).astype(np.float16)
    coefficient[0, 0, 0] = np.float16(2.0**-24)
    slots = coefficient.view(np.uint16).astype(np.uint32) | 0xABCD0000
    gain = np.float16(0.3)

    def change(task: Task) -> None:
        task.regs["DPU_BS_CFG"] = 0x42
        task.regs["DPU_BS_MUL_CFG"] = int(gain.view(np.uint16)) << 16

    operand = slots.reshape(-1).view(np.uint8)
    result, y = run_flying(bench, Flying("fp32", 8, 4), sums, operand, 0x10C003C4, 0x4000000C, change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, (sums * np.float32(gain)) * coefficient.astype(np.float32))


def test_int32_to_fp32_and_copy_of_int8(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.integers(-(1 << 31), 1 << 31, (1, 16, 4))
    result, y = run_flying(bench, Flying("int32", 16, 4, out="fp32"), a)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, a.astype(np.float32))
    a = rng.integers(-128, 128, (3, 5, 40))
    result, y = run_flying(bench, Flying("int8", 5, 40, 3), a)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, a)


def test_division(bench: Bench, rng: np.random.Generator) -> None:
    a, b = (rng.uniform(0.5, 9, (1, 8, 8)).astype(np.float16) for _ in range(2))
    result, y = run_flying(
        bench,
        Flying("fp16", 8, 8),
        a,
        pack_dpu(b, "fp16"),
        0x108302C0,
        0x40000008,
        lambda t: t.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=1),
    )
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, (a.astype(np.float32) / b.astype(np.float32)).astype(np.float16))


@pytest.mark.parametrize(("algorithm", "function"), [(5, np.abs), (6, np.negative), (7, np.floor), (8, np.ceil)])
def test_unary_operations(bench: Bench, rng: np.random.Generator, algorithm: int, function: object) -> None:
    assert callable(function)
    a = rng.uniform(-9, 9, (1, 8, 8)).astype(np.float16)
    ew = FLOATS["add"] & ~0xF0000 | algorithm << 16
    result, y = run_flying(bench, Flying("fp16", 8, 8), a, pack_dpu(a, "fp16"), ew, 0x40000008)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, function(a))


def test_operand_from_registers(bench: Bench, rng: np.random.Generator) -> None:
    a = rng.integers(-99, 99, (1, 4, 16))

    def change(task: Task) -> None:
        for lane in range(8):
            task.regs[f"DPU_EW_OP_VALUE_{lane}"] = lane * 10

    result, y = run_flying(bench, Flying("int32", 4, 16), a, None, 0x203 << 0 & ~3 | 0x20380, 1, change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, a + np.tile(np.arange(8) * 10, 2))


def test_dropped_operand_and_the_multiplier_that_never_completes(bench: Bench) -> None:
    a = np.ones((1, 4, 8))
    bypassed = FLOATS["add"] | 0x100
    result, y = run_flying(bench, Flying("fp16", 4, 8), a, pack_dpu(a, "fp16"), bypassed, 0x40000008)
    assert result.outcome == "done"
    assert (y == 1).all()
    assert any("EW_OP_CVT_BYPASS" in line for line in bench.lines)
    live = FLOATS["mul"] & ~0x100
    result, _ = run_flying(bench, Flying("fp16", 4, 8), a, pack_dpu(a, "fp16"), live, 0x40000008)
    assert result.outcome == "hang"
    assert "never completes" in result.reason


@pytest.mark.parametrize(
    ("what", "registers"),
    [
        ("COMB_USE 5 with FLYING_MODE never completes", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x17D49}),
        ("ORIG_CHANNEL 0", {"DPU_DATA_CUBE_CHANNEL": 7}),
        ("FLYING_MODE with MRDMA_DISABLE", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x17859}),
        ("without MRDMA_FP16TOFP32_EN", {"DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x17841}),
        ("EW_DATA_MODE 1 with ERDMA_DATA_MODE 0", {"DPU_RDMA_RDMA_ERDMA_CFG": 8}),
        ("ERDMA_DATA_MODE 2", {"DPU_RDMA_RDMA_ERDMA_CFG": 0x80000008}),
        ("EW waits for an operand", {"DPU_RDMA_RDMA_ERDMA_CFG": 1}),
        ("EW_BINARY_EN", {"DPU_EW_CFG": FLOATS["add"] | 1 << 20}),
    ],
)
def test_flying_tasks_that_hang(bench: Bench, what: str, registers: dict[str, int]) -> None:
    a = np.ones((1, 4, 8))
    result, _ = run_flying(
        bench,
        Flying("fp16", 4, 8),
        a,
        pack_dpu(a, "fp16"),
        FLOATS["add"],
        0x40000008,
        lambda t: t.regs.update(registers),
    )
    assert result.outcome == "hang"
    assert what in result.reason


def test_strides_and_notches_of_both_feeds(bench: Bench) -> None:
    """Rows of 4 pixels inside rows of 6, surfaces 256 bytes apart, for main data and operand alike."""
    rng = np.random.default_rng(1)
    height, width, pitch, surface = 2, 4, 6, 256
    a, b = rng.integers(-99, 99, (2, height, width, 4)), rng.integers(-99, 99, (2, height, width, 4))
    memory = np.full((2, 2, surface // 4), 7777, np.int32)
    for which, source in enumerate((a, b)):
        for s in range(2):
            for y in range(height):
                for x in range(width):
                    at = (y * pitch + x) * 4
                    memory[which, s, at : at + 4] = source[s, y, x]
    base = bench.put(memory)
    shape = Flying("int32", width, 8, height, src=base, operand=base + 2 * surface)
    shape.dst = bench.alloc(2 * surface)
    task = shape.task(0x10C203C0, 0x4000000C)
    task.set("DPU_RDMA_RDMA_SRC_DMA_CFG", LINE_NOTCH_ADDR=pitch - width)
    task.set("DPU_RDMA_RDMA_SURF_NOTCH", SURF_NOTCH_ADDR=surface - 16 * width * height)
    task.set("DPU_RDMA_RDMA_DATA_CUBE_HEIGHT", HEIGHT=height - 1, EW_LINE_NOTCH_ADDR=pitch - width)
    task.set("DPU_RDMA_RDMA_EW_SURF_STRIDE", EW_SURF_STRIDE=64)
    task.set("DPU_RDMA_RDMA_EW_SURF_NOTCH", EW_SURF_NOTCH=surface - 64)
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    out = bench.get(shape.dst, 256).view(np.int32).reshape(2, height, width, 4)
    assert np.array_equal(out, a + b)


# After a convolution


def comb_split(task: Task, operand: int, conv: Conv, ew: int, erdma: int, precision: int) -> None:
    """The registers with which clients add a plain cube to a convolution's result (COMB_USE 5)."""
    oh, ow = conv.out_size
    plane = 16 * oh * ow
    task.regs["DPU_EW_CFG"] = ew
    task.regs["DPU_RDMA_RDMA_ERDMA_CFG"] = erdma
    task.regs["DPU_RDMA_RDMA_FEATURE_MODE_CFG"] = precision << 15 | 15 << 11 | 5 << 8 | precision << 5
    task.regs["DPU_RDMA_RDMA_SRC_BASE_ADDR"] = operand
    task.regs["DPU_RDMA_RDMA_EW_BASE_ADDR"] = operand + plane
    task.regs["DPU_RDMA_RDMA_SURF_NOTCH"] = plane
    task.regs["DPU_RDMA_RDMA_EW_SURF_STRIDE"] = plane
    task.regs["DPU_RDMA_RDMA_EW_SURF_NOTCH"] = plane


@pytest.mark.parametrize("op", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("kernels", [16, 48])
def test_fp16_residual_after_a_convolution(bench: Bench, rng: np.random.Generator, op: str, kernels: int) -> None:
    conv = Conv(FP16, 6, 5, 32, kernels, out="fp16")
    x, w = rng.integers(-4, 5, (6, 5, 32)), rng.integers(-4, 5, (kernels, 1, 1, 32))
    residual = rng.standard_normal((6, 5, kernels)).astype(np.float16)
    at = bench.put(pack_dpu(residual, "fp16"))
    result, y = run_conv(bench, conv, x, w, lambda t: comb_split(t, at, conv, FLOATS[op], 0x40000008, 2))
    assert result.outcome == "done", result.reason
    acc = reference_conv(x, w).astype(np.float32)
    assert np.array_equal(y, FLOAT_OPS[op](acc, residual.astype(np.float32)).astype(np.float16))
    assert result.stats.dma_bytes["mrdma"] == result.stats.dma_bytes["erdma"]


def test_int8_residual_with_its_own_scale(bench: Bench, rng: np.random.Generator) -> None:
    """acc' = acc + ((e + OFFSET) * SCALE >> SHIFT), then requantisation."""
    conv = Conv(INT8, 7, 4, 16, 64, out="int8")
    x, w = rng.integers(-128, 128, (7, 4, 16)), rng.integers(-128, 128, (64, 1, 1, 16))
    residual = rng.integers(-128, 128, (7, 4, 64))
    at = bench.put(pack_dpu(residual, "int8"))
    scale, shift, offset, out_scale, out_shift = 19000, 6, 11, 16385, 23

    def change(task: Task) -> None:
        comb_split(task, at, conv, 1 << 31 | 1 << 28 | 1 << 22 | 2 << 16 | 0x2C0, 0x40000004, 0)
        task.set("DPU_EW_CVT_OFFSET_VALUE", EW_OP_CVT_OFFSET=offset)
        task.set("DPU_EW_CVT_SCALE_VALUE", EW_OP_CVT_SCALE=scale, EW_OP_CVT_SHIFT=shift)
        task.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=out_scale)
        task.set("DPU_OUT_CVT_SHIFT", OUT_CVT_SHIFT=out_shift)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    second = np.rint((residual + offset) * scale / 2**shift)
    expected = np.rint((reference_conv(x, w) + second) * out_scale / 2**out_shift)
    assert np.array_equal(y, np.clip(expected, -128, 127))


def test_operand_per_channel_after_a_convolution(bench: Bench, rng: np.random.Generator) -> None:
    conv = Conv(FP16, 3, 4, 8, 32, out="fp16")
    x, w = rng.integers(-4, 5, (3, 4, 8)), rng.integers(-4, 5, (32, 1, 1, 8))
    gain = rng.standard_normal(32).astype(np.float16)
    at = bench.put(gain)

    def change(task: Task) -> None:
        task.regs["DPU_EW_CFG"] = FLOATS["mul"] & ~(1 << 28)
        task.regs["DPU_RDMA_RDMA_ERDMA_CFG"] = 8
        task.regs["DPU_RDMA_RDMA_EW_BASE_ADDR"] = at

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, (reference_conv(x, w).astype(np.float32) * gain.astype(np.float32)).astype(np.float16))


def rne_shift(value: int, shift: int) -> int:
    """Python integers: value / 2^shift to the nearest, ties to even."""
    down, rest, half = value >> shift, value & ((1 << shift) - 1), (1 << shift) >> 1
    return down + int(shift > 0 and (rest > half or (rest == half and down & 1)))


@pytest.mark.parametrize(("shift", "shift_neg"), [(14, 14), (14, 6), (0, 0), (20, 20)])
@pytest.mark.parametrize("with_zero_point", [False, True])
def test_per_channel_scale(
    bench: Bench, rng: np.random.Generator, shift: int, shift_neg: int, with_zero_point: bool
) -> None:
    """BRDMA DATA_USE 7: ((acc + B[c] * S + A[c]) * C[c]) >> (product < 0 ? neg : pos), saturated, then requantised."""
    conv = Conv(INT8, 4, 3, 32, 64, (3, 3), pad=(1, 1, 1, 1), out="int8")
    x, w = rng.integers(-128, 128, (4, 3, 32)), rng.integers(-128, 128, (64, 3, 3, 32))
    a = rng.integers(-6000, 6000, 64).astype(np.int32)
    b = rng.integers(-90, 90, 64).astype(np.int16)
    c = rng.integers(-32768, 32767, 64).astype(np.int16)
    chunks = np.zeros((8, 64), np.uint8)
    for g in range(8):
        chunks[g, :32] = a[8 * g : 8 * g + 8].view(np.uint8)
        chunks[g, 32:48] = b[8 * g : 8 * g + 8].view(np.uint8)
        chunks[g, 48:] = c[8 * g : 8 * g + 8].view(np.uint8)
    at = bench.put(chunks)

    def change(task: Task) -> None:
        task.set("CORE_MISC_CFG", QD_EN=1)
        task.regs["CNA_PAD_CON1"] = 0x05050505
        task.regs["DPU_RDMA_RDMA_BRDMA_CFG"] = 0xE
        task.regs["DPU_RDMA_RDMA_BS_BASE_ADDR"] = at
        task.regs["DPU_BS_CFG"] = 0x20140
        task.regs["DPU_BS_MUL_CFG"] = shift << 8 | 1
        task.set("DPU_DATA_FORMAT", BS_MUL_SHIFT_VALUE_NEG=shift_neg)
        ow = {"OW_SRC": 1} if with_zero_point else {"OD_BYPASS": 1}
        task.set("DPU_BS_OW_CFG", SIZE_E_0=1, SIZE_E_1=1, SIZE_E_2=1, **ow)
        task.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=20000)
        task.set("DPU_OUT_CVT_SHIFT", OUT_CVT_SHIFT=30)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    acc = reference_conv(x, w, pad=conv.pad, value=5)
    window = reference_conv(x, np.ones((1, 3, 3, 32)), pad=conv.pad, value=5)
    if with_zero_point:
        acc = acc + b * window
    for index in np.ndindex(acc.shape):
        product = (int(acc[index]) + int(a[index[2]])) * int(c[index[2]])
        value = rne_shift(product, shift_neg if product < 0 else shift)
        value = max(-(1 << 31), min((1 << 31) - 1, value))
        assert y[index] == max(-128, min(127, rne_shift(value * 20000, 30)))


def test_multiplier_only_from_memory(bench: Bench, rng: np.random.Generator) -> None:
    """BRDMA_CFG 8: fp16 per channel, as RMSNorm's gamma."""
    conv = Conv(FP16, 3, 3, 8, 32, out="fp32")
    x, w = rng.integers(-4, 5, (3, 3, 8)), rng.integers(-4, 5, (32, 1, 1, 8))
    gamma = rng.standard_normal(32).astype(np.float16)
    at = bench.put(gamma)

    def change(task: Task) -> None:
        task.regs["DPU_RDMA_RDMA_BRDMA_CFG"] = 8
        task.regs["DPU_RDMA_RDMA_BS_BASE_ADDR"] = at
        task.regs["DPU_BS_CFG"] = 0x42
        task.regs["DPU_BS_MUL_CFG"] = 1

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, reference_conv(x, w).astype(np.float32) * gamma.astype(np.float32))


@pytest.mark.parametrize("order", ["mul_alu", "alu_mul"])
def test_order_of_bn_is_a_quirk_that_of_bs_is_not(order: str) -> None:
    bench = Bench(quirks=Quirks({"bn_order": order}))
    a = np.arange(-8, 8).reshape(1, 4, 4)
    for stage in ("BS", "BN"):

        def change(task: Task, stage: str = stage) -> None:
            task.regs[f"DPU_{stage}_CFG"] = 0x20040
            task.regs[f"DPU_{stage}_ALU_CFG"] = 3
            task.regs[f"DPU_{stage}_MUL_CFG"] = 2 << 16

        result, y = run_flying(bench, Flying("int32", 4, 4), a, change=change)
        assert result.outcome == "done", result.reason
        alu_first = stage == "BS" or order == "alu_mul"
        assert np.array_equal(y, (a + 3) * 2 if alu_first else a * 2 + 3)


@pytest.mark.parametrize(("kind", "factor"), [("int32", 3), ("fp32", 0.25)])
def test_prelu_scales_negatives_only(bench: Bench, kind: str, factor: float) -> None:
    a = np.arange(-8, 8).reshape(1, 4, 4)
    bits = int(np.float16(factor).view(np.uint16)) if kind == "fp32" else int(factor)

    def change(task: Task) -> None:
        task.set("DPU_BS_CFG", BS_ALU_BYPASS=1, BS_MUL_PRELU=1, BS_RELU_BYPASS=1)
        task.regs["DPU_BS_MUL_CFG"] = bits << 16

    result, y = run_flying(bench, Flying(kind, 4, 4), a, change=change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, np.where(a < 0, a * factor, a))


def test_reciprocal_square_root_seed(bench: Bench) -> None:
    """int16 view of bf16 numbers: 0x5f37 - (v >> 1), the shift rounding to nearest even."""
    values = np.linspace(0.1, 90, 64).astype(np.float32)
    bits = stored(values, "bf16").view(np.int16).reshape(1, 8, 8)

    def change(task: Task) -> None:
        task.regs["DPU_DATA_FORMAT"] = 0x24000011
        task.regs["DPU_BS_CFG"] = 0x42
        task.regs["DPU_BS_MUL_CFG"] = 0xFFFF0100
        task.regs["DPU_BN_CFG"] = 0x20050
        task.regs["DPU_BN_ALU_CFG"] = 0x5F37

    result, y = run_flying(bench, Flying("int16", 8, 8), bits, change=change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, np.rint(-bits.astype(np.float64) / 2) + 0x5F37)
    seed = numbers(y.astype(np.int16).reshape(-1).view(np.uint16), "bf16")
    assert np.allclose(seed, 1 / np.sqrt(values), rtol=0.06)


def test_float_to_int16_output(bench: Bench) -> None:
    a = np.array([-40000, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 40000], np.float32).reshape(1, 1, 8)
    result, y = run_flying(bench, Flying("fp32", 1, 8, out="int16"), a)
    assert result.outcome == "done", result.reason
    assert y.reshape(-1).tolist() == [-32768, -2, -2, 0, 0, 2, 2, 32767]


def test_transposed_writer_of_int16(bench: Bench) -> None:
    """Slot 4 m + (n/4) % 4 + (n/16) * 4 M + (n % 4) * 16 M holds the low 16 bits of the sum."""
    rng = np.random.default_rng(2)
    m, k, n = 12, 32, 32
    a, b = rng.integers(-3000, 3000, (m, k)), rng.integers(-3000, 3000, (n, k))
    conv = Conv(INT16, m, 1, k, n, out="int16", feature=bench.put(pack_cube(a.reshape(m, 1, k), INT16)))
    conv.weights = bench.put(pack_weights(b.reshape(n, 1, 1, k), INT16))
    conv.dst = bench.alloc(2 * 64 * m)
    task = conv.task()
    task.set("CORE_MISC_CFG", QD_EN=1, PROC_PRECISION=1)
    task.set("DPU_BS_OW_CFG", OD_BYPASS=1, SIZE_E_0=7, SIZE_E_1=7, SIZE_E_2=7, TP_ORG_EN=1)
    task.set("DPU_WDMA_SIZE_0", CHANNEL_WDMA=n - 1, TP_PRECISION=1)
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    out = bench.get(conv.dst, 2 * 64 * m).view(np.int16)
    product = a @ b.T
    for i in range(m):
        for j in range(n):
            slot = 4 * i + j // 4 % 4 + j // 4 // 4 * 4 * m + j % 4 * 16 * m
            assert out[slot] == np.int64(product[i, j]).astype(np.int16)


def test_int16_sums_saturate(bench: Bench) -> None:
    x, w = np.full((1, 1, 256), 32767), np.full((16, 1, 1, 256), 32767)
    w[1] = -32768
    result, y = run_conv(bench, Conv(INT16, 1, 1, 256, 16), x, w)
    assert result.outcome == "done", result.reason
    assert y[0, 0, :2].tolist() == [2147483647, -2147483648]


def test_int4_sums_saturate_at_int16(bench: Bench) -> None:
    x, w = np.full((1, 1, 1024), -8), np.full((64, 1, 1, 1024), -8)
    w[1] = 7
    result, y = run_conv(bench, Conv(INT4, 1, 1, 1024, 64, out="int16"), x, w)
    assert result.outcome == "done", result.reason
    assert y[0, 0, :2].tolist() == [32767, -32768]


def test_unpack_of_a_cube_with_tail_lanes() -> None:
    values = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert np.array_equal(unpack_cube(pack_dpu(values, "int32"), 2, 3, 5, "int32"), values)
