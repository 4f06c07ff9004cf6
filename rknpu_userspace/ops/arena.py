# SPDX-License-Identifier: MIT
"""Where tensors lie that do not all live at the same time: one arena, in which those that never meet share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rknpu_userspace.layout import align

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A tensor of ``size`` bytes that is in use from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are in use at the same time."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """(offset of every tensor, size of the arena): the largest first, each as low as it fits."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for index in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].first, i)):
        own = lifetimes[index]
        at = 0
        for other in sorted(placed, key=lambda i: offsets[i]):
            if own.meets(lifetimes[other]) and offsets[other] < at + own.size:
                at = max(at, align(offsets[other] + lifetimes[other].size, ALIGNMENT))
        offsets[index] = at
        placed.append(index)
        total = max(total, at + own.size)
    return offsets, total
