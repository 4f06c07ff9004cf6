# SPDX-License-Identifier: MIT
"""Operations that move data on the NPU: copies between views of cubes, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.ops.flying import Flow
from rknpu_userspace.ops.steps import Cube, FlyingStep, Step
from rknpu_userspace.ops.views import View, ViewStep, Window, surfaces_of
from rknpu_userspace.quant import INT8_MAX, INT8_MIN, Requant, derive, requantize
from rknpu_userspace.task import ALU_ADD, Stage

from . import resize
from .common import FORMATS
from .ir import Node, Tensor

Array = npt.NDArray[Any]


def same_scale(x: Tensor, out: Tensor) -> bool:
    """Whether two tensors are quantised alike."""
    return (x.scale, x.zero_point) == (out.scale, out.zero_point)


def rescale(x: Tensor, out: Tensor) -> tuple[Flow, Requant]:
    """The flow from one int8 quantisation to another, and what its output converter does."""
    requant = derive(x.scale / out.scale, out.zero_point)
    stage = Stage(bypass=0, alu_bypass=0, alu_algorithm=ALU_ADD, alu_operand=-x.zero_point)
    flow = Flow("int8", "int8", bs=stage, cvt_offset=requant.offset, cvt_scale=requant.scale, cvt_shift=requant.shift)
    return flow, requant


def copy_of(x: Tensor, out: Tensor) -> Flow:
    """The flow that makes values of ``x`` those of ``out``: a plain copy where both are quantised alike."""
    if x.dtype != "int8" or same_scale(x, out):
        return Flow(x.dtype, x.dtype)
    return rescale(x, out)[0]


def _window(cube: Cube, height: int, width: int, main: View, out: View, surfaces: int = 0) -> Window:
    return Window(height, width, surfaces or surfaces_of(cube), main, out)


class Concat:
    """Channels side by side: every input is written, or copied, to its place in the output's cube."""

    def __init__(self, node: Node) -> None:
        self._node = node
        out = node.output
        self.axis = node.attributes["axis"]
        self.is_spatial = self.axis != len(out.shape) - 1
        if self.is_spatial and (len(out.shape) != 4 or self.axis == 0):
            raise ValueError("tensors are put side by side along channels, lines or columns only")
        if out.dtype not in FORMATS:
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {out.dtype}")
        if node.clamp != (INT8_MIN, INT8_MAX) or "activation" in node.attributes:
            raise ValueError("an activation behind a concatenation")
        per_atom = OUTPUTS[out.dtype].atom_channels
        for tensor in node.inputs[:-1]:
            if tensor.channels % per_atom and not self.is_spatial:
                raise ValueError(f"{tensor.channels} channels are no whole atoms of {per_atom}")
        self.starts = np.cumsum([0] + [tensor.shape[self.axis] for tensor in node.inputs[:-1]]).tolist()

    def is_in_place(self, index: int) -> bool:
        """Whether an input may be computed where it belongs: quantised as the output is, and whole surfaces of it."""
        return not self.is_spatial and same_scale(self._node.inputs[index], self._node.output)

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """Copies of what does not lie there yet."""
        steps: list[Step] = []
        for index, (tensor, cube, start) in enumerate(zip(self._node.inputs, reads, self.starts, strict=True)):
            if cube.parent is target:
                continue
            label = f"{self._node.name}: input {index + 1}"
            flow = copy_of(tensor, self._node.output)
            if self.is_spatial:
                _, height, width, _ = tensor.shape
                line = self._node.output.shape[2]
                out = View(start * line if self.axis == 1 else start, line)
                steps.append(
                    ViewStep(label, flow, (cube,), target, [_window(cube, height, width, View(0, width), out)])
                )
            else:
                slot = Cube(target.pixels, tensor.channels, target.form, target, start)
                steps.append(FlyingStep(label, flow, (cube,), slot))
        return steps

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        parts = []
        for tensor, values in zip(self._node.inputs, inputs, strict=True):
            if tensor.dtype == "int8":
                wide = values.astype(np.int32) - tensor.zero_point
                values = requantize(wide, rescale(tensor, self._node.output)[1])
            parts.append(values)
        return np.concatenate(parts, axis=self.axis)


