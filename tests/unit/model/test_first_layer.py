# SPDX-License-Identifier: MIT
"""What the CNA and the accumulator do besides multiplying: padding values, zero points, images, compressed weights."""

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
    Task,
    align,
    pack_cube,
    pack_weights,
    reference_conv,
    run_conv,
    unpack_cube,
)

from rknpu_userspace.model.dcomp import PREFIXES
from rknpu_userspace.model.quirks import Quirks


def diagonal(w: np.ndarray) -> np.ndarray:
    """Depthwise weights [kh][kw][c] as a full convolution."""
    channels = w.shape[2]
    full = np.zeros((channels, *w.shape[:2], channels))
    for c in range(channels):
        full[c, :, :, c] = w[:, :, c]
    return full


def pad_bytes(rule: str, channels: int, pattern: tuple[int, int]) -> np.ndarray:
    """The padding of every channel, written out from the rules."""
    line = np.full(channels, pattern[0])
    for c in range(channels):
        in_pattern = rule == "pair" or (rule == "pair_then_byte0" and c % 64 < 32)
        if in_pattern and c % 2 == 1:
            line[c] = pattern[1]
    return line


@pytest.mark.parametrize("rule", ["pair_then_byte0", "byte0", "pair"])
def test_padding_value_of_depthwise(rng: np.random.Generator, rule: str) -> None:
    bench = Bench(quirks=Quirks({"pad_depthwise": rule}))
    conv = Conv(INT8, 5, 4, 128, 1, (3, 3), pad=(1, 1, 1, 1), out="int8", depthwise=True)
    x, w = rng.integers(-20, 20, (5, 4, 128)), rng.integers(-1, 2, (3, 3, 128))

    def change(task: Task) -> None:
        task.regs["CNA_PAD_CON1"] = 0x000011FE
        task.set("CORE_MISC_CFG", QD_EN=1, DW_EN=1)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    line = pad_bytes(rule, 128, (-2, 0x11))
    assert np.array_equal(y, np.clip(reference_conv(x, diagonal(w), pad=conv.pad, value=line), -128, 127))


@pytest.mark.parametrize("rule", ["byte0", "pair"])
def test_padding_value_of_direct(rng: np.random.Generator, rule: str) -> None:
    bench = Bench(quirks=Quirks({"pad_direct": rule}))
    conv = Conv(INT8, 5, 4, 48, 40, (3, 3), pad=(1, 2, 2, 1))
    x, w = rng.integers(-128, 128, (5, 4, 48)), rng.integers(-128, 128, (40, 3, 3, 48))
    result, y = run_conv(bench, conv, x, w, lambda t: t.regs.update(CNA_PAD_CON1=0xFFFF0385))
    assert result.outcome == "done", result.reason
    line = pad_bytes(rule, 48, (0x85 - 256, 3))
    assert np.array_equal(y[..., :40], reference_conv(x, w, pad=conv.pad, value=line))


@pytest.mark.parametrize(("fmt", "bits", "value"), [(FP16, 0x3C00, 1.0), (INT16, 0xFFFE, -2), (INT4, 0xD, -3)])
def test_padding_value_of_other_formats(
    bench: Bench, rng: np.random.Generator, fmt: object, bits: int, value: float
) -> None:
    out = {"fp16": "fp32", "int16": "int32", "int4": "int16"}[fmt.name]  # type: ignore[attr-defined]
    conv = Conv(fmt, 3, 3, 32, 64, (3, 3), pad=(1, 1, 1, 1), out=out)  # type: ignore[arg-type]
    x, w = rng.integers(-4, 5, (3, 3, 32)), rng.integers(-4, 5, (64, 3, 3, 32))
    result, y = run_conv(bench, conv, x, w, lambda t: t.regs.update(CNA_PAD_CON1=bits))
    assert result.outcome == "done", result.reason
    assert np.array_equal(y[..., :64], reference_conv(x, w, pad=conv.pad, value=value))


