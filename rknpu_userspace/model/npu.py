# SPDX-License-Identifier: MIT
"""One NPU core: registers, CBUF, and the running of jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from rknpu_userspace.isa import BY_OFFSET, Block

from . import core, dpu, dpu_rdma, pc, ppu
from .cbuf import Cbuf
from .context import MAX_ELEMENTS, Context
from .conv_task import ConvTask, read_config
from .cost import MACS_PER_CYCLE, JobCost, Meter
from .errors import IllegalConfig, TaskStopped, Unsupported, require
from .lut_tables import LutTables
from .memory import AddressSpace, BankStalled, BusError, DmaFault, DmaPort, JobAborted, WriteGuard
from .precision import INTEGER, NAMES
from .quirks import Quirks
from .registers import (
    BLOCK_INDEX,
    BLOCKS,
    OPERATION_ENABLE,
    S_POINTER,
    S_STATUS,
    BlockState,
    Fields,
    decode,
    unknown_bits,
)
from .results import FaultInfo, TaskResult

_CONV_BLOCKS = (Block.CNA, Block.CORE)
_DMA_BLOCK_READS = {0x8000: 0xFFF, 0x8004: 0x01010101, 0x8008: 0x00010101, 0x8010: 0x101, 0x8030: 0x100}
"""Idle values of the DMA block, measured on a board (RN perf/hw-byte-counters.md)."""


class NpuCore:
    """A core. ``memory`` is what its DMA goes through unless a job brings its own address spaces.

    ``run_job`` is not reentrant. ``abort`` may come from another thread; the core is unusable afterwards.
    """

    def __init__(
        self,
        core_index: int,
        memory: AddressSpace,
        quirks: Quirks,
        clock_hz: int,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.index = core_index
        self.memory = memory
        self.quirks = quirks
        self.clock_hz = clock_hz
        self._log = log
        self._decoder = pc.Decoder()
        self._guard = WriteGuard()
        self.reset()

    def reset(self) -> None:
        """Power-on state: registers, pointers, look-up tables, CBUF and a stuck job are gone."""
        self.blocks = [BlockState(block) for block in BLOCKS]
        self.cbuf = Cbuf()
        self.lut = LutTables()
        self._stuck = ""
        self._irq = 0
        self._extra: dict[int, int] = dict(_DMA_BLOCK_READS)

    def abort(self) -> None:
        """Cut off the running job from memory: when this returns it will write nothing more."""
        self._guard.abort()

    def log(self, text: str) -> None:
        """One line for the log."""
        if self._log is not None:
            self._log(f"core {self.index}: {text}")

    # register accesses of the CPU -----------------------------------------------------------------------------------

    def write(self, offset: int, value: int) -> None:
        """A register write of the CPU (offset in the core's window, 0x1000 up). Unknown ones are logged."""
        register = BY_OFFSET.get(offset)
        if register is None or register.block is Block.PC:
            if 0x8000 <= offset < 0xA000 and offset % 4 == 0:
                self._extra[offset] = value
            else:
                self.log(f"write of {value:#x} to unknown register {offset:#06x}")
            return
        state = self.blocks[BLOCK_INDEX[register.block]]
        local = offset - register.block.base
        if local == S_POINTER:
            state.write_pointer(value)
        elif offset in pc.LUT_PORT:
            self._lut_access(pc.LUT_PORT[offset], value)
        elif local > OPERATION_ENABLE:
            if unknown_bits(register, value):
                self.log(
                    f"write of {value:#x} to {register.name}: undocumented bits {unknown_bits(register, value):#x}"
                )
            state.groups[state.pointer][local // 4] = value & 0xFFFFFFFF
        else:
            self.log(f"write of {value:#x} to {register.name} by the CPU is not modelled")

    def read(self, offset: int) -> int:
        """A register read of the CPU: the group that the pointer selects."""
        register = BY_OFFSET.get(offset)
        if register is None or register.block is Block.PC:
            if offset in self._extra or 0x8000 <= offset < 0xA000:
                return self._extra.get(offset, 0)
            self.log(f"read of unknown register {offset:#06x}")
            return 0
        state = self.blocks[BLOCK_INDEX[register.block]]
        local = offset - register.block.base
        if local == S_POINTER:
            return state.read_pointer()
        if local == S_STATUS:
            return state.status()
        return state.groups[state.pointer][local // 4]

    def _lut_access(self, kind: int, value: int) -> None:
        if kind == pc.LUT_CONFIG:
            self.lut.configure(value)
        else:
            self.lut.write(value)

    # jobs -----------------------------------------------------------------------------------------------------------

    def run_job(
        self,
        regcmd: int,
        words: int,
        task_con: int,
        dma_base: int = 0,
        spaces: Sequence[AddressSpace] | None = None,
    ) -> TaskResult:
        """Fetch and run a chain of up to TASK_NUMBER tasks.

        ``words`` 64-bit command words at IOVA ``regcmd``; ``spaces`` are the address spaces of the IOMMU banks (one,
        or two for core 0). Raises JobAborted after ``abort``.
        """
        started = time.perf_counter()
        cost = JobCost(self.clock_hz)
        outcome, reason, irq, fault = "done", "", 0, None
        try:
            irq = self._run_chain(regcmd, words, task_con, dma_base, spaces or [self.memory], cost)
        except DmaFault as error:
            outcome, reason, fault = "fault", str(error), error.info
        except BusError as error:
            outcome, reason = "hang", str(error)
            irq = pc.IRQ_DMA_WRITE_ERROR if error.write else pc.IRQ_DMA_READ_ERROR
        except BankStalled:
            outcome, reason = "hang", "the IOMMU bank is stalled"
        except TaskStopped as error:
            outcome, reason = "hang", str(error)
        stats = cost.stats
        stats.host_us = (time.perf_counter() - started) * 1e6
        if reason:
            self._stuck = reason
            self.log(f"{outcome}: {reason}" + (f" [{stats.op}]" if stats.op else ""))
        status = pc.TASK_STATUS_DONE if outcome == "done" else stats.tasks & pc.TASK_NUMBER_MASK
        return _result(outcome, irq, reason, cost, fault, status)

    def _ports(self, spaces: Sequence[AddressSpace]) -> tuple[DmaPort, DmaPort]:
        """Port of the command fetch and port of the data."""
        banks = (0, 0)
        if self.index == 0:
            banks = {"pc0_data1": (0, 1), "all0": (0, 0), "all1": (1, 1)}[self.quirks["core0_banks"]]
        first, second = (DmaPort(spaces[min(bank, len(spaces) - 1)], bank, self._guard) for bank in banks)
        return first, second

    def _run_chain(
        self, regcmd: int, words: int, task_con: int, dma_base: int, spaces: Sequence[AddressSpace], cost: JobCost
    ) -> int:
        if self._stuck:
            raise IllegalConfig(f"a job started on a core that needs a reset, its last one stopped with: {self._stuck}")
        commands, data = self._ports(spaces)
        number = task_con & pc.TASK_NUMBER_MASK
        require(number > 0, "TASK_NUMBER is zero")
        dma_base &= ~0xF
        if dma_base and self.quirks["task_dma_base"] == "stall":
            raise IllegalConfig(f"PC_TASK_DMA_BASE_ADDR {dma_base:#x}: a table address other than 0 stalls the task")
        data.base = dma_base
        irq = 0
        for done in range(number):
            meter = Meter()
            ok = False
            try:
                link = self._run_segment(commands, data, regcmd, words, meter)
                ok = True
            finally:
                cost.add(meter, ok)
            irq = self._irq
            if done + 1 < number:
                if link is None:
                    return self._chain_ended(done + 1, number, irq)
                regcmd, words = link
        return irq

    def _chain_ended(self, done: int, number: int, irq: int) -> int:
        if self.quirks["chain_without_link"] == "done":
            return irq
        raise IllegalConfig(f"the chain ends after {done} of TASK_NUMBER {number} tasks: no link to the next")

    def _run_segment(
        self, commands: DmaPort, data: DmaPort, regcmd: int, words: int, meter: Meter
    ) -> tuple[int, int] | None:
        """Fetch one task's words, write its registers, run what it enables; returns the link to the next task."""
        require(0 < words <= pc.MAX_WORDS, f"a task of {words} command words")
        require(regcmd % 16 == 0, f"command address {regcmd:#x} is not 16-byte aligned")
        raw = commands.read(regcmd, words * 8)
        meter.dma("pc", len(raw))
        base: int | None = None
        amount = 0
        synced = enabled = False
        blocks = self.blocks
        for kind, block, index, value, text in self._decoder.decode(raw):
            if kind == pc.WRITE:
                state = blocks[block]
                state.groups[state.pointer][index] = value
            elif kind == pc.POINTER:
                blocks[block].write_pointer(value)
            elif kind == pc.LINK_BASE:
                base = value
            elif kind == pc.LINK_AMOUNT:
                amount = value
            elif kind in (pc.LUT_CONFIG, pc.LUT_DATA):
                self._lut_access(kind, value)
            elif kind == pc.SYNC:
                synced = True
            elif kind == pc.ENABLE:
                require(synced, "operation enable without the 0x0041 word before it")
                self._execute(value, data, meter)
                enabled, synced = True, False
            elif kind == pc.UNKNOWN:
                raise Unsupported(text)
        require(enabled, "the command stream enables no block")
        return None if base is None or not amount else (base, (amount + 1) * 2)

    def _execute(self, mask: int, port: DmaPort, meter: Meter) -> None:
        """Run the blocks of an operation-enable mask, each on the group that its executer points to."""
        enabled = pc.enabled_blocks(mask)
        fields: dict[Block, Fields] = {}
        for block in enabled:
            state = self.blocks[BLOCK_INDEX[block]]
            state.enable()
            require(
                state.pending[state.executer],
                f"{block.name}: group {state.executer ^ 1} was enabled, the executer waits for group {state.executer}",
            )
            if block in _CONV_BLOCKS and self.quirks["s_pointer_core"] == "checked":
                require(
                    state.core_index == self.index,
                    f"{block.name}_S_POINTER has the bits of core {state.core_index}, this is core {self.index}",
                )
            fields[block] = decode(block, state.groups[state.executer])
        context = Context(port, self.cbuf, self.lut, self.quirks, meter, self._guard, self.log)
        with np.errstate(all="ignore"):  # infinities and NaNs are results here, not mistakes
            if Block.PPU in fields or Block.PPU_RDMA in fields:
                run_ppu(context, fields)
            else:
                require(Block.DPU in fields, f"operation enable {mask:#x}: no block puts out data")
                run_dpu(context, fields)
        self._irq = self._finish(enabled)

    def _finish(self, enabled: Sequence[Block]) -> int:
        """Mark the blocks done; the bit of the group that ran becomes set."""
        irq = 0
        last = Block.PPU if Block.PPU in enabled else Block.DPU
        for block in enabled:
            state = self.blocks[BLOCK_INDEX[block]]
            if block in pc.IRQ_BIT and (self.quirks["irq_blocks"] == "all" or block is last):
                for bit in pc.IRQ_BIT[block]:
                    irq |= 1 << (bit + state.executer)
                if block is Block.PPU and self.quirks["ppu_irq"] == "ppu_and_dpu":
                    irq |= 1 << (pc.IRQ_BIT[Block.DPU][0] + state.executer)
            state.finish()
        return irq


def check_dpu(ctx: Context, fields: dict[Block, Fields]) -> ConvTask | None:
    """Check the registers of a task that ends in the DPU; the convolution that feeds it, None if it is flying."""
    f = fields[Block.DPU]
    conv = [block for block in _CONV_BLOCKS if block in fields]
    task = None
    if f["FLYING_MODE"]:
        require(not conv, "DPU FLYING_MODE together with CNA or CORE")
        require(Block.DPU_RDMA in fields, "DPU FLYING_MODE without DPU_RDMA: nothing feeds the DPU")
        ctx.meter.op = f"flying {NAMES[f['PROC_PRECISION']]} -> {NAMES[f['OUT_PRECISION']]}"
    else:
        require(len(conv) == 2, "a convolution needs CNA and CORE enabled together with the DPU")
        task = read_config(fields[Block.CNA])
        ctx.meter.op = task.describe()
        ctx.meter.peak_macs = MACS_PER_CYCLE[task.code]
        core.check(ctx, fields[Block.CORE], f, task)
    dpu.check(ctx, f, task)
    elements = (f["WIDTH"] + 1) * (f["HEIGHT"] + 1) * (f["CHANNEL"] + 1)
    require(elements <= MAX_ELEMENTS, f"{elements} output elements in one task do not end before any timeout")
    if Block.DPU_RDMA in fields:
        dpu_rdma.check(fields[Block.DPU_RDMA], f)
    return task


def run_dpu(ctx: Context, fields: dict[Block, Fields]) -> None:
    """A task that ends in the DPU: a convolution, or data from memory (flying)."""
    f = fields[Block.DPU]
    task = check_dpu(ctx, fields)
    feeds = dpu_rdma.Feeds()
    if Block.DPU_RDMA in fields:
        feeds = dpu_rdma.feed(ctx, fields[Block.DPU_RDMA], f)
    if task is not None:
        zero_point = 0 if f["OD_BYPASS"] or task.code not in INTEGER else dpu_rdma.zero_points(f, feeds)
        values = core.convolve(ctx, fields[Block.CNA], fields[Block.CORE], task, zero_point)
    elif feeds.main is not None:
        values = feeds.main
    else:
        raise IllegalConfig("DPU FLYING_MODE without main data")
    ctx.guard.check()
    raw = dpu.process(ctx, f, values, feeds)
    dpu.write_out(ctx, f, raw, task)


def check_ppu(fields: dict[Block, Fields]) -> None:
    """Check the blocks of a pooling task."""
    if set(fields) != {Block.PPU, Block.PPU_RDMA}:
        names = " ".join(block.name for block in fields)
        raise Unsupported(f"PPU together with other blocks or without PPU_RDMA ({names})")


def run_ppu(ctx: Context, fields: dict[Block, Fields]) -> None:
    """A pooling task."""
    check_ppu(fields)
    ppu.run(ctx, fields[Block.PPU], fields[Block.PPU_RDMA])


def _result(outcome: str, irq: int, reason: str, cost: JobCost, fault: FaultInfo | None, status: int) -> TaskResult:
    if outcome == "done":
        return TaskResult("done", irq, "", cost.stats, None, status)
    return TaskResult("fault" if outcome == "fault" else "hang", irq, reason, cost.stats, fault, status)


__all__ = ["JobAborted", "NpuCore", "run_dpu"]
