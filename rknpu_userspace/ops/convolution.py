# SPDX-License-Identifier: MIT
"""The common core of matmul and conv2d: one core's part of a convolution, from packed weights to the result.

A part owns three buffers: constants (weights, bias, command words), features, and output. Everything but the features
is written once; a run packs the features, runs the jobs and reads the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Buffer, Context, Job
from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.plan.geometry import Chunk, Plan, axes, chunk_channels
from rknpu_userspace.plan.tasks import Places, Post, fetch_at_job_starts, job_sizes, last_atom, row_bytes_in, tasks
from rknpu_userspace.plan.tiling import Part
from rknpu_userspace.quant import ChannelRequant
from rknpu_userspace.unit import BufferUnit

from .reference import finish_integers, rectify, saturate32

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Weights:
    """Constants of a convolution.

    ``kernels`` [kernel][kh][kw][channel] in the storage dtype of the format, in depthwise mode [kh][kw][channel].
    ``bias`` int32 for integer formats, float32 for floats, or None. ``x_zero_point`` is the features' zero point.
    """

    kernels: Array
    bias: Array | None
    post: Post
    x_zero_point: int = 0

    def part(self, start: int, stop: int, depthwise: bool) -> Weights:
        """The constants of output channels [start, stop)."""
        kernels = self.kernels[..., start:stop] if depthwise else self.kernels[start:stop]
        bias = None if self.bias is None else self.bias[start:stop]
        requant = self.post.requant
        post = (
            replace(self.post, requant=requant.part(start, stop)) if isinstance(requant, ChannelRequant) else self.post
        )
        return Weights(kernels, bias, post, self.x_zero_point)


def _chunk_kernels(weights: Weights, chunk: Chunk, depthwise: bool) -> Array:
    rows, columns, channels = slice(chunk.ky0, chunk.ky1), slice(chunk.kx0, chunk.kx1), slice(chunk.c0, chunk.c1)
    return weights.kernels[rows, columns, channels] if depthwise else weights.kernels[:, rows, columns, channels]


def _kernel_sums(weights: Weights, chunk: Chunk, depthwise: bool) -> npt.NDArray[np.int64]:
    """Sum of (weight - zero point) of each output channel over a chunk."""
    part = _chunk_kernels(weights, chunk, depthwise)
    axis = (0, 1) if depthwise else (1, 2, 3)
    terms = part.size // part.shape[-1 if depthwise else 0]
    total: npt.NDArray[np.int64] = part.sum(axis=axis, dtype=np.int64) - terms * weights.post.zero_point
    return total


def effective_bias(plan: Plan, weights: Weights) -> Array | None:
    """The bias with the features' zero point folded in; ValueError when the sum is not an int32."""
    problem = plan.problem
    if weights.x_zero_point == 0:
        return weights.bias
    whole = Chunk(0, problem.channels, 0, problem.kernel_height, 0, problem.kernel_width)
    correction = -weights.x_zero_point * _kernel_sums(weights, whole, problem.depthwise)
    if weights.bias is not None:
        correction += weights.bias
    if np.abs(correction).max() >= 1 << 31:
        raise ValueError("bias - zero point x sum of the weights leaves the int32 range of the DPU's adder")
    return correction.astype(np.int32)


@dataclass(frozen=True)
class Stored:
    """Constants of a plan as they lie in memory: weights of each chunk, the stream of per-channel operands.

    ``post`` is what the DPU does with the sums, ``bias`` what the host adds to partial ones.
    """

    weights: tuple[Bytes, ...]
    operands: Bytes
    post: Post
    bias: Array | None


def store(plan: Plan, weights: Weights) -> Stored:
    """Pack the constants of a plan."""
    problem = plan.problem
    zero_point = weights.post.zero_point
    packed = []
    for chunk in plan.chunks:
        kernels = _chunk_kernels(weights, chunk, problem.depthwise)
        if problem.depthwise:
            packed.append(layout.pack_depthwise(kernels, problem.input, zero_point))
        else:
            packed.append(layout.pack_weights(kernels, problem.input, zero_point, chunk_channels(problem, chunk)))
    bias = effective_bias(plan, weights)
    return Stored(tuple(packed), _operands(plan, weights.post, bias), post_of(plan, weights), bias)


def post_of(plan: Plan, weights: Weights) -> Post:
    """What the DPU does with the sums of a plan."""
    has_bias = weights.bias is not None or weights.x_zero_point != 0 or weights.post.per_channel
    return replace(weights.post, bias=has_bias and not plan.partial, pad_value=weights.x_zero_point)


