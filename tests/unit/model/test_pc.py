# SPDX-License-Identifier: MIT
"""PC: register groups, chains, interrupt bits, reuse of the CBUF over tasks."""

from __future__ import annotations

import numpy as np
import pytest
from streams import CONV, CONV_RDMA, INT8, Bench, Conv, Task, pack_cube, pack_weights, reference_conv, unpack_cube

from rknpu_userspace.isa import BY_NAME
from rknpu_userspace.model.quirks import Quirks
from rknpu_userspace.model.registers import BLOCKS, ambiguous_fields


class Job:
    """A small convolution with its buffers."""

    def __init__(self, bench: Bench, seed: int, kernels: int = 32, height: int = 4) -> None:
        rng = np.random.default_rng(seed)
        self.bench = bench
        self.x, self.w = rng.integers(-99, 99, (height, 3, 32)), rng.integers(-99, 99, (kernels, 1, 1, 32))
        self.conv = Conv(INT8, height, 3, 32, kernels)
        self.conv.feature = bench.put(pack_cube(self.x, INT8))
        self.conv.weights = bench.put(pack_weights(self.w, INT8))
        self.conv.dst = bench.alloc(self.conv.out_bytes())

    @property
    def expected(self) -> np.ndarray:
        return reference_conv(self.x, self.w)

    def output(self) -> np.ndarray:
        oh, ow = self.conv.out_size
        return unpack_cube(
            self.bench.get(self.conv.dst, self.conv.out_bytes()), oh, ow, self.conv.kernels, self.conv.out
        )

    def correct(self) -> bool:
        return np.array_equal(self.output(), self.expected)


def test_field_names_are_unique_within_a_block() -> None:
    assert not any(ambiguous_fields(block) for block in BLOCKS)


def test_interrupt_bits_alternate_with_the_group(bench: Bench) -> None:
    job = Job(bench, 1)
    bits = [bench.run(job.conv.task()).irq_bits for _ in range(5)]
    assert [b & 0x300 for b in bits] == [0x100, 0x200, 0x100, 0x200, 0x100]
    assert bits[0] == 0x155
    assert bits[1] == 0x2AA
    bench.machine.reset(0)
    assert bench.run(job.conv.task()).irq_bits & 0x300 == 0x100
    assert bench.run(job.conv.task(), core=1).irq_bits & 0x300 == 0x100, "each core has its own groups"


def test_only_the_dpu_bit_by_quirk() -> None:
    bench = Bench(quirks=Quirks({"irq_blocks": "last"}))
    assert bench.run(Job(bench, 1).conv.task()).irq_bits == 0x100


def test_a_delta_is_relative_to_the_task_before_last(bench: Bench) -> None:
    """Tasks 0 and 1 complete, task 2 sends only an address: all else comes from task 0, not from task 1."""
    first, second = Job(bench, 1), Job(bench, 2, kernels=64, height=5)
    other = bench.alloc(first.conv.out_bytes())
    assert bench.run(first.conv.task()).outcome == "done"
    assert bench.run(second.conv.task()).outcome == "done"
    delta = Task(CONV_RDMA, {"DPU_DST_BASE_ADDR": other}, only=True)
    result = bench.run(delta)
    assert result.outcome == "done", result.reason
    out = unpack_cube(bench.get(other, first.conv.out_bytes()), 4, 3, 32, "int32")
    assert np.array_equal(out, first.expected)
    elsewhere = bench.alloc(second.conv.out_bytes())
    assert bench.run(Task(CONV_RDMA, {"DPU_DST_BASE_ADDR": elsewhere}, only=True)).outcome == "done"
    out = unpack_cube(bench.get(elsewhere, second.conv.out_bytes()), 5, 3, 64, "int32")
    assert np.array_equal(out, second.expected)


def test_reset_clears_the_groups(bench: Bench) -> None:
    job = Job(bench, 1)
    for _ in range(2):
        assert bench.run(job.conv.task()).outcome == "done"
    bench.machine.reset(0)
    result = bench.run(Task(CONV_RDMA, {"DPU_DST_BASE_ADDR": job.conv.dst}, only=True))
    assert result.outcome == "hang"
    assert "is zero" in result.reason


