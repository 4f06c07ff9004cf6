# SPDX-License-Identifier: MIT
"""A small builder of NPU tasks for the model's tests: registers by name, packers written as plain loops.

It shares the register table with the model and nothing else; what it builds follows the layouts that the clients of
the hardware use, so that a mistake in the model's address arithmetic shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rknpu_userspace.isa import BY_NAME, TARGET_ENABLE, TARGET_SYNC, Block, enable_mask, pack, write
from rknpu_userspace.model.machine import ModelMachine
from rknpu_userspace.model.results import TaskResult

CONV = enable_mask(Block.CNA, Block.CORE, Block.DPU)
CONV_RDMA = CONV | enable_mask(Block.DPU_RDMA)
FLYING = enable_mask(Block.DPU, Block.DPU_RDMA)
POOL = enable_mask(Block.PPU, Block.PPU_RDMA)


@dataclass(frozen=True)
class Format:
    """An operand format and how its tiles are laid out."""

    name: str
    code: int
    bits: int
    kernel_group: int
    channel_group: int
    depthwise_group: int
    dpu: int

    def raw(self, values: np.ndarray) -> np.ndarray:
        """Numbers to the stored elements (int4 stays int8, packed later)."""
        if self.name == "bf16":
            return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return values.astype({"int8": "i1", "int4": "i1", "int16": "i2", "fp16": "f2", "tf32": "f4"}[self.name])

    def nbytes(self, count: int) -> int:
        return count * self.bits // 8

    @property
    def atom(self) -> int:
        return 128 // self.bits


INT8 = Format("int8", 0, 8, 32, 32, 64, 0)
INT16 = Format("int16", 1, 16, 16, 32, 0, 1)
FP16 = Format("fp16", 2, 16, 16, 32, 32, 2)
BF16 = Format("bf16", 3, 16, 16, 32, 32, 3)
INT4 = Format("int4", 6, 4, 64, 32, 0, 6)
TF32 = Format("tf32", 7, 32, 16, 16, 0, 5)

OUT_CODE = {"int8": 0, "int16": 1, "fp16": 2, "bf16": 3, "int32": 4, "fp32": 5}
OUT_DTYPE = {"int8": "i1", "int16": "i2", "fp16": "f2", "bf16": "u2", "int32": "i4", "fp32": "f4"}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def align(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def pack_bits(elements: np.ndarray, fmt: Format) -> np.ndarray:
    """Stored elements in memory order to bytes."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    if fmt.name == "int4":
        low, high = flat[0::2].astype(np.uint8) & 15, flat[1::2].astype(np.uint8) & 15
        return low | high << 4
    return flat.view(np.uint8)


