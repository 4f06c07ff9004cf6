# SPDX-License-Identifier: MIT
"""How the tasks of a plan are bundled into jobs.

The driver ends a job that takes longer than 0.5 s, and between two jobs the core may run somebody else's: the CBUF
holds what the last task left there only within a job.
"""

from __future__ import annotations

from dataclasses import replace

from rknpu_userspace.layout import align

from . import limits
from .geometry import Plan, Tile, chunk_channels


def seconds(plan: Plan, tile: Tile) -> float:
    """Estimated time of a tile's task at 200 MHz, for grouping tasks into jobs that end before the driver's timeout.

    It does not count on reuse, so that the groups stay the same when their first tasks fetch everything.
    """
    problem = plan.problem
    chunk = plan.chunks[tile.chunk]
    channels = tile.n1 - tile.n0 if problem.depthwise else chunk_channels(problem, chunk)
    pixels = (tile.y1 - tile.y0) * (tile.x1 - tile.x0)
    kernels = 1 if problem.depthwise else align(tile.n1 - tile.n0, problem.output_group)
    macs = pixels * chunk.taps * channels * kernels
    cycles = macs * (32 if problem.depthwise else 1) // problem.input.macs_per_cycle
    moved = sum(plan.tile_bytes(tile, reuse=False))
    return (max(cycles, moved // limits.DMA_BYTES_PER_CYCLE) + limits.TASK_OVERHEAD_CYCLES) / limits.CLOCK_HZ


def job_sizes(plan: Plan, most: float = limits.MAX_JOB_SECONDS) -> list[int]:
    """How many tiles go into each job: as many as are estimated to end well before the driver's timeout."""
    sizes: list[int] = []
    total = most
    for tile in plan.tiles:
        cost = seconds(plan, tile)
        if total + cost > most and (not sizes or sizes[-1]):
            sizes.append(0)
            total = 0.0
        sizes[-1] += 1
        total += cost
    return sizes


def fetch_at_job_starts(plan: Plan, sizes: list[int]) -> Plan:
    """The plan with both operands fetched anew by the first task of every job."""
    starts = set()
    at = 0
    for size in sizes:
        starts.add(at)
        at += size
    tiles = tuple(
        replace(tile, weight_reuse=False, data_reuse=False) if index in starts else tile
        for index, tile in enumerate(plan.tiles)
    )
    return replace(plan, tiles=tiles)
