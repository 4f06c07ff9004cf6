# SPDX-License-Identifier: MIT
"""Tasks of the DPU alone ("flying"): data from memory through its stages and back, without the MAC array.

A part works on a matrix [pixel][channel]. Where the operation does not care about channels, tensors of any shape are
taken as a stream of atoms, one channel atom wide, and moved with plain copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Buffer, Context, Job
from rknpu_userspace.formats import ATOM, OUTPUTS, OutputFormat
from rknpu_userspace.task import NO_LUT, PASS, PASS_EW, Dpu, Elementwise, Lut, Rdma, Stage, TaskConfig
from rknpu_userspace.unit import BufferUnit

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
MAX_LINE = 4096
"""Pixels of a line: the field has 13 bits, but lines of the full width go wrong at the end (RN dpu-lut)."""
MAX_CHANNELS = 4096
MAX_ATOMS = 1 << 21
"""Atoms of a task: about 30 ms at 200 MHz with two operands."""
_TASKS_PER_JOB = 3
_OPERAND_SIZE = {1: 1, 2: 2, 4: 3}
_PER_CHANNEL, _PER_PIXEL = 0, 1


@dataclass(frozen=True)
class Flow:
    """What the DPU does with a stream: formats, stages, output converter.

    ``operand``: "none", "pixel" (a second tensor of the same shape) or "channel" (a vector over the channels).
    ``prologue`` are command words that come first (a look-up table).
    """

    form: str
    out: str
    bs: Stage = PASS
    bn: Stage = PASS
    ew: Elementwise = PASS_EW
    lut: Lut = NO_LUT
    operand: str = "none"
    cvt_offset: int = 0
    cvt_scale: int = 1
    cvt_shift: int = 0
    cvt_minus_exp: int = 0
    cvt_offset_first: int = 0
    cvt_narrow: int | None = None
    prologue: tuple[int, ...] = ()

    @property
    def main(self) -> OutputFormat:
        """Format of the data; the DPU's formats are those of outputs."""
        return OUTPUTS[self.form]

    @property
    def widen(self) -> bool:
        """Whether the feed turns 16-bit floats into fp32."""
        return self.form in ("float16", "bfloat16")


@dataclass(frozen=True)
class Tile:
    """Atoms of a task: first pixel, lines and columns, channels [c0, c1)."""

    pixel: int
    height: int
    width: int
    c0: int
    c1: int


