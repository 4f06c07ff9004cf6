# SPDX-License-Identifier: MIT
"""The tasks of a plan: one description of registers per tile, once it is known where the buffers are.

Register values follow Mesa (rkt_regcmd.c, rkt_task.c) and the matmul clients of the mainline driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rknpu_userspace.formats import ATOM, INPUTS, OUTPUTS
from rknpu_userspace.layout import align, ceil_div, to_bfloat16, weight_kernels
from rknpu_userspace.quant import CHANNEL_SHIFT, ChannelRequant, Requant
from rknpu_userspace.task import ALU_ADD, DEPTHWISE, DIRECT, PASS, Conv, Dpu, Rdma, Stage, TaskConfig

from . import limits
from .geometry import Axis, Chunk, Plan, Problem, Tile, chunk_channels
from .jobs import fetch_at_job_starts, job_sizes, seconds

_BRDMA_ALU, _BRDMA_ALL = 1, 7
"""int32 per channel; or per 8 channels 8 int32 (ALU), 8 int16 (zero points), 8 int16 (multipliers)."""
_NARROW = ("float16", "bfloat16")
_ARGB = 7
_CONVERT_TRUNCATE, _CONVERT_FLOAT = 14, 0xFFF


@dataclass(frozen=True)
class Post:
    """What the DPU does with the sums: bias, ReLU, requantisation; the weights' zero point (int8).

    ``bound`` is the upper end of the ReLU, in the units that the requantisation starts from; ``slope`` what negative
    values are multiplied by (instead of a ReLU). ``unsigned``: a packed image holds uint8, which becomes int8 by
    subtracting 128. A plan with partial sums has none of it but the zero point: the host does it after adding up.
    """

    bias: bool = False
    relu: bool = False
    requant: Requant | ChannelRequant | None = None
    zero_point: int = 0
    pad_value: int = 0
    bound: float | None = None
    slope: float | None = None
    unsigned: bool = False

    @property
    def per_channel(self) -> bool:
        """Whether every output channel has a multiplier of its own."""
        return isinstance(self.requant, ChannelRequant)

    @property
    def common(self) -> Requant | None:
        """What the output converter does."""
        return self.requant.common if isinstance(self.requant, ChannelRequant) else self.requant


@dataclass(frozen=True)
class Places:
    """IOVAs: features of image 0, weights of each chunk, bias (or 0), output."""

    features: int
    weights: tuple[int, ...]
    bias: int
    out: int


def row_bytes_in(problem: Problem) -> int:
    """Length of a line of row-major features."""
    return problem.input.nbytes(problem.stored_channels)


def tasks(plan: Plan, post: Post, places: Places) -> Iterator[TaskConfig]:
    """The task of every tile, in order."""
    stage = _stage(plan, post)
    for tile in plan.tiles:
        vertical, horizontal = plan.axes[tile.chunk]
        yield TaskConfig(
            _conv(plan, tile, vertical, horizontal, post, places),
            _dpu(plan, tile, post, stage, places),
            _rdma(plan, tile, post, places),
        )


def _feature_place(
    problem: Problem, chunk: Chunk, tile: Tile, top: int, left: int, width: int
) -> tuple[int, int, int, int]:
    """Offset of the tile's features from image 0 (bytes), LINE_STRIDE, SURF_STRIDE (atoms) and GROUP_LINE_OFF.

    Lines with all their channels together are what HM calls panels (rk_npu_matmul_i8.cpp), a line per panel.
    Full-width tiles of a cube are fetched four lines at a time as Mesa and Rockchip's compiler do, others line by line,
    with a longer stride where lines are left out.
    """
    form = problem.input
    first = chunk.c0 + (tile.n0 if problem.depthwise else 0)
    image = tile.image * problem.in_bytes
    if problem.packed:
        lines = problem.height - top
        return (
            image + top * form.nbytes(problem.pitch * problem.channels),
            problem.pitch,
            problem.pitch * (lines - 1),
            1,
        )
    if problem.rows_in:
        line = row_bytes_in(problem)
        return image + top * line + form.nbytes(first), line // ATOM * problem.line_step, 0, 1
    if problem.lines_in:
        surfaces = problem.stored_channels // form.atom_channels
        offset = top * surfaces * problem.width + first // form.atom_channels * problem.width + left
        return image + offset * ATOM, surfaces * problem.width * problem.line_step, problem.width - width, 1
    area = problem.height * problem.width
    offset = image + (first // form.atom_channels * area + top * problem.width + left) * ATOM
    if width == problem.width and problem.line_step == 1:
        return offset, 4 * width, area - 4 * width, 0
    return offset, problem.width * problem.line_step, area - width, 1


def _conv(plan: Plan, tile: Tile, vertical: Axis, horizontal: Axis, post: Post, places: Places) -> Conv:
    problem, chunk = plan.problem, plan.chunks[tile.chunk]
    form = problem.input
    top, height, pad_top = vertical.window(tile.y0, tile.y1)
    left, width, pad_left = horizontal.window(tile.x0, tile.x1)
    first_line = top * problem.line_step
    offset, line_stride, surface_stride, line_by_line = _feature_place(problem, chunk, tile, first_line, left, width)
    kernels = tile.n1 - tile.n0
    if problem.depthwise:
        channels = align(kernels, form.atom_channels)
        stored = 1
        real = kernels
    else:
        channels = chunk_channels(problem, chunk)
        stored = weight_kernels(kernels)
        real = chunk.c1 - chunk.c0
    per_channel = form.nbytes(chunk.taps * channels)
    weight_offset = tile.n0 * form.nbytes(chunk.taps * (1 if problem.depthwise else channels))
    conv = Conv(
        precision=form.code,
        height=height,
        width=width,
        channels=channels,
        channels_real=real,
        out_height=tile.y1 - tile.y0,
        out_width=tile.x1 - tile.x0,
        out_channels=align(kernels, problem.output_group),
        kernels=stored,
        kernel_height=chunk.ky1 - chunk.ky0,
        kernel_width=chunk.kx1 - chunk.kx0,
        bytes_per_kernel=per_channel,
        data_banks=tile.data_banks,
        weight_banks=limits.CBUF_BANKS - tile.data_banks,
        data_entries=ceil_div(form.nbytes(width * channels), limits.ENTRY_BYTES),
        feature_address=places.features + offset,
        weight_address=places.weights[tile.chunk] + weight_offset,
        line_stride=line_stride,
        surface_stride=surface_stride,
        dma_width=width,
        dma_height=height,
        mode=DEPTHWISE if problem.depthwise else DIRECT,
        stride_y=vertical.stride,
        stride_x=problem.stride_x,
        dilation_y=problem.dilation_y,
        dilation_x=problem.dilation_x,
        pad_top=pad_top,
        pad_left=pad_left,
        pad_value=(post.pad_value & 0xFF) * 0x01010101,
        line_by_line=line_by_line,
        grains=height + 1,
        data_reuse=int(tile.data_reuse),
        weight_reuse=int(tile.weight_reuse),
        zero_point_path=int(_uses_zero_point(plan, post) or form.name == "int16"),
        insert_y=problem.insert_y,
        insert_x=problem.insert_x,
    )
    return replace(conv, **_packed(problem, post, width, height)) if problem.packed else conv


def _packed(problem: Problem, post: Post, width: int, height: int) -> dict[str, int]:
    """Registers of a packed image: Mesa's values for int8 (rkt_task.c), Rockchip's compiler's for float16."""
    mode = {"argb": _ARGB + problem.channels, "packed_pixels": 1, "data_entries": width * height}
    if problem.input.is_float:
        return {**mode, "convert_channels": _CONVERT_FLOAT}
    return {
        **mode,
        "convert_bypass": 0,
        "convert_type": 0,
        "convert_sign": int(not post.unsigned),
        "convert_truncate": _CONVERT_TRUNCATE,
        "convert_scale": 1 << _CONVERT_TRUNCATE,
        "convert_offset": -128 & 0xFFFF if post.unsigned else 0,
        "convert_channels": 0xFFFF,
    }


