# SPDX-License-Identifier: MIT
"""Registers of the blocks DPU and DPU_RDMA: one entry per register.

Names and bit positions are those of Linux' generated header (drivers/accel/rocket/rocket_registers.h) and of Mesa's
registers.xml; meanings come from the RK3588 TRM part 1 chapter 36 and from what working clients write.
"""

from .register import Register
from .register import register as _r

REGISTERS: tuple[Register, ...] = (
    _r(
        0x4000,
        "DPU_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x4004,
        "DPU_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x4008,
        "DPU_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(
        0x400C,
        "DPU_FEATURE_MODE_CFG",
        "FLYING_MODE[0] OUTPUT_MODE[2:1] CONV_MODE[4:3] BURST_LEN[8:5] SURF_LEN[24:9] "
        "NONALIGN[25] RGP_TYPE[29:26] TP_EN[30] COMB_USE[31]",
        "FLYING 1: main data from memory (DPU_RDMA), 0: from CORE; OUTPUT_MODE bit 0 to PPU, bit "
        "1 to memory; CONV_MODE as CNA; BURST_LEN 15",
    ),
    _r(
        0x4010,
        "DPU_DATA_FORMAT",
        "PROC_PRECISION[2:0] MC_SURF_OUT[3] BS_MUL_SHIFT_VALUE_NEG[9:4] "
        "BN_MUL_SHIFT_VALUE_NEG[15:10] EW_TRUNCATE_NEG[25:16] IN_PRECISION[28:26] "
        "OUT_PRECISION[31:29]",
        "precisions 0 int8, 1 int16, 2 fp16, 3 bf16, 4 int32, 5 fp32, 6 int4; *_NEG right shifts of negative products",
    ),
    _r(0x4014, "DPU_OFFSET_PEND", "OFFSET_PEND[15:0]s", "value for padded channels"),
    _r(0x4020, "DPU_DST_BASE_ADDR", "DST_BASE_ADDR[31:0]", "output, 16-byte aligned IOVA"),
    _r(0x4024, "DPU_DST_SURF_STRIDE", "DST_SURF_STRIDE[31:4]b", "bytes between output surfaces"),
    _r(0x4030, "DPU_DATA_CUBE_WIDTH", "WIDTH[12:0]", "output width - 1"),
    _r(
        0x4034,
        "DPU_DATA_CUBE_HEIGHT",
        "HEIGHT[12:0] MINMAX_CTL[24:22]",
        "output height - 1; MINMAX_CTL 0",
    ),
    _r(
        0x4038,
        "DPU_DATA_CUBE_NOTCH_ADDR",
        "NOTCH_ADDR_0[12:0] NOTCH_ADDR_1[28:16]",
        "gap at the end of a line, 16-byte atoms; both fields alike",
    ),
    _r(
        0x403C,
        "DPU_DATA_CUBE_CHANNEL",
        "CHANNEL[12:0] ORIG_CHANNEL[28:16]",
        "channels - 1, unpadded channels - 1",
    ),
    _r(
        0x4040,
        "DPU_BS_CFG",
        "BS_BYPASS[0] BS_ALU_BYPASS[1] BS_MUL_BYPASS[4] BS_MUL_PRELU[5] BS_RELU_BYPASS[6] "
        "BS_RELUX_EN[7] BS_ALU_SRC[8] BS_ALU_ALGO[19:16]",
        "bias and scale stage: ALU, then MUL, then ReLU; ALU_ALGO 2 add, 4 subtract; *_SRC 1 = operand from memory",
    ),
    _r(0x4044, "DPU_BS_ALU_CFG", "BS_ALU_OPERAND[31:0]s", "ALU operand: int32, or fp32 in float modes"),
    _r(
        0x4048,
        "DPU_BS_MUL_CFG",
        "BS_MUL_SRC[0] BS_TRUNCATE_SRC[1] BS_MUL_SHIFT_VALUE[13:8] BS_MUL_OPERAND[31:16]",
        "MUL operand (int16, or the float of PROC_PRECISION), right shift, operand from memory, shift from memory",
    ),
    _r(0x404C, "DPU_BS_RELUX_CMP_VALUE", "BS_RELUX_CMP_DAT[31:0]s", "ReLUX upper bound"),
    _r(
        0x4050,
        "DPU_BS_OW_CFG",
        "OW_SRC[0] OD_BYPASS[1] SIZE_E_0[4:2] SIZE_E_1[7:5] SIZE_E_2[10:8] TP_ORG_EN[27] RGP_CNTER[31:28]",
        "SIZE_E = 16-byte atoms per pixel and kernel group, minus 1; OD_BYPASS skips the zero- "
        "point term; TP_ORG_EN transposed writer",
    ),
    _r(0x4054, "DPU_BS_OW_OP", "OW_OP[15:0]s", "zero-point operand, int16: acc += OW_OP * sum(inputs)"),
    _r(
        0x4058,
        "DPU_WDMA_SIZE_0",
        "CHANNEL_WDMA[12:0] SIZE_C_WDMA[26:16] TP_PRECISION[27]",
        "channels - 1 as the writer counts them",
    ),
    _r(
        0x405C,
        "DPU_WDMA_SIZE_1",
        "WIDTH_WDMA[12:0] HEIGHT_WDMA[28:16]",
        "width - 1, height - 1 as the writer counts them",
    ),
    _r(
        0x4060,
        "DPU_BN_CFG",
        "BN_BYPASS[0] BN_ALU_BYPASS[1] BN_MUL_BYPASS[4] BN_MUL_PRELU[5] BN_RELU_BYPASS[6] "
        "BN_RELUX_EN[7] BN_ALU_SRC[8] BN_ALU_ALGO[19:16]",
        "batch-norm stage: as BS, in the order MUL, ALU, ReLU",
    ),
    _r(0x4064, "DPU_BN_ALU_CFG", "BN_ALU_OPERAND[31:0]s", "as BS ALU operand"),
    _r(
        0x4068,
        "DPU_BN_MUL_CFG",
        "BN_MUL_SRC[0] BN_TRUNCATE_SRC[1] BN_MUL_SHIFT_VALUE[13:8] BN_MUL_OPERAND[31:16]",
        "as BS MUL operand",
    ),
    _r(0x406C, "DPU_BN_RELUX_CMP_VALUE", "BN_RELUX_CMP_DAT[31:0]s", "ReLUX bound"),
    _r(
        0x4070,
        "DPU_EW_CFG",
        "EW_BYPASS[0] EW_OP_BYPASS[1] EW_OP_TYPE[2] EW_MUL_PRELU[5] EW_OP_SRC[6] EW_LUT_BYPASS[7] "
        "EW_OP_CVT_BYPASS[8] EW_RELU_BYPASS[9] EW_RELUX_EN[10] EW_ALU_ALGO[19:16] "
        "EW_BINARY_EN[20] EW_EQUAL_EN[21] EDATA_SIZE[23:22] EW_DATA_MODE[29:28] EW_CVT_ROUND[30] "
        "EW_CVT_TYPE[31]",
        "element-wise stage; 0x383 = all bypassed; ALU_ALGO 0 max, 1 min, 2 add, 3 div, 4 minus, "
        "5 abs, 6 neg, 7 floor, 8 ceil",
    ),
    _r(
        0x4074,
        "DPU_EW_CVT_OFFSET_VALUE",
        "EW_OP_CVT_OFFSET[31:0]s",
        "EW operand converter offset (int32)",
    ),
    _r(
        0x4078,
        "DPU_EW_CVT_SCALE_VALUE",
        "EW_OP_CVT_SCALE[15:0] EW_OP_CVT_SHIFT[21:16] EW_TRUNCATE[31:22]",
        "EW cvt scale[15:0], shift[21:16], EW result truncate[31:22]",
    ),
    _r(0x407C, "DPU_EW_RELUX_CMP_VALUE", "EW_RELUX_CMP_DAT[31:0]s", "EW ReLUX"),
    _r(0x4080, "DPU_OUT_CVT_OFFSET", "OUT_CVT_OFFSET[31:0]s", "added after scale and shift"),
    _r(
        0x4084,
        "DPU_OUT_CVT_SCALE",
        "OUT_CVT_SCALE[15:0] FP32TOFP16_EN[16]",
        "integer scale (bit 15 is its sign); FP32TOFP16_EN narrows a float result",
    ),
    _r(
        0x4088,
        "DPU_OUT_CVT_SHIFT",
        "OUT_CVT_SHIFT[11:0] MINUS_EXP[19:12] CVT_ROUND[30] CVT_TYPE[31]",
        "right shift (low 6 bits used); MINUS_EXP; CVT_ROUND 0 half-even, 1 half-away; CVT_TYPE 1 = offset first",
    ),
    _r(0x4090, "DPU_EW_OP_VALUE_0", "EW_OPERAND_0[31:0]s", "register operand 0 of the element-wise stage"),
    _r(0x4094, "DPU_EW_OP_VALUE_1", "EW_OPERAND_1[31:0]s", "register operand 1 of the element-wise stage"),
    _r(0x4098, "DPU_EW_OP_VALUE_2", "EW_OPERAND_2[31:0]s", "register operand 2 of the element-wise stage"),
    _r(0x409C, "DPU_EW_OP_VALUE_3", "EW_OPERAND_3[31:0]s", "register operand 3 of the element-wise stage"),
    _r(0x40A0, "DPU_EW_OP_VALUE_4", "EW_OPERAND_4[31:0]s", "register operand 4 of the element-wise stage"),
    _r(0x40A4, "DPU_EW_OP_VALUE_5", "EW_OPERAND_5[31:0]s", "register operand 5 of the element-wise stage"),
    _r(0x40A8, "DPU_EW_OP_VALUE_6", "EW_OPERAND_6[31:0]s", "register operand 6 of the element-wise stage"),
    _r(0x40AC, "DPU_EW_OP_VALUE_7", "EW_OPERAND_7[31:0]s", "register operand 7 of the element-wise stage"),
    _r(0x40C0, "DPU_SURFACE_ADD", "SURF_ADD[31:4]b", "(SIZE_E + 1) x DST_SURF_STRIDE, bytes"),
    _r(0x40C4, "DPU_RESERVED_40C4", "RESERVED_0[31:0]", "not documented; every client writes 0"),
    _r(
        0x4100,
        "DPU_LUT_ACCESS_CFG",
        "LUT_ADDR[9:0] LUT_TABLE_ID[16] LUT_ACCESS_TYPE[17]",
        "start entry, table 0 LE 1 LO, 1 = write; auto-increment",
    ),
    _r(0x4104, "DPU_LUT_ACCESS_DATA", "LUT_ACCESS_DATA[15:0]", "int16 entry; 513 writes per table"),
    _r(
        0x4108,
        "DPU_LUT_CFG",
        "LUT_ROAD_SEL[0] LUT_EXPAND_EN[1] LUT_LO_LE_MUX[3:2] LUT_UFLOW_PRIORITY[4] "
        "LUT_OFLOW_PRIORITY[5] LUT_HYBRID_PRIORITY[6] LUT_CAL_SEL[7]",
        "road selection, priorities; 0x68 hybrid",
    ),
    _r(
        0x410C,
        "DPU_LUT_INFO",
        "LUT_LE_INDEX_SELECT[15:8] LUT_LO_INDEX_SELECT[23:16]",
        "log2 of the table steps",
    ),
    _r(0x4110, "DPU_LUT_LE_START", "LUT_LE_START[31:0]s", "LE table start index, int32"),
    _r(0x4114, "DPU_LUT_LE_END", "LUT_LE_END[31:0]s", "LE table end index"),
    _r(0x4118, "DPU_LUT_LO_START", "LUT_LO_START[31:0]s", "LO table start index"),
    _r(0x411C, "DPU_LUT_LO_END", "LUT_LO_END[31:0]s", "LO table end index"),
    _r(
        0x4120,
        "DPU_LUT_LE_SLOPE_SCALE",
        "LUT_LE_SLOPE_UFLOW_SCALE[15:0] LUT_LE_SLOPE_OFLOW_SCALE[31:16]",
        "slopes outside the LE range",
    ),
    _r(
        0x4124,
        "DPU_LUT_LE_SLOPE_SHIFT",
        "LUT_LE_SLOPE_UFLOW_SHIFT[4:0] LUT_LE_SLOPE_OFLOW_SHIFT[9:5]",
        "shifts outside the LE range",
    ),
    _r(
        0x4128,
        "DPU_LUT_LO_SLOPE_SCALE",
        "LUT_LO_SLOPE_UFLOW_SCALE[15:0] LUT_LO_SLOPE_OFLOW_SCALE[31:16]",
        "slopes outside the LO range",
    ),
    _r(
        0x412C,
        "DPU_LUT_LO_SLOPE_SHIFT",
        "LUT_LO_SLOPE_UFLOW_SHIFT[4:0] LUT_LO_SLOPE_OFLOW_SHIFT[9:5]",
        "shifts outside the LO range",
    ),
    _r(
        0x5000,
        "DPU_RDMA_RDMA_S_STATUS",
        "STATUS_0[1:0] STATUS_1[17:16]",
        "per register group: 0 idle, 1 running, 2 running and the other waiting",
    ),
    _r(
        0x5004,
        "DPU_RDMA_RDMA_S_POINTER",
        "POINTER[0] POINTER_PP_EN[1] EXECUTER_PP_EN[2] POINTER_PP_MODE[3] POINTER_PP_CLEAR[4] "
        "EXECUTER_PP_CLEAR[5] EXECUTER[16] CORE_INDEX[31:28]",
        "register group of the writer and of the executer, toggling by itself; CORE_INDEX is not "
        "documented, the driver writes it",
    ),
    _r(
        0x5008,
        "DPU_RDMA_RDMA_OPERATION_ENABLE",
        "OP_EN[0]",
        "enable of this block alone; streams use target 0x0081 instead",
    ),
    _r(0x500C, "DPU_RDMA_RDMA_DATA_CUBE_WIDTH", "WIDTH[12:0]", "W-1"),
    _r(
        0x5010,
        "DPU_RDMA_RDMA_DATA_CUBE_HEIGHT",
        "HEIGHT[12:0] EW_LINE_NOTCH_ADDR[28:16]",
        "H - 1; gap of the element-wise operand at the end of a line",
    ),
    _r(0x5014, "DPU_RDMA_RDMA_DATA_CUBE_CHANNEL", "CHANNEL[12:0]", "C - 1"),
    _r(0x5018, "DPU_RDMA_RDMA_SRC_BASE_ADDR", "SRC_BASE_ADDR[31:0]", "main feed (MRDMA) base"),
    _r(
        0x501C,
        "DPU_RDMA_RDMA_BRDMA_CFG",
        "BRDMA_DISABLE[0] BRDMA_DATA_USE[4:1]",
        "operands present in the BS stream: bit 0 ALU int32, bit 1 zero-point int16, bit 2 MUL 16-bit, bit 3 TRT",
    ),
    _r(0x5020, "DPU_RDMA_RDMA_BS_BASE_ADDR", "BS_BASE_ADDR[31:0]", "BS operand base"),
    _r(0x5028, "DPU_RDMA_RDMA_NRDMA_CFG", "NRDMA_DISABLE[0] NRDMA_DATA_USE[4:1]", "as BRDMA_CFG for BN"),
    _r(0x502C, "DPU_RDMA_RDMA_BN_BASE_ADDR", "BN_BASE_ADDR[31:0]", "BN operand base"),
    _r(
        0x5034,
        "DPU_RDMA_RDMA_ERDMA_CFG",
        "ERDMA_DISABLE[0] OV4K_BYPASS[1] ERDMA_DATA_SIZE[3:2] ERDMA_NONALIGN[28] "
        "ERDMA_SURF_MODE[29] ERDMA_DATA_MODE[31:30]",
        "element-wise operand feed: mode 0 per channel, 1 per pixel, 2 per channel by pixel; size "
        "0 4-bit, 1 8-bit, 2 16-bit, 3 32-bit",
    ),
    _r(0x5038, "DPU_RDMA_RDMA_EW_BASE_ADDR", "EW_BASE_ADDR[31:0]", "ERDMA base"),
    _r(
        0x5040,
        "DPU_RDMA_RDMA_EW_SURF_STRIDE",
        "EW_SURF_STRIDE[31:4]b",
        "bytes between surfaces of the element-wise operand",
    ),
    _r(
        0x5044,
        "DPU_RDMA_RDMA_FEATURE_MODE_CFG",
        "FLYING_MODE[0] CONV_MODE[2:1] MRDMA_FP16TOFP32_EN[3] MRDMA_DISABLE[4] "
        "PROC_PRECISION[7:5] COMB_USE[10:8] BURST_LEN[14:11] IN_PRECISION[17:15]",
        "main feed: FLYING, disable, precisions, 16-bit float to fp32, COMB_USE 5 = operand split "
        "by parity of the surface",
    ),
    _r(
        0x5048,
        "DPU_RDMA_RDMA_SRC_DMA_CFG",
        "KERNEL_WIDTH[2:0] KERNEL_HEIGHT[5:3] KERNEL_STRIDE_WIDTH[8:6] KERNEL_STRIDE_HEIGHT[11:9] "
        "UNPOOLING_EN[12] POOLING_METHOD[13] LINE_NOTCH_ADDR[31:19]",
        "un-pooling kernel and stride (- 1), line gap",
    ),
    _r(
        0x504C,
        "DPU_RDMA_RDMA_SURF_NOTCH",
        "SURF_NOTCH_ADDR[31:4]b",
        "bytes to skip after a surface of the main feed",
    ),
    _r(
        0x5064,
        "DPU_RDMA_RDMA_PAD_CFG",
        "PAD_LEFT[2:0] PAD_TOP[6:4] PAD_VALUE[31:16]",
        "padding of un-pooling",
    ),
    _r(
        0x5068,
        "DPU_RDMA_RDMA_WEIGHT",
        "M_WEIGHT[7:0] B_WEIGHT[15:8] N_WEIGHT[23:16] E_WEIGHT[31:24]",
        "arbiter weights",
    ),
    _r(
        0x506C,
        "DPU_RDMA_RDMA_EW_SURF_NOTCH",
        "EW_SURF_NOTCH[31:4]b",
        "bytes to skip after a surface of the operand",
    ),
)
