# SPDX-License-Identifier: MIT
"""Convolutions of the model against plain loops: shapes, strides, padding, formats, bias, requantisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    BF16,
    FP16,
    INT4,
    INT8,
    INT16,
    TF32,
    Bench,
    Conv,
    Format,
    Task,
    pack_cube,
    pack_weights,
    reference_conv,
    run_conv,
    unpack_cube,
)

from rknpu_userspace.model.quirks import Quirks

RANGE = {"int8": 128, "int4": 8, "int16": 180, "fp16": 12, "bf16": 12, "tf32": 12}
OUTPUTS = {
    "int8": ("int32", "fp32"),
    "int4": ("int16",),
    "int16": ("int32",),
    "fp16": ("fp32",),
    "bf16": ("fp32",),
    "tf32": ("fp32",),
}
FORMATS = (INT8, INT4, INT16, FP16, BF16, TF32)
SHARED = Bench(128 << 20)
"""One machine for the property tests: state that leaks from task to task would show."""


def random_operands(conv: Conv, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers small enough that every format and every sum is exact."""
    rng = np.random.default_rng(seed)
    bound = RANGE[conv.fmt.name]
    x = rng.integers(-bound, bound, (conv.height, conv.width, conv.channels))
    if conv.depthwise:
        return x, rng.integers(-bound, bound, (*conv.kernel, conv.channels))
    return x, rng.integers(-bound, bound, (conv.kernels, *conv.kernel, conv.channels))


def recycle() -> None:
    SHARED.memory.unmap(0, SHARED.memory.size)
    SHARED._next = 0x1000


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    fmt = draw(st.sampled_from(FORMATS))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pad = tuple(draw(st.integers(0, 3)) for _ in range(4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    least_h = max(1, reach[0] - pad[0] - pad[1])
    least_w = max(1, reach[1] - pad[2] - pad[3])
    return Conv(
        fmt,
        height=draw(st.integers(least_h, least_h + 12)),
        width=draw(st.integers(least_w, least_w + 12)),
        channels=draw(st.sampled_from([1, 3, 7, 8, 16, 17, 31, 32, 33, 47, 64, 65, 96, 127])),
        kernels=draw(st.sampled_from([1, 2, 7, 16, 17, 31, 32, 33, 63, 64, 65])),
        kernel=kernel,
        stride=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        pad=(pad[0], pad[1], pad[2], pad[3]),
        dilation=dilation,
        out=draw(st.sampled_from(OUTPUTS[fmt.name])),
    )


@settings(max_examples=150, deadline=None)
@given(convolutions(), st.integers(0, 1 << 30))
def test_any_shape(conv: Conv, seed: int) -> None:
    recycle()
    x, w = random_operands(conv, seed)
    result, y = run_conv(SHARED, conv, x, w)
    assert result.outcome == "done", result.reason
    expected = reference_conv(x, w, conv.stride, conv.pad, conv.dilation)
    if conv.out == "int16":
        expected = np.clip(expected, -32768, 32767)
    assert np.array_equal(y[..., : conv.kernels], expected)
    assert not y[..., conv.kernels :].any(), "channels without a kernel accumulate nothing"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 15, 64, 65, 130]),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(0, 2),
    st.booleans(),
)
def test_depthwise(height: int, width: int, channels: int, kernel: int, stride: int, pad: int, half: bool) -> None:
    if min(height, width) + 2 * pad < kernel:
        return
    recycle()
    conv = Conv(
        FP16 if half else INT8,
        height,
        width,
        channels,
        1,
        (kernel, kernel),
        (stride, stride),
        (pad,) * 4,
        out="fp32" if half else "int8",
        depthwise=True,
    )
    x, w = random_operands(conv, height * 100 + width)
    if not half:
        w = np.sign(w)
    result, y = run_conv(SHARED, conv, x, w)
    assert result.outcome == "done", result.reason
    diagonal = np.zeros((channels, kernel, kernel, channels))
    for c in range(channels):
        diagonal[c, :, :, c] = w[:, :, c]
    expected = reference_conv(x, diagonal, conv.stride, conv.pad)
    if not half:
        expected = np.clip(expected, -128, 127)
    assert np.array_equal(y[..., :channels], expected)


