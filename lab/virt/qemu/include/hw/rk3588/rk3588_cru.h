/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 clock and reset unit.
 *
 * + sysbus MMIO region 0: the registers, 0x5c000 bytes
 * + named GPIO outputs "npu-clock-off"[3]: high while the bus interface of
 *   that NPU core has no clock
 * + named GPIO outputs "npu-reset"[3]: high while that core's soft reset is
 *   asserted
 */
#ifndef HW_RK3588_CRU_H
#define HW_RK3588_CRU_H

#include "hw/sysbus.h"
#include "qom/object.h"

#define TYPE_RK3588_CRU "rk3588-cru"
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588CruState, RK3588_CRU)

#define RK3588_CRU_SIZE      0x5c000
#define RK3588_CRU_NUM_NPU   3
#define RK3588_CRU_CLOCK_OFF "npu-clock-off"
#define RK3588_CRU_RESET     "npu-reset"

struct Rk3588CruState {
    SysBusDevice parent_obj;

    MemoryRegion iomem;
    qemu_irq clock_off[RK3588_CRU_NUM_NPU];
    qemu_irq reset[RK3588_CRU_NUM_NPU];
    uint32_t regs[RK3588_CRU_SIZE / 4];
};

#endif