def _uses_zero_point(plan: Plan, post: Post) -> bool:
    """The accumulator's zero-point path: needed for a zero point, and on in every int8 -> int8 client."""
    return plan.problem.form == "int8" and (post.zero_point != 0 or plan.out == "int8")


def _stage(plan: Plan, post: Post) -> Stage:
    """BS: bias from memory and ReLU, where the DPU does them."""
    if plan.partial or not (post.bias or post.relu or post.per_channel):
        return Stage()
    shift = CHANNEL_SHIFT if post.per_channel else 0
    return Stage(
        bypass=0,
        alu_bypass=int(not post.bias),
        alu_from_memory=int(post.bias),
        alu_algorithm=ALU_ADD if post.bias else 0,
        mul_bypass=int(not post.per_channel),
        mul_from_memory=int(post.per_channel),
        mul_shift=shift,
        mul_shift_negative=shift,
        relu_bypass=int(not post.relu),
        relux=int(post.bound is not None),
        relux_bound=_bound_bits(plan, post.bound),
    )


def _bound_bits(plan: Plan, bound: float | None) -> int:
    if bound is None:
        return 0
    return int(np.float32(bound).view(np.uint32)) if plan.problem.input.is_float else int(bound)


def slope_bits(form: str, slope: float) -> int:
    """A slope as the multiplier takes it: bf16 or fp16 bits, or an int16 in units of 2^-14."""
    if form == "bfloat16":
        return int(to_bfloat16(np.array([slope], np.float32))[0])
    if INPUTS[form].is_float:
        return int(np.float16(slope).view(np.uint16))
    return round(slope * (1 << CHANNEL_SHIFT)) & 0xFFFF