def test_requantised_depthwise_as_captured_from_a_board() -> None:
    """The registers of the public capture: acc = sum((w + OW_OP) * x) with pads, then SCALE, SHIFT, OFFSET."""
    bench = Bench()
    rng = np.random.default_rng(7)
    conv = Conv(INT8, 8, 8, 64, 1, (3, 3), pad=(1, 1, 1, 1), out="int8", depthwise=True)
    x, w = rng.integers(-128, 128, (8, 8, 64)), rng.integers(-128, 128, (3, 3, 64))
    bias = rng.integers(-20000, 20000, 64).astype(np.int32)
    at = bench.put(bias)

    def change(task: Task) -> None:
        task.regs["CNA_PAD_CON1"] = 0x7E
        task.set("CORE_MISC_CFG", QD_EN=1, DW_EN=1)
        task.set("DPU_BS_OW_CFG", SIZE_E_0=3, SIZE_E_1=3, SIZE_E_2=3)
        task.set("DPU_BS_OW_OP", OW_OP=128)
        task.regs["DPU_BS_CFG"] = 0x20150
        task.regs["DPU_RDMA_RDMA_BRDMA_CFG"] = 2
        task.regs["DPU_RDMA_RDMA_BS_BASE_ADDR"] = at
        task.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=17675)
        task.set("DPU_OUT_CVT_SHIFT", OUT_CVT_SHIFT=22)
        task.set("DPU_OUT_CVT_OFFSET", OUT_CVT_OFFSET=-123)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    acc = reference_conv(x, diagonal(w + 128), pad=conv.pad, value=pad_bytes("pair_then_byte0", 64, (0x7E, 0))) + bias
    expected = np.clip(np.rint(acc * 17675 / 2**22) - 123, -128, 127)
    assert np.array_equal(y, expected)
    assert (np.abs(expected) < 127).sum() > 500, "the test must not live at the rails"


@pytest.mark.parametrize("zero_point", [-128, 25, 32767])
def test_zero_point_term_of_a_direct_convolution(bench: Bench, rng: np.random.Generator, zero_point: int) -> None:
    conv = Conv(INT8, 6, 5, 40, 32, (3, 3), (2, 1), (1, 1, 1, 1))
    x, w = rng.integers(-128, 128, (6, 5, 40)), rng.integers(-128, 128, (32, 3, 3, 40))

    def change(task: Task) -> None:
        task.regs["CNA_PAD_CON1"] = 0x03030303
        task.set("CORE_MISC_CFG", QD_EN=1)
        task.set("DPU_BS_OW_CFG", SIZE_E_0=7, SIZE_E_1=7, SIZE_E_2=7)
        task.set("DPU_BS_OW_OP", OW_OP=zero_point)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    # The padded channels 40..47 hold zeros inside, but the padding value in the border.
    wide = np.concatenate([x, np.zeros((6, 5, 8), int)], axis=2)
    window = reference_conv(wide, np.ones((1, 3, 3, 48)), conv.stride, conv.pad, value=3)
    acc = reference_conv(x, w, conv.stride, conv.pad, value=3) + zero_point * window
    assert np.array_equal(y, acc)


@pytest.mark.parametrize("set_qd", [False, True])
def test_zero_point_needs_its_switches(bench: Bench, rng: np.random.Generator, set_qd: bool) -> None:
    conv = Conv(INT8, 3, 3, 16, 32)
    x, w = rng.integers(-9, 9, (3, 3, 16)), rng.integers(-9, 9, (32, 1, 1, 16))

    def change(task: Task) -> None:
        task.set("CORE_MISC_CFG", QD_EN=int(set_qd))
        bypass = {"OD_BYPASS": 1} if set_qd else {}
        task.set("DPU_BS_OW_CFG", SIZE_E_0=7, SIZE_E_1=7, SIZE_E_2=7, **bypass)
        task.set("DPU_BS_OW_OP", OW_OP=100)

    result, y = run_conv(bench, conv, x, w, change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, reference_conv(x, w))


@pytest.mark.parametrize("bit", [0, 1])
@pytest.mark.parametrize("shift", [1, 5])
def test_truncation_of_the_accumulator(bench: Bench, rng: np.random.Generator, bit: int, shift: int) -> None:
    conv = Conv(INT8, 4, 4, 16, 32)
    x, w = rng.integers(-9, 9, (4, 4, 16)), rng.integers(-9, 9, (32, 1, 1, 16))
    result, y = run_conv(bench, conv, x, w, lambda t: t.set("CORE_CLIP_TRUNCATE", CLIP_TRUNCATE=shift, ROUND_TYPE=bit))
    assert result.outcome == "done", result.reason
    exact = reference_conv(x, w) / 2**shift
    away = np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    assert np.array_equal(y, away if bit else np.rint(exact))


