# SPDX-License-Identifier: MIT
"""Every layout in which clients feed a matmul, tiles of larger tensors, and the write-out addresses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    FP16,
    INT8,
    Bench,
    Conv,
    Format,
    Task,
    ceil_div,
    pack_cube,
    pack_weights,
    reference_conv,
    unpack_cube,
)

SHARED = Bench(64 << 20)


class Matmul:
    """C = A x B^T with M x K and N x K integers, K and N multiples of the tile."""

    def __init__(self, fmt: Format, m: int, k: int, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.fmt, self.m, self.k, self.n = fmt, m, k, n
        self.a = rng.integers(-9, 10, (m, k))
        self.b = rng.integers(-9, 10, (n, k))
        self.out = "int32" if fmt is INT8 else "fp32"
        SHARED.memory.unmap(0, SHARED.memory.size)
        SHARED._next = 0x1000
        self.weights = SHARED.put(pack_weights(self.b.reshape(n, 1, 1, k), fmt))
        self.dst = SHARED.alloc(m * n * 4)

    def conv(self, height: int, width: int) -> Conv:
        return Conv(self.fmt, height, width, self.k, self.n, out=self.out, weights=self.weights, dst=self.dst)

    def row_major_a(self) -> int:
        return SHARED.put(self.fmt.raw(self.a))

    def native_a(self) -> int:
        return SHARED.put(pack_cube(self.a.reshape(self.m, 1, self.k), self.fmt))

    def run(self, task: Task) -> np.ndarray:
        result = SHARED.run(task)
        assert result.outcome == "done", result.reason
        return SHARED.get(self.dst, self.m * self.n * 4)

    def check_native(self, data: np.ndarray) -> None:
        assert np.array_equal(unpack_cube(data, self.m, 1, self.n, self.out)[:, 0], self.a @ self.b.T)

    def check_row_major(self, data: np.ndarray) -> None:
        values = data.view("i4" if self.out == "int32" else "f4").reshape(self.m, self.n)
        assert np.array_equal(values, self.a @ self.b.T)


def group_off(task: Task, line: int, surface: int) -> None:
    task.regs["CNA_CONV_CON1"] |= 1 << 29
    task.set("CNA_DMA_CON1", LINE_STRIDE=line)
    task.set("CNA_DMA_CON2", SURF_STRIDE=surface)


sizes = st.tuples(st.sampled_from([INT8, FP16]), st.integers(1, 70), st.integers(1, 6), st.integers(1, 4))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_native_height_is_m(size: tuple[Format, int, int, int]) -> None:
    """W = 1, H = M with groups of four lines; M < 4 needs a negative surface stride."""
    fmt, m, k, n = size
    mm = Matmul(fmt, m, 32 * k, 32 * n)
    conv = mm.conv(m, 1)
    conv.feature = mm.native_a()
    mm.check_native(mm.run(conv.task()))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_row_major_in_and_out(size: tuple[Format, int, int, int]) -> None:
    fmt, m, k, n = size
    mm = Matmul(fmt, m, 32 * k, 32 * n)
    conv = mm.conv(m, 1)
    conv.feature = mm.row_major_a()
    task = conv.task()
    group_off(task, fmt.nbytes(mm.k) // 16, 0)
    task.set("DPU_DST_SURF_STRIDE", DST_SURF_STRIDE=16)
    notch = mm.n * 4 // 16 - 1
    task.set("DPU_DATA_CUBE_NOTCH_ADDR", NOTCH_ADDR_0=notch, NOTCH_ADDR_1=notch)
    task.set("DPU_SURFACE_ADD", SURF_ADD=16 * (8 if fmt is INT8 else 4))
    mm.check_row_major(mm.run(task))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_native_width_is_m(size: tuple[Format, int, int, int]) -> None:
    """W = M, H = 1."""
    fmt, m, k, n = size
    mm = Matmul(fmt, m, 32 * k, 32 * n)
    conv = mm.conv(1, m)
    conv.feature = mm.native_a()
    task = conv.task()
    group_off(task, m, 0)
    data = mm.run(task)
    assert np.array_equal(unpack_cube(data, 1, m, mm.n, mm.out)[0], mm.a @ mm.b.T)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([INT8, FP16]), st.integers(1, 8), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_panels(fmt: Format, width: int, panels: int, k: int, n: int) -> None:
    """Panels of ``width`` rows: A [M/w][K/16 B][w][16 B], C [M/w][N/16 B][w][16 B]."""
    m = width * panels
    mm = Matmul(fmt, m, 32 * k, 32 * n)
    raw = fmt.raw(mm.a).reshape(panels, width, -1, fmt.atom).transpose(0, 2, 1, 3)
    conv = mm.conv(panels, width)
    conv.feature = SHARED.put(raw)
    task = conv.task()
    group_off(task, width * fmt.nbytes(mm.k) // 16, 0)
    task.set("DPU_DST_SURF_STRIDE", DST_SURF_STRIDE=16 * width)
    notch = width * (mm.n * 4 // 16 - 1)
    task.set("DPU_DATA_CUBE_NOTCH_ADDR", NOTCH_ADDR_0=notch, NOTCH_ADDR_1=notch)
    task.set("DPU_SURFACE_ADD", SURF_ADD=16 * width * (8 if fmt is INT8 else 4))
    data = mm.run(task).view("i4" if mm.out == "int32" else "f4").reshape(panels, mm.n // 4, width, 4)
    assert np.array_equal(data.transpose(0, 2, 1, 3).reshape(m, mm.n), mm.a @ mm.b.T)


@pytest.mark.parametrize("start", [0, 5, 17])
def test_m_split_of_a_native_matrix(start: int) -> None:
    """W = m, H = 1 inside A [K/16][M][16]: the surface gap skips the other rows."""
    mm = Matmul(INT8, 24, 96, 64)
    rows = 7
    conv = mm.conv(1, rows)
    conv.feature = mm.native_a() + 16 * start
    task = conv.task()
    group_off(task, 0, mm.m - rows)
    data = mm.run(task)
    assert np.array_equal(unpack_cube(data, 1, rows, mm.n, "int32")[0], (mm.a @ mm.b.T)[start : start + rows])


@pytest.mark.parametrize("top", [0, 1, 2, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_tiles_in_height(top: int, grouped: bool, rng: np.random.Generator) -> None:
    """Rows top.. of a larger cube, in and out."""
    bench = Bench()
    x, w = rng.integers(-9, 9, (11, 6, 32)), rng.integers(-9, 9, (32, 3, 3, 32))
    rows = 6
    conv = Conv(INT8, rows, 6, 32, 32, (3, 3), out="int8")
    conv.feature = bench.put(pack_cube(x, INT8)) + 16 * 6 * top
    conv.weights = bench.put(pack_weights(w, INT8))
    whole_rows = 9
    dst = bench.alloc(2 * whole_rows * 4 * 16)
    conv.dst = dst + 16 * 4 * top
    task = conv.task()
    if grouped:
        task.set("CNA_DMA_CON2", SURF_STRIDE=6 * 11 - 4 * 6)
    else:
        group_off(task, 6, 6 * 11 - 6)
    task.set("DPU_DST_SURF_STRIDE", DST_SURF_STRIDE=whole_rows * 4 * 16)
    task.set("DPU_SURFACE_ADD", SURF_ADD=2 * whole_rows * 4 * 16)
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    out = unpack_cube(bench.get(dst, 2 * whole_rows * 4 * 16), whole_rows, 4, 32, "int8")
    expected = np.clip(reference_conv(x, w), -128, 127)
    assert np.array_equal(out[top : top + rows - 2], expected[top : top + rows - 2])
    assert not out[:top].any()
    assert not out[top + rows - 2 :].any()


def test_a_tile_in_width_uses_the_dma_width(bench: Bench, rng: np.random.Generator) -> None:
    x, w = rng.integers(-9, 9, (8, 20, 16)), rng.integers(-9, 9, (32, 1, 1, 16))
    conv = Conv(INT8, 8, 5, 16, 32)
    conv.feature = bench.put(pack_cube(x, INT8)) + 16 * 7
    conv.weights = bench.put(pack_weights(w, INT8))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    task.set("CNA_DMA_CON1", LINE_STRIDE=4 * 20)
    task.set("CNA_FC_DATA_SIZE0", DMA_WIDTH=20, DMA_HEIGHT=8)
    assert bench.run(task).outcome == "done"
    out = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 8, 5, 32, "int32")
    assert np.array_equal(out, reference_conv(x[:, 7:12], w))


@pytest.mark.parametrize("height", [5, 8, 11])
def test_groups_of_lines_that_are_not_adjacent(bench: Bench, rng: np.random.Generator, height: int) -> None:
    """LINE_STRIDE larger than four lines: a gap after every fourth line."""
    x, w = rng.integers(-9, 9, (height, 3, 16)), rng.integers(-9, 9, (32, 1, 1, 16))
    gap = 5
    groups = ceil_div(height, 4)
    memory = np.full((groups, 4 * 3 + gap, 16), 99, np.int8)
    for y in range(height):
        memory[y // 4, y % 4 * 3 : y % 4 * 3 + 3] = x[y]
    conv = Conv(INT8, height, 3, 16, 32, feature=bench.put(memory), weights=bench.put(pack_weights(w, INT8)))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    task.set("CNA_DMA_CON1", LINE_STRIDE=4 * 3 + gap)
    task.set("CNA_DMA_CON2", SURF_STRIDE=0)
    assert bench.run(task).outcome == "done"
    out = unpack_cube(bench.get(conv.dst, conv.out_bytes()), height, 3, 32, "int32")
    assert np.array_equal(out, reference_conv(x, w))


def test_surface_add_places_the_kernel_groups(bench: Bench, rng: np.random.Generator) -> None:
    """A SURFACE_ADD that is too small makes the groups overwrite each other, as the address formula says."""
    x, w = rng.integers(-9, 9, (2, 2, 16)), rng.integers(-9, 9, (64, 1, 1, 16))
    conv = Conv(INT8, 2, 2, 16, 64, feature=bench.put(pack_cube(x, INT8)), weights=bench.put(pack_weights(w, INT8)))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    task.set("DPU_SURFACE_ADD", SURF_ADD=4 * 64)
    assert bench.run(task).outcome == "done"
    assert any("SURFACE_ADD" in line for line in bench.lines)
    out = unpack_cube(bench.get(conv.dst, conv.out_bytes()), 2, 2, 48, "int32")
    expected = reference_conv(x, w)
    assert np.array_equal(out[..., :16], expected[..., :16])
    assert np.array_equal(out[..., 16:48], expected[..., 32:])
