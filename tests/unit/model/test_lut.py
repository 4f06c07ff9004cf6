# SPDX-License-Identifier: MIT
"""The look-up table in the configurations that run on boards: a [0, 1] function, a shifted domain, signed outputs."""

from __future__ import annotations

import numpy as np
import pytest
from streams import FP16, Bench, Conv, Flying, Task, pack_dpu, reference_conv, run_conv, unpack_cube

from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.model.quirks import Quirks

INDEX_SCALE, LAST = 2596, 16384


def upload(le: np.ndarray, lo: np.ndarray) -> np.ndarray:
    """Command words that write both tables."""
    words = []
    for config, table in ((0x20000, le), (0x30000, lo)):
        words.append(write(BY_NAME["DPU_LUT_ACCESS_CFG"], config))
        words += [write(BY_NAME["DPU_LUT_ACCESS_DATA"], int(v) & 0xFFFF) for v in table]
    return np.array(words, np.uint64)


def set_lut(task: Task, scale: int, bias: float, offset: int, minus_exp: int, uflow: tuple[int, int] = (0, 0)) -> None:
    task.regs["DPU_BN_CFG"] = 0x20040
    task.regs["DPU_BN_ALU_CFG"] = int(np.float32(bias).view(np.uint32))
    task.regs["DPU_BN_MUL_CFG"] = int(np.float16(scale).view(np.uint16)) << 16
    task.regs["DPU_EW_CFG"] = 0x302
    task.set("DPU_OUT_CVT_OFFSET", OUT_CVT_OFFSET=offset)
    task.set("DPU_OUT_CVT_SHIFT", CVT_TYPE=1, MINUS_EXP=minus_exp)
    task.regs["DPU_LUT_CFG"] = 0x68
    task.regs["DPU_LUT_INFO"] = 0x50500
    task.set("DPU_LUT_LE_START", LUT_LE_START=-LAST)
    task.set("DPU_LUT_LO_END", LUT_LO_END=LAST)
    task.set("DPU_LUT_LE_SLOPE_SCALE", LUT_LE_SLOPE_UFLOW_SCALE=uflow[0])
    task.set("DPU_LUT_LE_SLOPE_SHIFT", LUT_LE_SLOPE_UFLOW_SHIFT=uflow[1])