class Reshape:
    """No step at all: the cube of the input is that of the output."""

    def __init__(self, node: Node) -> None:
        x, out = node.inputs[0], node.output
        if x.dtype not in FORMATS:
            raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
        if (x.pixels, x.channels) != (out.pixels, out.channels):
            raise ValueError(f"{x.shape} to {out.shape} moves channels to pixels or back")
        self._shape = out.shape

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """None."""
        return []

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        return inputs[0].reshape(self._shape)


def _image(node: Node) -> Tensor:
    x = node.inputs[0]
    if x.dtype not in FORMATS:
        raise TypeError(f"the NPU takes {' or '.join(FORMATS)}, not {x.dtype}")
    if len(x.shape) != 4 or x.shape[0] != 1:
        raise ValueError(f"{x.shape} is not one image")
    return x


class Slice:
    """Every n-th line and column of a range, and channels from an atom on."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = _image(node)
        cuts = node.attributes["cuts"]
        per_atom = OUTPUTS[x.dtype].atom_channels
        _, self._lines, self._columns, channels = cuts
        if (
            cuts[0][0]
            or channels[0] % per_atom
            or channels[2] != 1
            or (channels[1] % per_atom and channels[1] != x.channels)
        ):
            raise ValueError(f"channels {channels[0]} to {channels[1]} are no whole atoms of {per_atom}")
        self._surface = channels[0] // per_atom

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        _, height, width, _ = self._node.output.shape
        line = self._node.inputs[0].shape[2]
        first, _, step_y = self._lines
        left, _, step_x = self._columns
        main = View(first * line + left, line * step_y, step_x, self._surface)
        window = _window(reads[0], height, width, main, View(0, width), surfaces_of(target))
        flow = Flow(target.form, target.form)
        return [ViewStep(self._node.name, flow, (reads[0],), target, [window])]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        return inputs[0][tuple(slice(*cut) for cut in self._node.attributes["cuts"])]


class Resize:
    """Every pixel as often as an integer factor says: a copy per place in the enlarged pixel."""

    def __init__(self, node: Node) -> None:
        self._node = node
        x = _image(node)
        if node.attributes["method"] != "nearest":
            raise ValueError("only the nearest pixel can be copied")
        out = node.output.shape
        self._factors = out[1] // x.shape[1], out[2] // x.shape[2]
        if (self._factors[0] * x.shape[1], self._factors[1] * x.shape[2]) != out[1:3]:
            raise ValueError(f"{x.shape[1:3]} to {out[1:3]} is not a whole factor")
        place = np.arange(x.shape[1] * x.shape[2]).reshape(1, x.shape[1], x.shape[2], 1)
        wanted = place.repeat(self._factors[0], axis=1).repeat(self._factors[1], axis=2)
        if not np.array_equal(self._nearest(place), wanted):
            raise ValueError("the nearest pixels are not those of equal squares")

    def _nearest(self, x: Array) -> Array:
        attributes, out = self._node.attributes, self._node.output.shape
        return resize.nearest(x, out[1], out[2], bool(attributes["align_corners"]), bool(attributes["half_pixel"]))

    def steps(self, reads: Sequence[Cube], target: Cube) -> list[Step]:
        """See Lowering."""
        _, height, width, _ = self._node.inputs[0].shape
        down, right = self._factors
        line = width * right
        windows = [
            _window(reads[0], height, width, View(0, width), View(y * line + x, line * down, right))
            for y in range(down)
            for x in range(right)
        ]
        flow = Flow(target.form, target.form)
        return [ViewStep(self._node.name, flow, (reads[0],), target, windows)]

    def reference(self, *inputs: Array) -> Array:
        """See Lowering."""
        return self._nearest(inputs[0])
