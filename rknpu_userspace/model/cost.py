# SPDX-License-Identifier: MIT
"""What a task costs: bytes by DMA unit, multiply-accumulates, and an estimate of its time.

The estimate is meant for comparing plans, not for promising times. Its constants:

* MACs per cycle and core by datatype: TRM ch. 36.1 (int4 2048, int8 1024, int16/fp16/bf16 512, tf32 256).
* The array works on one pixel, one kernel group and one channel group per cycle; a partly filled group costs a whole
  cycle. Group sizes follow from the weight layout (32 x 32 for int8). Depthwise: one group of channels per tap and
  cycle, an assumption.
* ``DMA_BYTES_PER_CYCLE``: 128-bit AXI port, read and write counted together; the regcmd fetch unit is a 128-bit pair
  (TRM PC_REGISTER_AMOUNTS). An assumption about the sustained rate: no public measurement isolates it.
* ``DPU_ELEMENTS_PER_CYCLE``: the DPU moves one 16-byte atom per cycle, an assumption of the same kind.
* ``TASK_OVERHEAD_CYCLES``: fetch, group switch, pipeline fill and drain. Published per-job floors (27-54 us at
  600 MHz) are dominated by the kernel; 2000 cycles are 10 us at 200 MHz.

Fetch, MAC and write-out overlap, so the longest of them counts, plus the overhead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .results import TaskStats

MACS_PER_CYCLE = {0: 1024, 1: 512, 2: 512, 3: 512, 6: 2048, 7: 256}
"""By CNA precision code."""
DMA_BYTES_PER_CYCLE = 16
DPU_ATOMS_PER_CYCLE = 1
TASK_OVERHEAD_CYCLES = 2000


@dataclass
class Meter:
    """Counts the work of one task."""

    dma_bytes: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    mac_cycles: int = 0
    peak_macs: int = 0
    dpu_atoms: int = 0
    op: str = ""

    def dma(self, unit: str, count: int) -> None:
        """Add bytes moved by a DMA unit."""
        self.dma_bytes[unit] = self.dma_bytes.get(unit, 0) + count

    def cycles(self) -> int:
        """Estimated cycles of the task."""
        transfer = -(-sum(self.dma_bytes.values()) // DMA_BYTES_PER_CYCLE)
        output = -(-self.dpu_atoms // DPU_ATOMS_PER_CYCLE)
        return max(transfer, self.mac_cycles, output) + TASK_OVERHEAD_CYCLES


class JobCost:
    """Sums the tasks of a job."""

    def __init__(self, clock_hz: int) -> None:
        self._clock_hz = clock_hz
        self._peak = 0
        self.stats = TaskStats()

    def add(self, meter: Meter, done: bool) -> None:
        """Add a task; ``done`` is false for one that stopped half way."""
        stats = self.stats
        stats.tasks += int(done)
        stats.op = meter.op or stats.op
        stats.macs += meter.macs
        stats.mac_cycles += meter.mac_cycles
        for unit, count in meter.dma_bytes.items():
            stats.dma_bytes[unit] = stats.dma_bytes.get(unit, 0) + count
        cycles = meter.cycles()
        stats.cycles += cycles
        stats.ns = stats.cycles * 1_000_000_000 // self._clock_hz
        self._peak += cycles * meter.peak_macs
        stats.utilisation = stats.macs / self._peak if self._peak else 0.0
