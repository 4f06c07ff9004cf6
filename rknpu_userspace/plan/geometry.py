# SPDX-License-Identifier: MIT
"""What is to be computed: a convolution of one image, and the pieces that a plan cuts it into.

A matmul is a convolution with a 1x1 kernel over an image that is one pixel wide and M high. Sizes are in pixels and
channels. Coordinates are half-open ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rknpu_userspace.formats import ATOM, INPUTS, OUTPUTS, InputFormat, OutputFormat
from rknpu_userspace.layout import align, ceil_div, weight_channels, weight_kernels

from . import limits


@dataclass(frozen=True)
class Problem:
    """A convolution of one image.

    ``form`` and ``out`` name formats. ``rows_in`` and ``rows_out`` say that the operand is a row-major matrix instead
    of a cube (width 1 only). ``lines_in``: the features lie as ``[y][atom][x]``, all channels of a line together,
    instead of ``[atom][y][x]``; the host packs that faster. In depthwise mode ``out_channels`` equals ``channels``.
    ``insert_y`` and ``insert_x`` are the strides of a transposed convolution: zeros stand between the pixels of the
    input, that many minus one. ``packed`` is an image of 1 to 4 channels, pixel after pixel, in lines of ``pitch``
    pixels.
    """

    form: str
    out: str
    height: int
    width: int
    channels: int
    out_channels: int
    kernel_height: int = 1
    kernel_width: int = 1
    stride_y: int = 1
    stride_x: int = 1
    dilation_y: int = 1
    dilation_x: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    rows_in: bool = False
    rows_out: bool = False
    depthwise: bool = False
    insert_y: int = 1
    insert_x: int = 1
    packed: bool = False
    lines_in: bool = False

    @classmethod
    def matmul(cls, form: str, out: str, rows: int, inner: int, outputs: int, native: bool = False) -> Problem:
        """``rows`` x ``inner`` times ``inner`` x ``outputs``, an image one pixel wide, row-major unless ``native``.

        The result is a cube as well where a row of it would exceed the gap that the writer can leave between atoms.
        """
        line = align(outputs, INPUTS[form].kernel_group) * max(OUTPUTS[out].nbytes, 4)
        rows_out = not native and line // ATOM - 1 <= limits.MAX_NOTCH
        return cls(form, out, rows, 1, inner, outputs, rows_in=not native, rows_out=rows_out)

    @cached_property
    def input(self) -> InputFormat:
        """Format of features and weights."""
        return INPUTS[self.form]

    @cached_property
    def output(self) -> OutputFormat:
        """Format of the result."""
        return OUTPUTS[self.out]

    @cached_property
    def span_y(self) -> int:
        """Input lines under a window."""
        return (self.kernel_height - 1) * self.dilation_y + 1

    @cached_property
    def span_x(self) -> int:
        """Input columns under a window."""
        return (self.kernel_width - 1) * self.dilation_x + 1

    @cached_property
    def out_height(self) -> int:
        """Output lines."""
        lines = (self.height - 1) * self.insert_y + 1
        return (lines + self.pad_top + self.pad_bottom - self.span_y) // self.stride_y + 1

    @cached_property
    def out_width(self) -> int:
        """Output columns."""
        columns = (self.width - 1) * self.insert_x + 1
        return (columns + self.pad_left + self.pad_right - self.span_x) // self.stride_x + 1

    @property
    def line_step(self) -> int:
        """Lines in memory from one that is fetched to the next: a kernel of one line has no use for those between."""
        return self.stride_y if self.kernel_height == self.insert_y == 1 and not self.packed else 1

    @property
    def pitch(self) -> int:
        """Pixels from one line of a packed image to the next: lines begin at atoms."""
        return align(self.width, ATOM)

    @cached_property
    def stored_channels(self) -> int:
        """Input channels as they lie in memory."""
        if self.rows_in:
            return align(self.channels, max(self.input.channel_group, self.input.atom_channels))
        return weight_channels(self.channels, self.input)

    @cached_property
    def stored_outputs(self) -> int:
        """Output channels as they lie in memory: whole kernel groups."""
        return align(self.out_channels, self.output_group)

    @cached_property
    def output_group(self) -> int:
        """Output channels of a kernel group."""
        return self.input.depthwise_group if self.depthwise else self.input.kernel_group

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates that the result needs; of a transposed convolution, without those of inserted zeros."""
        per_pixel = self.kernel_height * self.kernel_width * self.out_channels
        macs = self.out_height * self.out_width * per_pixel * (1 if self.depthwise else self.channels)
        return macs // (self.insert_y * self.insert_x)

    def bound_bytes(self, images: int) -> int:
        """Each input, weight and output byte once, without padding; what no tap reaches does not count."""
        vertical, horizontal = axes(self, Chunk(0, self.channels, 0, self.kernel_height, 0, self.kernel_width))
        lines = _reached(vertical, self.kernel_height, self.dilation_y)
        columns = _reached(horizontal, self.kernel_width, self.dilation_x)
        pixels = lines * columns
        per_kernel = self.kernel_height * self.kernel_width * (1 if self.depthwise else self.channels)
        operands = images * pixels * self.channels + per_kernel * self.out_channels
        results = images * self.out_height * self.out_width * self.out_channels
        return ceil_div(operands * self.input.bits, 8) + results * self.output.nbytes

    @cached_property
    def in_bytes(self) -> int:
        """Bytes of the features."""
        if self.packed:
            return self.height * self.pitch * self.input.nbytes(self.channels)
        return self.height * self.width * self.input.nbytes(self.stored_channels)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        kernels = 1 if self.depthwise else weight_kernels(self.out_channels)
        return kernels * self.input.nbytes(self.kernel_height * self.kernel_width * self.stored_channels)

    @cached_property
    def out_bytes(self) -> int:
        """Bytes of the result."""
        return self.out_height * self.out_width * self.stored_outputs * self.output.nbytes

    def check(self) -> None:
        """Raise ValueError for what no task can do."""
        for name in ("height", "width", "channels", "out_channels", "kernel_height", "kernel_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} is zero: the NPU has no empty tensors")
        limits.check_range("kernel height", self.kernel_height, 1, limits.MAX_KERNEL, "5-bit register field")
        limits.check_range("kernel width", self.kernel_width, 1, limits.MAX_KERNEL, "5-bit register field")
        limits.check_range("vertical stride", self.stride_y, 1, limits.MAX_STRIDE, "3-bit register field")
        limits.check_range("horizontal stride", self.stride_x, 1, limits.MAX_STRIDE, "3-bit register field")
        limits.check_range("vertical dilation", self.dilation_y, 1, limits.MAX_DILATION, "5-bit register field")
        limits.check_range("horizontal dilation", self.dilation_x, 1, limits.MAX_DILATION, "5-bit register field")
        for side, span in (
            ("top", self.span_y),
            ("bottom", self.span_y),
            ("left", self.span_x),
            ("right", self.span_x),
        ):
            most = min(limits.MAX_PAD, span - 1)
            why = "4-bit register field" if most == limits.MAX_PAD else "a window may not lie in the padding alone"
            limits.check_range(f"{side} padding", getattr(self, f"pad_{side}"), 0, most, why)
        self._check_insertion()
        if self.out_height < 1 or self.out_width < 1:
            raise ValueError(
                f"the {self.span_y}x{self.span_x} window is larger than the padded {self.height}x{self.width} input"
            )

    def _check_insertion(self) -> None:
        """DECONV: strides 1, 2, 4 and 8 act; pads 12 to 15 do something else with stride 2 (RN conv-transpose.md)."""
        for name, insert, span, dilation, pads in (
            ("vertical", self.insert_y, self.span_y, self.dilation_y, (self.pad_top, self.pad_bottom)),
            ("horizontal", self.insert_x, self.span_x, self.dilation_x, (self.pad_left, self.pad_right)),
        ):
            if insert == 1:
                continue
            if insert not in limits.INSERTIONS:
                nearest = min(limits.INSERTIONS, key=lambda legal: abs(legal - insert))
                legal = ", ".join(str(number) for number in limits.INSERTIONS)
                raise ValueError(
                    f"{name} stride {insert} of a transposed convolution is not one of {legal}; "
                    f"the nearest legal value is {nearest}"
                )
            if dilation > 1:
                raise ValueError(f"{name} dilation {dilation} of a transposed convolution; the only legal value is 1")
            if span < insert:
                raise ValueError(f"{name} stride {insert} exceeds the kernel of {span}: pad the kernel with zeros")
            if insert == 2 and max(pads) > limits.MAX_PAD_INSERTED:
                raise ValueError(
                    f"{name} stride 2 of a transposed convolution with a kernel that needs {max(pads)} lines of "
                    f"padding; the nearest legal value is {limits.MAX_PAD_INSERTED}"
                )

    def lines(self, first: int, last: int) -> Problem:
        """The sub-problem of output lines [first, last); its input is ``input_lines(first, last)``."""
        top, bottom = self.input_lines(first, last)
        start = first * self.stride_y - self.pad_top
        end = (last - 1) * self.stride_y - self.pad_top + self.span_y
        reach = (bottom - 1) * self.insert_y + 1
        return replace(self, height=bottom - top, pad_top=top * self.insert_y - start, pad_bottom=max(0, end - reach))

    def input_lines(self, first: int, last: int) -> tuple[int, int]:
        """Input lines that the output lines [first, last) need."""
        start = first * self.stride_y - self.pad_top
        end = (last - 1) * self.stride_y - self.pad_top + self.span_y
        return ceil_div(max(0, start), self.insert_y), min(self.height, ceil_div(end, self.insert_y))


