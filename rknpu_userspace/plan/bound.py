# SPDX-License-Identifier: MIT
"""The fewest bytes that tasks of this hardware can move for a problem, from arithmetic alone.

Notation, for one chunk of the sum: ``f`` bytes of features, ``w`` of weights, ``S`` = 384 KiB of CBUF, ``g`` a kernel
group, ``p`` the input of one output pixel. A task needs all its features and one kernel group in the CBUF, and results
leave it once per chunk.

* Features outside: ``t`` tiles of at most ``S - g``, so ``t >= f / (S - g)``; bytes ``f + t w``.
* Kernels outside: ``b`` blocks of at most ``S - p``, so ``b >= w / (S - p)``; bytes ``b f + w``.
* A turn keeps of the streamed operand what fits beside the tile on either side of it. Over all ``t - 1`` turns that is
  at most ``(t - 1) S - f`` plus half the first and half the last tile, hence ``t S - f - g``.
* With ``c`` chunks each is ``1/c`` of both operands, and every chunk writes a whole partial result of 4 bytes an
  element. Adding up on the NPU (the DPU's element-wise int32 addition) reads the sum so far as well, so the host's
  adding is never more for the NPU.

Sizes of tiles and blocks are real numbers here, overlaps of neighbouring tiles and alignment cost nothing: no plan gets
below, few get there.
"""

from __future__ import annotations

from rknpu_userspace.formats import OUTPUTS, PARTIAL
from rknpu_userspace.layout import ceil_div

from . import limits
from .geometry import Problem

CBUF_BYTES = limits.CBUF_BANKS * limits.BANK_BYTES
_MOST_CHUNKS = 64


def least_bytes(problem: Problem, images: int = 1) -> int:
    """Bytes of features, weights and results that the best order of tasks moves; at least ``bound_bytes``."""
    bound = problem.bound_bytes(images)
    if problem.depthwise:
        return bound
    pixels = images * problem.out_height * problem.out_width
    weights = problem.input.nbytes(
        problem.kernel_height * problem.kernel_width * problem.channels * problem.out_channels
    )
    results = pixels * problem.out_channels * problem.output.nbytes
    features = bound - weights - results
    partial = pixels * problem.out_channels * OUTPUTS[PARTIAL[problem.form]].nbytes
    fewest = ceil_div(problem.channels, limits.MAX_CHANNELS_PER_TASK[problem.form])
    totals = []
    for chunks in range(fewest, max(fewest, _MOST_CHUNKS) + 1):
        operands = chunks * _walk(problem, features / chunks, weights / chunks, chunks)
        totals.append(operands + (results if chunks == 1 else chunks * partial))
    return max(bound, int(min(totals)))


def _walk(problem: Problem, features: float, weights: float, chunks: int) -> float:
    """Bytes of both operands of one chunk, in the better of the two walks."""
    per_kernel = weights / problem.out_channels
    group = per_kernel * min(problem.input.kernel_group, problem.out_channels)
    window = problem.input.bits / 8 * problem.kernel_height * problem.kernel_width * problem.channels / chunks
    return min(_one(features, weights, group), _one(weights, features, window))


def _one(kept: float, streamed: float, least_streamed: float) -> float:
    """``kept`` is fetched once, tile by tile; ``streamed`` once for every tile, but for what a turn keeps."""
    room = CBUF_BYTES - least_streamed
    if room <= 0:
        return float("inf")
    fewest = -int(-kept // room)
    totals = []
    for tiles in range(fewest, fewest + 4):
        turns = min(tiles * CBUF_BYTES - kept - least_streamed, (tiles - 1) * streamed) if tiles > 1 else 0.0
        totals.append(kept + tiles * streamed - max(0.0, turns))
    return min(totals)