@pytest.mark.parametrize("channels", [1008, 1024, 1040, 2048, 6000])
def test_int8_is_exact_beyond_2_to_24(bench: Bench, channels: int) -> None:
    conv = Conv(INT8, 3, 2, channels, 33)
    x = np.full((3, 2, channels), -128)
    w = np.full((33, 1, 1, channels), -128)
    w[1] = 127
    w[2, 0, 0, 0] = -127
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y[..., :33], reference_conv(x, w))


def test_weights_larger_than_the_cbuf_are_streamed(bench: Bench, rng: np.random.Generator) -> None:
    conv = Conv(INT8, 16, 1, 2048, 512)
    x, w = random_operands(conv, 3)
    assert w.size > 12 * 32768
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    expected = x.reshape(16, -1) @ w.reshape(512, -1).T
    assert np.array_equal(y.reshape(16, 512), expected)


def bias_and_requant(task: Task, address: int, scale: int, shift: int, offset: int, half_up: bool = False) -> None:
    task.regs["DPU_BS_CFG"] = 0x20150
    task.set("DPU_RDMA_RDMA_BRDMA_CFG", BRDMA_DATA_USE=1)
    task.regs["DPU_RDMA_RDMA_BS_BASE_ADDR"] = address
    task.set("DPU_OUT_CVT_OFFSET", OUT_CVT_OFFSET=offset)
    task.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=scale)
    task.set("DPU_OUT_CVT_SHIFT", OUT_CVT_SHIFT=shift, CVT_ROUND=int(half_up))


def exact_requant(acc: int, scale: int, shift: int, offset: int, away: bool) -> int:
    """sat8(round(acc * scale / 2^shift) + offset) in Python integers; scale is a signed 16-bit number."""
    product, half = acc * (scale - 65536 if scale >= 32768 else scale), (1 << shift) >> 1
    magnitude, sign = abs(product), -1 if product < 0 else 1
    down, rest = magnitude >> shift, magnitude & ((1 << shift) - 1)
    up = shift > 0 and (rest > half or (rest == half and (away or down & 1 == 1)))
    return max(-128, min(127, sign * (down + int(up)) + offset))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 40), st.integers(-200, 200), st.booleans(), st.integers(0, 1 << 20))
def test_requantisation(scale: int, shift: int, offset: int, half_up: bool, seed: int) -> None:
    recycle()
    conv = Conv(INT8, 5, 4, 32, 40, (3, 3), pad=(1, 1, 1, 1), out="int8")
    x, w = random_operands(conv, seed)
    bias = np.random.default_rng(seed).integers(-1 << 20, 1 << 20, conv.out_channels)
    at = SHARED.put(bias.astype(np.int32))
    result, y = run_conv(SHARED, conv, x, w, lambda t: bias_and_requant(t, at, scale, shift, offset, half_up))
    assert result.outcome == "done", result.reason
    acc = reference_conv(x, w, pad=conv.pad) + bias[:40]
    expected = [exact_requant(int(a), scale, shift, offset, half_up) for a in acc.reshape(-1)]
    assert y[..., :40].reshape(-1).tolist() == expected
    assert result.stats.dma_bytes["brdma"] == 4 * conv.out_channels