def _slope_stage(plan: Plan, post: Post) -> Stage:
    """BN: negative values times a slope."""
    if plan.partial or post.slope is None:
        return PASS
    shift = 0 if plan.problem.input.is_float else CHANNEL_SHIFT
    bits = slope_bits(plan.problem.form, post.slope)
    return Stage(bypass=0, mul_bypass=0, mul_operand=bits, mul_shift=shift, mul_shift_negative=shift, prelu=1)


def out_place(plan: Plan, tile: Tile) -> tuple[int, int, int]:
    """Where a tile's result goes: offset in the output (bytes), surface stride (bytes), notch (atoms)."""
    problem = plan.problem
    size = OUTPUTS[plan.out].nbytes
    offset = (tile.image * len(plan.chunks) + tile.chunk) * plan.image_bytes
    if problem.rows_out:
        line = problem.stored_outputs * size
        return offset + tile.y0 * line + tile.n0 * size, ATOM, line // ATOM - 1
    area = problem.out_height * problem.out_width
    surface = tile.n0 * size // ATOM
    offset += (surface * area + tile.y0 * problem.out_width + tile.x0) * ATOM
    return offset, area * ATOM, problem.out_width - (tile.x1 - tile.x0)


def last_atom(plan: Plan, tile: Tile) -> int:
    """Offset in the output of the atom that the tile's task writes last."""
    offset, surface, notch = out_place(plan, tile)
    channels = align(tile.n1 - tile.n0, plan.problem.output_group)
    surfaces = channels * OUTPUTS[plan.out].nbytes // ATOM
    width = tile.x1 - tile.x0
    return offset + (surfaces - 1) * surface + ATOM * ((tile.y1 - tile.y0 - 1) * (width + notch) + width - 1)


def _dpu(plan: Plan, tile: Tile, post: Post, stage: Stage, places: Places) -> Dpu:
    problem = plan.problem
    out = OUTPUTS[plan.out]
    offset, surface, notch = out_place(plan, tile)
    requant = None if plan.partial else post.common
    return Dpu(
        in_precision=problem.input.dpu,
        precision=problem.input.dpu,
        out_precision=out.code,
        height=tile.y1 - tile.y0,
        width=tile.x1 - tile.x0,
        channels=align(tile.n1 - tile.n0, problem.output_group),
        channels_real=tile.n1 - tile.n0,
        address=places.out + offset,
        surface_stride=surface,
        group_atoms=problem.output_group * out.nbytes // ATOM,
        notch=notch,
        mode=DEPTHWISE if problem.depthwise else DIRECT,
        zero_point_bypass=int(not _uses_zero_point(plan, post)),
        zero_point=-post.zero_point,
        bs=stage,
        bn=_slope_stage(plan, post),
        cvt_offset=requant.offset if requant else 0,
        cvt_scale=requant.scale if requant else 1,
        cvt_shift=requant.shift if requant else 0,
        cvt_narrow=int(out.name in _NARROW),
    )


def _rdma(plan: Plan, tile: Tile, post: Post, places: Places) -> Rdma:
    use = 0 if plan.partial or not post.bias else _BRDMA_ALL if post.per_channel else _BRDMA_ALU
    return Rdma(
        bs_use=use,
        bs_address=places.bias + tile.n0 * (8 if post.per_channel else 4) if use else 0,
        mode=DEPTHWISE if plan.problem.depthwise else DIRECT,
        widen_float16=int(plan.problem.form in _NARROW),
    )


__all__ = [
    "Places",
    "Post",
    "fetch_at_job_starts",
    "job_sizes",
    "last_atom",
    "out_place",
    "row_bytes_in",
    "seconds",
    "tasks",
]
