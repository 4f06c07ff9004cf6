# SPDX-License-Identifier: MIT
"""Register groups, resets, the pooling unit's interrupt, S_POINTER's core bits, and what needs more."""

from __future__ import annotations

from typing import Any

import numpy as np

from rknpu_userspace import regcmd
from rknpu_userspace.backend import Buffer
from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.task import ALU_ADD, Pool, Stage, TaskConfig

from .rig import Experiment, Finding, Rig, Words, only, poke
from .tasks import Built, Convolution, Flying

_PIXELS, _LANES = 8, 4
_BYTES = _PIXELS * _LANES * 4
_DESTINATION = ("DPU_DST_BASE_ADDR",)


def _adding(number: int) -> Flying:
    return Flying("int32", bn=Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, alu_operand=number))


def _source(rig: Rig) -> Buffer:
    return rig.put(np.arange(_PIXELS * _LANES, dtype=np.int32))


def _delta(words: Words) -> Words:
    return only(words, _DESTINATION)


def _groups(rig: Rig) -> Finding:
    """x + 1, x + 2, then a task that only says where to write: whose sum does it make?"""
    source, out = _source(rig), rig.alloc(4 * _BYTES)
    tasks = [
        _adding(number).words(source.iova, 0, out.iova + place * _BYTES, _PIXELS, _LANES)
        for place, number in enumerate((1, 2, 3, 3))
    ]
    tasks = [*tasks[:2], *(_delta(task) for task in tasks[2:])]
    run = rig.run(tasks, out, 4 * _BYTES - 16, [source], "register groups probe")
    added = (out.view[: 4 * _BYTES].view(np.int32).reshape(4, -1) - np.arange(_PIXELS * _LANES))[:, 0].tolist()
    answers = {(1, 2, 1, 2): "two groups: a task inherits from the task two before", (1, 2, 2, 2): "one group"}
    answer = answers.get(tuple(added), "neither one nor two groups") if run.done else "a delta task does not complete"
    confidence = "certain" if run.done and tuple(added) in answers else "none"
    return Finding(answer, {}, {"added": added, "done": run.done}, confidence)


def _after_timeout(rig: Rig) -> Finding:
    """Good tasks for both groups, a job that hangs, a delta task, a good one: are the registers still there?

    All are queued at once, so that they run on one core.
    """
    source, out = _source(rig), rig.alloc(5 * _BYTES)

    def add(place: int) -> Words:
        return _adding(1).words(source.iova, 0, out.iova + place * _BYTES, _PIXELS, _LANES)

    trap = _trap(rig, out.iova + 2 * _BYTES)
    streams = [add(0), add(1), trap.words, _delta(add(3)), add(4)]
    jobs = [([words], (place + 1) * _BYTES - 16) for place, words in enumerate(streams)]
    run = rig.run_jobs(jobs, out, [source, *trap.inputs], "reset probe")
    sums = out.view[: 5 * _BYTES].view(np.int32).reshape(5, -1)
    good = np.arange(_PIXELS * _LANES) + 1
    right = [bool(np.array_equal(row, good)) for row in sums]
    hung = run.late and not sums[2, :-4].any()
    kept = right[3]
    data = {"hung": hung, "delta_done": kept, "next_job_done": right[4]}
    answer = "registers survive a timeout's reset" if kept else "a timeout's reset clears the registers"
    sure = hung and right[0] and right[1] and right[4]
    return Finding(answer if hung else "the job that was to hang completed", {}, data, "certain" if sure else "none")


def _trap(rig: Rig, address: int) -> Built:
    """A convolution whose main feed nobody takes: boards hang on it."""

    def trap(words: Words) -> Words:
        words = poke(words, "DPU_DST_BASE_ADDR", DST_BASE_ADDR=address)
        return poke(words, "DPU_RDMA_RDMA_FEATURE_MODE_CFG", MRDMA_DISABLE=0)

    x, w = np.ones((1, 1, 16), np.int8), np.ones((32, 1, 1, 16), np.int8)
    return Convolution("int8", "int32", change=trap).build(rig, x, w)