def _reached(axis: Axis, taps: int, dilation: int) -> int:
    """Input positions on an axis that some tap of some output reads."""
    positions = {at * axis.stride + tap * dilation + axis.first for at in range(axis.out) for tap in range(taps)}
    return sum(at % axis.insert == 0 and 0 <= at < axis.reach for at in positions)


@dataclass(frozen=True)
class Chunk:
    """A part of the sum: channels [c0, c1) and taps [ky0, ky1) x [kx0, kx1) of every kernel."""

    c0: int
    c1: int
    ky0: int
    ky1: int
    kx0: int
    kx1: int

    @property
    def taps(self) -> int:
        """Kernel height x width of the part."""
        return (self.ky1 - self.ky0) * (self.kx1 - self.kx0)


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a chunk: how output positions map to input positions."""

    size: int
    out: int
    stride: int
    first: int
    """Input position of the first tap of output 0; negative in the padding."""
    span: int
    insert: int = 1
    """Positions from one pixel of the input to the next; between them are zeros."""

    @property
    def reach(self) -> int:
        """Positions from the first pixel to the last."""
        return (self.size - 1) * self.insert + 1

    @property
    def valid(self) -> tuple[int, int]:
        """Outputs whose window touches the input."""
        least = max(0, ceil_div(1 - self.span - self.first, self.stride))
        most = min(self.out, (self.reach - 1 - self.first) // self.stride + 1)
        return least, max(least, most)

    def window(self, start: int, stop: int) -> tuple[int, int, int]:
        """For outputs [start, stop): first input pixel, number of them, padding before them (with inserted zeros)."""
        low = start * self.stride + self.first
        high = (stop - 1) * self.stride + self.first + self.span
        begin = ceil_div(max(0, low), self.insert)
        return begin, min(self.size, ceil_div(high, self.insert)) - begin, begin * self.insert - low


def axes(problem: Problem, chunk: Chunk) -> tuple[Axis, Axis]:
    """The vertical and horizontal axis of a chunk; vertical positions count the lines that are fetched."""

    def axis(sizes: tuple[int, int], first: int, last: int, stride: int, dilation: int, pad: int, insert: int) -> Axis:
        return Axis(*sizes, stride, first * dilation - pad, (last - first - 1) * dilation + 1, insert)

    p = problem
    vertical, horizontal = (ceil_div(p.height, p.line_step), p.out_height), (p.width, p.out_width)
    return (
        axis(vertical, chunk.ky0, chunk.ky1, p.stride_y // p.line_step, p.dilation_y, p.pad_top, p.insert_y),
        axis(horizontal, chunk.kx0, chunk.kx1, p.stride_x, p.dilation_x, p.pad_left, p.insert_x),
    )


def chunk_channels(problem: Problem, chunk: Chunk) -> int:
    """Input channels of a chunk as they lie in memory: whole atoms, whole channel groups for row-major features."""
    form = problem.input
    unit = max(form.channel_group, form.atom_channels) if problem.rows_in else form.atom_channels
    return align(chunk.c1 - chunk.c0, unit)


@dataclass(frozen=True)
class Tile:
    """One task: output lines [y0, y1), columns [x0, x1), kernels [n0, n1) of one chunk of one image.

    ``weight_reuse`` and ``data_reuse``: the task before it has left the weights or the features in the CBUF.
    """

    image: int
    chunk: int
    y0: int
    y1: int
    x0: int
    x1: int
    n0: int
    n1: int
    data_banks: int
    weight_reuse: bool
    data_reuse: bool = False


@dataclass(frozen=True)
class Plan:
    """The tasks of a problem over ``images`` images, in order.

    ``partial``: the chunks write partial sums one behind the other, in ``out``; the host adds them up.
    """

    problem: Problem
    images: int
    chunks: tuple[Chunk, ...]
    tiles: tuple[Tile, ...]
    out: str

    @cached_property
    def partial(self) -> bool:
        """Whether the host has to add up partial sums, or to widen the only one."""
        return len(self.chunks) > 1 or self.out != self.problem.out

    @cached_property
    def axes(self) -> tuple[tuple[Axis, Axis], ...]:
        """Vertical and horizontal axis of every chunk."""
        return tuple(axes(self.problem, chunk) for chunk in self.chunks)

    def tile_bytes(self, tile: Tile, reuse: bool = True) -> tuple[int, int, int]:
        """Bytes of features, weights and results that a tile's task moves; without ``reuse`` if it fetches both."""
        problem, chunk = self.problem, self.chunks[tile.chunk]
        form, kernels = problem.input, tile.n1 - tile.n0
        vertical, horizontal = self.axes[tile.chunk]
        height, width = vertical.window(tile.y0, tile.y1)[1], horizontal.window(tile.x0, tile.x1)[1]
        channels = align(kernels, form.atom_channels) if problem.depthwise else chunk_channels(problem, chunk)
        stored = 1 if problem.depthwise else weight_kernels(kernels)
        pixels = (tile.y1 - tile.y0) * (tile.x1 - tile.x0)
        return (
            0
            if tile.data_reuse and reuse
            else form.nbytes(height * width * (problem.channels if problem.packed else channels)),
            0 if tile.weight_reuse and reuse else stored * form.nbytes(chunk.taps * channels),
            pixels * align(kernels, problem.output_group) * OUTPUTS[self.out].nbytes,
        )

    @cached_property
    def dma(self) -> tuple[int, int, int]:
        """Bytes of features, weights and results that the NPU moves."""
        features = weights = results = 0
        for tile in self.tiles:
            read, kernels, written = self.tile_bytes(tile)
            features, weights, results = features + read, weights + kernels, results + written
        return features, weights, results

    @property
    def dma_bytes(self) -> int:
        """Bytes of features, weights and results together."""
        return sum(self.dma)

    @property
    def bound_bytes(self) -> int:
        """Each input, weight and output byte once."""
        return self.problem.bound_bytes(self.images)

    @cached_property
    def image_bytes(self) -> int:
        """Output bytes of one chunk of one image."""
        problem = self.problem
        return problem.out_height * problem.out_width * problem.stored_outputs * OUTPUTS[self.out].nbytes
