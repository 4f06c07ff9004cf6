# SPDX-License-Identifier: MIT
"""Summation of the float formats.

RN measured fp16 on three cores of boards (1.3e8 outputs): the products of an aligned group of 32 channels are summed
exactly and rounded once to fp32, nearest even; the group sums are added in fp32 in order, starting from zero. (Output
lane 0 of 16 is now and then one bit lower, with no known rule; the model does not do that.) The quirk ``once`` sums
everything in float64 and rounds once.

For a kernel of more than one tap the order of the groups is that of the weights in memory: channel groups outside,
taps inside. That, and the same scheme for bf16 and tf32, is an assumption. A group is summed in float64, whose
53 bits hold the sum of 32 products exactly unless their magnitudes differ by more than 2^29.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from .precision import Array

_BLOCK_OUTPUTS = 3 << 13
_BLOCK_COLUMNS = 128
"""Outputs that are summed at a time: their sums, in both widths, stay in a core's second-level cache."""
_PARALLEL_MACS = 1 << 22

Columns = tuple[slice, slice]
"""A group: its columns of the patch matrix and its rows of the weight matrix."""


@lru_cache(maxsize=1)
def _pool() -> tuple[int, ThreadPoolExecutor | None]:
    """Worker threads: as many as BLAS is allowed, at most four. A forked process makes its own."""
    allowed = os.environ.get("OPENBLAS_NUM_THREADS", "")
    count = int(allowed) if allowed.isdigit() and int(allowed) > 0 else os.cpu_count() or 1
    count = min(count, os.cpu_count() or 1, 4)
    return count, ThreadPoolExecutor(count, "npu-float") if count > 1 else None


os.register_at_fork(after_in_child=_pool.cache_clear)


def _blocks(rows: int, columns: int) -> list[Columns]:
    width = max(1, _BLOCK_OUTPUTS // rows // _BLOCK_COLUMNS) * _BLOCK_COLUMNS
    height = max(8, _BLOCK_OUTPUTS // min(width, columns))
    return [
        (slice(m, min(m + height, rows)), slice(n, min(n + width, columns)))
        for m in range(0, rows, height)
        for n in range(0, columns, width)
    ]


def add_groups(total: Array, patches: Array, weights: Array, groups: Sequence[Columns]) -> None:
    """``total`` (float32 [pixel][kernel]) += rounded sums of each group, in order.

    ``patches`` float64 [pixel][row of weights], ``weights`` float64 [row][kernel].
    """

    def block(where: Columns) -> None:
        rows, columns = where
        kept = np.array(
            total[rows, columns]
        )  # its lines side by side: those of ``total`` fall into the same cache sets
        exact = np.empty(kept.shape, np.float64)
        with np.errstate(all="ignore"):
            for left, right in groups:
                np.matmul(patches[rows, left], weights[right, columns], out=exact)
                # rounds the sum of the group to float32, then adds in float32
                np.add(kept, exact, out=kept, dtype=np.float32, casting="same_kind")
        total[rows, columns] = kept

    blocks = _blocks(*total.shape)
    _, pool = _pool()
    if pool is None or len(blocks) < 2 or total.size * patches.shape[1] < _PARALLEL_MACS:
        for where in blocks:
            block(where)
    else:
        list(pool.map(block, blocks))
