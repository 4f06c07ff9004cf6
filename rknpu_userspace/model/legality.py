# SPDX-License-Identifier: MIT
"""What is wrong with a task, told without its memory: the model's own rules, all of them at once.

First the rules that registers must keep are checked and all that are broken collected. A task that keeps them is run
over memory that holds nothing and keeps nothing, so that what only shows while it runs (a stage that waits for an
operand, a mode that is not modelled) is found as well, and its cost with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rknpu_userspace.isa import Block

from . import npu, ppu
from .cbuf import Cbuf
from .context import Context
from .cost import JobCost, Meter
from .errors import TaskStopped, collecting
from .lut_tables import LutTables
from .machine import DEFAULT_CLOCK_HZ
from .memory import PAGE, Bytes, DmaPort, Offsets, WriteGuard
from .quirks import Quirks
from .registers import GROUP_SIZE, Fields, decode
from .results import TaskStats

MAX_RUN_MACS = 1 << 26
"""Tasks with more multiply-accumulates are not run: it would take seconds."""
_REUSE = ("DATA_REUSE", "WEIGHT_REUSE")


@dataclass
class Verdict:
    """What the model says about a task. ``stats`` is None for a task that was not run to its end."""

    broken: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stats: TaskStats | None = None


class _Void:
    """Memory that is the same page everywhere: reads give zeros, or what the task itself wrote."""

    def __init__(self) -> None:
        self.ram: Bytes = np.zeros(PAGE, np.uint8)

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """See AddressSpace."""
        return np.zeros(count, np.int64)


def examine(registers: Mapping[int, int], blocks: Sequence[Block], quirks: Quirks | None = None) -> Verdict:
    """Judge a task by its registers (by offset; missing ones are zero) and the blocks it enables. Never raises."""
    verdict = Verdict()
    if not blocks:
        verdict.broken.append("no block is enabled")
        return verdict
    fields = {block: _fields(registers, block) for block in blocks}
    meter = Meter()
    guard = WriteGuard()
    port = DmaPort(_Void(), 0, guard)
    context = Context(port, Cbuf(), LutTables(), quirks or Quirks(), meter, guard, verdict.remarks.append)
    macs = _check(context, fields, verdict)
    if verdict.broken or macs > MAX_RUN_MACS:
        return verdict
    verdict.remarks.clear()
    if Block.CNA in fields:  # what an earlier task left in the CBUF is not known here
        for name in _REUSE:
            fields[Block.CNA][name] = 0
    _run(context, fields, verdict)
    return verdict


def _fields(registers: Mapping[int, int], block: Block) -> Fields:
    group = [registers.get(block.base + 4 * index, 0) for index in range(GROUP_SIZE)]
    return decode(block, group)


def _check(context: Context, fields: dict[Block, Fields], verdict: Verdict) -> int:
    """Collect broken rules; the multiply-accumulates of the task."""
    macs = 0
    with collecting() as broken:
        try:
            if Block.PPU in fields or Block.PPU_RDMA in fields:
                npu.check_ppu(fields)
                ppu.read_config(fields[Block.PPU], fields[Block.PPU_RDMA])
            elif Block.DPU in fields:
                task = npu.check_dpu(context, fields)
                macs = task.macs if task is not None else 0
            else:
                broken.append("no block puts out data")
        except TaskStopped as error:
            broken.append(str(error))
        except (ArithmeticError, LookupError):
            # the sizes that were noted as wrong above make no sense to what follows
            if not broken:
                raise
    verdict.broken += dict.fromkeys(broken)
    return macs


def _run(context: Context, fields: dict[Block, Fields], verdict: Verdict) -> None:
    try:
        with np.errstate(all="ignore"):
            if Block.PPU in fields:
                npu.run_ppu(context, fields)
            else:
                npu.run_dpu(context, fields)
    except TaskStopped as error:
        verdict.broken.append(str(error))
        return
    cost = JobCost(DEFAULT_CLOCK_HZ)
    cost.add(context.meter, True)
    verdict.stats = cost.stats