def test_only_whole_kernel_groups_complete_with_int8_output(bench: Bench) -> None:
    x, w = np.ones((2, 2, 16)), np.ones((48, 1, 1, 16))
    conv = Conv(INT8, 2, 2, 16, 48, out="int8")

    def partial(task: Task) -> None:
        task.set("CORE_DATAOUT_SIZE_1", DATAOUT_CHANNEL=47)
        task.set("DPU_DATA_CUBE_CHANNEL", CHANNEL=47, ORIG_CHANNEL=47)
        task.set("DPU_WDMA_SIZE_0", CHANNEL_WDMA=47)
        task.set("DPU_RDMA_RDMA_DATA_CUBE_CHANNEL", CHANNEL=47)

    result, _ = run_conv(bench, conv, x, w, partial)
    assert result.outcome == "hang"
    assert "ends inside a group of 32" in result.reason
    bench.machine.reset(0)
    result, y = run_conv(bench, conv, x, w)
    assert result.outcome == "done", result.reason
    assert (y[..., :48] == 16).all()


@pytest.mark.parametrize(("rule", "expected"), [("ignored", 32), ("masks", 5)])
def test_real_channels_are_a_quirk(rule: str, expected: int) -> None:
    bench = Bench(quirks=Quirks({"channel_real": rule}))
    conv = Conv(INT8, 1, 1, 32, 32)
    x, w = np.ones((1, 1, 32)), np.ones((32, 1, 1, 32))
    result, y = run_conv(bench, conv, x, w, lambda t: t.set("CNA_DATA_SIZE1", DATAIN_CHANNEL=32, DATAIN_CHANNEL_REAL=4))
    assert result.outcome == "done", result.reason
    assert (y == expected).all()


@pytest.mark.parametrize("order", ["low_first", "high_first"])
def test_nibble_order_is_a_quirk(order: str) -> None:
    bench = Bench(quirks=Quirks({"nibble_order": order}))
    x, w = np.zeros((1, 1, 32), int), np.zeros((64, 1, 1, 32), int)
    x[0, 0, :] = np.arange(32) % 7
    w[0, 0, 0, 4] = 1
    packed = pack_cube(x, INT4)
    conv = Conv(INT4, 1, 1, 32, 64, out="int16", feature=bench.put(packed))
    w_bytes = pack_weights(w, INT4)
    if order == "high_first":  # the operand stays low-first: only one of the two is swapped, so that it shows
        w_bytes = w_bytes >> 4 | (w_bytes & 15) << 4
    conv.weights, conv.dst = bench.put(w_bytes), bench.alloc(conv.out_bytes())
    assert bench.run(conv.task()).outcome == "done"
    y = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 1, 1, 64, "int16")
    assert y[0, 0, 0] == (x[0, 0, 4] if order == "low_first" else x[0, 0, 5])


# Transposed convolution


@pytest.mark.parametrize(("stride", "kernel", "pad"), [((2, 2), 3, 0), ((4, 4), 3, 0), ((2, 2), 4, 1), ((2, 1), 3, 1)])
def test_transposed_convolution(
    bench: Bench, rng: np.random.Generator, stride: tuple[int, int], kernel: int, pad: int
) -> None:
    """Every input pixel scatters a copy of the kernel; the caller flips it and writes pad k - 1 - p."""
    height, width = 5, 6
    x = rng.integers(-5, 6, (height, width, 32))
    w = rng.integers(-3, 4, (16, kernel, kernel, 32))
    oh, ow = ((n - 1) * s + kernel - 2 * pad for n, s in zip((height, width), stride, strict=True))
    scattered = np.zeros(((height - 1) * stride[0] + kernel, (width - 1) * stride[1] + kernel, 16))
    for y in range(height):
        for xx in range(width):
            for ky in range(kernel):
                for kx in range(kernel):
                    scattered[y * stride[0] + ky, xx * stride[1] + kx] += w[:, ky, kx] @ x[y, xx]
    expected = scattered[pad : pad + oh, pad : pad + ow]
    border = kernel - 1 - pad
    conv = Conv(FP16, height, width, 32, 16, (kernel, kernel), out="fp32")
    conv.pad = (border, oh + kernel - 1 - border - height, border, ow + kernel - 1 - border - width)
    assert conv.out_size == (oh, ow)

    def change(task: Task) -> None:
        task.set("CNA_CONV_CON1", IN_PRECISION=2, PROC_PRECISION=2, DECONV=1)
        task.set(
            "CNA_CONV_CON3",
            CONV_X_STRIDE=1,
            CONV_Y_STRIDE=1,
            DECONV_Y_STRIDE=stride[0] - 1,
            DECONV_X_STRIDE=stride[1] - 1,
        )

    result, y = run_conv(bench, conv, x, w[:, ::-1, ::-1], change)
    assert result.outcome == "done", result.reason
    assert np.array_equal(y, expected)
    assert result.stats.op.startswith("deconv")