def _operands(plan: Plan, post: Post, bias: Array | None) -> Bytes:
    """The stream of per-channel operands: biases, or per 8 channels biases, zero points and multipliers."""
    requant = post.requant
    if plan.partial or (bias is None and not isinstance(requant, ChannelRequant)):
        return np.empty(0, np.uint8)
    channels = layout.align(plan.problem.stored_outputs, 8)
    values = np.zeros(channels, np.int32 if bias is None else bias.dtype)
    if bias is not None:
        values[: len(bias)] = bias
    if not isinstance(requant, ChannelRequant):
        return values.view(np.uint8)
    stream = np.zeros((channels // 8, 64), np.uint8)
    stream[:, :32] = values.view(np.uint8).reshape(-1, 32)
    factors = np.zeros(channels, np.int16)
    factors[: len(requant.multipliers)] = requant.multipliers
    stream[:, 48:] = factors.view(np.uint8).reshape(-1, 16)
    return stream.reshape(-1)


class ConvPart(BufferUnit):
    """One core's part of a convolution, ready to run. ``label`` says what it is, for errors."""

    def __init__(self, context: Context, part: Part, weights: Weights, label: str) -> None:
        self.plan: Plan = part.plan
        self.part = part
        super().__init__(context)
        self._weights = weights
        problem = self.plan.problem
        try:
            self._features = self._alloc(problem.in_bytes * self.plan.images)
            self._out = self._alloc(self.plan.image_bytes * len(self.plan.chunks) * self.plan.images)
            stored = store(self.plan, weights)
            self._bias = stored.bias
            jobs, constants = self._write(stored, label)
            self.jobs = len(jobs)
            self.tasks = len(self.plan.tiles)
            self._submission = context.prepare(jobs, [constants], [self._features], self._out)
        except BaseException:
            self.close()
            raise

    def _write(self, stored: Stored, label: str) -> tuple[list[Job], Buffer]:
        """Write constants and command words into one buffer; returns the jobs and the buffer."""
        sizes = job_sizes(self.plan)
        plan = fetch_at_job_starts(self.plan, sizes)
        offsets = np.cumsum([0] + [layout.align(len(data), regcmd.ALIGNMENT) for data in stored.weights]).tolist()
        commands = layout.align(offsets[-1] + len(stored.operands), regcmd.ALIGNMENT)
        first = next(tasks(plan, stored.post, Places(0, (0,) * len(stored.weights), 0, 0)))
        stride = layout.align(regcmd.word_count(first) * 8, regcmd.ALIGNMENT)
        buffer = self._alloc(commands + stride * len(plan.tiles))
        for data, offset in zip((*stored.weights, stored.operands), offsets, strict=True):
            buffer.view[offset : offset + len(data)] = data
        bases = tuple(buffer.iova + offset for offset in offsets[:-1])
        places = Places(self._features.iova, bases, buffer.iova + offsets[-1], self._out.iova)
        refs = []
        words = buffer.view.view(np.uint64)
        for index, task in enumerate(tasks(plan, stored.post, places)):
            stream = regcmd.encode(task)
            at = commands + index * stride
            words[at // 8 : at // 8 + len(stream)] = stream
            refs.append((buffer.iova + at, len(stream)))
        self._context.flush(buffer)
        jobs = []
        start = 0
        for number, size in enumerate(sizes):
            last = start + size
            text = f"{label}, job {number + 1} of {len(sizes)}: tasks {start + 1}-{last} of {len(refs)}"
            jobs.append(Job(tuple(refs[start:last]), last_atom(plan, plan.tiles[last - 1]), text))
            start = last
        return jobs, buffer

    @property
    def dma_bytes(self) -> int:
        """Bytes of features, weights and results that the NPU moves in a run."""
        return self.plan.dma_bytes

    def pack(self, *operands: Array) -> None:
        """Write the features: [image][y][x][channel], the slice that this part needs."""
        (images,) = operands
        problem = self.plan.problem
        size = problem.in_bytes
        for index, image in enumerate(images):
            target = self._features.view[index * size : (index + 1) * size]
            if problem.packed:
                _pack_image(target, image, problem.pitch)
                continue
            if problem.lines_in:
                layout.pack_lines(target, image)
                continue
            pixels = image.reshape(problem.height * problem.width, problem.channels)
            if problem.input.bits == 4:
                pixels = layout.pack_nibbles(np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2))))
            if problem.rows_in:
                layout.pack_rows(target, pixels, row_bytes_in(problem))
            else:
                layout.pack_cube(target, pixels)

    def unpack(self, images: Array) -> None:
        """Read the result into [image][y][x][kernel], a slice of a contiguous array."""
        problem = self.plan.problem
        size = self.plan.image_bytes
        pixels = problem.out_height * problem.out_width
        for index, image in enumerate(images):
            if self.plan.partial:
                image[...] = self._combine(index)
                continue
            source = self._out.view[index * size : (index + 1) * size]
            self._read(source, image.reshape(pixels, problem.out_channels))

    def _read(self, source: npt.NDArray[np.uint8], flat: Array) -> None:
        problem = self.plan.problem
        if problem.rows_out:
            layout.unpack_rows(source, flat, problem.stored_outputs * flat.itemsize)
        else:
            layout.unpack_cube(source, flat)

    def _combine(self, index: int) -> Array:
        """Add up the partial sums of an image and do what the DPU would have done with the total."""
        plan, problem, weights = self.plan, self.plan.problem, self._weights
        count = len(plan.chunks)
        size = plan.image_bytes
        partial = self._out.view[index * count * size : (index + 1) * count * size].reshape(count, size)
        dtype = np.dtype(OUTPUTS[plan.out].dtype)
        shape = (problem.out_height * problem.out_width, problem.out_channels)
        if dtype == np.int16:  # as long as the formats differ in channels per atom, read before adding up
            flat = np.zeros(shape, np.int32)
            for source in partial:
                part = np.empty(shape, dtype)
                self._read(source, part)
                flat += part
        else:
            flat = np.empty(shape, dtype)
            self._read(_total(partial.view(dtype)).view(np.uint8), flat)
        values = flat.reshape(problem.out_height, problem.out_width, problem.out_channels)
        self._add_padding(values)
        if self._bias is not None:
            values = _add_bias(values, self._bias)
        post = weights.post
        if values.dtype.kind == "i":
            return finish_integers(values, post.relu, post.requant, OUTPUTS[problem.out].dtype, post.bound, post.slope)
        values = rectify(values, post.relu, post.bound, post.slope, False)
        if problem.out == "bfloat16":
            return layout.to_bfloat16(values)
        with np.errstate(over="ignore"):
            return values.astype(OUTPUTS[problem.out].dtype, copy=False)

    def _add_padding(self, values: Array) -> None:
        """Chunks compute nothing for outputs whose window lies in the padding; there the padding value counts."""
        zero_point = self._weights.x_zero_point
        if zero_point == 0:
            return
        for chunk in self.plan.chunks:
            vertical, horizontal = axes(self.plan.problem, chunk)
            (y0, y1), (x0, x1) = vertical.valid, horizontal.valid
            outside = np.ones(values.shape[:2], bool)
            outside[y0:y1, x0:x1] = False
            if outside.any():
                sums = zero_point * _kernel_sums(self._weights, chunk, self.plan.problem.depthwise)
                values[outside] += sums.astype(values.dtype)