def pack_cube(cube: np.ndarray, fmt: Format) -> np.ndarray:
    """[y][x][c] to the native cube: surfaces of 16-byte atoms, pixels row by row. Channels are padded with zeros."""
    height, width, channels = cube.shape
    lanes = fmt.atom
    surfaces = ceil_div(channels, lanes)
    out = np.zeros((surfaces, height, width, lanes), fmt.raw(cube[:0]).dtype)
    raw = fmt.raw(cube)
    for c in range(channels):
        out[c // lanes, :, :, c % lanes] = raw[:, :, c]
    return pack_bits(out, fmt)


def pack_weights(weights: np.ndarray, fmt: Format) -> np.ndarray:
    """[n][kh][kw][c] to tiles [k1][c1][kh][kw][k2][c2], last groups cut; c is already padded to the atom."""
    kernels, height, width, channels = weights.shape
    raw = fmt.raw(weights)
    parts = []
    for k in range(0, kernels, fmt.kernel_group):
        for c in range(0, channels, fmt.channel_group):
            for y in range(height):
                for x in range(width):
                    parts.append(raw[k : k + fmt.kernel_group, y, x, c : c + fmt.channel_group].reshape(-1))
    return pack_bits(np.concatenate(parts), fmt)


def pack_depthwise(weights: np.ndarray, fmt: Format) -> np.ndarray:
    """[kh][kw][c] to [c1][kh][kw][c2]."""
    height, width, channels = weights.shape
    raw = fmt.raw(weights)
    parts = []
    for c in range(0, channels, fmt.depthwise_group):
        for y in range(height):
            for x in range(width):
                parts.append(raw[y, x, c : c + fmt.depthwise_group])
    return pack_bits(np.concatenate(parts), fmt)


def unpack_cube(data: np.ndarray, height: int, width: int, channels: int, out: str) -> np.ndarray:
    """Native output cube bytes to [y][x][c]; bf16 comes back as float32."""
    elements = np.ascontiguousarray(data).view(OUT_DTYPE[out])
    lanes = 16 // elements.itemsize
    surfaces = ceil_div(channels, lanes)
    cube = elements[: surfaces * height * width * lanes].reshape(surfaces, height, width, lanes)
    result = cube.transpose(1, 2, 0, 3).reshape(height, width, -1)[..., :channels]
    if out == "bf16":
        return (result.astype(np.uint32) << 16).view(np.float32)
    return result.copy()


@dataclass
class Task:
    """Registers of one task by name; everything not set is written as zero."""

    mask: int
    regs: dict[str, int] = field(default_factory=dict)
    only: bool = False
    pointers: bool = True

    def set(self, name: str, **fields: int) -> Task:
        """Set a register from field values."""
        self.regs[name] = BY_NAME[name].encode(**fields)
        return self

    def words(self, link: tuple[int, int] | None = None) -> np.ndarray:
        """Command words with the trailer. ``only``: nothing but the registers that were set (a delta stream)."""
        out = []
        blocks = {block for block in Block if block.enable_bit is not None and self.mask >> block.enable_bit & 1}
        if self.pointers:
            for block in blocks - {Block.CNA, Block.CORE}:  # those two belong to the driver
                name = next(n for n, r in BY_NAME.items() if r.block is block and r.offset == block.base + 4)
                out.append(write(BY_NAME[name], 0xE))
        for name, register in BY_NAME.items():
            if register.block not in blocks or register.offset - register.block.base <= 8:
                continue
            if name.startswith("DPU_LUT_ACCESS") or (self.only and name not in self.regs):
                continue
            out.append(write(register, self.regs.get(name, 0)))
        out += [0] * (len(out) % 2)  # the PC fetches pairs of words
        if link is None:
            out += [0, pack(0x0101, 0x0014, 0)]
        else:
            out += [pack(0x0101, 0x0010, link[0]), pack(0x0101, 0x0014, link[1])]
        out += [pack(TARGET_SYNC, 0, 0), pack(TARGET_ENABLE, 8, self.mask)]
        return np.array(out, np.uint64)


@dataclass
class Conv:
    """A convolution task; see ``task`` for the registers. Addresses are IOVAs of native buffers."""

    fmt: Format
    height: int
    width: int
    channels: int
    kernels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)
    out: str = "int32"
    depthwise: bool = False
    feature: int = 0
    weights: int = 0
    dst: int = 0

    @property
    def out_size(self) -> tuple[int, int]:
        (kh, kw), (sy, sx), (dy, dx) = self.kernel, self.stride, self.dilation
        top, bottom, left, right = self.pad
        return (
            (self.height + top + bottom - (kh - 1) * dy - 1) // sy + 1,
            (self.width + left + right - (kw - 1) * dx - 1) // sx + 1,
        )

    @property
    def aligned(self) -> int:
        """Input channels padded to the atom."""
        return align(self.channels, self.fmt.atom)

    @property
    def out_channels(self) -> int:
        """Output channels padded to what CORE puts out."""
        if self.depthwise:
            return align(self.aligned, self.fmt.depthwise_group)
        return align(self.kernels, self.fmt.kernel_group)

    def task(self, mask: int = CONV_RDMA) -> Task:
        """The registers, all layouts native, no bias, identity output converter."""
        fmt, (kh, kw), (oh, ow) = self.fmt, self.kernel, self.out_size
        channels = align(self.aligned, fmt.depthwise_group) if self.depthwise else self.aligned
        kernels = 1 if self.depthwise else self.kernels
        per_kernel = fmt.nbytes(kh * kw * channels)
        entries = ceil_div(fmt.nbytes(self.width * channels), 64)
        data_bank = min(11, max(1, ceil_div(entries * 64 * self.height, 32768)))
        t = Task(mask)
        t.set(
            "CNA_CONV_CON1",
            CONV_MODE=3 if self.depthwise else 0,
            IN_PRECISION=fmt.code,
            PROC_PRECISION=fmt.code,
        )
        t.set("CNA_CONV_CON2", FEATURE_GRAINS=self.height + 1)
        t.set(
            "CNA_CONV_CON3",
            CONV_X_STRIDE=self.stride[1],
            CONV_Y_STRIDE=self.stride[0],
            ATROUS_X_DILATION=self.dilation[1] - 1,
            ATROUS_Y_DILATION=self.dilation[0] - 1,
        )
        t.set("CNA_DATA_SIZE0", DATAIN_HEIGHT=self.height, DATAIN_WIDTH=self.width)
        t.set("CNA_DATA_SIZE1", DATAIN_CHANNEL=channels, DATAIN_CHANNEL_REAL=self.channels - 1)
        t.set("CNA_DATA_SIZE2", DATAOUT_WIDTH=ow)
        t.set("CNA_DATA_SIZE3", DATAOUT_ATOMICS=ow * oh)
        t.set("CNA_WEIGHT_SIZE0", WEIGHT_BYTES=per_kernel * kernels)
        t.set("CNA_WEIGHT_SIZE1", WEIGHT_BYTES_PER_KERNEL=per_kernel)
        t.set("CNA_WEIGHT_SIZE2", WEIGHT_KERNELS=kernels, WEIGHT_HEIGHT=kh, WEIGHT_WIDTH=kw)
        t.set("CNA_CBUF_CON0", DATA_BANK=data_bank, WEIGHT_BANK=12 - data_bank)
        t.set("CNA_CBUF_CON1", DATA_ENTRIES=entries)
        t.set("CNA_CVT_CON0", CVT_BYPASS=1, CVT_TYPE=1, DATA_SIGN=1)
        for lane in range(1, 5):
            t.regs[f"CNA_CVT_CON{lane}"] = 0x10000
        t.set("CNA_PAD_CON0", PAD_TOP=self.pad[0], PAD_LEFT=self.pad[2])
        t.regs["CNA_FEATURE_DATA_ADDR"] = self.feature
        t.regs["CNA_DMA_CON0"] = 0xF000F
        t.set("CNA_DMA_CON1", LINE_STRIDE=4 * self.width)
        t.set("CNA_DMA_CON2", SURF_STRIDE=self.width * self.height - 4 * self.width)
        t.set("CNA_FC_DATA_SIZE0", DMA_HEIGHT=self.height, DMA_WIDTH=self.width)
        t.set("CNA_FC_DATA_SIZE1", DMA_CHANNEL=channels)
        t.regs["CNA_DCOMP_ADDR0"] = self.weights
        self._outputs(t)
        return t

    def _outputs(self, t: Task) -> None:
        fmt, (oh, ow) = self.fmt, self.out_size
        channels = self.out_channels
        out_bits = {"int8": 8, "int16": 16, "fp16": 16, "bf16": 16, "int32": 32, "fp32": 32}[self.out]
        group = fmt.depthwise_group if self.depthwise else fmt.kernel_group
        size_e = group * out_bits // 128 - 1
        t.set("CORE_MISC_CFG", DW_EN=int(self.depthwise), PROC_PRECISION=fmt.code)
        t.set("CORE_DATAOUT_SIZE_0", DATAOUT_WIDTH=ow - 1, DATAOUT_HEIGHT=oh - 1)
        t.set("CORE_DATAOUT_SIZE_1", DATAOUT_CHANNEL=channels - 1)
        t.set("DPU_FEATURE_MODE_CFG", OUTPUT_MODE=2, CONV_MODE=3 if self.depthwise else 0, BURST_LEN=15)
        t.set(
            "DPU_DATA_FORMAT",
            PROC_PRECISION=fmt.dpu,
            IN_PRECISION=fmt.dpu,
            OUT_PRECISION=OUT_CODE[self.out],
        )
        t.regs["DPU_DST_BASE_ADDR"] = self.dst
        t.set("DPU_DST_SURF_STRIDE", DST_SURF_STRIDE=ow * oh * 16)
        t.set("DPU_DATA_CUBE_WIDTH", WIDTH=ow - 1)
        t.set("DPU_DATA_CUBE_HEIGHT", HEIGHT=oh - 1)
        t.set("DPU_DATA_CUBE_CHANNEL", CHANNEL=channels - 1, ORIG_CHANNEL=channels - 1)
        t.regs["DPU_BS_CFG"] = 0x53
        t.set("DPU_BS_OW_CFG", OD_BYPASS=1, SIZE_E_0=size_e, SIZE_E_1=size_e, SIZE_E_2=size_e)
        t.set("DPU_WDMA_SIZE_0", CHANNEL_WDMA=channels - 1)
        t.set("DPU_WDMA_SIZE_1", WIDTH_WDMA=ow - 1, HEIGHT_WDMA=oh - 1)
        t.regs["DPU_BN_CFG"] = 0x53
        t.regs["DPU_EW_CFG"] = 0x383
        t.regs["DPU_EW_CVT_SCALE_VALUE"] = 1
        t.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=1, FP32TOFP16_EN=int(self.out in ("fp16", "bf16")))
        t.set("DPU_SURFACE_ADD", SURF_ADD=(size_e + 1) * ow * oh * 16)
        if t.mask & FLYING == FLYING:
            t.set("DPU_RDMA_RDMA_DATA_CUBE_WIDTH", WIDTH=ow - 1)
            t.set("DPU_RDMA_RDMA_DATA_CUBE_HEIGHT", HEIGHT=oh - 1)
            t.set("DPU_RDMA_RDMA_DATA_CUBE_CHANNEL", CHANNEL=channels - 1)
            t.regs["DPU_RDMA_RDMA_ERDMA_CFG"] = 1
            t.regs["DPU_RDMA_RDMA_FEATURE_MODE_CFG"] = 0x7810
            t.regs["DPU_RDMA_RDMA_WEIGHT"] = 0x01010101

    def out_bytes(self) -> int:
        oh, ow = self.out_size
        lanes = 16 // np.dtype(OUT_DTYPE[self.out]).itemsize
        return oh * ow * 16 * ceil_div(self.out_channels, lanes)


