# SPDX-License-Identifier: MIT
"""PPU: pooling against plain loops, in fp16 and int8."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import POOL, Bench, Task, pack_dpu, unpack_cube

from rknpu_userspace.model.quirks import Quirks
from rknpu_userspace.model.results import TaskResult

SHARED = Bench(16 << 20)
METHODS = {"avg": 0, "max": 1, "min": 2}


@dataclass
class Pooling:
    method: str
    kind: str
    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    pad_value: int = 0

    @property
    def out_size(self) -> tuple[int, int]:
        top, bottom, left, right = self.pad
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (self.width + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    def task(self, src: int, dst: int) -> Task:
        (oh, ow), (kh, kw), (top, bottom, left, right) = self.out_size, self.kernel, self.pad
        code = 0 if self.kind == "int8" else 2
        t = Task(POOL)
        for prefix in ("PPU_DATA", "PPU_RDMA_RDMA"):
            t.set(f"{prefix}_CUBE_IN_WIDTH", CUBE_IN_WIDTH=self.width - 1)
            t.set(f"{prefix}_CUBE_IN_HEIGHT", CUBE_IN_HEIGHT=self.height - 1)
            t.set(f"{prefix}_CUBE_IN_CHANNEL", CUBE_IN_CHANNEL=self.channels - 1)
        t.set("PPU_DATA_CUBE_OUT_WIDTH", CUBE_OUT_WIDTH=ow - 1)
        t.set("PPU_DATA_CUBE_OUT_HEIGHT", CUBE_OUT_HEIGHT=oh - 1)
        t.set("PPU_DATA_CUBE_OUT_CHANNEL", CUBE_OUT_CHANNEL=self.channels - 1)
        t.set("PPU_OPERATION_MODE_CFG", POOLING_METHOD=METHODS[self.method], FLYING_MODE=1)
        t.set(
            "PPU_POOLING_KERNEL_CFG",
            KERNEL_WIDTH=kw - 1,
            KERNEL_HEIGHT=kh - 1,
            KERNEL_STRIDE_WIDTH=self.stride[1] - 1,
            KERNEL_STRIDE_HEIGHT=self.stride[0] - 1,
        )
        if self.method == "avg":
            recip = (lambda k: 65536 // k) if code == 0 else (lambda k: int(np.float16(65536 / k).view(np.uint16)))
            t.regs["PPU_RECIP_KERNEL_WIDTH"], t.regs["PPU_RECIP_KERNEL_HEIGHT"] = recip(kw), recip(kh)
        t.set("PPU_POOLING_PADDING_CFG", PAD_LEFT=left, PAD_TOP=top, PAD_RIGHT=right, PAD_BOTTOM=bottom)
        t.regs["PPU_PADDING_VALUE_1_CFG"] = self.pad_value
        t.regs["PPU_DST_BASE_ADDR"] = dst
        t.set("PPU_DST_SURF_STRIDE", DST_SURF_STRIDE=16 * oh * ow)
        t.set("PPU_DATA_FORMAT", PROC_PRECISION=code, INDEX_ADD=16 * oh * ow)
        t.regs["PPU_MISC_CTRL"] = 3
        t.regs["PPU_RDMA_RDMA_SRC_BASE_ADDR"] = src
        t.set("PPU_RDMA_RDMA_SRC_LINE_STRIDE", SRC_LINE_STRIDE=16 * self.width)
        t.set("PPU_RDMA_RDMA_SRC_SURF_STRIDE", SRC_SURF_STRIDE=16 * self.width * self.height)
        t.set("PPU_RDMA_RDMA_DATA_FORMAT", IN_PRECISION=1 if code == 0 else 2)
        return t

    def run(self, bench: Bench, x: np.ndarray, **changes: int) -> tuple[TaskResult, np.ndarray]:
        src = bench.put(pack_dpu(x, self.kind))
        oh, ow = self.out_size
        size = -(-self.channels * np.dtype("i1" if self.kind == "int8" else "f2").itemsize // 16) * oh * ow * 16
        dst = bench.alloc(size)
        task = self.task(src, dst)
        task.regs.update(changes)
        result = bench.run(task)
        return result, unpack_cube(bench.get(dst, size), oh, ow, self.channels, self.kind)

    def windows(self, x: np.ndarray, value: float) -> np.ndarray:
        """[oy][ox][kernel pixels][c] with the padding in place."""
        top, bottom, left, right = self.pad
        padded = np.full((self.height + top + bottom, self.width + left + right, self.channels), value, np.float64)
        padded[top : top + self.height, left : left + self.width] = x
        (oh, ow), (kh, kw), (sy, sx) = self.out_size, self.kernel, self.stride
        return np.array(
            [
                [
                    padded[y * sy : y * sy + kh, xx * sx : xx * sx + kw].reshape(kh * kw, self.channels)
                    for xx in range(ow)
                ]
                for y in range(oh)
            ]
        )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["max", "min", "avg"]),
    st.sampled_from(["fp16", "int8"]),
    st.integers(4, 12),
    st.integers(4, 12),
    st.sampled_from([1, 8, 16, 24, 33]),
    st.tuples(st.integers(2, 4), st.integers(2, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(0, 1 << 20),
)
def test_pooling(
    method: str,
    kind: str,
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int, int, int],
    seed: int,
) -> None:
    SHARED.memory.unmap(0, SHARED.memory.size)
    SHARED._next = 0x1000
    rng = np.random.default_rng(seed)
    pool = Pooling(method, kind, height, width, channels, kernel, stride, pad)
    if kind == "int8":
        x = rng.integers(-128, 128, (height, width, channels))
        value, pool.pad_value = (0.0, 0) if method == "avg" else (-128.0, 0x7FF80)
    else:
        x = rng.standard_normal((height, width, channels)).astype(np.float16)
        value, pool.pad_value = (0.0, 0) if method == "avg" else (-np.inf, 0xFC00)
    result, y = pool.run(SHARED, x)
    assert result.outcome == "done", result.reason
    windows = pool.windows(x, value)
    if method == "max":
        assert np.array_equal(y, windows.max(axis=2))
    elif method == "min":
        assert np.array_equal(y, windows.min(axis=2))
    elif kind == "fp16":
        factor = float(np.float16(65536 / kernel[1])) * float(np.float16(65536 / kernel[0])) * 2.0**-32
        assert np.array_equal(y, (windows.sum(axis=2) * factor).astype(np.float16))
        assert np.allclose(y, windows.mean(axis=2), atol=0.004)
    else:
        assert np.array_equal(y, average_as_measured(windows.sum(axis=2), kernel))


def average_as_measured(sums: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """Half away from zero; an exact half of an even window steps back towards zero, always when a reciprocal of the
    window is inexact, else when the quotient is odd."""
    count = kernel[0] * kernel[1]
    exact = all(65536 % k == 0 for k in kernel)
    out = np.zeros(sums.shape, int)
    for index, total in np.ndenumerate(sums):
        value = Fraction(int(total), count)
        magnitude = int(abs(value) + Fraction(1, 2))
        if abs(value) + Fraction(1, 2) == magnitude and (not exact or magnitude % 2):
            magnitude -= 1
        out[index] = magnitude if value >= 0 else -magnitude
    return out


@pytest.mark.parametrize(("answer", "bits"), [("ppu", 0x400), ("ppu_and_dpu", 0x500)])
def test_interrupt_of_a_pooling_task(answer: str, bits: int) -> None:
    bench = Bench(quirks=Quirks({"ppu_irq": answer}))
    x = np.ones((4, 4, 8), np.float16)
    pool = Pooling("max", "fp16", 4, 4, 8, (2, 2), (2, 2))
    first, _ = pool.run(bench, x)
    second, _ = pool.run(bench, x)
    assert (first.irq_bits, second.irq_bits) == (bits, bits << 1)
    assert first.stats.dma_bytes == {"pc": first.stats.dma_bytes["pc"], "ppu_rdma": 256, "ppu_wdma": 64}


@pytest.mark.parametrize(
    ("what", "registers"),
    [
        ("PROC_PRECISION 3", {"PPU_DATA_FORMAT": 3}),
        ("IN_PRECISION 1 with PROC_PRECISION fp16", {"PPU_RDMA_RDMA_DATA_FORMAT": 1}),
        ("POOLING_METHOD 3", {"PPU_OPERATION_MODE_CFG": 0x13}),
        ("input from the DPU", {"PPU_OPERATION_MODE_CFG": 1}),
        ("INDEX_EN", {"PPU_OPERATION_MODE_CFG": 0x40000011}),
        ("differs from PPU_RDMA's", {"PPU_RDMA_RDMA_CUBE_IN_WIDTH": 2}),
        ("the windows need", {"PPU_DATA_CUBE_OUT_WIDTH": 7}),
        ("RECIP_KERNEL_WIDTH 0x7c00", {"PPU_OPERATION_MODE_CFG": 0x10, "PPU_RECIP_KERNEL_WIDTH": 0x7C00}),
    ],
)
def test_pooling_that_hangs(bench: Bench, what: str, registers: dict[str, int]) -> None:
    result, _ = Pooling("max", "fp16", 4, 4, 8, (2, 2), (2, 2)).run(bench, np.ones((4, 4, 8)), **registers)
    assert result.outcome == "hang"
    assert what in result.reason
