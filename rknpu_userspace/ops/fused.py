# SPDX-License-Identifier: MIT
"""Convolutions of one pixel with more behind them: stages, multipliers per channel, an element-wise operand.

Evidence: Rockchip's RMSNorm stream (a convolution that spreads one channel over all, times a vector per channel, times
a tensor), RU's sums over K and Mesa's residual add (COMB_USE 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.formats import ATOM, INPUTS
from rknpu_userspace.plan import tasks as conv_tasks
from rknpu_userspace.plan.geometry import Plan, Tile
from rknpu_userspace.task import Elementwise, Stage, TaskConfig

from .conv2d import Conv2d
from .steps import MULTIPLIER_BYTES, MULTIPLIERS, Addresses, ConvStep, Cube

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
COMB_SPLIT = 5
"""MRDMA reads the even atoms of the operand, ERDMA the odd ones."""
_OPERAND_SIZE = {1: 1, 2: 2, 4: 3}
_PER_PIXEL = 1


@dataclass(frozen=True)
class Behind:
    """What follows the sums: BS and BN, BS's multipliers per channel (16-bit patterns), EW."""

    bs: Stage | None = None
    bn: Stage | None = None
    multipliers: Array | None = None
    ew: Elementwise | None = None


class PointwiseStep(ConvStep):
    """A 1x1 convolution of a cube with ``kernels`` [OC][C], and ``behind`` with an operand of the result's size.

    Source, operand and target have whole kernel groups of channels (``padded``).
    """

    def __init__(
        self, label: str, kernels: Array, reads: Sequence[Cube], target: Cube, behind: Behind | None = None
    ) -> None:
        source = reads[0]
        weights = kernels[:, None, None, :]
        form = source.form if source.form == "bfloat16" else None
        shape = (1, source.pixels, 1, kernels.shape[1])
        operation = Conv2d(weights, shape, format=form, out_dtype=target.form)
        super().__init__(label, operation, source, target)
        self.reads = tuple(reads)
        self._behind = behind or Behind()

    def constants(self) -> tuple[Bytes, ...]:
        """Weights, per-channel operands, multipliers."""
        vector = self._behind.multipliers
        if vector is None:
            return super().constants()
        data = np.ascontiguousarray(vector).view(np.uint8)
        stored = np.zeros(layout.align(self.plan.problem.stored_outputs * MULTIPLIER_BYTES, ATOM), np.uint8)
        stored[: len(data)] = data
        return (*super().constants(), stored)

    def tasks(self, at: Addresses) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """See Step."""
        vector = at.constants[-1] if self._behind.multipliers is not None else 0
        constants = at.constants[:-1] if vector else at.constants
        plain = super().tasks(Addresses(at.reads, constants, at.out))
        for tile, (config, prologue) in zip(self.plan.tiles, plain, strict=True):
            yield self._with(self.plan, tile, config, at, vector), prologue

    def _with(self, plan: Plan, tile: Tile, config: TaskConfig, at: Addresses, vector: int) -> TaskConfig:
        behind = self._behind
        dpu, rdma = config.dpu, config.rdma
        assert dpu is not None and rdma is not None
        dpu = replace(dpu, bs=behind.bs or dpu.bs, bn=behind.bn or dpu.bn, ew=behind.ew or dpu.ew)
        if vector:
            rdma = replace(rdma, bs_use=MULTIPLIERS, bs_address=vector + tile.n0 * MULTIPLIER_BYTES)
        if behind.ew is not None:
            offset, surface, notch = conv_tasks.out_place(plan, tile)
            base = at.reads[1] + offset
            code = INPUTS[plan.problem.form].dpu
            rdma = replace(
                rdma,
                main_disable=0,
                main_address=base,
                main_surface_gap=2 * surface - dpu.height * dpu.width * ATOM,
                main_line_notch=notch,
                operand_disable=0,
                operand_address=base + surface,
                operand_mode=_PER_PIXEL,
                operand_size=_OPERAND_SIZE[self.reads[1].output.nbytes],
                operand_surface=surface,
                operand_surface_gap=surface,
                operand_line_notch=notch,
                comb_use=COMB_SPLIT,
                precision=code,
                in_precision=code,
            )
        return replace(config, dpu=dpu, rdma=rdma)

    @property
    def dma_bytes(self) -> int:
        """See Step."""
        return self.plan.dma_bytes + sum(cube.nbytes for cube in self.reads[1:])


def padded(pixels: int, channels: int, form: str) -> Cube:
    """A cube with room for whole kernel groups."""
    return Cube(pixels, layout.align(channels, INPUTS[form].kernel_group if form in INPUTS else 16), form)
