/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 NPU: the registers that QEMU knows by name.
 *
 * Evidence: RK3588 TRM part 1 ch. 36; linux drivers/accel/rocket.
 */
#ifndef HW_RK3588_RK3588_NPU_REG_H
#define HW_RK3588_RK3588_NPU_REG_H

#include "qemu/bitops.h"
#include "exec/hwaddr.h"

#define PC_VERSION              0x0000
#define PC_VERSION_NUM          0x0004
#define PC_OPERATION_ENABLE     0x0008
#define PC_BASE_ADDRESS         0x0010
#define PC_REGISTER_AMOUNTS     0x0014
#define PC_INTERRUPT_MASK       0x0020
#define PC_INTERRUPT_CLEAR      0x0024
#define PC_INTERRUPT_STATUS     0x0028
#define PC_INTERRUPT_RAW_STATUS 0x002c
#define PC_TASK_CON             0x0030
#define PC_TASK_DMA_BASE_ADDR   0x0034
#define PC_TASK_STATUS          0x003c

#define NPU_BLOCK_SIZE          0x1000
#define NPU_BLOCK_HOLE          2

#define NPU_REG_R               BIT(0)
#define NPU_REG_W               BIT(1)

typedef struct Rk3588NpuReg {
    uint16_t offset;
    uint8_t access;             /* NPU_REG_R, NPU_REG_W */
    const char *name;
} Rk3588NpuReg;

/* The register at @off, or NULL if it has no name here. */
const Rk3588NpuReg *rk3588_npu_reg(hwaddr off);

/* "PC_VERSION", or "DPU+0x014" for a register without a name; to be freed */
char *rk3588_npu_reg_name(hwaddr off);

#endif
