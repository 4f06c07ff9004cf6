# SPDX-License-Identifier: MIT
"""Working tasks of every kind with a few fields changed: always an outcome, never a byte outside mapped memory."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import FP16, INT4, INT8, TF32, Bench, Conv, Flying, Task
from test_pooling import Pooling

from rknpu_userspace.isa import REGISTERS, Block

BENCH = Bench(2 << 20)
NOISE = np.random.default_rng(0).integers(0, 256, 2 << 20).astype(np.uint8)
BUFFER = 1 << 18
WRITABLE = [r for r in REGISTERS if r.block is not Block.PC and r.offset - r.block.base > 8]
CONVOLUTIONS = [(INT8, "int8", False), (FP16, "fp16", False), (INT4, "int16", False), (TF32, "fp32", False)]
CONVOLUTIONS += [(INT8, "int8", True), (FP16, "fp32", True)]
ELEMENTWISE = [("fp16", 0x108202C0, 2), ("int32", 0x10C203C0, 3), ("int8", 0x104202C0, 1), ("bf16", 0x100003C4, 2)]


def working_task(kind: int) -> Task:
    """One of the eleven kinds, its buffers filled with noise."""
    if kind < len(CONVOLUTIONS):
        fmt, out, depthwise = CONVOLUTIONS[kind]
        conv = Conv(fmt, 5, 4, 64, 1 if depthwise else 64, (3, 3), pad=(1, 1, 1, 1), out=out, depthwise=depthwise)
        conv.feature, conv.weights, conv.dst = (BENCH.alloc(BUFFER) for _ in range(3))
        return conv.task()
    kind -= len(CONVOLUTIONS)
    if kind < len(ELEMENTWISE):
        proc, ew, size = ELEMENTWISE[kind]
        shape = Flying(proc, 9, 32, 3)
        shape.src, shape.operand, shape.dst = (BENCH.alloc(BUFFER) for _ in range(3))
        return shape.task(ew, 1 << 30 | size << 2)
    method = "avg" if kind == len(ELEMENTWISE) else "max"
    return Pooling(method, "fp16", 6, 6, 16, (2, 2), (2, 2)).task(BENCH.alloc(BUFFER), BENCH.alloc(BUFFER))


KINDS = len(CONVOLUTIONS) + len(ELEMENTWISE) + 2
CHANGES = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 16), st.one_of(st.integers(0, 64), st.integers(0, 1 << 32))),
    max_size=3,
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, KINDS - 1), CHANGES)
def test_changed_fields(kind: int, changes: list[tuple[int, int, int]]) -> None:
    BENCH.memory.unmap(0, BENCH.memory.size)
    BENCH._next = 0x1000
    BENCH.memory.ram[:] = NOISE
    task = working_task(kind)
    live = [r for r in WRITABLE if r.block.enable_bit is not None and task.mask >> r.block.enable_bit & 1]
    for which, field_index, value in changes:
        register = live[which % len(live)]
        field = register.fields[field_index % len(register.fields)]
        bits = (value if field.in_bytes else value << field.low) & field.mask
        task.regs[register.name] = task.regs.get(register.name, 0) & ~field.mask | bits
    words = task.words()
    at = BENCH.put(words)
    read_only = np.repeat(BENCH.memory.pages(0, BENCH.memory.size // 4096, True) < 0, 4096)
    before = BENCH.memory.ram.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = BENCH.machine.run_task(0, at, len(words))
    if result.outcome != "done":
        BENCH.machine.reset(0)
        assert result.reason
    if not changes:
        assert result.outcome == "done", result.reason
    assert np.array_equal(BENCH.memory.ram[read_only], before[read_only])
