# SPDX-License-Identifier: MIT
"""Registers of the blocks PC, CNA and CORE: one entry per register.

Names and bit positions are those of Linux' generated header (drivers/accel/rocket/rocket_registers.h) and of Mesa's
registers.xml; meanings come from the RK3588 TRM part 1 chapter 36 and from what working clients write.
"""

from .register import Register
from .register import register as _r

REGISTERS: tuple[Register, ...] = (
    _r(
        0x0000,
        "PC_VERSION",
        "VERSION[31:0]",
        "version word; the driver prints VERSION + (VERSION_NUM & 0xffff) = 1179210309 "
        "(0x46495245); how the sum splits is not known",
    ),
    _r(0x0004, "PC_VERSION_NUM", "VERSION_NUM[31:0]", "version number, driver uses [15:0]"),
    _r(
        0x0008,
        "PC_OPERATION_ENABLE",
        "OP_EN[0]",
        "PC enable (MMIO); in a command stream with target 0x0081 the value is the mask of blocks to enable",
    ),
    _r(
        0x0010,
        "PC_BASE_ADDRESS",
        "PC_SEL[0] PC_SOURCE_ADDR[31:4]b",
        "bit 0: 1 slave mode (register writes by the CPU), 0 PC mode (fetch by DMA); [31:4] command stream address",
    ),
    _r(
        0x0014,
        "PC_REGISTER_AMOUNTS",
        "PC_DATA_AMOUNT[15:0]",
        "number of 128-bit pairs of command words, minus 1",
    ),
    _r(
        0x0020,
        "PC_INTERRUPT_MASK",
        "CNA_FEATURE_0[0] CNA_FEATURE_1[1] CNA_WEIGHT_0[2] CNA_WEIGHT_1[3] CNA_CSC_0[4] "
        "CNA_CSC_1[5] CORE_0[6] CORE_1[7] DPU_0[8] DPU_1[9] PPU_0[10] PPU_1[11] "
        "DMA_READ_ERROR[12] DMA_WRITE_ERROR[13]",
        "1 = enabled; reset 0x1ffff, bits 14-16 are not documented",
    ),
    _r(
        0x0024,
        "PC_INTERRUPT_CLEAR",
        "CNA_FEATURE_0[0] CNA_FEATURE_1[1] CNA_WEIGHT_0[2] CNA_WEIGHT_1[3] CNA_CSC_0[4] "
        "CNA_CSC_1[5] CORE_0[6] CORE_1[7] DPU_0[8] DPU_1[9] PPU_0[10] PPU_1[11] "
        "DMA_READ_ERROR[12] DMA_WRITE_ERROR[13]",
        "write 1 to clear",
    ),
    _r(
        0x0028,
        "PC_INTERRUPT_STATUS",
        "CNA_FEATURE_0[0] CNA_FEATURE_1[1] CNA_WEIGHT_0[2] CNA_WEIGHT_1[3] CNA_CSC_0[4] "
        "CNA_CSC_1[5] CORE_0[6] CORE_1[7] DPU_0[8] DPU_1[9] PPU_0[10] PPU_1[11] "
        "DMA_READ_ERROR[12] DMA_WRITE_ERROR[13]",
        "raw status AND mask",
    ),
    _r(
        0x002C,
        "PC_INTERRUPT_RAW_STATUS",
        "CNA_FEATURE_0[0] CNA_FEATURE_1[1] CNA_WEIGHT_0[2] CNA_WEIGHT_1[3] CNA_CSC_0[4] "
        "CNA_CSC_1[5] CORE_0[6] CORE_1[7] DPU_0[8] DPU_1[9] PPU_0[10] PPU_1[11] "
        "DMA_READ_ERROR[12] DMA_WRITE_ERROR[13]",
        "raw status",
    ),
    _r(
        0x0030,
        "PC_TASK_CON",
        "TASK_NUMBER[11:0] TASK_PP_EN[12] TASK_COUNT_CLEAR[13] RESERVED_0[14]",
        "tasks in the chain; ping-pong prefetch; write 1 to clear the task counter; bit 14 is "
        "written as 1 by every driver, meaning unknown",
    ),
    _r(0x0034, "PC_TASK_DMA_BASE_ADDR", "DMA_BASE_ADDR[31:4]b", "added to every DMA address of the task"),
    _r(
        0x003C,
        "PC_TASK_STATUS",
        "TASK_STATUS[27:0]",
        "[11:0] tasks done, bit 12 first task running, bit 13 last task running; reads 0xf000 at "
        "the completion interrupt",
    ),
    _r(
        0x1000,
        "CNA_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x1004,
        "CNA_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x1008,
        "CNA_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(
        0x100C,
        "CNA_CONV_CON1",
        "CONV_MODE[3:0] IN_PRECISION[6:4] PROC_PRECISION[9:7] ARGB_IN[15:12] DECONV[16] "
        "GROUP_LINE_OFF[29] NONALIGN_DMA[30]",
        "CONV_MODE 0 direct, 3 depthwise; precisions 0 int8, 1 int16, 2 fp16, 3 bf16, 6 int4, 7 "
        "tf32; ARGB_IN 8..11 = 1..4 channels; GROUP_LINE_OFF: fetch unit 1 line instead of 4; "
        "NONALIGN_DMA: packed NHWC first layer; DECONV: input dilated by the DECONV strides",
    ),
    _r(
        0x1010,
        "CNA_CONV_CON2",
        "CMD_FIFO_SRST[0] CSC_DO_EN[1] CSC_WO_EN[2] FEATURE_GRAINS[13:4] KERNEL_GROUP[23:16]",
        "CSC_DO_EN and CSC_WO_EN disable; FEATURE_GRAINS rows buffered before the start; "
        "KERNEL_GROUP groups minus 1, ignored by the known clients",
    ),
    _r(
        0x1014,
        "CNA_CONV_CON3",
        "CONV_X_STRIDE[2:0] CONV_Y_STRIDE[5:3] DECONV_X_STRIDE[10:8] DECONV_Y_STRIDE[13:11] "
        "ATROUS_X_DILATION[20:16] ATROUS_Y_DILATION[25:21] NN_MODE[30:28]",
        "strides raw 1..7; ATROUS = dilation minus 1; DECONV strides minus 1 (1, 3, 7); NN_MODE not understood",
    ),
    _r(
        0x1020,
        "CNA_DATA_SIZE0",
        "DATAIN_HEIGHT[10:0] DATAIN_WIDTH[26:16]",
        "input width and rows of this tile, raw",
    ),
    _r(
        0x1024,
        "CNA_DATA_SIZE1",
        "DATAIN_CHANNEL[15:0] DATAIN_CHANNEL_REAL[29:16]",
        "channels aligned to the 16-byte atom, raw; CHANNEL_REAL = real channels minus 1 "
        "(compilers write it modulo 64)",
    ),
    _r(0x1028, "CNA_DATA_SIZE2", "DATAOUT_WIDTH[10:0]", "output width, raw"),
    _r(
        0x102C,
        "CNA_DATA_SIZE3",
        "DATAOUT_ATOMICS[21:0] SURF_MODE[23:22]",
        "output width x output rows of this tile",
    ),
    _r(
        0x1030,
        "CNA_WEIGHT_SIZE0",
        "WEIGHT_BYTES[31:0]",
        "kernel height x width x channels x bytes x kernels",
    ),
    _r(
        0x1034,
        "CNA_WEIGHT_SIZE1",
        "WEIGHT_BYTES_PER_KERNEL[18:0]",
        "kernel height x width x channels x bytes",
    ),
    _r(
        0x1038,
        "CNA_WEIGHT_SIZE2",
        "WEIGHT_KERNELS[13:0] WEIGHT_HEIGHT[20:16] WEIGHT_WIDTH[28:24]",
        "kernels, kernel height and width, raw",
    ),
    _r(
        0x1040,
        "CNA_CBUF_CON0",
        "DATA_BANK[3:0] WEIGHT_BANK[7:4] FC_DATA_BANK[10:8] DATA_REUSE[12] WEIGHT_REUSE[13]",
        "CBUF banks for features and weights, sum 12; FC_DATA_BANK must be 0; reuse bits skip the fetch",
    ),
    _r(
        0x1044,
        "CNA_CBUF_CON1",
        "DATA_ENTRIES[13:0]",
        "64-byte units per feature line: ceil(W * C * bytes / 64)",
    ),
    _r(
        0x104C,
        "CNA_CVT_CON0",
        "CVT_BYPASS[0] CVT_TYPE[1] ROUND_TYPE[2] DATA_SIGN[3] CVT_TRUNCATE_0[9:4] "
        "CVT_TRUNCATE_1[15:10] CVT_TRUNCATE_2[21:16] CVT_TRUNCATE_3[27:22]",
        "input converter: bypass, CVT_TYPE 1 = add first, rounding 0 half-even 1 half-up, shifts per lane",
    ),
    _r(
        0x1050,
        "CNA_CVT_CON1",
        "CVT_OFFSET0[15:0]s CVT_SCALE0[31:16]s",
        "scale[31:16], offset[15:0] for channel 0",
    ),
    _r(0x1054, "CNA_CVT_CON2", "CVT_OFFSET1[15:0]s CVT_SCALE1[31:16]s", "channel 1"),
    _r(0x1058, "CNA_CVT_CON3", "CVT_OFFSET2[15:0]s CVT_SCALE2[31:16]s", "channel 2"),
    _r(0x105C, "CNA_CVT_CON4", "CVT_OFFSET3[15:0]s CVT_SCALE3[31:16]s", "channel 3"),
    _r(0x1060, "CNA_FC_CON0", "FC_SKIP_EN[0] FC_SKIP_DATA[31:16]", "FC zero-skip enable + value"),
    _r(0x1064, "CNA_FC_CON1", "DATA_OFFSET[16:0]", "FC zero-skip data offset"),
    _r(
        0x1068,
        "CNA_PAD_CON0",
        "PAD_TOP[3:0] PAD_LEFT[7:4]",
        "rows and columns of padding at top and left; bottom and right follow from the output size",
    ),
    _r(0x1070, "CNA_FEATURE_DATA_ADDR", "FEATURE_BASE_ADDR[31:0]", "features, 16-byte aligned IOVA"),
    _r(0x1074, "CNA_FC_CON2", "WEIGHT_OFFSET[16:0]", "FC zero-skip weight offset"),
    _r(
        0x1078,
        "CNA_DMA_CON0",
        "DATA_BURST_LEN[3:0] WEIGHT_BURST_LEN[19:16] OV4K_BYPASS[31]",
        "burst lens 3/7/15 = 4/8/16 beats; bit31 4K-split bypass",
    ),
    _r(0x107C, "CNA_DMA_CON1", "LINE_STRIDE[27:0]", "stride of a fetch unit, 16-byte units"),
    _r(0x1080, "CNA_DMA_CON2", "SURF_STRIDE[27:0]s", "signed gap between surfaces, 16-byte units"),
    _r(
        0x1084,
        "CNA_FC_DATA_SIZE0",
        "DMA_HEIGHT[10:0] DMA_WIDTH[29:16]",
        "line width and rows as the DMA sees them",
    ),
    _r(0x1088, "CNA_FC_DATA_SIZE1", "DMA_CHANNEL[15:0]", "channels as the DMA sees them"),
    _r(
        0x1090,
        "CNA_CLK_GATE",
        "CNA_FEATURE_DISABLE_CLKGATE[0] CNA_WEIGHT_DISABLE_CLKGATE[1] CSC_DISABLE_CLKGATE[2] "
        "CBUF_CS_DISABLE_CLKGATE[4]",
        "clock gating",
    ),
    _r(
        0x1100,
        "CNA_DCOMP_CTRL",
        "DECOMP_CONTROL[2:0] WT_DEC_BYPASS[3]",
        "0 dense, 1 compressed weights (16 lanes)",
    ),
    _r(0x1104, "CNA_DCOMP_REGNUM", "DCOMP_REGNUM[31:0]", "0 dense, 0x55555555 compressed"),
    _r(0x1110, "CNA_DCOMP_ADDR0", "DECOMPRESS_ADDR0[31:0]", "weights, also when dense"),
    _r(
        0x1140,
        "CNA_DCOMP_AMOUNT0",
        "DCOMP_AMOUNT0[31:0]",
        "lane 0: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1144,
        "CNA_DCOMP_AMOUNT1",
        "DCOMP_AMOUNT1[31:0]",
        "lane 1: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1148,
        "CNA_DCOMP_AMOUNT2",
        "DCOMP_AMOUNT2[31:0]",
        "lane 2: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x114C,
        "CNA_DCOMP_AMOUNT3",
        "DCOMP_AMOUNT3[31:0]",
        "lane 3: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1150,
        "CNA_DCOMP_AMOUNT4",
        "DCOMP_AMOUNT4[31:0]",
        "lane 4: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1154,
        "CNA_DCOMP_AMOUNT5",
        "DCOMP_AMOUNT5[31:0]",
        "lane 5: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1158,
        "CNA_DCOMP_AMOUNT6",
        "DCOMP_AMOUNT6[31:0]",
        "lane 6: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x115C,
        "CNA_DCOMP_AMOUNT7",
        "DCOMP_AMOUNT7[31:0]",
        "lane 7: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1160,
        "CNA_DCOMP_AMOUNT8",
        "DCOMP_AMOUNT8[31:0]",
        "lane 8: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1164,
        "CNA_DCOMP_AMOUNT9",
        "DCOMP_AMOUNT9[31:0]",
        "lane 9: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1168,
        "CNA_DCOMP_AMOUNT10",
        "DCOMP_AMOUNT10[31:0]",
        "lane 10: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x116C,
        "CNA_DCOMP_AMOUNT11",
        "DCOMP_AMOUNT11[31:0]",
        "lane 11: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1170,
        "CNA_DCOMP_AMOUNT12",
        "DCOMP_AMOUNT12[31:0]",
        "lane 12: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1174,
        "CNA_DCOMP_AMOUNT13",
        "DCOMP_AMOUNT13[31:0]",
        "lane 13: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1178,
        "CNA_DCOMP_AMOUNT14",
        "DCOMP_AMOUNT14[31:0]",
        "lane 14: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x117C,
        "CNA_DCOMP_AMOUNT15",
        "DCOMP_AMOUNT15[31:0]",
        "lane 15: 16-byte blocks minus 1, when compressed",
    ),
    _r(
        0x1180,
        "CNA_CVT_CON5",
        "PER_CHANNEL_CVT_EN[31:0]",
        "mask of channels that the input converter serves",
    ),
    _r(
        0x1184,
        "CNA_PAD_CON1",
        "PAD_VALUE[31:0]",
        "padding value: a 16-bit pattern over channel pairs in depthwise mode",
    ),
    _r(
        0x3000,
        "CORE_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x3004,
        "CORE_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x3008,
        "CORE_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(0x300C, "CORE_MAC_GATING", "SLCG_OP_EN[26:0]", "reset 0x07800800"),
    _r(
        0x3010,
        "CORE_MISC_CFG",
        "QD_EN[0] DW_EN[1] PROC_PRECISION[10:8] SOFT_GATING[19:14]",
        "QD_EN: sum of inputs for the zero-point term; DW_EN depthwise; MAC precision",
    ),
    _r(
        0x3014,
        "CORE_DATAOUT_SIZE_0",
        "DATAOUT_WIDTH[15:0] DATAOUT_HEIGHT[31:16]",
        "output width - 1, height - 1",
    ),
    _r(0x3018, "CORE_DATAOUT_SIZE_1", "DATAOUT_CHANNEL[15:0]", "output channels - 1"),
    _r(
        0x301C,
        "CORE_CLIP_TRUNCATE",
        "CLIP_TRUNCATE[4:0] ROUND_TYPE[6]",
        "right shift of the accumulator; rounding 0 half-even, 1 half-up",
    ),
    _r(0x3030, "CORE_RESERVED_3030", "RESERVED_0[31:0]", "not documented; every client writes 0"),
)