class Bench:
    """A machine with a bump allocator; buffers are separated by an unmapped page."""

    def __init__(self, arena: int = 64 << 20, **options: object) -> None:
        self.lines: list[str] = []
        self.machine = ModelMachine(arena, log=self.lines.append, **options)  # type: ignore[arg-type]
        self.memory = self.machine.memory
        self._next = 0x1000

    def alloc(self, size: int, writable: bool = True) -> int:
        at = self._next
        self._next += align(max(size, 1), 4096) + 4096
        self.memory.map(at, max(size, 1), writable)
        return at

    def put(self, data: np.ndarray, writable: bool = False) -> int:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        at = self.alloc(raw.size, writable)
        self.memory.view(at, raw.size)[:] = raw
        return at

    def get(self, iova: int, size: int) -> np.ndarray:
        return self.memory.view(iova, size).copy()

    def run(self, task: Task, core: int = 0) -> TaskResult:
        words = task.words()
        return self.machine.run_task(core, self.put(words), len(words))


def run_conv(
    bench: Bench, conv: Conv, x: np.ndarray, w: np.ndarray, change: object = None, core: int = 0
) -> tuple[TaskResult, np.ndarray]:
    """Pack, run, unpack: x [y][x][c], w [n][kh][kw][c] or [kh][kw][c]; ``change(task)`` edits registers."""
    fmt = conv.fmt
    conv.feature = bench.put(pack_cube(_channels(x, align(conv.aligned, 64) if conv.depthwise else conv.aligned), fmt))
    padded = _channels(w, align(conv.aligned, fmt.depthwise_group) if conv.depthwise else conv.aligned)
    conv.weights = bench.put(pack_depthwise(padded, fmt) if conv.depthwise else pack_weights(padded, fmt))
    conv.dst = bench.alloc(conv.out_bytes())
    task = conv.task()
    if callable(change):
        change(task)
    result = bench.run(task, core)
    oh, ow = conv.out_size
    return result, unpack_cube(bench.get(conv.dst, conv.out_bytes()), oh, ow, conv.out_channels, conv.out)


