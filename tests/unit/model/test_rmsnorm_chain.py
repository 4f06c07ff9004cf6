# SPDX-License-Identifier: MIT
"""A chain of eleven tasks that computes residual add and RMSNorm in fp16, bf16 and int16.

The decomposition is the one that Rockchip's compiler uses (as described by the authors of rknpu2_matmul_open): it needs
flying operands, precisions that differ between input, stage and output, BS before BN, an int16 view of bf16 numbers,
a convolution with one kernel, and a broadcast convolution with scale and operand per channel. The stream here is made
from that description. It runs twice: with every register in every task, and with only what differs from the register
group that the task will be written to, which the task before last left behind.
"""

from __future__ import annotations

import numpy as np
import pytest
from streams import BF16, CONV, CONV_RDMA, FP16, Bench, Conv, Flying, Task, align, numbers, pack_weights, stored

from rknpu_userspace.isa import BY_NAME, Block

D = 4096
EPSILON = 1e-5
MUL_PIXEL, MUL_CHANNEL, ADD_CHANNEL = 0x100003C4, 0x008003C4, 0x008202C0
PER_PIXEL_16, PER_CHANNEL_16 = 0x40000008, 8


class Chain:
    """Buffers and tasks."""

    def __init__(self, bench: Bench, x: np.ndarray, residual: np.ndarray, gamma: np.ndarray) -> None:
        self.bench = bench
        self.x, self.residual = bench.put(x.astype(np.float16)), bench.put(residual.astype(np.float16))
        self.gamma = bench.put(gamma.astype(np.float16))
        self.ones = bench.put(pack_weights(np.ones((1, 1, 1, D)), BF16))
        select = np.zeros((D, 1, 1, 8))
        select[..., 0] = 1
        self.select = bench.put(pack_weights(select, FP16))
        self.r, self.square, self.out = (bench.alloc(2 * D) for _ in range(3))
        self.mean, self.y0, self.t1, self.t2, self.y1, self.t3, self.t4, self.y2 = (bench.alloc(32) for _ in range(8))

    def small(self, main: int, operand: int, dst: int, proc: str, feed: str, out: str, **regs: int) -> Task:
        """A flying product over 16 channels of one pixel."""
        shape = Flying(proc, 1, 16, main=feed, out=out, src=main, operand=operand, dst=dst)
        task = shape.task(MUL_PIXEL, PER_PIXEL_16)
        task.regs.update({f"DPU_{name}": value for name, value in regs.items()})
        return task

    def tasks(self) -> list[Task]:
        """All eleven."""
        wide = Flying("fp16", 1, D, src=self.x, operand=self.residual, dst=self.r)
        add = wide.task(ADD_CHANNEL, PER_CHANNEL_16)
        square = Flying("fp16", 1, D, out="bf16", src=self.r, operand=self.r, dst=self.square)
        minus_half = {"BS_CFG": 0x42}
        plus = {"BS_CFG": 0x20050, "BS_ALU_CFG": int(np.float32(1.5).view(np.uint32))}
        bf16_half, fp16_half = 0xBF00 << 16, 0xB800 << 16
        m, y0, y1 = self.mean, self.y0, self.y1
        return [
            add,
            square.task(MUL_CHANNEL, PER_CHANNEL_16),
            self.mean_task(),
            self.seed_task(),
            self.small(m, y0, self.t1, "bf16", "bf16", "fp16", **minus_half, BS_MUL_CFG=bf16_half),
            self.small(self.t1, y0, self.t2, "bf16", "fp16", "fp16"),
            self.small(self.t2, y0, y1, "bf16", "fp16", "fp16", **plus),
            self.small(m, y1, self.t3, "fp16", "bf16", "fp16", **minus_half, BS_MUL_CFG=fp16_half),
            self.small(self.t3, y1, self.t4, "fp16", "fp16", "fp16"),
            self.small(self.t4, y1, self.y2, "fp16", "fp16", "fp16", **plus),
            self.broadcast_task(),
        ]

    def mean_task(self) -> Task:
        """(sum(square) + D eps) / 64 / 64 through one kernel of ones; BS adds before it multiplies."""
        conv = Conv(BF16, 1, 1, D, 1, out="bf16", feature=self.square, weights=self.ones, dst=self.mean)
        task = conv.task(CONV)
        task.regs["DPU_BS_CFG"] = 0x20040
        task.regs["DPU_BS_ALU_CFG"] = int(np.float32(D * EPSILON).view(np.uint32))
        task.regs["DPU_BS_MUL_CFG"] = 0x3C80 << 16
        task.regs["DPU_BN_CFG"] = 0x42
        task.regs["DPU_BN_MUL_CFG"] = 0x3C80 << 16
        assert task.regs["CNA_DMA_CON2"] == 0x0FFFFFFD, "a surface stride of -3 for one row"
        return task

    def seed_task(self) -> Task:
        """y0 = 0x5f37 - (bits >> 1) on the bits of a bf16 number."""
        task = Flying("int16", 1, 16, src=self.mean, dst=self.y0).task()
        task.regs["DPU_DATA_FORMAT"] = 0x24000011
        task.regs["DPU_BS_CFG"] = 0x42
        task.regs["DPU_BS_MUL_CFG"] = 0xFFFF0100
        task.regs["DPU_BN_CFG"] = 0x20050
        task.regs["DPU_BN_ALU_CFG"] = 0x5F37
        return task

    def broadcast_task(self) -> Task:
        """out = y2 * gamma * r: D kernels that pick channel 0, BS multiplier from memory, EW operand per channel."""
        conv = Conv(FP16, 1, 1, 8, D, out="fp16", feature=self.y2, weights=self.select, dst=self.out)
        task = conv.task(CONV_RDMA)
        task.regs["DPU_BS_CFG"] = 0x42
        task.regs["DPU_BS_MUL_CFG"] = 1
        task.regs["DPU_RDMA_RDMA_BRDMA_CFG"] = 8
        task.regs["DPU_RDMA_RDMA_BS_BASE_ADDR"] = self.gamma
        task.regs["DPU_EW_CFG"] = MUL_CHANNEL
        task.regs["DPU_RDMA_RDMA_ERDMA_CFG"] = PER_CHANNEL_16
        task.regs["DPU_RDMA_RDMA_EW_BASE_ADDR"] = self.r
        return task


