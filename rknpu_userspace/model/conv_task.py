# SPDX-License-Identifier: MIT
"""The geometry of a convolution as the CNA's registers give it, and the rules that the registers must obey.

Evidence: TRM ch. 36, Mesa rkt_task.c, RN (CBUF, deconvolution), 683 register rows captured from Rockchip's compiler.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import image
from .cbuf import BANK_BYTES, BANKS, ENTRY_BYTES
from .context import MAX_MACS
from .errors import Unsupported, require, require_zero
from .memory import ATOM
from .precision import INT8, MAC_FORMATS, NAMES, MacFormat, atom_channels, byte_size
from .registers import Fields

DIRECT, DEPTHWISE = 0, 3
_DECONV_FIELDS = (0, 1, 3, 7)
_DECONV_ODD_PADS = range(12, 16)
_NON_ZERO = (
    "DATAIN_WIDTH",
    "DATAIN_HEIGHT",
    "DATAIN_CHANNEL",
    "DATAOUT_WIDTH",
    "DATAOUT_ATOMICS",
    "WEIGHT_KERNELS",
    "WEIGHT_WIDTH",
    "WEIGHT_HEIGHT",
    "CONV_X_STRIDE",
    "CONV_Y_STRIDE",
)


@dataclass(frozen=True)
class ConvTask:
    """A convolution as the CNA is told it: sizes in pixels, channels padded to the 16-byte atom.

    ``insert_y`` and ``insert_x`` are the strides of a transposed convolution: that many minus one zeros stand between
    two rows or columns of the input.
    """

    depthwise: bool
    code: int
    height: int
    width: int
    channels: int
    kernel_height: int
    kernel_width: int
    kernels: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    pad_top: int
    pad_left: int
    out_height: int
    out_width: int
    data_bank: int
    weight_bank: int
    data_banks_needed: int
    insert_y: int = 1
    insert_x: int = 1

    @property
    def format(self) -> MacFormat:
        """The operand format."""
        return MAC_FORMATS[self.code]

    @property
    def taps(self) -> int:
        """Kernel height x width."""
        return self.kernel_height * self.kernel_width

    @property
    def pixels(self) -> int:
        """Output pixels of this task."""
        return self.out_height * self.out_width

    @property
    def out_channels(self) -> int:
        """Channels that leave the MAC array."""
        return self.channels if self.depthwise else self.kernels

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.pixels * self.taps * self.channels * (1 if self.depthwise else self.kernels)

    def mac_cycles(self) -> int:
        """Cycles of the MAC array, see ``cost``."""
        form = self.format
        if self.depthwise:
            return self.pixels * self.taps * -(-self.channels // form.depthwise_group)
        groups = -(-self.kernels // form.kernel_group) * -(-self.channels // form.channel_group)
        return self.pixels * self.taps * groups

    def describe(self) -> str:
        """What is computed, for logs and statistics."""
        kind = "dwconv" if self.depthwise else "conv"
        if self.insert_y > 1 or self.insert_x > 1:
            kind = f"deconv{self.insert_y}x{self.insert_x}"
        return (
            f"{kind} {self.kernel_height}x{self.kernel_width} s{self.stride_y}x{self.stride_x} {NAMES[self.code]} "
            f"{self.height}x{self.width}x{self.channels} -> {self.out_height}x{self.out_width}x{self.out_channels}"
        )


def read_config(f: Fields) -> ConvTask:
    """Check the register group and read the geometry from it.

    Raises IllegalConfig for what breaks a rule of the hardware, Unsupported for what is not modelled.
    """
    require_zero(f, "CNA", ("NN_MODE", "SURF_MODE", "FC_SKIP_EN"))
    require_zero(f, "CNA", ("CSC_DO_EN", "CSC_WO_EN", "CMD_FIFO_SRST", "DATA_OFFSET", "WEIGHT_OFFSET"))
    code = f["PROC_PRECISION"]
    if code not in MAC_FORMATS or f["IN_PRECISION"] != code:
        raise Unsupported(f"CNA IN_PRECISION {f['IN_PRECISION']} with PROC_PRECISION {code}")
    if f["CONV_MODE"] not in (DIRECT, DEPTHWISE):
        raise Unsupported(f"CNA CONV_MODE {f['CONV_MODE']}")
    depthwise = f["CONV_MODE"] == DEPTHWISE
    if depthwise and not MAC_FORMATS[code].depthwise_group:
        raise Unsupported(f"depthwise convolution in {NAMES[code]}")
    if image.is_image(f):
        image.check(f, code)
    _check_sizes(f, code)
    atomics, out_width = f["DATAOUT_ATOMICS"], f["DATAOUT_WIDTH"]
    require(atomics % out_width == 0, f"DATAOUT_ATOMICS {atomics} is not a multiple of DATAOUT_WIDTH {out_width}")
    task = ConvTask(
        depthwise=depthwise,
        code=code,
        height=f["DATAIN_HEIGHT"],
        width=f["DATAIN_WIDTH"],
        channels=f["DATAIN_CHANNEL"],
        kernel_height=f["WEIGHT_HEIGHT"],
        kernel_width=f["WEIGHT_WIDTH"],
        kernels=f["WEIGHT_KERNELS"],
        stride_y=f["CONV_Y_STRIDE"],
        stride_x=f["CONV_X_STRIDE"],
        dilation_y=f["ATROUS_Y_DILATION"] + 1,
        dilation_x=f["ATROUS_X_DILATION"] + 1,
        pad_top=f["PAD_TOP"],
        pad_left=f["PAD_LEFT"],
        out_height=atomics // out_width,
        out_width=out_width,
        data_bank=f["DATA_BANK"],
        weight_bank=f["WEIGHT_BANK"],
        data_banks_needed=_data_banks(f, code),
        **_insertion(f),
    )
    _check_weights(f, task)
    require(task.macs <= MAX_MACS, f"{task.macs} multiply-accumulates in one task do not end before any timeout")
    return task


def _insertion(f: Fields) -> dict[str, int]:
    """Zeros between input pixels: DECONV gates the stride fields, of which 1, 3 and 7 act (RN conv-transpose.md)."""
    if not f["DECONV"]:
        return {}
    fields = f["DECONV_Y_STRIDE"], f["DECONV_X_STRIDE"]
    steps = [field + 1 if field in _DECONV_FIELDS else 1 for field in fields]
    if any(
        step == 2 and pad in _DECONV_ODD_PADS for step, pad in zip(steps, (f["PAD_TOP"], f["PAD_LEFT"]), strict=True)
    ):
        raise Unsupported("DECONV with stride 2 and a padding of 12..15, where boards do something not understood")
    if image.is_image(f):
        raise Unsupported("DECONV of a packed image")
    return {"insert_y": steps[0], "insert_x": steps[1]}


def _check_sizes(f: Fields, code: int) -> None:
    for name in _NON_ZERO:
        require(f[name] != 0, f"CNA {name} is zero")
    require(
        f["DATAIN_CHANNEL"] % atom_channels(code) == 0,
        f"DATAIN_CHANNEL {f['DATAIN_CHANNEL']} is not a multiple of the {atom_channels(code)} channels of an atom",
    )
    require(
        f["DMA_CHANNEL"] == f["DATAIN_CHANNEL"],
        f"DMA_CHANNEL {f['DMA_CHANNEL']} differs from DATAIN_CHANNEL {f['DATAIN_CHANNEL']}",
    )
    require(
        (f["DMA_WIDTH"] >= f["DATAIN_WIDTH"] or image.is_image(f)) and f["DMA_HEIGHT"] >= f["DATAIN_HEIGHT"],
        f"the DMA fetches {f['DMA_WIDTH']}x{f['DMA_HEIGHT']}, less than the {f['DATAIN_WIDTH']}x{f['DATAIN_HEIGHT']} "
        "of DATA_SIZE0",
    )
    for name in ("FEATURE_BASE_ADDR", "DECOMPRESS_ADDR0"):
        require(f[name] % ATOM == 0, f"CNA {name} {f[name]:#x} is not 16-byte aligned")


def _data_banks(f: Fields, code: int) -> int:
    """CBUF banks that the features take; checks the bank fields."""
    data, weight = f["DATA_BANK"], f["WEIGHT_BANK"]
    require(data + weight == BANKS, f"DATA_BANK {data} + WEIGHT_BANK {weight} is not {BANKS}")
    require(data > 0 and weight > 0, "DATA_BANK or WEIGHT_BANK is zero")
    require(f["FC_DATA_BANK"] == 0, f"FC_DATA_BANK {f['FC_DATA_BANK']} is not 0")
    line = byte_size(code, f["DATAIN_WIDTH"] * f["DATAIN_CHANNEL"])
    need = -(-line // ENTRY_BYTES)
    entries = f["DATA_ENTRIES"]
    if image.is_image(f):
        entries = need  # the field holds W x H here (Mesa and Rockchip's compiler alike)
    # Too few never works. Too many: Mesa does so for int8 (40 for W = 40, C = 40) and works; fp16 goes wrong (RU).
    legal = entries >= need if code == INT8 else entries == need
    require(legal, f"DATA_ENTRIES {entries} for a line of {line} bytes, which takes {need}")
    banks = -(-entries * ENTRY_BYTES * f["DATAIN_HEIGHT"] // BANK_BYTES)
    require(banks <= data, f"the features take {banks} CBUF banks, DATA_BANK is {data}")
    return banks


def _check_weights(f: Fields, task: ConvTask) -> None:
    per_kernel = byte_size(task.code, task.taps * task.channels)
    require(
        f["WEIGHT_BYTES_PER_KERNEL"] == per_kernel,
        f"WEIGHT_BYTES_PER_KERNEL {f['WEIGHT_BYTES_PER_KERNEL']} is not the {per_kernel} of the kernel size",
    )
    require(
        f["WEIGHT_BYTES"] == per_kernel * task.kernels,
        f"WEIGHT_BYTES {f['WEIGHT_BYTES']} is not {task.kernels} kernels of {per_kernel} bytes",
    )
    if task.depthwise:
        require(task.kernels == 1, f"WEIGHT_KERNELS {task.kernels} in depthwise mode is not 1")
        return
    group = min(task.kernels, task.format.kernel_group) * per_kernel
    require(
        group <= task.weight_bank * BANK_BYTES,
        f"a kernel group of {group} bytes does not fit the {task.weight_bank} weight banks",
    )
