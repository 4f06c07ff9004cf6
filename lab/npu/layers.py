# SPDX-License-Identifier: MIT
"""What layers of networks cost: plans, the bytes that they move, and the model's estimate of their time.

Everything is read from the command words that would run (``rknpu_userspace.model.estimate``); nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lab.npu.networks import NETWORKS, Layer
from rknpu_userspace import regcmd
from rknpu_userspace.model.cost import DMA_BYTES_PER_CYCLE, TASK_OVERHEAD_CYCLES, Meter
from rknpu_userspace.model.estimate import convolution
from rknpu_userspace.plan import Plan, Problem, split
from rknpu_userspace.plan.bound import least_bytes
from rknpu_userspace.plan.tasks import Places, Post, job_sizes, tasks
from rknpu_userspace.quant import derive

CLOCKS_HZ = (200_000_000, 1_000_000_000)
"""What mainline device trees assign, and the most that the hardware is specified for."""
_OPERANDS = 0x100000
"""Any address; where the buffers lie changes no cost."""


@dataclass(frozen=True)
class Cost:
    """A layer's figures.

    ``dma_bytes`` is all that the NPU moves, biases and command words included. ``bound_bytes`` is each input, weight
    and output byte once; ``least_bytes`` is what the CBUF allows (``rknpu_userspace.plan.bound``). ``utilisation`` is
    the share of the cores' multiply-accumulates that the result needs. ``limit`` says what the busiest part of the
    time goes to: "mac", "dma", "dpu" or "start".
    """

    network: str
    layer: str
    shape: str
    dtype: str
    macs: int
    dma_bytes: int
    bound_bytes: int
    least_bytes: int
    utilisation: float
    tasks: int
    jobs: int
    cycles: int
    limit: str
    partial: bool

    @property
    def ratio(self) -> float:
        """Bytes moved by bytes needed."""
        return self.dma_bytes / self.bound_bytes

    @property
    def times(self) -> tuple[float, float]:
        """Estimated microseconds at both clocks."""
        slow, fast = CLOCKS_HZ
        return self.cycles / slow * 1e6, self.cycles / fast * 1e6

    def document(self) -> dict[str, Any]:
        """A row of the JSON document."""
        times = dict(zip(("us_200mhz", "us_1ghz"), (round(time, 2) for time in self.times), strict=True))
        return {**asdict(self), "utilisation": round(self.utilisation, 4), "ratio": round(self.ratio, 4), **times}


def _shape(problem: Problem) -> str:
    if problem.rows_in:
        return f"{problem.height}x{problem.channels} by {problem.channels}x{problem.out_channels}"
    kind = "dw" if problem.depthwise else ""
    steps = f"{kind}{problem.kernel_height}x{problem.kernel_width} s{problem.stride_y}"
    return f"{problem.height}x{problem.width}x{problem.channels} {steps} to {problem.out_channels}"


def _meters(plan: Plan) -> list[Meter]:
    """The cost of every task of a plan."""
    requant = derive(0.001, 0) if plan.out == "int8" else None
    post = Post(bias=not plan.partial, relu=not plan.partial, requant=requant)
    places = Places(_OPERANDS, (_OPERANDS,) * len(plan.chunks), _OPERANDS, _OPERANDS)
    return [convolution(regcmd.encode(task)) for task in tasks(plan, post, places)]


def _limits(meters: Iterable[Meter]) -> dict[str, int]:
    """Cycles of the parts of a core that work side by side, and of starting tasks."""
    spent = {"mac": 0, "dma": 0, "dpu": 0, "start": 0}
    for meter in meters:
        spent["mac"] += meter.mac_cycles
        spent["dma"] += sum(meter.dma_bytes.values()) // DMA_BYTES_PER_CYCLE
        spent["dpu"] += meter.dpu_atoms
        spent["start"] += TASK_OVERHEAD_CYCLES
    return spent


def cost(network: str, layer: Layer, cores: int = 1) -> Cost:
    """The cost of a layer, split over ``cores``."""
    problem = layer.problem
    parts = split(problem, 1, cores)
    meters = [_meters(part.plan) for part in parts]
    every = [meter for part in meters for meter in part]
    cycles = max(sum(meter.cycles() for meter in part) for part in meters)
    peak = every[0].peak_macs * cores
    spent = _limits(every)
    return Cost(
        network,
        layer.name,
        _shape(problem),
        problem.form,
        problem.macs,
        sum(sum(meter.dma_bytes.values()) for meter in every),
        problem.bound_bytes(1),
        least_bytes(problem),
        problem.macs / (peak * cycles),
        len(every),
        sum(len(job_sizes(part.plan)) for part in parts),
        cycles,
        max(spent, key=lambda name: spent[name]),
        any(part.plan.partial for part in parts),
    )


def network_costs(names: Sequence[str], cores: int = 1) -> dict[str, list[Cost]]:
    """The layers of every network."""
    return {name: [cost(name, layer, cores) for layer in NETWORKS[name]()] for name in names}


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    return math.exp(float(np.mean([math.log(value) for value in values])))
