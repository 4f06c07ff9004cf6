# SPDX-License-Identifier: MIT
"""The NPU in-process: cores and a flat arena of memory, in place of the kernel driver and the board.

    machine = ModelMachine(arena_bytes=64 << 20)
    machine.memory.map(0x10000, 8192)                # IOVA range, pages of 4 KiB
    machine.memory.view(0x10000, 8192)[:] = ...      # numpy view of the arena, no copy
    result = machine.run_task(core=0, regcmd_iova=0x10000, word_count=130)
    if result.outcome != "done":
        machine.reset(0)                             # as the kernel does after its timeout

An IOVA is an offset into the arena. What is not mapped faults, as does a write to what is mapped read-only. A job that
hangs or faults leaves its core stuck until ``reset``.
"""

from __future__ import annotations

from collections.abc import Callable

from .memory import Arena
from .npu import NpuCore
from .quirks import Quirks
from .results import TaskResult

CORES = 3
DEFAULT_CLOCK_HZ = 200_000_000
"""The clock that the device tree assigns (rk3588-base.dtsi, assigned-clock-rates of every rknn core)."""
_S_POINTER = 0xE
_TASK_CON_ONE = 0x7001
CNA_S_POINTER = 0x1004
CORE_S_POINTER = 0x3004


class ModelMachine:
    """Cores over one arena.

    ``arena_bytes`` (rounded up to pages, at most 4 GiB) is allocated lazily by the operating system. ``log`` receives
    one line per broken rule, unknown register or fault. Not thread-safe per core; different cores may run in
    different threads.
    """

    def __init__(
        self,
        arena_bytes: int,
        *,
        cores: int = CORES,
        quirks: Quirks | None = None,
        clock_hz: int = DEFAULT_CLOCK_HZ,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.memory = Arena(arena_bytes)
        self.quirks = quirks if quirks is not None else Quirks()
        self.cores: list[NpuCore] = [
            NpuCore(index, self.memory, self.quirks, clock_hz, log=log) for index in range(cores)
        ]

    def run_task(self, core: int, regcmd_iova: int, word_count: int) -> TaskResult:
        """Run one task as the mainline driver starts it: slave-mode S_POINTER writes, then a kick with TASK_NUMBER 1.

        ``word_count`` is the number of 64-bit command words, trailer included.
        Evidence: linux drivers/accel/rocket/rocket_job.c (rocket_job_hw_submit).
        """
        npu = self.cores[core]
        npu.write(CNA_S_POINTER, _S_POINTER | core << 28)
        npu.write(CORE_S_POINTER, _S_POINTER | core << 28)
        return npu.run_job(regcmd_iova, (word_count + 1) // 2 * 2, _TASK_CON_ONE)

    def reset(self, core: int) -> None:
        """Assert and release the core's resets: registers, both banks and the CBUF are lost."""
        self.cores[core].reset()
