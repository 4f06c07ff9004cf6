/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A block of registers with no behaviour of its own: GRF, IOC, QoS ...
 *
 * + sysbus MMIO region 0: the registers
 * + property "name": the block's name, for the log
 * + property "size": bytes
 * + property "hiword": bits 31:16 of a write say which of 15:0 it changes
 */
#ifndef HW_RK3588_RK_REGFILE_H
#define HW_RK3588_RK_REGFILE_H

#include "hw/sysbus.h"
#include "qom/object.h"

#define TYPE_RK_REGFILE "rk-regfile"
OBJECT_DECLARE_SIMPLE_TYPE(RkRegFile, RK_REGFILE)

struct RkRegFile {
    SysBusDevice parent_obj;

    MemoryRegion iomem;
    char *name;
    uint32_t size;
    bool hiword;
    uint32_t num_regs;
    uint32_t *regs;
};

/* What a write does to a register whose upper half is its write mask */
static inline uint32_t rk_hiword_update(uint32_t old, uint32_t val)
{
    uint32_t mask = val >> 16;

    return (old & ~mask) | (val & mask);
}

#endif
