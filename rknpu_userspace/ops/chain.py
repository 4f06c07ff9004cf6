# SPDX-License-Identifier: MIT
"""A chain of convolutions as one program: what a layer writes is what the next one reads, without the host in between.

The output cube of a layer has the layout of an input cube. Its padding channels hold the zero point, where the next
layer's weights hold theirs, so they add nothing. All layers run on one core, as buffers belong to one address space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rknpu_userspace.backend import Context
from rknpu_userspace.formats import INPUTS
from rknpu_userspace.program import Program, Share, Spec

from . import arguments
from .conv2d import Conv2d
from .schedule import Schedule
from .steps import ConvStep, Cube


class Chain:
    """What to compile: convolutions (average pooling included) of one image, each fed by the one before."""

    def __init__(self, layers: Sequence[Conv2d]) -> None:
        if not layers:
            raise ValueError("a chain needs at least one layer")
        for index, layer in enumerate(layers):
            if layer.in_shape[0] != 1:
                raise ValueError(f"layer {index} has {layer.in_shape[0]} images: a chain takes one at a time")
            if layer.groups > 1 and not layer.depthwise:
                raise ValueError(f"layer {index} has {layer.groups} groups: a chain takes direct and depthwise layers")
            if index == 0:
                continue
            before = layers[index - 1]
            if before.out_shape != layer.in_shape:
                raise ValueError(f"layer {index - 1} gives {before.out_shape}, layer {index} takes {layer.in_shape}")
            if before.out != layer.form:
                raise ValueError(f"layer {index - 1} gives {before.out}, layer {index} takes {layer.form}")
        self.layers = tuple(layers)

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack all weights and make the program."""
        first, last = self.layers[0], self.layers[-1]
        cubes = [_cube(first.in_shape, first.form), *(_cube(layer.out_shape, layer.out) for layer in self.layers)]
        steps = [
            ConvStep(layer.label, layer, before, after)
            for layer, before, after in zip(self.layers, cubes, cubes[1:], strict=False)
        ]
        schedule = Schedule(contexts[0], cubes[:1], steps, cubes[-1:])
        source = Spec(first.in_shape, np.dtype(INPUTS[first.form].dtype))
        result = Spec(last.out_shape, arguments.dtype_of(last.out))
        return Program([Share(schedule, lambda x: (x,), lambda y: y)], [source], result)


def _cube(shape: Sequence[int], form: str) -> Cube:
    _, height, width, channels = shape
    return Cube(height * width, channels, form)