def run(bench: Bench, x: np.ndarray, tables: np.ndarray, **lut: object) -> np.ndarray:
    shape = Flying("fp16", len(x) // 8, 8, src=bench.put(pack_dpu(x.reshape(1, -1, 8), "fp16")))
    shape.dst = bench.alloc(2 * len(x))
    task = shape.task()
    set_lut(task, **lut)  # type: ignore[arg-type]
    words = np.concatenate([tables, task.words()])
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "done", result.reason
    return unpack_cube(bench.get(shape.dst, 2 * len(x)), 1, len(x) // 8, 8, "fp16").reshape(-1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def grid(lo: bool) -> np.ndarray:
    index = np.arange(513) * 32
    return (index if lo else index - LAST) / float(np.float16(INDEX_SCALE))


def unit(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values * 32768), 0, 32767)


def test_sigmoid(bench: Bench) -> None:
    x = np.linspace(-8, 8, 4096).astype(np.float16)
    tables = upload(unit(sigmoid(grid(False))), unit(sigmoid(grid(True))))
    y = run(bench, x, tables, scale=INDEX_SCALE, bias=-0.0, offset=1, minus_exp=15, uflow=(23107, 22))
    assert np.abs(y - sigmoid(x.astype(np.float64))).max() < 0.002


def test_interpolation_is_exactly_this(bench: Bench) -> None:
    """Entries, interpolation (floor) and the affine output, step by step, on a random table."""
    rng = np.random.default_rng(4)
    le, lo = rng.integers(-32768, 32767, 513), rng.integers(-32768, 32767, 513)
    x = rng.uniform(-6.3, 6.3, 800).astype(np.float16)
    y = run(bench, x, upload(le, lo), scale=INDEX_SCALE, bias=0.0, offset=40000, minus_exp=12)
    index = np.rint(x.astype(np.float32) * np.float32(np.float16(INDEX_SCALE))).astype(int)
    for i, got in zip(index, y, strict=True):
        table, at = (lo, i) if i >= 0 else (le, i + LAST)
        low, rest = divmod(at, 32)
        q = table[low] + (int(table[min(low + 1, 512)] - table[low]) * rest >> 5)
        assert got == np.float16(np.float32(q + 40000) * np.float32(2.0**-12))


def test_exp_on_a_shifted_domain(bench: Bench) -> None:
    """x in [-16, 0] mapped to the indices of the upper table by the BN bias."""
    scale = float(np.float16(LAST / 16))
    points = np.exp(np.arange(513) * 32 / scale - 16)
    lo = np.maximum(unit(points), 1)
    x = np.linspace(-16, 0, 2048).astype(np.float16)
    y = run(bench, x, upload(lo, lo), scale=int(scale), bias=16 * scale, offset=0, minus_exp=15)
    assert np.abs(y - np.exp(x.astype(np.float64))).max() < 1e-3


@pytest.mark.parametrize(("answer", "spike"), [("two_to_17", True), ("zero", False)])
@pytest.mark.parametrize(("minus_exp", "seen"), [(15, 4.0), (13, 16.0), (10, 128.0)])
def test_a_value_that_decodes_to_zero(answer: str, spike: bool, minus_exp: int, seen: float) -> None:
    """What boards show: +4, +16 and +128 where the decoded value should be 0, by MINUS_EXP."""
    bench = Bench(quirks=Quirks({"lut_zero": answer}))
    tables = upload(np.full(513, 100), np.full(513, 100))
    x = np.linspace(-3, 3, 64).astype(np.float16)
    y = run(bench, x, tables, scale=INDEX_SCALE, bias=0.0, offset=-100, minus_exp=minus_exp)
    assert (y == (seen if spike else 0)).all()
    assert any("OUT_CVT_OFFSET < 0" in line for line in bench.lines) == spike


def test_slopes_outside_the_tables(bench: Bench) -> None:
    tables = upload(np.full(513, -5), np.full(513, 7))
    x = np.array([-20, -10, 10, 20] * 2).astype(np.float16)
    shape = Flying("fp16", 1, 8, out="fp32", src=bench.put(pack_dpu(x.reshape(1, 1, 8), "fp16")))
    shape.dst = bench.alloc(32)
    task = shape.task()
    set_lut(task, INDEX_SCALE, 0.0, 0, 0, (3, 2))
    task.set("DPU_LUT_LO_SLOPE_SCALE", LUT_LO_SLOPE_OFLOW_SCALE=0x10000 - 1)
    task.set("DPU_LUT_LO_SLOPE_SHIFT", LUT_LO_SLOPE_OFLOW_SHIFT=1)
    words = np.concatenate([tables, task.words()])
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "done", result.reason
    y = unpack_cube(bench.get(shape.dst, 32), 1, 1, 8, "fp32").reshape(-1)
    for value, got in zip(x.astype(int), y, strict=True):
        index = value * INDEX_SCALE
        expected = -5 + ((index + LAST) * 3 >> 2) if value < 0 else 7 + ((index - LAST) * -1 >> 1)
        assert got == np.float32(expected)


def test_tables_outlive_tasks_and_groups_but_not_a_reset(bench: Bench) -> None:
    x = np.linspace(-3, 3, 64).astype(np.float16)
    lut = {"scale": INDEX_SCALE, "bias": 0.0, "offset": 1, "minus_exp": 15}
    tables = upload(unit(sigmoid(grid(False))), unit(sigmoid(grid(True))))
    first = run(bench, x, tables, **lut)
    nothing = np.zeros(0, np.uint64)
    assert np.array_equal(run(bench, x, nothing, **lut), first)
    assert np.array_equal(run(bench, x, nothing, **lut), first)
    bench.machine.reset(0)
    assert (run(bench, x, nothing, **lut) == np.float16(2.0**-15)).all()


def test_fused_after_a_convolution(bench: Bench, rng: np.random.Generator) -> None:
    tables = upload(unit(sigmoid(grid(False))), unit(sigmoid(grid(True))))
    conv = Conv(FP16, 4, 4, 32, 16, (3, 3), out="fp16", pad=(1, 1, 1, 1))
    x, w = rng.standard_normal((4, 4, 32)), 0.1 * rng.standard_normal((16, 3, 3, 32))
    words = np.concatenate([tables, np.array([0x41 << 48, 0x81 << 48 | 0x18 << 16 | 8], np.uint64)])
    alone = bench.machine.run_task(0, bench.put(words), len(words))
    assert alone.outcome == "hang", "an upload with an empty task behind it is not a task"
    bench.machine.reset(0)
    run(bench, np.zeros(8, np.float16), tables, scale=INDEX_SCALE, bias=0.0, offset=1, minus_exp=15)
    result, y = run_conv(bench, conv, x, w, lambda t: set_lut(t, INDEX_SCALE, 0.0, 1, 15, (23107, 22)))
    assert result.outcome == "done", result.reason
    exact = sigmoid(reference_conv(x.astype(np.float16), w.astype(np.float16), pad=conv.pad))
    assert np.abs(y - exact).max() < 0.002


def test_entry_that_does_not_exist(bench: Bench) -> None:
    words = np.concatenate(
        [
            np.array([write(BY_NAME["DPU_LUT_ACCESS_CFG"], 0x20000 | 513)], np.uint64),
            np.array([write(BY_NAME["DPU_LUT_ACCESS_DATA"], 1)], np.uint64),
        ]
    )
    result = bench.machine.run_task(0, bench.put(words), len(words))
    assert result.outcome == "hang"
    assert "entry 513 does not exist" in result.reason