@pytest.mark.parametrize("rule", ["half_even", "half_up", "half_away"])
def test_ties_follow_the_quirk(rule: str) -> None:
    bench = Bench(quirks=Quirks({"tie_rounding": rule}))
    conv = Conv(INT8, 1, 8, 16, 32, out="int8")
    x = np.zeros((1, 8, 16), int)
    x[0, :, 0] = [-5, -3, -1, 0, 1, 3, 5, 7]
    w = np.zeros((32, 1, 1, 16), int)
    w[:, 0, 0, 0] = 1
    result, y = run_conv(
        bench,
        conv,
        x,
        w,
        lambda t: t.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=1 << 14).set("DPU_OUT_CVT_SHIFT", OUT_CVT_SHIFT=15),
    )
    assert result.outcome == "done", result.reason
    expected = {
        "half_even": [-2, -2, 0, 0, 0, 2, 2, 4],
        "half_up": [-2, -1, 0, 0, 1, 2, 3, 4],
        "half_away": [-3, -2, -1, 0, 1, 2, 3, 4],
    }
    assert y[0, :, 0].tolist() == expected[rule]


@pytest.mark.parametrize(
    ("fmt", "out"), [(FP16, "fp16"), (FP16, "fp32"), (BF16, "fp32"), (BF16, "bf16"), (TF32, "fp32")]
)
def test_floats_are_rounded_once(rng: np.random.Generator, fmt: Format, out: str) -> None:
    bench = Bench(quirks=Quirks({"float_accumulation": "once"}))
    conv = Conv(fmt, 9, 5, 100, 37, (3, 3), pad=(1, 1, 1, 1), out=out)
    x = rng.standard_normal((9, 5, 100)).astype(np.float32)
    w = rng.standard_normal((37, 3, 3, 100)).astype(np.float32)
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    stored = {"fp16": lambda v: v.astype(np.float16), "bf16": _drop(16), "tf32": _drop(13)}[fmt.name]
    exact = reference_conv(stored(x), stored(w), pad=conv.pad)
    single = exact.astype(np.float32)
    if out == "fp32":
        assert (np.abs(y[..., :37] - single) <= np.spacing(np.abs(single))).all()
    elif out == "fp16":
        assert np.array_equal(y[..., :37], single.astype(np.float16))
    else:
        assert (np.abs(y[..., :37] - single) <= np.abs(single) * 2.0**-8).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_fp16_sums_are_those_that_boards_show(bench: Bench, rng: np.random.Generator, kernel: int) -> None:
    """Products of 32 channels exactly, rounded to fp32, added in fp32 in order of the weights in memory."""
    conv = Conv(FP16, 5, 4, 72, 24, (kernel, kernel), out="fp32")
    x = rng.standard_normal((5, 4, 72)).astype(np.float16)
    w = rng.standard_normal((24, kernel, kernel, 72)).astype(np.float16)
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    oh, ow = conv.out_size
    for oy in range(oh):
        for ox in range(ow):
            for n in range(24):
                total = np.float32(0)
                for c in range(0, 72, 32):
                    for ky in range(kernel):
                        for kx in range(kernel):
                            a = x[oy + ky, ox + kx, c : c + 32].astype(np.float64)
                            b = w[n, ky, kx, c : c + 32].astype(np.float64)
                            total = np.float32(total + np.float32(math.fsum((a * b).tolist())))
                assert y[oy, ox, n] == total


def test_large_fp16_matmul_in_parallel_is_the_same(rng: np.random.Generator) -> None:
    """The blocks and threads of the model do not show."""
    x = rng.standard_normal((70, 1, 512)).astype(np.float16)
    w = rng.standard_normal((600, 1, 1, 512)).astype(np.float16)
    bench = Bench()
    result, y = run_conv(bench, Conv(FP16, 70, 1, 512, 600, out="fp32"), x, w)
    assert result.outcome == "done", result.reason
    a, b = x.reshape(70, 512).astype(np.float64), w.reshape(600, 512).astype(np.float64)
    total = np.zeros((70, 600), np.float32)
    for k in range(0, 512, 32):
        total += (a[:, k : k + 32] @ b[:, k : k + 32].T).astype(np.float32)
    assert np.array_equal(y[:, 0, :600], total)