def test_deconvolution_strides_need_their_switch_and_powers_of_two(bench: Bench, rng: np.random.Generator) -> None:
    conv = Conv(FP16, 4, 4, 32, 16, (3, 3), out="fp32")
    x, w = rng.integers(-5, 6, (4, 4, 32)), rng.integers(-3, 4, (16, 3, 3, 32))
    for deconv, field in ((0, 3), (1, 2), (1, 5)):

        def change(task: Task, deconv: int = deconv, field: int = field) -> None:
            task.set("CNA_CONV_CON1", IN_PRECISION=2, PROC_PRECISION=2, DECONV=deconv)
            task.set("CNA_CONV_CON3", CONV_X_STRIDE=1, CONV_Y_STRIDE=1, DECONV_Y_STRIDE=field, DECONV_X_STRIDE=field)

        result, y = run_conv(bench, conv, x, w, change)
        assert result.outcome == "done", result.reason
        assert np.array_equal(y, reference_conv(x, w))


# Packed images


def image_task(task: Task, channels: int, width: int, height: int, pitch: int) -> None:
    task.regs["CNA_CONV_CON1"] |= 1 << 30 | 1 << 29 | (7 + channels) << 12
    task.set("CNA_DMA_CON1", LINE_STRIDE=pitch)
    task.set("CNA_DMA_CON2", SURF_STRIDE=pitch * (height - 1))
    task.set("CNA_CBUF_CON1", DATA_ENTRIES=width * height)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_uint8_image_through_the_input_converter(bench: Bench, rng: np.random.Generator, channels: int) -> None:
    """Truncate 14, scale 16384, offset -128: uint8 to int8, as Mesa sets it."""
    height, width, pitch = 9, 18, 20
    image = rng.integers(0, 256, (height, pitch, channels)).astype(np.uint8)
    w = rng.integers(-128, 128, (32, 3, 3, channels))
    conv = Conv(INT8, height, width, channels, 32, (3, 3), (2, 2), feature=bench.put(image))
    wide = np.concatenate([w, rng.integers(-128, 128, (32, 3, 3, 16 - channels))], axis=3)
    conv.weights, conv.dst = bench.put(pack_weights(wide, INT8)), bench.alloc(conv.out_bytes())
    task = conv.task()
    image_task(task, channels, width, height, pitch)
    task.set("CNA_CVT_CON0", CVT_TRUNCATE_0=14, CVT_TRUNCATE_1=14, CVT_TRUNCATE_2=14, CVT_TRUNCATE_3=14)
    for lane in range(1, 5):
        task.regs[f"CNA_CVT_CON{lane}"] = 0x4000FF80
    task.regs["CNA_CVT_CON5"] = 65535
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    y = unpack_cube(bench.get(conv.dst, conv.out_bytes()), *conv.out_size, 32, "int32")
    assert np.array_equal(y, reference_conv(image[:, :width].astype(int) - 128, w, conv.stride))
    assert result.stats.dma_bytes["feature"] == height * width * channels


def test_normalisation_in_the_input_converter(bench: Bench, rng: np.random.Generator) -> None:
    """Offset first, a scale per channel, rounding to nearest even, saturation to int8."""
    image = rng.integers(0, 256, (4, 16, 3)).astype(np.uint8)
    offsets, scales, shift = (-124, -116, -104), (150, 154, 149), 8
    w = np.eye(32, 3, dtype=int).reshape(32, 1, 1, 3)
    conv = Conv(INT8, 4, 16, 3, 32, feature=bench.put(image), out="int32")
    conv.weights = bench.put(pack_weights(np.pad(w, [(0, 0)] * 3 + [(0, 13)]), INT8))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    image_task(task, 3, 16, 4, 16)
    task.set("CNA_CVT_CON0", CVT_TYPE=1, CVT_TRUNCATE_0=shift, CVT_TRUNCATE_1=shift, CVT_TRUNCATE_2=shift)
    for lane in range(3):
        task.set(f"CNA_CVT_CON{lane + 1}", **{f"CVT_OFFSET{lane}": offsets[lane], f"CVT_SCALE{lane}": scales[lane]})
    task.regs["CNA_CVT_CON5"] = 7
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    y = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 4, 16, 32, "int32")
    expected = np.clip(np.rint((image.astype(int) + offsets) * np.array(scales) / 2**shift), -128, 127)
    assert np.array_equal(y[..., :3], expected)


