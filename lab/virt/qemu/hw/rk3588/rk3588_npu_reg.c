/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 NPU: names and access rights of registers.
 */
#include "qemu/osdep.h"
#include "hw/rk3588/rk3588_npu_reg.h"

#define R NPU_REG_R
#define W NPU_REG_W
static const Rk3588NpuReg npu_reg[] = {
    { PC_VERSION,              R,     "PC_VERSION" },
    { PC_VERSION_NUM,          R,     "PC_VERSION_NUM" },
    { PC_OPERATION_ENABLE,     R | W, "PC_OPERATION_ENABLE" },
    { PC_BASE_ADDRESS,         R | W, "PC_BASE_ADDRESS" },
    { PC_REGISTER_AMOUNTS,     R | W, "PC_REGISTER_AMOUNTS" },
    { PC_INTERRUPT_MASK,       R | W, "PC_INTERRUPT_MASK" },
    { PC_INTERRUPT_CLEAR,      W,     "PC_INTERRUPT_CLEAR" },
    { PC_INTERRUPT_STATUS,     R,     "PC_INTERRUPT_STATUS" },
    { PC_INTERRUPT_RAW_STATUS, R,     "PC_INTERRUPT_RAW_STATUS" },
    { PC_TASK_CON,             R | W, "PC_TASK_CON" },
    { PC_TASK_DMA_BASE_ADDR,   R | W, "PC_TASK_DMA_BASE_ADDR" },
    { PC_TASK_STATUS,          R,     "PC_TASK_STATUS" },
    { 0x1000, R,     "CNA_S_STATUS" },
    { 0x1004, R | W, "CNA_S_POINTER" },
    { 0x1008, R | W, "CNA_OPERATION_ENABLE" },
    { 0x3000, R,     "CORE_S_STATUS" },
    { 0x3004, R | W, "CORE_S_POINTER" },
    { 0x3008, R | W, "CORE_OPERATION_ENABLE" },
    { 0x4000, R,     "DPU_S_STATUS" },
    { 0x4004, R | W, "DPU_S_POINTER" },
    { 0x4008, R | W, "DPU_OPERATION_ENABLE" },
    { 0x5000, R,     "DPU_RDMA_RDMA_S_STATUS" },
    { 0x5004, R | W, "DPU_RDMA_RDMA_S_POINTER" },
    { 0x5008, R | W, "DPU_RDMA_RDMA_OPERATION_ENABLE" },
    { 0x6000, R,     "PPU_S_STATUS" },
    { 0x6004, R | W, "PPU_S_POINTER" },
    { 0x6008, R | W, "PPU_OPERATION_ENABLE" },
    { 0x7000, R,     "PPU_RDMA_RDMA_S_STATUS" },
    { 0x7004, R | W, "PPU_RDMA_RDMA_S_POINTER" },
    { 0x7008, R | W, "PPU_RDMA_RDMA_OPERATION_ENABLE" },
};
#undef R
#undef W

static const char *const npu_block[] = {
    "PC", "CNA", "hole", "CORE", "DPU", "DPU_RDMA", "PPU", "PPU_RDMA", "DDMA",
};

const Rk3588NpuReg *rk3588_npu_reg(hwaddr off)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(npu_reg); i++) {
        if (npu_reg[i].offset == off) {
            return &npu_reg[i];
        }
    }
    return NULL;
}

char *rk3588_npu_reg_name(hwaddr off)
{
    const Rk3588NpuReg *reg = rk3588_npu_reg(off);

    return reg ? g_strdup(reg->name)
               : g_strdup_printf("%s+0x%03x", npu_block[off / NPU_BLOCK_SIZE],
                                 (unsigned)(off % NPU_BLOCK_SIZE));
}