def _drop(bits: int) -> object:
    return lambda v: (v.view(np.uint32) & np.uint32(0x100000000 - (1 << bits))).view(np.float32)


def test_tf32_inputs_are_truncated(bench: Bench) -> None:
    """A value half way between two tf32 numbers goes down."""
    conv = Conv(TF32, 1, 1, 4, 16, out="fp32")
    x = np.zeros((1, 1, 4), np.float32)
    x[0, 0, 0] = np.float32(1 + 2.0**-11)
    w = np.zeros((16, 1, 1, 4), np.float32)
    w[0, 0, 0, 0] = 1
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    assert y[0, 0, 0] == 1.0


@pytest.mark.parametrize(("relux", "expected"), [(None, [0, 0, 0, 5, 9]), (6, [0, 0, 0, 5, 6])])
@pytest.mark.parametrize("stage", ["BS", "BN"])
def test_relu(bench: Bench, stage: str, relux: int | None, expected: list[int]) -> None:
    conv = Conv(INT8, 1, 5, 16, 32)
    x = np.zeros((1, 5, 16), int)
    x[0, :, 0] = [-9, -1, 0, 5, 9]
    w = np.zeros((32, 1, 1, 16), int)
    w[:, 0, 0, 0] = 1

    def change(task: Task) -> None:
        bits = {f"{stage}_ALU_BYPASS": 1, f"{stage}_MUL_BYPASS": 1, f"{stage}_RELUX_EN": int(relux is not None)}
        task.set(f"DPU_{stage}_CFG", **bits)
        task.regs[f"DPU_{stage}_RELUX_CMP_VALUE"] = relux or 0

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    assert y[0, :, 0].tolist() == expected


def test_float_relu_bound_is_a_float(bench: Bench) -> None:
    conv = Conv(FP16, 1, 4, 8, 16, out="fp16")
    x = np.zeros((1, 4, 8))
    x[0, :, 0] = [-2, 0.5, 5.5, 8]
    w = np.zeros((16, 1, 1, 8))
    w[:, 0, 0, 0] = 1

    def change(task: Task) -> None:
        task.set("DPU_BN_CFG", BN_ALU_BYPASS=1, BN_MUL_BYPASS=1, BN_RELUX_EN=1)
        task.regs["DPU_BN_RELUX_CMP_VALUE"] = int(np.float32(6).view(np.uint32))

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    assert y[0, :, 0].tolist() == [0, 0.5, 5.5, 6]


APPENDIX_MATMUL = {
    "CNA_CONV_CON2": 5 << 4,
    "CNA_CONV_CON3": 0x9,
    "CNA_DATA_SIZE0": 0x00010004,
    "CNA_DATA_SIZE1": 0x001F0020,
    "CNA_DATA_SIZE2": 1,
    "CNA_DATA_SIZE3": 4,
    "CNA_WEIGHT_SIZE0": 0x400,
    "CNA_WEIGHT_SIZE1": 0x20,
    "CNA_WEIGHT_SIZE2": 0x01010020,
    "CNA_CBUF_CON0": 0xB1,
    "CNA_CBUF_CON1": 1,
    "CNA_CVT_CON0": 0xB,
    "CNA_CVT_CON1": 0x10000,
    "CNA_CVT_CON2": 0x10000,
    "CNA_CVT_CON3": 0x10000,
    "CNA_CVT_CON4": 0x10000,
    "CNA_DMA_CON0": 0xF000F,
    "CNA_DMA_CON1": 4,
    "CNA_FC_DATA_SIZE0": 0x00010004,
    "CNA_FC_DATA_SIZE1": 0x20,
    "CORE_DATAOUT_SIZE_0": 0x00030000,
    "CORE_DATAOUT_SIZE_1": 0x1F,
    "DPU_FEATURE_MODE_CFG": 0x1E4,
    "DPU_DATA_FORMAT": 0x80000000,
    "DPU_DST_SURF_STRIDE": 0x40,
    "DPU_DATA_CUBE_HEIGHT": 3,
    "DPU_DATA_CUBE_CHANNEL": 0x001F001F,
    "DPU_BS_CFG": 0x53,
    "DPU_BS_OW_CFG": 0x7FE,
    "DPU_WDMA_SIZE_0": 0x1F,
    "DPU_WDMA_SIZE_1": 0x00030000,
    "DPU_BN_CFG": 0x53,
    "DPU_EW_CFG": 0x383,
    "DPU_EW_CVT_SCALE_VALUE": 1,
    "DPU_OUT_CVT_SCALE": 1,
    "DPU_SURFACE_ADD": 0x200,
    "DPU_RDMA_RDMA_DATA_CUBE_HEIGHT": 3,
    "DPU_RDMA_RDMA_DATA_CUBE_CHANNEL": 0x1F,
    "DPU_RDMA_RDMA_ERDMA_CFG": 1,
    "DPU_RDMA_RDMA_FEATURE_MODE_CFG": 0x7810,
    "DPU_RDMA_RDMA_WEIGHT": 0x01010101,
}
"""Register values of the int8 matmul M = 4, K = 32, N = 32 that open clients send."""