def test_without_ping_pong_one_group_serves_all(bench: Bench) -> None:
    job = Job(bench, 1)
    core = bench.machine.cores[0]
    task = job.conv.task(CONV)
    task.pointers = False
    for offset in (0x1004, 0x3004, 0x4004):
        core.write(offset, 0)
    words = task.words()
    at = bench.put(words)
    for _ in range(3):
        result = core.run_job(at, len(words), 1)
        assert result.outcome == "done", result.reason
        assert result.irq_bits & 0x300 == 0x100
    assert job.correct()


def test_executer_that_waits_for_the_other_group_hangs(bench: Bench) -> None:
    core = bench.machine.cores[0]
    core.write(0x4004, 1)  # writer on group 1, no ping-pong: the executer stays on group 0
    task = Job(bench, 1).conv.task(CONV)
    task.pointers = False
    words = task.words()
    result = core.run_job(bench.put(words), len(words), 1)
    assert result.outcome == "hang"
    assert "executer waits for group 0" in result.reason


def chain(bench: Bench, tasks: list[Task], last_link: bool = False) -> tuple[int, int]:
    """Store tasks that link to each other; returns address and size of the first."""
    lengths = [len(task.words((0, 1))) for task in tasks]
    addresses = [bench.alloc(8 * length) for length in lengths]
    for index, task in enumerate(tasks):
        follower = index + 1
        link = None
        if follower < len(tasks):
            link = (addresses[follower], (lengths[follower] + 1) // 2 - 1)
        elif last_link:
            link = (0x7000000, 64)
        words = task.words(link)
        bench.memory.view(addresses[index], 8 * len(words))[:] = words.view(np.uint8)
    return addresses[0], lengths[0]


def test_chain_of_tasks(bench: Bench) -> None:
    jobs = [Job(bench, seed) for seed in range(5)]
    at, words = chain(bench, [job.conv.task() for job in jobs])
    result = bench.machine.cores[0].run_job(at, (words + 1) // 2 * 2, 0x7000 | 5)
    assert result.outcome == "done", result.reason
    assert all(job.correct() for job in jobs)
    assert result.stats.tasks == 5
    assert result.irq_bits & 0x300 == 0x100, "the fifth task ran in group 0"
    assert result.task_status == 0xF000


def test_task_number_stops_the_chain(bench: Bench) -> None:
    jobs = [Job(bench, seed) for seed in range(3)]
    at, words = chain(bench, [job.conv.task() for job in jobs], last_link=True)
    result = bench.machine.run_task(0, at, words)
    assert result.outcome == "done"
    assert [job.correct() for job in jobs] == [True, False, False]
    bench.machine.reset(0)
    result = bench.machine.cores[0].run_job(at, (words + 1) // 2 * 2, 3)
    assert result.outcome == "done", "a dangling link after the last task is harmless"
    assert all(job.correct() for job in jobs)


@pytest.mark.parametrize(("answer", "outcome"), [("hang", "hang"), ("done", "done")])
def test_chain_without_link(answer: str, outcome: str) -> None:
    bench = Bench(quirks=Quirks({"chain_without_link": answer}))
    job = Job(bench, 1)
    words = job.conv.task().words()
    result = bench.machine.cores[0].run_job(bench.put(words), len(words), 2)
    assert result.outcome == outcome
    assert result.stats.tasks == 1
    assert job.correct()


def test_output_of_a_task_feeds_the_next_in_the_chain(bench: Bench, rng: np.random.Generator) -> None:
    x = rng.integers(-3, 4, (4, 4, 32))
    w1, w2 = rng.integers(-1, 2, (32, 1, 1, 32)), rng.integers(-1, 2, (32, 1, 1, 32))
    one, two = Conv(INT8, 4, 4, 32, 32, out="int8"), Conv(INT8, 4, 4, 32, 32, out="int8")
    one.feature, one.weights = bench.put(pack_cube(x, INT8)), bench.put(pack_weights(w1, INT8))
    one.dst = two.feature = bench.alloc(512)
    two.weights, two.dst = bench.put(pack_weights(w2, INT8)), bench.alloc(512)
    at, words = chain(bench, [one.task(), two.task()])
    result = bench.machine.cores[0].run_job(at, (words + 1) // 2 * 2, 2)
    assert result.outcome == "done", result.reason
    middle = np.clip(reference_conv(x, w1), -128, 127)
    expected = np.clip(reference_conv(middle, w2), -128, 127)
    assert np.array_equal(unpack_cube(bench.get(two.dst, 512), 4, 4, 32, "int8"), expected)


def test_weight_reuse_reads_what_is_in_the_cbuf(bench: Bench) -> None:
    first, second = Job(bench, 1), Job(bench, 2)
    assert bench.run(first.conv.task()).outcome == "done"
    task = second.conv.task()
    task.regs["CNA_CBUF_CON0"] |= BY_NAME["CNA_CBUF_CON0"].encode(WEIGHT_REUSE=1)
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    assert np.array_equal(second.output(), reference_conv(second.x, first.w))
    assert "weight" not in result.stats.dma_bytes


def test_data_reuse_reads_what_is_in_the_cbuf(bench: Bench) -> None:
    first, second = Job(bench, 1), Job(bench, 2)
    assert bench.run(first.conv.task()).outcome == "done"
    bench.memory.view(first.conv.feature, 64)[:] = 0
    task = second.conv.task()
    task.regs["CNA_CBUF_CON0"] |= BY_NAME["CNA_CBUF_CON0"].encode(DATA_REUSE=1)
    result = bench.run(task)
    assert result.outcome == "done", result.reason
    assert np.array_equal(second.output(), reference_conv(first.x, second.w))
    assert "feature" not in result.stats.dma_bytes


def test_a_new_fetch_is_seen_when_only_the_bytes_change(bench: Bench) -> None:
    """The model keeps decoded operands; changed memory at the same address must still count."""
    job = Job(bench, 1)
    assert bench.run(job.conv.task()).outcome == "done"
    job.w = -job.w
    bench.memory.view(job.conv.weights, 1024)[:] = pack_weights(job.w, INT8)
    assert bench.run(job.conv.task()).outcome == "done"
    assert job.correct()
    job.x = -job.x
    packed = pack_cube(job.x, INT8)
    bench.memory.view(job.conv.feature, packed.size)[:] = packed
    assert bench.run(job.conv.task()).outcome == "done"
    assert job.correct()


@pytest.mark.parametrize("reuse", ["DATA_REUSE", "WEIGHT_REUSE"])
def test_reuse_without_content_hangs(bench: Bench, reuse: str) -> None:
    task = Job(bench, 1).conv.task()
    task.regs["CNA_CBUF_CON0"] |= BY_NAME["CNA_CBUF_CON0"].encode(**{reuse: 1})
    result = bench.run(task)
    assert result.outcome == "hang"
    assert reuse in result.reason
    assert "nothing to reuse" in result.reason


def test_a_core_that_hung_needs_a_reset(bench: Bench) -> None:
    job = Job(bench, 1)
    broken = job.conv.task()
    broken.regs["CNA_CBUF_CON0"] = 0x11
    assert bench.run(broken).outcome == "hang"
    again = bench.run(job.conv.task())
    assert again.outcome == "hang"
    assert "needs a reset" in again.reason
    assert bench.run(job.conv.task(), core=1).outcome == "done"
    bench.machine.reset(0)
    assert bench.run(job.conv.task()).outcome == "done"
    assert job.correct()


def test_cost_of_a_task(bench: Bench) -> None:
    job = Job(bench, 1)
    stats = bench.run(job.conv.task()).stats
    assert stats.macs == 4 * 3 * 32 * 32
    assert stats.mac_cycles == 12
    assert stats.dma_bytes["feature"] == 4 * 3 * 32
    assert stats.dma_bytes["weight"] == 1024
    assert stats.dma_bytes["wdma"] == 4 * 3 * 32 * 4
    assert stats.dma_bytes["pc"] % 16 == 0
    assert stats.ns == stats.cycles * 5
    assert 0 < stats.utilisation < 1
    assert "conv 1x1" in stats.op
