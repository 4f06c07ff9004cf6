# SPDX-License-Identifier: MIT
"""How operations are dealt out to cores, and units that do something to another unit's results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.layout import ceil_div
from rknpu_userspace.program import Share, Unit

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def collected(shares: Iterable[Share]) -> list[Share]:
    """All shares as they are made; nothing is left behind when one fails."""
    done: list[Share] = []
    try:
        for share in shares:
            done.append(share)
    except BaseException:
        for share in done:
            share.unit.close()
        raise
    return done


def by_rows(contexts: Sequence[Context], shape: Sequence[int], make: Callable[[Context, int], Unit]) -> list[Share]:
    """The rows [..., C] of a tensor dealt out: ``make`` gives the unit of a core for a number of them."""
    channels, pixels = shape[-1], math.prod(shape[:-1])
    step = ceil_div(pixels, len(contexts))

    def shares() -> Iterator[Share]:
        for context, start in zip(contexts, range(0, pixels, step), strict=False):
            stop = min(start + step, pixels)
            yield Share(make(context, stop - start), _cut(channels, start, stop), _into(channels, start, stop))

    return collected(shares())


def _cut(channels: int, start: int, stop: int) -> Callable[[Array], tuple[Array, ...]]:
    return lambda x: (x.reshape(-1, channels)[start:stop],)


def _into(channels: int, start: int, stop: int) -> Callable[[Array], Array]:
    return lambda y: y.reshape(-1, channels)[start:stop]


class Around:
    """A unit that another does the work for; subclasses change ``unpack``."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.jobs, self.tasks = unit.jobs, unit.tasks

    @property
    def dma_bytes(self) -> int:
        """Bytes that the NPU moves."""
        return self._unit.dma_bytes

    def pack(self, *operands: Array) -> None:
        """Write the operands."""
        self._unit.pack(*operands)

    def start(self) -> None:
        """Hand the jobs over."""
        self._unit.start()

    def wait(self, timeout: float) -> None:
        """Wait for the results."""
        self._unit.wait(timeout)

    def unpack(self, images: Array) -> None:
        """Read the results."""
        self._unit.unpack(images)

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """Label, IOVA and command words of every task."""
        return self._unit.commands()

    def close(self) -> None:
        """Give memory back."""
        self._unit.close()
