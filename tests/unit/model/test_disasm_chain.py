# SPDX-License-Identifier: MIT
"""The disassembler on a chain of delta tasks among weights and data, as the dump of all memory, not told where
anything is: each task as the model runs it."""

from __future__ import annotations

import numpy as np
import pytest
from streams import Bench
from test_rmsnorm_chain import Chain, D, deltas, run_chain

from rknpu_userspace.isa.disasm import listing, listing_lines
from rknpu_userspace.isa.streams import Stream

SUMMARIES = [
    "element-wise fp16 1x1x4096 -> fp16, operand add",
    "element-wise fp16 1x1x4096 -> bf16, operand mul",
    "conv 1x1 s1 bf16 1x1x4096 -> 1x1x16 bf16, BS add, BS multiply, BN multiply",
    "element-wise int16 1x1x16 -> int16, BS multiply, BN add",
    "element-wise bf16 1x1x16 -> fp16, BS multiply, operand mul",
    "element-wise bf16 1x1x16 -> fp16, operand mul",
    "element-wise bf16 1x1x16 -> fp16, BS add, operand mul",
    "element-wise fp16 1x1x16 -> fp16, BS multiply, operand mul",
    "element-wise fp16 1x1x16 -> fp16, operand mul",
    "element-wise fp16 1x1x16 -> fp16, BS add, operand mul",
    "conv 1x1 s1 fp16 1x1x8 -> 1x1x4096 fp16, per-channel scale, operand mul",
]


@pytest.mark.parametrize("compact", [False, True])
def test_dump_of_all_memory(compact: bool) -> None:
    rng = np.random.default_rng(11)
    bench = Bench()
    chain = Chain(bench, *(rng.standard_normal(D) for _ in range(3)))
    tasks = chain.tasks()
    run_chain(bench, deltas(tasks) if compact else tasks)
    dump = bench.memory.view(0, bench._next).view(np.uint64)
    found = listing(Stream("memory", dump, 0))
    assert len(found.tasks) == 11
    assert found.chains == [tuple(range(11))]
    assert [task.problems for task in found.tasks] == [[]] * 11
    assert [task.verdict.stats is not None for task in found.tasks] == [True] * 11
    assert [task.summary for task in found.tasks] == SUMMARIES
    assert [bool(task.inherited) for task in found.tasks[5:]] == [compact] * 6
    text = "\n".join(listing_lines(found, brief=True))
    assert "TASK_NUMBER 11 runs them in one go" in text
    assert ("come from the task two before" in text) == compact
