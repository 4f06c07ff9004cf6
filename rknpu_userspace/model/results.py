# SPDX-License-Identifier: MIT
"""What a core reports about a job: its outcome, interrupt bits, the reason of a failure, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["done", "hang", "fault"]


@dataclass
class TaskStats:
    """Cost of a job (the sum over its tasks).

    ``dma_bytes`` is keyed by DMA unit: pc, feature, weight, mrdma, brdma, nrdma, erdma, wdma, ppu_rdma, ppu_wdma.
    ``cycles`` and ``ns`` are estimates, see ``cost.py``. ``op`` says what the (last) task computed.
    """

    tasks: int = 0
    op: str = ""
    macs: int = 0
    mac_cycles: int = 0
    utilisation: float = 0.0
    dma_bytes: dict[str, int] = field(default_factory=dict)
    cycles: int = 0
    ns: int = 0
    host_us: float = 0.0


@dataclass(frozen=True)
class FaultInfo:
    """An IOMMU page fault: IOVA, direction, and the bank that translated."""

    address: int
    write: bool
    bank: int


@dataclass(frozen=True)
class TaskResult:
    """Outcome of a job.

    ``irq_bits`` are the bits that become set in PC_INTERRUPT_RAW_STATUS. ``reason`` is empty when the job is done, else
    one line that names the rule that was broken, the register that is not understood, or the faulting address.
    ``task_status`` is PC_TASK_STATUS at the end.
    """

    outcome: Outcome
    irq_bits: int
    reason: str
    stats: TaskStats
    fault: FaultInfo | None = None
    task_status: int = 0