def test_appendix_matmul_register_for_register(bench: Bench, rng: np.random.Generator) -> None:
    """The int8 matmul M = 4, K = 32, N = 32 that open clients send: literal register values, literal layouts."""
    a, b = rng.integers(-128, 128, (4, 32)), rng.integers(-128, 128, (32, 32))
    a_bytes, b_bytes = np.zeros(128, np.int8), np.zeros(1024, np.int8)
    for m in range(4):
        for k in range(32):
            a_bytes[k // 16 * 64 + m * 16 + k % 16] = a[m, k]
    for n in range(32):
        for k in range(32):
            b_bytes[n * 32 + k] = b[k, n]
    dst = bench.alloc(512)
    task = Task(0x1D)
    task.regs = {
        **APPENDIX_MATMUL,
        "CNA_FEATURE_DATA_ADDR": bench.put(a_bytes),
        "CNA_DCOMP_ADDR0": bench.put(b_bytes),
        "DPU_DST_BASE_ADDR": dst,
    }
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    data, product = bench.get(dst, 512), a @ b
    for m in range(4):
        for n in range(32):
            at = n // 4 * 64 + m * 16 + n % 4 * 4
            assert data[at : at + 4].view(np.int32)[0] == product[m, n]


@pytest.mark.parametrize("core", [0, 1, 2])
def test_same_on_every_core(bench: Bench, core: int) -> None:
    conv = Conv(INT8, 6, 6, 40, 40, (3, 3))
    x, w = random_operands(conv, 9)
    result, y = run_conv(bench, conv, x, w, core=core)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y[..., :40], reference_conv(x, w))


def test_native_packers_agree_with_themselves() -> None:
    """The test's own packers: element by element against the layout formulas."""
    cube = np.arange(3 * 2 * 40).reshape(3, 2, 40) % 100
    data = pack_cube(cube, INT8).view(np.int8)
    assert all(
        data[c // 16 * 96 + (y * 2 + x) * 16 + c % 16] == cube[y, x, c]
        for y in range(3)
        for x in range(2)
        for c in range(40)
    )
    w = np.random.default_rng(0).integers(-9, 9, (48, 1, 1, 64))
    tiles = pack_weights(w, INT8).view(np.int8)
    assert all(
        tiles[k // 32 * 2048 + c // 32 * (1024 if k < 32 else 512) + k % 32 * 32 + c % 32] == w[k, 0, 0, c]
        for k in range(48)
        for c in range(64)
    )
    assert np.array_equal(unpack_cube(pack_cube(cube, INT8), 3, 2, 40, "int8"), cube)
