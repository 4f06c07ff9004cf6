# SPDX-License-Identifier: MIT
"""What the hardware can do in one task, and errors that name the limit and the nearest legal choice.

Evidence: field widths of the RK3588 TRM ch. 36 registers; lower limits where clients found them on boards (RU
src/npu_regcmd.c, HM src/rk_npu_matmul_i8.cpp, RN encodings/).
"""

from __future__ import annotations

CBUF_BANKS = 12
BANK_BYTES = 32 * 1024
ENTRY_BYTES = 64
"""Unit of a feature line in the CBUF."""
ENTRIES_PER_BANK = BANK_BYTES // ENTRY_BYTES
MAX_WIDTH = 2047
"""Pixels of an input or output line of a tile: DATAIN_WIDTH and DATAOUT_WIDTH have 11 bits."""
MAX_LINES = 1022
"""Input lines of a tile: FEATURE_GRAINS has 10 bits and is set to lines + 1, as working matmul clients do."""
MAX_KERNEL = 31
MAX_STRIDE = 7
MAX_PAD = 15
MAX_DILATION = 32
MAX_IMAGE_PIXELS = 16383
"""Pixels of a tile of a packed image: they stand in DATA_ENTRIES, which has 14 bits."""
INSERTIONS = (1, 2, 4, 8)
"""Strides of a transposed convolution that boards obey (RN encodings/conv-transpose.md)."""
MAX_PAD_INSERTED = 11
MAX_BYTES_PER_KERNEL = BANK_BYTES
"""The field has 19 bits; RU finds one bank to be the limit."""
MAX_TASK_KERNELS = 4096
"""Output channels of a task: 13-bit fields, but the exact maximum corrupts the tail, and fp16 tasks with 8192 outputs
make a later int8 task time out (HM docs/ATTENTION.md)."""
SLACK_BANKS = 1
"""Banks that an integer tile of one pixel's width leaves free behind its features: without, the last rows of some
sizes go wrong; float16 and wider tiles need none (RN encodings/cbuf-bank-slack.md)."""
MAX_SLAB_START = 2048
"""A line lies in the CBUF as slabs of 64 bytes of every pixel; the last slab's first entry counts 11 bits, beyond which
the highest channels read the line's front (measured at seven widths: iree-rocket LIMITS.md)."""
MAX_NOTCH = 8191
MAX_CHANNELS_PER_TASK = {"int4": 480, "int8": 8192, "float16": 8192, "bfloat16": 8192, "tfloat32": 4096}
"""Input channels (K of a matmul) that clients have run in one task; int4 less, so that no int16 sum can saturate."""
MAX_JOB_SECONDS = 0.1
"""Estimated length of a job; the driver ends one after 0.5 s (linux drivers/accel/rocket/rocket_job.c)."""
CLOCK_HZ = 200_000_000
"""The clock that mainline device trees assign; used for estimates only."""
DMA_BYTES_PER_CYCLE = 16
TASK_OVERHEAD_CYCLES = 2000
TASK_OVERHEAD_BYTES = TASK_OVERHEAD_CYCLES * DMA_BYTES_PER_CYCLE
"""What starting a task costs, in the DMA bytes that could be moved meanwhile."""


def check_range(name: str, value: int, least: int, most: int, why: str = "") -> None:
    """ValueError naming the limit and the nearest legal value."""
    if least <= value <= most:
        return
    nearest = least if value < least else most
    reason = f" ({why})" if why else ""
    raise ValueError(f"{name} {value} is outside {least}..{most}{reason}; the nearest legal value is {nearest}")
