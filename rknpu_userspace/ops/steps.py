# SPDX-License-Identifier: MIT
"""Steps of a schedule: operations of one core that read cubes and write one, without knowing where those lie.

Each says what it needs in memory (packed constants, the bytes that it writes), which tasks it consists of once the
addresses are known, and how long they take by estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.formats import ATOM, OUTPUTS, OutputFormat
from rknpu_userspace.plan import limits, make_plan
from rknpu_userspace.plan import tasks as conv_tasks
from rknpu_userspace.task import TaskConfig

from . import flying
from .conv2d import Conv2d
from .convolution import post_of, store
from .flying import Flow

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
MULTIPLIERS, MULTIPLIER_BYTES = 4, 2
"""DATA_USE of a stream that holds multipliers only, 16 bits each (BRDMA_CFG 8 of Rockchip's RMSNorm stream)."""


@dataclass(frozen=True, eq=False)
class Cube:
    """A tensor [pixel][channel] in cube layout. Its shape in lines and columns is the business of those who read it.

    With ``parent`` it is the channels of another cube from ``first`` on, which is a multiple of an atom's.
    """

    pixels: int
    channels: int
    form: str
    parent: Cube | None = None
    first: int = 0

    @property
    def output(self) -> OutputFormat:
        """The format as the DPU writes it."""
        return OUTPUTS[self.form]

    @property
    def root(self) -> Cube:
        """The cube that owns the memory."""
        return self if self.parent is None else self.parent.root

    @property
    def offset(self) -> int:
        """Bytes from the start of the root."""
        if self.parent is None:
            return 0
        return self.parent.offset + self.first // self.output.atom_channels * self.pixels * ATOM

    @property
    def nbytes(self) -> int:
        """Bytes of all whole atoms."""
        return layout.cube_bytes(self.pixels, self.channels, self.output)


@dataclass(frozen=True)
class Addresses:
    """IOVAs of a step's operands, of each of its constants and of its result."""

    reads: tuple[int, ...]
    constants: tuple[int, ...]
    out: int


class Step(Protocol):
    """An operation with its operands."""

    @property
    def label(self) -> str:
        """What it is, for errors and tables."""
        ...

    @property
    def reads(self) -> tuple[Cube, ...]:
        """Operands."""
        ...

    @property
    def writes(self) -> Cube:
        """The result."""
        ...

    @property
    def out_bytes(self) -> int:
        """Bytes that are written from the start of ``writes`` on; more than its size where groups are padded."""
        ...

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the result needs."""
        ...

    @property
    def dma_bytes(self) -> int:
        """Bytes that the NPU moves, by the plan."""
        ...

    def constants(self) -> tuple[Bytes, ...]:
        """What lies in memory for good."""
        ...

    def seconds(self) -> list[float]:
        """Estimated time of each task at 200 MHz."""
        ...

    def tasks(self, at: Addresses) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """Every task, and the words that come before its own."""
        ...

    def last_atom(self, index: int) -> int:
        """Offset in ``writes`` of the atom that task ``index`` writes last."""
        ...


class ConvStep:
    """A convolution of one image; its result needs no help from the host."""

    def __init__(self, label: str, operation: Conv2d, source: Cube, target: Cube) -> None:
        self.label = label
        self.reads: tuple[Cube, ...] = (source,)
        self.writes = target
        self.plan = make_plan(operation.problem(), 1, whole_sums=True)
        self._operation = operation

    @property
    def out_bytes(self) -> int:
        """See Step."""
        return self.plan.image_bytes

    @property
    def macs(self) -> int:
        """See Step."""
        return self.plan.problem.macs

    @property
    def dma_bytes(self) -> int:
        """See Step."""
        return self.plan.dma_bytes

    def constants(self) -> tuple[Bytes, ...]:
        """Weights of the chunk, per-channel operands; packed anew every time, as one copy in memory is enough."""
        stored = store(self.plan, self._operation.constants)
        return (*stored.weights, stored.operands)

    def seconds(self) -> list[float]:
        """See Step."""
        return [conv_tasks.seconds(self.plan, tile) for tile in self.plan.tiles]

    def tasks(self, at: Addresses) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """See Step."""
        places = conv_tasks.Places(at.reads[0], at.constants[:-1], at.constants[-1], at.out)
        for task in conv_tasks.tasks(self.plan, post_of(self.plan, self._operation.constants), places):
            yield task, ()

    def last_atom(self, index: int) -> int:
        """See Step."""
        return conv_tasks.last_atom(self.plan, self.plan.tiles[index])


class FlyingStep:
    """The DPU alone over one cube, or two of the same size, or a cube and a constant vector over its channels.

    ``unit``: what the vector is for, "ew" (the flow's operand), or "bs" or "bn" (16-bit multipliers).
    """

    macs = 0

    def __init__(
        self,
        label: str,
        flow: Flow,
        reads: Sequence[Cube],
        target: Cube,
        vector: Array | None = None,
        unit: str = "ew",
    ) -> None:
        self.label = label
        self.reads, self.writes = tuple(reads), target
        self._flow = flow
        self._vector = vector
        self._unit = unit
        self._tiles = flying.tiles_of(target.pixels, target.channels, flow.main.atom_channels)

    @property
    def out_bytes(self) -> int:
        """See Step."""
        return self.writes.nbytes

    @property
    def dma_bytes(self) -> int:
        """See Step."""
        return self.writes.nbytes + sum(cube.nbytes for cube in self.reads)

    def constants(self) -> tuple[Bytes, ...]:
        """The vector, padded to whole atoms."""
        if self._vector is None:
            return ()
        data = np.ascontiguousarray(self._vector).view(np.uint8)
        padded = np.zeros(layout.operand_bytes(layout.align(self.writes.channels, 16), self._vector.itemsize), np.uint8)
        padded[: len(data)] = data
        return (padded,)

    def seconds(self) -> list[float]:
        """See Step."""
        streams = 1 + len(self.reads)
        surfaces = [layout.ceil_div(tile.c1 - tile.c0, self._flow.main.atom_channels) for tile in self._tiles]
        atoms = [tile.height * tile.width * count for tile, count in zip(self._tiles, surfaces, strict=True)]
        moved = [count * ATOM * streams // limits.DMA_BYTES_PER_CYCLE for count in atoms]
        return [(cycles + limits.TASK_OVERHEAD_CYCLES) / limits.CLOCK_HZ for cycles in moved]

    def tasks(self, at: Addresses) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """See Step."""
        vector = at.constants[0] if self._vector is not None else 0
        operand = vector or (at.reads[-1] if len(at.reads) > 1 else 0)
        for tile in self._tiles:
            task = flying.task(self._flow, tile, self.writes.pixels, at.reads[0], operand, at.out)
            if self._unit != "ew" and task.rdma is not None:
                place = vector + tile.c0 * MULTIPLIER_BYTES
                rdma = replace(task.rdma, **{f"{self._unit}_use": MULTIPLIERS, f"{self._unit}_address": place})
                task = replace(task, rdma=rdma)
            yield task, self._flow.prologue

    def last_atom(self, index: int) -> int:
        """See Step."""
        return flying.last_atom(self._flow, self._tiles[index], self.writes.pixels)
