# SPDX-License-Identifier: MIT
"""Small complete tasks for experiments: a convolution over native cubes, and the DPU alone on data from memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Buffer
from rknpu_userspace.formats import ATOM, INPUTS, OUTPUTS, InputFormat
from rknpu_userspace.task import (
    DEPTHWISE,
    DIRECT,
    NO_LUT,
    PASS,
    PASS_EW,
    Conv,
    Dpu,
    Elementwise,
    Lut,
    Rdma,
    Stage,
    TaskConfig,
)

from .rig import Array, Rig, Run, Words

INT16 = InputFormat("int16", "int16", 16, 1, 1, 16, 32, 0, 512)
_ENTRY_BYTES, _BANK_BYTES, _BANKS = 64, 32768, 12
_NARROW = ("float16", "bfloat16")
Change = Callable[[Words], Words]


def unchanged(words: Words) -> Words:
    """The default change of a stream."""
    return words


@dataclass(frozen=True)
class Result:
    """How a task went, and its output [y][x][channel]."""

    run: Run
    out: Array


@dataclass(frozen=True)
class Built:
    """A task ready to run: its words, buffers, where it writes last, and the output's [y][x][channel]."""

    words: Words
    out: Buffer
    last: int
    inputs: tuple[Buffer, ...]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Convolution:
    """A convolution. ``conv`` and ``dpu`` set attributes of the task's description, ``change`` edits words."""

    form: str
    out: str
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    depthwise: bool = False
    channels: int = 0
    kernels: int = 0
    conv: dict[str, int] = field(default_factory=dict)
    dpu: dict[str, object] = field(default_factory=dict)
    change: Change = unchanged

    @property
    def input(self) -> InputFormat:
        """The operand format."""
        return INT16 if self.form == "int16" else INPUTS[self.form]

    def run(self, rig: Rig, x: Array, w: Array, features: Array | None = None) -> Result:
        """Run on x [y][x][channel] and w [kernel][kh][kw][channel] (depthwise [kh][kw][channel]).

        ``features`` are bytes to use as they are instead of the cube of ``x``, which then only gives the size.
        """
        task = self.build(rig, x, w, features)
        run = rig.run([task.words], task.out, task.last, task.inputs, f"{self.form} probe")
        flat = np.zeros((task.shape[0] * task.shape[1], task.shape[2]), OUTPUTS[self.out].dtype)
        layout.unpack_cube(task.out.view, flat)
        return Result(run, flat.reshape(task.shape))

    def build(self, rig: Rig, x: Array, w: Array, features: Array | None = None) -> Built:
        """The task in memory, see ``run``."""
        form, (height, width, real) = self.input, x.shape
        channels = self.channels or layout.align(real, form.depthwise_group if self.depthwise else form.atom_channels)
        cube = rig.put(cube_of(x, form, channels) if features is None else features)
        weights = rig.put(layout.pack_depthwise(w, form) if self.depthwise else layout.pack_weights(w, form))
        out_height = (height + self.pad[0] + self.pad[1] - self.kernel[0]) // self.stride + 1
        out_width = (width + self.pad[2] + self.pad[3] - self.kernel[1]) // self.stride + 1
        group = form.depthwise_group if self.depthwise else form.kernel_group
        outputs = self.kernels or layout.align(channels if self.depthwise else len(w), group)
        kind = OUTPUTS[self.out]
        pixels = out_height * out_width
        surfaces = layout.ceil_div(outputs, kind.atom_channels)
        out = rig.alloc(surfaces * pixels * ATOM)
        conv = self._conv(x, channels, 1 if self.depthwise else layout.weight_kernels(len(w)), outputs)
        conv = replace(conv, out_height=out_height, out_width=out_width)
        conv = replace(conv, feature_address=cube.iova, weight_address=weights.iova, **self.conv)
        dpu = Dpu(
            in_precision=form.dpu,
            precision=form.dpu,
            out_precision=kind.code,
            height=out_height,
            width=out_width,
            channels=outputs,
            channels_real=outputs,
            address=out.iova,
            surface_stride=pixels * ATOM,
            group_atoms=max(1, group * kind.nbytes // ATOM),
            mode=DEPTHWISE if self.depthwise else DIRECT,
            cvt_narrow=int(self.out in _NARROW),
        )
        dpu = replace(dpu, **self.dpu)  # type: ignore[arg-type]
        rdma = Rdma(mode=dpu.mode, widen_float16=int(self.form in _NARROW))
        words = self.change(regcmd.encode(TaskConfig(conv, dpu, rdma)))
        last = (surfaces * pixels - 1) * ATOM
        return Built(words, out, last, (cube, weights), (out_height, out_width, outputs))

    def _conv(self, x: Array, channels: int, kernels: int, outputs: int) -> Conv:
        form, (height, width, real) = self.input, x.shape
        entries = layout.ceil_div(form.nbytes(width * channels), _ENTRY_BYTES)
        banks = layout.ceil_div(entries * _ENTRY_BYTES * height, _BANK_BYTES)
        integer = not form.is_float
        return Conv(
            precision=form.code,
            height=height,
            width=width,
            channels=channels,
            channels_real=real,
            out_height=1,
            out_width=1,
            out_channels=outputs,
            kernels=kernels,
            kernel_height=self.kernel[0],
            kernel_width=self.kernel[1],
            bytes_per_kernel=form.nbytes(self.kernel[0] * self.kernel[1] * channels),
            data_banks=banks,
            weight_banks=_BANKS - banks,
            data_entries=entries,
            feature_address=0,
            weight_address=0,
            line_stride=4 * width,
            surface_stride=(height - 4) * width,
            dma_width=width,
            dma_height=height,
            mode=DEPTHWISE if self.depthwise else DIRECT,
            stride_y=self.stride,
            stride_x=self.stride,
            pad_top=self.pad[0],
            pad_left=self.pad[2],
            grains=height + 1,
            zero_point_path=int(integer and form.bits != 4),
        )


def cube_of(x: Array, form: InputFormat, channels: int) -> Array:
    """The bytes of a cube of [y][x][channel]; channels are padded with zeros."""
    wide = np.zeros((x.shape[0] * x.shape[1], channels), form.dtype)
    wide[:, : x.shape[2]] = x.reshape(-1, x.shape[2])
    stored = layout.pack_nibbles(wide) if form.bits == 4 else wide
    out = np.zeros(layout.cube_bytes(len(wide), channels, form), np.uint8)
    layout.pack_cube(out, stored)
    return out


@dataclass(frozen=True)
class Flying:
    """The DPU alone on data of one of its formats, [pixel][channel]."""

    form: str
    out: str = ""
    bs: Stage = PASS
    bn: Stage = PASS
    ew: Elementwise = PASS_EW
    lut: Lut = NO_LUT
    dpu: dict[str, int] = field(default_factory=dict)
    prologue: tuple[int, ...] = ()
    change: Change = unchanged

    def words(self, main: int, operand: int, out: int, pixels: int, channels: int) -> Words:
        """The task for data at these addresses."""
        form, kind = OUTPUTS[self.form], OUTPUTS[self.out or self.form]
        lines = layout.ceil_div(pixels, 4096)
        surface = pixels * ATOM
        dpu = Dpu(
            in_precision=form.code,
            precision=form.code,
            out_precision=kind.code,
            height=lines,
            width=pixels // lines,
            channels=channels,
            channels_real=channels,
            address=out,
            surface_stride=surface,
            group_atoms=1,
            flying=1,
            bs=self.bs,
            bn=self.bn,
            ew=self.ew,
            lut=self.lut,
            cvt_narrow=int(kind.name in _NARROW),
        )
        dpu = replace(dpu, **self.dpu)  # type: ignore[arg-type]
        reads = bool(operand)
        rdma = Rdma(
            main_disable=0,
            main_address=main,
            operand_disable=int(not reads),
            operand_address=operand,
            operand_mode=int(reads),
            operand_size={1: 1, 2: 2, 4: 3}[form.nbytes] if reads else 0,
            operand_surface=surface if reads else 0,
            flying=1,
            widen_float16=int(self.form in _NARROW),
            precision=form.code,
            in_precision=form.code,
        )
        return self.change(regcmd.encode(TaskConfig(None, dpu, rdma), self.prologue))

    def run(self, rig: Rig, main: Array, operand: Array | None = None) -> Result:
        """Run on [pixel][channel] in the format's dtype; whole atoms of channels."""
        form, kind = OUTPUTS[self.form], OUTPUTS[self.out or self.form]
        pixels, channels = main.shape
        sources = [rig.put(_dpu_cube(data, form.dtype)) for data in (main, operand) if data is not None]
        surfaces = layout.ceil_div(channels, kind.atom_channels)
        out = rig.alloc(surfaces * pixels * ATOM)
        second = sources[1].iova if len(sources) > 1 else 0
        words = self.words(sources[0].iova, second, out.iova, pixels, channels)
        run = rig.run([words], out, (surfaces * pixels - 1) * ATOM, sources, f"{self.form} flying probe")
        flat = np.zeros((pixels, channels), kind.dtype)
        layout.unpack_cube(out.view, flat)
        return Result(run, flat)


def _dpu_cube(data: Array, dtype: str) -> Array:
    values = np.ascontiguousarray(data, dtype)
    out = np.zeros(values.nbytes, np.uint8)
    layout.pack_cube(out, values)
    return out


def operand(algorithm: int, size: int, **options: int) -> Elementwise:
    """EW with a second operand per pixel from memory through its ALU."""
    return replace(
        Elementwise(bypass=0, op_bypass=0, from_memory=1, data_mode=1, operand_size=size, algorithm=algorithm),
        **options,
    )