def _pool(rig: Rig) -> Finding:
    """Only a job that raises a DPU interrupt ends before the driver's timeout."""
    size, channels = 8, 8
    values = np.random.default_rng(1).standard_normal((channels // 8, size, size, 8)).astype(np.float16)
    source, half = rig.put(values), size // 2
    out = rig.alloc(half * half * 16)
    pool = Pool(
        method=1,
        precision=2,
        in_size=2,
        height=size,
        width=size,
        channels=channels,
        out_height=half,
        out_width=half,
        kernel_height=2,
        kernel_width=2,
        stride_y=2,
        stride_x=2,
        source_address=source.iova,
        source_line=size * 16,
        source_surface=size * size * 16,
        address=out.iova,
        surface_stride=half * half * 16,
    )
    run = rig.run([regcmd.encode(TaskConfig(pool=pool))], out, (half * half - 1) * 16, [source], "pooling probe")
    expected = values[0].reshape(half, 2, half, 2, 8).max(axis=(1, 3))
    seen = out.view[: half * half * 16].view(np.float16).reshape(expected.shape)
    right = bool(np.array_equal(seen, expected))
    data = {"seconds": round(run.seconds, 4), "right": right}
    if not right:
        return Finding("pooling gives wrong results", {}, data, "none")
    answer = "ppu" if run.late else "ppu_and_dpu"
    words = "ends by the driver's timeout" if run.late else "raises the driver's interrupt"
    return Finding(f"a pooling task {words}", {"ppu_irq": answer}, {"ppu_irq": data})


def _core_bits(rig: Rig) -> Finding:
    """The stream rewrites the CNA's S_POINTER with the bits of each core: only one of them can be the own one."""
    x, w = np.ones((2, 2, 16), np.int8), np.ones((32, 1, 1, 16), np.int8)
    done: dict[str, Any] = {}
    for core in range(3):
        word = write(BY_NAME["CNA_S_POINTER"], 0xE | core << 28)

        def prefix(words: Words, word: int = word) -> Words:
            return np.concatenate([np.array([word, 0], np.uint64), words])

        done[str(core)] = Convolution("int8", "int32", change=prefix).run(rig, x, w).run.done
    answer = "ignored" if all(done.values()) else "checked"
    confidence = "certain" if answer == "ignored" or any(done.values()) else "likely"
    return Finding(f"the core bits of S_POINTER are {answer}", {"s_pointer_core": answer}, {"done": done}, confidence)


_MMIO = "the NPU's own registers, which only root can reach through /dev/mem: "
EXPERIMENTS = (
    Experiment("register-groups", 5, "whose registers does a task inherit?", (), _groups),
    Experiment("after-timeout", 6, "do registers survive the reset after a timeout?", (), _after_timeout),
    Experiment("pool-interrupt", 7, "which interrupt does a pooling task raise?", ("ppu_irq",), _pool),
    Experiment("core-bits", 14, "are the core bits of S_POINTER checked?", ("s_pointer_core",), _core_bits),
    Experiment(
        "interrupts",
        7,
        "which blocks set their bits in PC_INTERRUPT_RAW_STATUS?",
        ("irq_blocks",),
        needs=_MMIO + "the driver does not show PC_INTERRUPT_RAW_STATUS",
    ),
    Experiment(
        "chain-link",
        5,
        "does a chain without a link interrupt or hang?",
        ("chain_without_link",),
        needs=_MMIO + "the driver starts every task with TASK_NUMBER 1",
    ),
    Experiment(
        "dma-base",
        14,
        "is TASK_DMA_BASE_ADDR added to addresses, or does it stall?",
        ("task_dma_base",),
        needs=_MMIO + "the driver writes 0 to TASK_DMA_BASE_ADDR before every task",
    ),
    Experiment(
        "iommu-banks",
        14,
        "which DMA of core 0 uses which IOMMU bank?",
        ("core0_banks",),
        needs="PAGE_FAULT_ADDR of both banks (the kernel's log shows one, /dev/mem both): the driver maps both alike",
    ),
    Experiment(
        "nibbles",
        8,
        "which nibble of an int4 byte is the even element?",
        ("nibble_order",),
        needs="a task that reads int4 and is no product: a product swaps the channels of both operands alike, so that "
        "either order gives the same sums; 'formats' records what a copy of int4 through the DPU does",
    ),
)
