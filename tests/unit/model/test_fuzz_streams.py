# SPDX-License-Identifier: MIT
"""Streams of random words and mutated streams of working tasks: always an outcome and a reason, for model and
disassembler alike; never a byte written outside of what is mapped writable."""

from __future__ import annotations

import warnings

import numpy as np
import test_fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import Bench
from test_fuzz import KINDS, working_task

from rknpu_userspace.isa import REGISTERS, Block, pack
from rknpu_userspace.isa.disasm import disassemble
from rknpu_userspace.isa.streams import parse
from rknpu_userspace.model.memory import Paged, PhysicalMemory
from rknpu_userspace.model.npu import NpuCore
from rknpu_userspace.model.quirks import Quirks

ARENA = 2 << 20
BENCH = Bench(ARENA)
NOISE = np.random.default_rng(1).integers(0, 256, ARENA).astype(np.uint8)
MOST_WORDS = 600

RANDOM_WORD = st.integers(0, 2**64 - 1)
TARGETS = st.sampled_from([*(block.target for block in Block), 0x0081, 0x0041, 0x0001, 0])
PLAUSIBLE = st.builds(
    lambda target, register, value: pack(register.block.target if target is None else target, register.offset, value),
    st.none() | TARGETS,
    st.sampled_from(REGISTERS),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1), st.sampled_from([0xE, 0x1D, 0x18, 0x60, 0x0D, 0x7F])),
)
WORDS = st.lists(st.one_of(PLAUSIBLE, RANDOM_WORD), min_size=1, max_size=40)
MUTATION = st.tuples(
    st.sampled_from(["flip", "replace", "drop", "repeat", "swap", "insert", "cut"]),
    st.integers(0, MOST_WORDS),
    st.integers(0, MOST_WORDS),
    st.one_of(PLAUSIBLE, RANDOM_WORD),
)
TASK_CON = st.one_of(st.sampled_from([0x7001, 0x7002, 0x7003, 0x7000]), st.integers(0, 0xFFFF))


def fresh() -> None:
    """Nothing mapped, memory full of noise, the core after a reset."""
    BENCH.memory.unmap(0, ARENA)
    BENCH.memory.ram[:] = NOISE
    BENCH._next = 0x1000
    BENCH.machine.reset(0)


def mutate(words: list[int], mutations: list[tuple[str, int, int, int]]) -> list[int]:
    """Apply mutations; never empty."""
    out = list(words)
    for what, first, second, value in mutations:
        at, other = first % len(out), second % len(out)
        if what == "flip":
            out[at] ^= 1 << second % 64
        elif what == "replace":
            out[at] = value
        elif what == "drop" and len(out) > 1:
            del out[at]
        elif what == "repeat":
            out.insert(other, out[at])
        elif what == "swap":
            out[at], out[other] = out[other], out[at]
        elif what == "insert":
            out.insert(at, value)
        elif what == "cut" and len(out) > 1:
            del out[max(1, at) :]
    return out


def run(words: np.ndarray, task_con: int, count: int | None = None, dma_base: int = 0) -> None:
    """Run on the model; what is not mapped writable stays as it was, an unfinished job has a reason."""
    at = BENCH.put(words)
    kept = np.repeat(BENCH.memory.pages(0, ARENA // 4096, True) < 0, 4096)
    before = BENCH.memory.ram[kept].copy()
    core = BENCH.machine.cores[0]
    core.write(0x1004, 0xE)
    core.write(0x3004, 0xE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = core.run_job(at, len(words) if count is None else count, task_con, dma_base)
    assert result.outcome in ("done", "hang", "fault")
    assert (result.fault is not None) == (result.outcome == "fault")
    if result.outcome != "done":
        assert result.reason
        BENCH.machine.reset(0)
    assert np.array_equal(BENCH.memory.ram[kept], before)


def read(words: np.ndarray) -> None:
    """The disassembler prints it as if it came from a file."""
    for stream in parse(words.astype("<u8").tobytes(), "fuzz"):
        assert list(disassemble(stream.words, zeros=True))


@settings(max_examples=150, deadline=None)
@given(WORDS, TASK_CON, st.integers(0, 80), st.sampled_from([0, 0, 0x1000]))
def test_random_words(words: list[int], task_con: int, count: int, dma_base: int) -> None:
    fresh()
    BENCH.alloc(1 << 18)
    stream = np.array(words, np.uint64)
    run(stream, task_con, count, dma_base)
    if stream.any():
        read(stream)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, KINDS - 1), st.lists(MUTATION, max_size=6), st.lists(MUTATION, max_size=3), TASK_CON)
def test_mutated_tasks(kind: int, first: list, second: list, task_con: int) -> None:
    """Two streams after each other on one core: what the first leaves behind is the second's to start from."""
    fresh()
    bench, test_fuzz.BENCH = test_fuzz.BENCH, BENCH
    try:
        whole = working_task(kind).words().tolist()
    finally:
        test_fuzz.BENCH = bench
    for mutations in (first, second):
        stream = np.array(mutate(whole, mutations), np.uint64)
        run(stream, task_con)
        read(stream)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, KINDS - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_random_page_tables(kind: int, seed: int, directory: int, valid: bool) -> None:
    """Tables made of noise translate to anything: only what they mark writable may change."""
    rng = np.random.default_rng(seed)
    ram = rng.integers(0, 256, ARENA).astype(np.uint8)
    words = ram.view(np.uint32)
    if valid:  # every entry points into RAM, with random flags
        words[:] = (words % (ARENA // 4096)) << 12 | words >> 20 & 0xF
    bench, test_fuzz.BENCH = test_fuzz.BENCH, BENCH
    fresh()
    try:
        stream = working_task(kind).words()
    finally:
        test_fuzz.BENCH = bench
    memory = PhysicalMemory(ram, [(0, 0, ARENA)])
    space = Paged(memory, directory)
    home = space.pages(0, 1 << 20, False)
    readable = np.flatnonzero(home >= 0)
    at = 0
    if len(readable):  # the commands lie where the tables can reach them
        at = int(readable[len(readable) // 2]) * 4096
        offset = int(home[at // 4096])
        ram[offset : offset + stream.nbytes] = stream.view(np.uint8)
    pages = space.pages(0, 1 << 20, True)
    writable = np.zeros(ARENA // 4096, bool)
    writable[pages[pages >= 0] // 4096] = True
    before = ram.copy()
    core = NpuCore(0, space, Quirks(), 200_000_000)
    core.write(0x1004, 0xE)
    core.write(0x3004, 0xE)
    result = core.run_job(at, len(stream), 0x7001, 0, [space, space])
    assert result.outcome == "done" or result.reason
    changed = (ram != before).reshape(-1, 4096).any(axis=1)
    assert not (changed & ~writable).any()