def _pack_image(target: Bytes, image: Array, pitch: int) -> None:
    """Write a packed image [y][x][channel], its lines ``pitch`` pixels apart."""
    height, width, channels = image.shape
    lines = target.view(image.dtype).reshape(height, pitch * channels)
    lines[:, : width * channels] = image.reshape(height, width * channels)


def _largest(values: Array) -> int:
    """Greatest absolute value of an integer array."""
    return max(int(values.max()), -int(values.min()))


def _add_bias(values: Array, bias: Array) -> Array:
    """Add in place where that can not overflow; clamped to int32 otherwise, as the DPU's adder does."""
    if values.dtype.kind == "f" or _largest(values) + _largest(bias) < 1 << 31:
        values += bias
        return values
    return saturate32(values + bias.astype(np.int64))


def _total(partial: Array) -> Array:
    """Sum over the first axis in float32 or int32; integers are clamped as one accumulator would."""
    if partial.dtype.kind == "i" and _largest(partial) * len(partial) >= 1 << 31:
        return saturate32(partial.sum(axis=0, dtype=np.int64))
    total: Array = np.add.reduce(partial, axis=0, dtype=partial.dtype)
    return total


def build(contexts: Sequence[Context], parts: Sequence[Part], weights: Weights, label: str) -> list[ConvPart]:
    """The parts of a split, one per context; nothing is left behind when one fails."""
    built: list[ConvPart] = []
    try:
        for context, part in zip(contexts, parts, strict=False):
            own = weights.part(part.n0, part.n1, part.plan.problem.depthwise)
            built.append(ConvPart(context, part, own, label))
    except BaseException:
        for done in built:
            done.close()
        raise
    return built
