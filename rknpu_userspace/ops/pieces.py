# SPDX-License-Identifier: MIT
"""Operations that are several convolutions: each reads a part of the input and gives some pixels of the output.

As programs of their own, the host cuts the parts out as it packs and puts the pixels in place as it reads. As steps of
a schedule, the NPU copies them (a task of the DPU that changes nothing; HM re-tiles int8 in that way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.program import Program, Share, Spec, Unit

from . import arguments
from .conv2d import Conv2d
from .flying import Flow
from .shares import Around, collected
from .steps import ConvStep, Cube, Step
from .views import View, ViewStep, Window, surfaces_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """A convolution of lines and columns ``source`` of the input, whose result goes to ``target`` of the output.

    Slices have a start and a stop; those of the target also a step.
    """

    operation: Conv2d
    source: tuple[slice, slice]
    target: tuple[slice, slice]

    def share(self, share: Share) -> Share:
        """A share of the convolution as one of the whole."""

        def cut(x: Array) -> tuple[Array, ...]:
            return share.source(x[:, self.source[0], self.source[1]])

        return Share(_Apart(share.unit, share.target, self.operation), cut, self._into)

    def _into(self, y: Array) -> Array:
        return y[:, self.target[0], self.target[1]]

    def steps(self, source: Cube, target: Cube, in_width: int, out_width: int) -> list[Step]:
        """The convolution, and the copies before and behind it."""
        operation = self.operation
        steps: list[Step] = []
        _, height, width, channels = operation.in_shape
        label = f"{operation.label}, a part of it"
        part = source
        if height * width != source.pixels:
            part = Cube(height * width, channels, source.form)
            place = View(self.source[0].start * in_width + self.source[1].start, in_width)
            window = Window(height, width, surfaces_of(part), place, View(0, width))
            steps.append(ViewStep(label, Flow(part.form, part.form), [source], part, [window]))
        _, height, width, channels = operation.out_shape
        apart = Cube(height * width, channels, operation.out)
        steps.append(ConvStep(operation.label, operation, part, apart))
        rows, columns = self.target
        place = View(rows.start * out_width + columns.start, rows.step * out_width, columns.step)
        window = Window(height, width, surfaces_of(apart), View(0, width), place)
        steps.append(ViewStep(label, Flow(apart.form, apart.form), [apart], target, [window]))
        return steps


class _Apart(Around):
    """Results that go to pixels which do not lie next to each other."""

    def __init__(self, unit: Unit, part: Callable[[Array], Array], operation: Conv2d) -> None:
        super().__init__(unit)
        self._part = part
        self._result = np.empty(operation.out_shape, arguments.dtype_of(operation.out))

    def unpack(self, images: Array) -> None:
        """Read the results."""
        mine = self._part(self._result)
        super().unpack(mine)
        self._part(images)[...] = mine


class Pieces:
    """What to compile: pieces that cover the output."""

    def __init__(self, pieces: Sequence[Piece], in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        self.pieces = tuple(pieces)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.form, self.out = pieces[0].operation.form, pieces[0].operation.out

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The steps for one image, from one cube to another."""
        widths = self.in_shape[2], self.out_shape[2]
        return [step for piece in self.pieces for step in piece.steps(source, target, *widths)]

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack the weights and make the program; the pieces are dealt out to the cores."""
        shares = collected(
            piece.share(share)
            for index, piece in enumerate(self.pieces)
            for share in piece.operation.shares([contexts[index % len(contexts)]])
        )
        source = Spec(self.in_shape, self.pieces[0].operation.in_dtype)
        return Program(shares, [source], Spec(self.out_shape, arguments.dtype_of(self.out)))