def deltas(tasks: list[Task]) -> list[Task]:
    """Leave out what the register group already holds; a block's group toggles only when the block is enabled."""
    groups: dict[Block, list[dict[str, int]]] = {}
    uses: dict[Block, int] = {}
    result = []
    for task in tasks:
        kept: dict[str, int] = {}
        for block in Block:
            if block.enable_bit is None or not task.mask >> block.enable_bit & 1:
                continue
            turn = uses.get(block, 0)
            uses[block] = turn + 1
            group = groups.setdefault(block, [{}, {}])[turn % 2]
            for name, register in BY_NAME.items():
                if register.block is block and register.offset - block.base > 8:
                    value = task.regs.get(name, 0)
                    if turn < 2 or group[name] != value:
                        kept[name] = value
                    group[name] = value
        result.append(Task(task.mask, kept, only=True))
    return result


def run_chain(bench: Bench, tasks: list[Task]) -> int:
    """Store the tasks with links, run them in one kick; returns the number of command words."""
    lengths = [len(task.words((0, 1))) for task in tasks]
    addresses = [bench.alloc(8 * align(length, 2)) for length in lengths]
    for index, task in enumerate(tasks):
        link = None
        if index + 1 < len(tasks):
            link = (addresses[index + 1], align(lengths[index + 1], 2) // 2 - 1)
        words = task.words(link)
        bench.memory.view(addresses[index], 8 * len(words))[:] = words.view(np.uint8)
    core = bench.machine.cores[0]
    core.write(0x1004, 0xE)
    core.write(0x3004, 0xE)
    result = core.run_job(addresses[0], align(lengths[0], 2), 0x7000 | len(tasks))
    assert result.outcome == "done", result.reason
    assert result.stats.tasks == len(tasks)
    return sum(lengths)


@pytest.mark.parametrize("amplitude", [0.05, 1.0, 8.0])
def test_rmsnorm_chain(amplitude: float) -> None:
    rng = np.random.default_rng(11)
    x, residual = (amplitude * rng.standard_normal(D) for _ in range(2))
    gamma = rng.uniform(0.5, 1.5, D)
    outputs = []
    words = []
    for compact in (False, True):
        bench = Bench()
        chain = Chain(bench, x, residual, gamma)
        tasks = chain.tasks()
        words.append(run_chain(bench, deltas(tasks) if compact else tasks))
        outputs.append(bench.get(chain.out, 2 * D).view(np.float16))
        r = x.astype(np.float16).astype(np.float64) + residual.astype(np.float16)
        assert np.array_equal(bench.get(chain.r, 2 * D).view(np.float16), r.astype(np.float16))
        mean = numbers(bench.get(chain.mean, 2), "bf16")[0]
        exact = (numbers(stored(np.square(r.astype(np.float16).astype(np.float32)), "bf16"), "bf16")).sum() / D
        assert abs(mean - (exact + EPSILON)) <= 2.0**-8 * exact
    assert np.array_equal(outputs[0], outputs[1])
    assert words[1] < words[0] / 2
    expected = r * gamma.astype(np.float16) / np.sqrt(np.mean(r**2) + EPSILON)
    error = np.abs(outputs[0].astype(np.float64) - expected) / np.maximum(np.abs(expected), 0.01)
    assert np.median(error) < 4e-3
    assert error.max() < 8e-3
