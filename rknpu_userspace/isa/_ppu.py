# SPDX-License-Identifier: MIT
"""Registers of the blocks PPU and PPU_RDMA: one entry per register.

Names and bit positions are those of Linux' generated header (drivers/accel/rocket/rocket_registers.h) and of Mesa's
registers.xml; meanings come from the RK3588 TRM part 1 chapter 36 and from what working clients write.
"""

from .register import Register
from .register import register as _r

REGISTERS: tuple[Register, ...] = (
    _r(
        0x6000,
        "PPU_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x6004,
        "PPU_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x6008,
        "PPU_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(0x600C, "PPU_DATA_CUBE_IN_WIDTH", "CUBE_IN_WIDTH[12:0]", "input width - 1"),
    _r(0x6010, "PPU_DATA_CUBE_IN_HEIGHT", "CUBE_IN_HEIGHT[12:0]", "input height - 1"),
    _r(0x6014, "PPU_DATA_CUBE_IN_CHANNEL", "CUBE_IN_CHANNEL[12:0]", "input channels - 1"),
    _r(0x6018, "PPU_DATA_CUBE_OUT_WIDTH", "CUBE_OUT_WIDTH[12:0]", "output width - 1"),
    _r(0x601C, "PPU_DATA_CUBE_OUT_HEIGHT", "CUBE_OUT_HEIGHT[12:0]", "output height - 1"),
    _r(0x6020, "PPU_DATA_CUBE_OUT_CHANNEL", "CUBE_OUT_CHANNEL[12:0]", "output channels - 1"),
    _r(
        0x6024,
        "PPU_OPERATION_MODE_CFG",
        "POOLING_METHOD[1:0] FLYING_MODE[4] USE_CNT[7:5] NOTCH_ADDR[28:16] INDEX_EN[30]",
        "method 0 average, 1 max, 2 min; FLYING 1 = input from PPU_RDMA",
    ),
    _r(
        0x6034,
        "PPU_POOLING_KERNEL_CFG",
        "KERNEL_WIDTH[3:0] KERNEL_HEIGHT[11:8] KERNEL_STRIDE_WIDTH[19:16] KERNEL_STRIDE_HEIGHT[23:20]",
        "kernel and stride, each - 1",
    ),
    _r(
        0x6038,
        "PPU_RECIP_KERNEL_WIDTH",
        "RECIP_KERNEL_WIDTH[16:0]",
        "average: fp16 bits of 65536 / width (fp16)",
    ),
    _r(
        0x603C,
        "PPU_RECIP_KERNEL_HEIGHT",
        "RECIP_KERNEL_HEIGHT[16:0]",
        "average: fp16 bits of 65536 / height (fp16)",
    ),
    _r(
        0x6040,
        "PPU_POOLING_PADDING_CFG",
        "PAD_LEFT[2:0] PAD_TOP[6:4] PAD_RIGHT[10:8] PAD_BOTTOM[14:12]",
        "padding raw, 3 bits each",
    ),
    _r(0x6044, "PPU_PADDING_VALUE_1_CFG", "PAD_VALUE_0[31:0]", "padding value; fp16 -inf 0xfc00 for max"),
    _r(0x6048, "PPU_PADDING_VALUE_2_CFG", "PAD_VALUE_1[2:0]", "padding value [34:32]"),
    _r(0x6070, "PPU_DST_BASE_ADDR", "DST_BASE_ADDR[31:4]b", "output, IOVA"),
    _r(0x607C, "PPU_DST_SURF_STRIDE", "DST_SURF_STRIDE[31:4]b", "bytes between output surfaces"),
    _r(
        0x6084,
        "PPU_DATA_FORMAT",
        "PROC_PRECISION[2:0] DPU_FLYIN[3] INDEX_ADD[31:4]b",
        "PROC precision; INDEX_ADD = surface stride",
    ),
    _r(
        0x60DC,
        "PPU_MISC_CTRL",
        "BURST_LEN[3:0] NONALIGN[7] MC_SURF_OUT[8] SURF_LEN[31:16]",
        "burst length",
    ),
    _r(
        0x7000,
        "PPU_RDMA_RDMA_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x7004,
        "PPU_RDMA_RDMA_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x7008,
        "PPU_RDMA_RDMA_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(0x700C, "PPU_RDMA_RDMA_CUBE_IN_WIDTH", "CUBE_IN_WIDTH[12:0]", "input width - 1"),
    _r(0x7010, "PPU_RDMA_RDMA_CUBE_IN_HEIGHT", "CUBE_IN_HEIGHT[12:0]", "input height - 1"),
    _r(0x7014, "PPU_RDMA_RDMA_CUBE_IN_CHANNEL", "CUBE_IN_CHANNEL[12:0]", "input channels - 1"),
    _r(0x701C, "PPU_RDMA_RDMA_SRC_BASE_ADDR", "SRC_BASE_ADDR[31:0]", "input, IOVA"),
    _r(0x7024, "PPU_RDMA_RDMA_SRC_LINE_STRIDE", "SRC_LINE_STRIDE[31:4]b", "bytes per line"),
    _r(0x7028, "PPU_RDMA_RDMA_SRC_SURF_STRIDE", "SRC_SURF_STRIDE[31:4]b", "bytes per surface"),
    _r(0x7030, "PPU_RDMA_RDMA_DATA_FORMAT", "IN_PRECISION[1:0]", "0 4-bit, 1 8-bit, 2 16-bit, 3 32-bit"),
)