def tiles_of(pixels: int, channels: int, per_atom: int) -> list[Tile]:
    """Cut [pixel][channel] into tasks of whole lines."""
    width = min(pixels, MAX_LINE)
    tiles = []
    step = MAX_CHANNELS // per_atom * per_atom
    surfaces = layout.ceil_div(min(channels, step), per_atom)
    most = max(1, MAX_ATOMS // (width * surfaces))
    for c0 in range(0, channels, step):
        at = 0
        while at < pixels:
            columns = min(width, pixels - at)
            lines = max(1, min((pixels - at) // columns, most, MAX_LINE))
            tiles.append(Tile(at, lines, columns, c0, min(c0 + step, channels)))
            at += lines * columns
    return tiles


def place(tile: Tile, pixels: int, form: OutputFormat) -> int:
    """Offset of a tile's first atom in a cube of ``form``."""
    return (tile.c0 // form.atom_channels * pixels + tile.pixel) * ATOM


def last_atom(flow: Flow, tile: Tile, pixels: int) -> int:
    """Offset in the output of the atom that the tile's task writes last."""
    form = OUTPUTS[flow.out]
    surfaces = layout.ceil_div(tile.c1 - tile.c0, form.atom_channels)
    return place(tile, pixels, form) + ((surfaces - 1) * pixels + tile.height * tile.width - 1) * ATOM


def task(flow: Flow, tile: Tile, pixels: int, main: int, operand: int, out: int) -> TaskConfig:
    """The task of a tile of cubes of ``pixels``, whose first bytes are at ``main``, ``operand`` and ``out``."""
    form = OUTPUTS[flow.out]
    channels = layout.align(tile.c1 - tile.c0, flow.main.atom_channels)
    surface = pixels * ATOM
    dpu = Dpu(
        in_precision=flow.main.code,
        precision=flow.main.code,
        out_precision=form.code,
        height=tile.height,
        width=tile.width,
        channels=channels,
        channels_real=channels,
        address=out + place(tile, pixels, form),
        surface_stride=surface,
        group_atoms=1,
        flying=1,
        bs=flow.bs,
        bn=flow.bn,
        ew=flow.ew,
        lut=flow.lut,
        cvt_offset=flow.cvt_offset,
        cvt_scale=flow.cvt_scale,
        cvt_narrow=int(flow.out in ("float16", "bfloat16")) if flow.cvt_narrow is None else flow.cvt_narrow,
        cvt_shift=flow.cvt_shift,
        cvt_minus_exp=flow.cvt_minus_exp,
        cvt_offset_first=flow.cvt_offset_first,
    )
    per_pixel, reads = flow.operand == "pixel", flow.operand != "none"
    start = place(tile, pixels, flow.main) if per_pixel else tile.c0 * flow.main.nbytes
    rdma = Rdma(
        main_disable=0,
        main_address=main + place(tile, pixels, flow.main),
        main_surface_gap=surface - tile.height * tile.width * ATOM,
        operand_disable=int(not reads),
        operand_address=operand + start if reads else 0,
        operand_mode=_PER_PIXEL if per_pixel else _PER_CHANNEL,
        operand_size=_OPERAND_SIZE[flow.main.nbytes] if reads else 0,
        operand_surface=surface if per_pixel else ATOM if reads else 0,
        flying=1,
        widen_float16=int(flow.widen),
        precision=flow.main.code,
        in_precision=flow.main.code,
    )
    return TaskConfig(dpu=dpu, rdma=rdma)


class FlyingPart(BufferUnit):
    """A flow over [pixels, channels] on one core. ``channels`` 0: any shape, ``pixels`` elements as a stream."""

    def __init__(self, context: Context, flow: Flow, pixels: int, channels: int, label: str) -> None:
        super().__init__(context)
        self._flow = flow
        self._stream = channels == 0
        self._elements = pixels if self._stream else pixels * channels
        per_atom = flow.main.atom_channels
        self._pixels = layout.ceil_div(pixels, per_atom) if self._stream else pixels
        self._channels = per_atom if self._stream else channels
        try:
            self._main = self._alloc(layout.cube_bytes(self._pixels, self._channels, flow.main))
            self._operand = self._alloc(self._operand_bytes()) if flow.operand != "none" else None
            self._out = self._alloc(layout.cube_bytes(self._pixels, self._channels, OUTPUTS[flow.out]))
            jobs = self._commands(label)
            self.jobs = len(jobs)
            reads = [self._main] + ([self._operand] if self._operand is not None else [])
            self._submission = context.prepare(jobs, [self._buffers[-1]], reads, self._out)
        except BaseException:
            self.close()
            raise

    def _operand_bytes(self) -> int:
        if self._flow.operand == "channel":
            return layout.operand_bytes(layout.align(self._channels, 16), self._flow.main.nbytes)
        return layout.cube_bytes(self._pixels, self._channels, self._flow.main)

    @property
    def dma_bytes(self) -> int:
        """Bytes of operands and result."""
        return sum(buffer.size for buffer in self._buffers[:-1])

    def _commands(self, label: str) -> list[Job]:
        flow = self._flow
        tiles = tiles_of(self._pixels, self._channels, flow.main.atom_channels)
        self.tasks = len(tiles)
        main, out = self._main.iova, self._out.iova
        operand = 0 if self._operand is None else self._operand.iova
        encoded = [regcmd.encode(task(flow, tile, self._pixels, main, operand, out), flow.prologue) for tile in tiles]
        stride = layout.align(len(encoded[0]) * 8, regcmd.ALIGNMENT)
        buffer = self._alloc(stride * len(tiles))
        words = buffer.view.view(np.uint64)
        refs = []
        for index, stream in enumerate(encoded):
            words[index * stride // 8 : index * stride // 8 + len(stream)] = stream
            refs.append((buffer.iova + index * stride, len(stream)))
        self._context.flush(buffer)
        jobs = []
        for first in range(0, len(refs), _TASKS_PER_JOB):
            last = min(first + _TASKS_PER_JOB, len(refs))
            text = f"{label}: tasks {first + 1}-{last} of {len(refs)}"
            jobs.append(Job(tuple(refs[first:last]), last_atom(flow, tiles[last - 1], self._pixels), text))
        return jobs

    def pack(self, *operands: Array) -> None:
        """Write the data, and the operand if the flow takes one."""
        self._write(self._main, operands[0])
        if self._operand is None:
            return
        if self._flow.operand == "channel":
            vector = np.ascontiguousarray(operands[1]).view(np.uint8)
            self._operand.view[: len(vector)] = vector
        else:
            self._write(self._operand, operands[1])

    def _write(self, buffer: Buffer, data: Array) -> None:
        if self._stream:
            flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            buffer.view[: len(flat)] = flat
        else:
            layout.pack_cube(buffer.view, data.reshape(self._pixels, self._channels))

    def unpack(self, result: Array) -> None:
        """Read the result into an array that is contiguous but for its first dimension."""
        if self._stream and OUTPUTS[self._flow.out].nbytes == self._flow.main.nbytes:
            size = self._elements * result.itemsize
            result.reshape(-1)[...] = self._out.view[:size].view(result.dtype)
        elif self._stream:
            wide = np.empty((self._pixels, self._channels), result.dtype)
            layout.unpack_cube(self._out.view, wide)
            result.reshape(-1)[...] = wide.reshape(-1)[: self._elements]
        else:
            layout.unpack_cube(self._out.view, result.reshape(self._pixels, self._channels))


def build(contexts: Sequence[Context], flow: Flow, sizes: Sequence[tuple[int, int]], label: str) -> list[FlyingPart]:
    """One part per (pixels, channels), one per context; nothing is left behind when one fails."""
    parts: list[FlyingPart] = []
    try:
        for context, (pixels, channels) in zip(contexts, sizes, strict=False):
            parts.append(FlyingPart(context, flow, pixels, channels, label))
    except BaseException:
        for part in parts:
            part.close()
        raise
    return parts