def _channels(values: np.ndarray, count: int) -> np.ndarray:
    pad = [(0, 0)] * (values.ndim - 1) + [(0, count - values.shape[-1])]
    return np.pad(values, pad)


def reference_conv(
    x: np.ndarray,
    w: np.ndarray,
    stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    value: object = 0,
) -> np.ndarray:
    """Convolution in float64 (exact for integers here): x [y][x][c], w [n][kh][kw][c] -> [oy][ox][n]."""
    top, bottom, left, right = pad
    padded = np.empty((x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2]), np.float64)
    padded[...] = value
    padded[top : top + x.shape[0], left : left + x.shape[1]] = x
    kh, kw = w.shape[1:3]
    oh = (padded.shape[0] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (padded.shape[1] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    out = np.zeros((oh, ow, w.shape[0]))
    for y in range(oh):
        for xx in range(ow):
            for i in range(kh):
                for j in range(kw):
                    pixel = padded[y * stride[0] + i * dilation[0], xx * stride[1] + j * dilation[1]]
                    out[y, xx] += w[:, i, j].astype(np.float64) @ pixel
    return out


@dataclass
class Flying:
    """A DPU task whose main data comes from memory; flat cubes of one row unless a height is given."""

    proc: str
    width: int
    channels: int
    height: int = 1
    main: str = ""
    out: str = ""
    src: int = 0
    operand: int = 0
    dst: int = 0

    def task(self, ew: int = 0x383, erdma: int = 1, feature_mode: int | None = None) -> Task:
        """All registers, nothing active but the copy; ``ew`` is EW_CFG, ``erdma`` ERDMA_CFG."""
        main, out = self.main or self.proc, self.out or self.proc
        pixels = self.width * self.height
        t = Task(FLYING)
        t.regs["DPU_FEATURE_MODE_CFG"] = 0x1E5
        t.set(
            "DPU_DATA_FORMAT",
            PROC_PRECISION=OUT_CODE[self.proc],
            IN_PRECISION=OUT_CODE[self.proc],
            OUT_PRECISION=OUT_CODE[out],
        )
        t.regs["DPU_DST_BASE_ADDR"] = self.dst
        t.set("DPU_DST_SURF_STRIDE", DST_SURF_STRIDE=16 * pixels)
        t.set("DPU_SURFACE_ADD", SURF_ADD=16 * pixels)
        t.set("DPU_DATA_CUBE_WIDTH", WIDTH=self.width - 1)
        t.set("DPU_DATA_CUBE_HEIGHT", HEIGHT=self.height - 1)
        t.set("DPU_DATA_CUBE_CHANNEL", CHANNEL=self.channels - 1, ORIG_CHANNEL=self.channels - 1)
        t.regs["DPU_BS_CFG"] = t.regs["DPU_BN_CFG"] = 0x53
        t.regs["DPU_BS_OW_CFG"] = 2
        t.set("DPU_WDMA_SIZE_0", CHANNEL_WDMA=self.channels - 1)
        t.set("DPU_WDMA_SIZE_1", WIDTH_WDMA=self.width - 1, HEIGHT_WDMA=self.height - 1)
        t.regs["DPU_EW_CFG"] = ew
        t.regs["DPU_EW_CVT_SCALE_VALUE"] = 1
        t.set("DPU_OUT_CVT_SCALE", OUT_CVT_SCALE=1, FP32TOFP16_EN=int(out in ("fp16", "bf16")))
        t.set("DPU_RDMA_RDMA_DATA_CUBE_WIDTH", WIDTH=self.width - 1)
        t.set("DPU_RDMA_RDMA_DATA_CUBE_HEIGHT", HEIGHT=self.height - 1)
        t.set("DPU_RDMA_RDMA_DATA_CUBE_CHANNEL", CHANNEL=self.channels - 1)
        t.regs["DPU_RDMA_RDMA_SRC_BASE_ADDR"] = self.src
        t.regs["DPU_RDMA_RDMA_ERDMA_CFG"] = erdma
        t.regs["DPU_RDMA_RDMA_EW_BASE_ADDR"] = self.operand
        t.set("DPU_RDMA_RDMA_EW_SURF_STRIDE", EW_SURF_STRIDE=16 * pixels)
        if feature_mode is None:
            wide = int(main in ("fp16", "bf16"))
            code = OUT_CODE[main]
            feature_mode = code << 15 | 15 << 11 | OUT_CODE[self.proc] << 5 | wide << 3 | 1
        t.regs["DPU_RDMA_RDMA_FEATURE_MODE_CFG"] = feature_mode
        t.regs["DPU_RDMA_RDMA_WEIGHT"] = 0x01010101
        return t

    @property
    def out_dtype(self) -> str:
        return OUT_DTYPE[self.out or self.proc]


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers to the elements of a DPU format; bf16 rounds to nearest even."""
    if kind == "bf16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return values.astype(OUT_DTYPE[kind])


def numbers(raw: np.ndarray, kind: str) -> np.ndarray:
    """Elements of a DPU format to float32 or integers."""
    if kind == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind in ("fp16", "fp32"):
        return raw.view(OUT_DTYPE[kind]).astype(np.float32)
    return raw.view(OUT_DTYPE[kind])


def pack_dpu(values: np.ndarray, kind: str) -> np.ndarray:
    """[y][x][c] numbers to a native cube of a DPU format, channels padded with zeros."""
    raw = stored(values, kind)
    lanes = 16 // raw.itemsize
    height, width, channels = raw.shape
    out = np.zeros((ceil_div(channels, lanes), height, width, lanes), raw.dtype)
    for c in range(channels):
        out[c // lanes, :, :, c % lanes] = raw[:, :, c]
    return out.reshape(-1).view(np.uint8)


def run_flying(
    bench: Bench,
    shape: Flying,
    main: np.ndarray,
    operand: np.ndarray | None = None,
    ew: int = 0x383,
    erdma: int = 1,
    change: object = None,
) -> tuple[TaskResult, np.ndarray]:
    """Run on [y][x][c] numbers; ``operand`` is raw bytes (a packed cube or a vector)."""
    shape.src = bench.put(pack_dpu(main, shape.main or shape.proc))
    if operand is not None:
        shape.operand = bench.put(operand)
    size = np.dtype(shape.out_dtype).itemsize
    surfaces = ceil_div(shape.channels * size, 16)
    total = surfaces * shape.height * shape.width * 16
    shape.dst = bench.alloc(total)
    task = shape.task(ew, erdma)
    if callable(change):
        change(task)
    result = bench.run(task)
    cube = unpack_cube(bench.get(shape.dst, total), shape.height, shape.width, shape.channels, shape.out or shape.proc)
    return result, cube