@pytest.mark.parametrize(("unit", "stride"), [("pixels", 8), ("bytes", 48)])
def test_fp16_image_and_the_unit_of_its_rows(rng: np.random.Generator, unit: str, stride: int) -> None:
    """Rockchip's compiler: 7 x 5 pixels of 3 x fp16 in rows of 8, converter bypassed."""
    bench = Bench(quirks=Quirks({"nonalign_line_unit": unit}))
    image = rng.integers(-9, 9, (5, 8, 3)).astype(np.float16)
    w = rng.integers(-9, 9, (6, 2, 3, 8))
    w[..., 3:] = 0
    conv = Conv(FP16, 5, 8, 3, 6, (2, 3), out="fp16", feature=bench.put(image), pad=(0, 0, 0, -1))
    conv.weights, conv.dst = bench.put(pack_weights(w, FP16)), bench.alloc(conv.out_bytes())
    task = conv.task()
    image_task(task, 3, 8, 5, stride)
    task.set("CNA_FC_DATA_SIZE0", DMA_WIDTH=7, DMA_HEIGHT=5)
    task.regs["CNA_CVT_CON5"] = 0xFFF
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    y = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 4, 5, 6, "fp16")
    assert np.array_equal(y, reference_conv(image[:, :7].astype(float), w[..., :3]))


# Compressed weights


def compress(raw: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Encode an int8 weight image into 16 lanes, written from the description of the format, byte by byte."""
    tiles = len(raw) // 1024
    streams, amounts = [], []
    for lane in range(16):
        parity, quad = divmod(lane, 8)
        data = [
            int(raw[tile * 1024 + half * 512 + (group * 2 + parity) * 32 + quad * 4 + i])
            for tile in range(tiles)
            for half in range(2)
            for group in range(8)
            for i in range(4)
        ]
        modal = max(set(data), key=data.count)
        residuals = [(byte - modal) % 256 for byte in data]
        parts = [(r, 0) if r < 128 else (255 - r, 1) for r in residuals]
        counts = [sum(1 for m, _ in parts if m.bit_length() == width) for width in range(8)]
        book = sorted(range(8), key=lambda width: -counts[width])
        bits: list[int] = []
        for magnitude, sign in parts:
            width = magnitude.bit_length()
            pattern, length = PREFIXES[book.index(width)]
            bits += [pattern >> i & 1 for i in range(length)]
            bits.append(sign)
            bits += [magnitude >> i & 1 for i in range(width - 1)]
        header = np.zeros(16, np.uint8)
        header[1] = modal
        for i in range(4):
            header[4 + i] = book[2 * i] | book[2 * i + 1] << 4
        body = np.packbits(np.array(bits, np.uint8), bitorder="little")
        size = align(max(128, 16 + len(body)), 16)
        stream = np.zeros(align(size, 64), np.uint8)
        stream[:16], stream[16 : 16 + len(body)] = header, body
        streams.append(stream)
        amounts.append(size // 16 - 1)
    return np.concatenate(streams), amounts


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 8, 128]), st.integers(0, 1 << 20))
def test_compressed_weights(k_tiles: int, n_tiles: int, spread: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bench = Bench(8 << 20)
    conv = Conv(INT8, 5, 1, 32 * k_tiles, 32 * n_tiles)
    x = rng.integers(-128, 128, (5, 1, conv.channels))
    w = np.clip(rng.normal(7, spread, (conv.kernels, 1, 1, conv.channels)).round(), -128, 127).astype(int)
    stream, amounts = compress(pack_weights(w, INT8))
    conv.feature, conv.weights = bench.put(pack_cube(x, INT8)), bench.put(stream)
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    task.regs["CNA_DCOMP_CTRL"] = 1
    task.regs["CNA_DCOMP_REGNUM"] = 0x55555555
    for lane, amount in enumerate(amounts):
        task.regs[f"CNA_DCOMP_AMOUNT{lane}"] = amount
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    y = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 5, 1, conv.kernels, "int32")
    assert np.array_equal(y, reference_conv(x, w))
    assert result.stats.dma_bytes["weight"] == sum(16 * (a + 1) for a in amounts)


def test_broken_compressed_weights_hang(bench: Bench, rng: np.random.Generator) -> None:
    conv = Conv(INT8, 4, 1, 32, 32)
    conv.feature = bench.put(np.zeros(128, np.uint8))
    conv.weights = bench.put(rng.integers(0, 256, 16 * 128).astype(np.uint8))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    task.regs["CNA_DCOMP_CTRL"] = 1
    task.regs["CNA_DCOMP_REGNUM"] = 0x55555555
    for lane in range(16):
        task.regs[f"CNA_DCOMP_AMOUNT{lane}"] = 7
    result = bench.run(task)
    assert result.outcome == "hang"
    assert "compressed weights" in result.reason
