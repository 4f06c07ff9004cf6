/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rockchip serial flash controller (SFC, "FSPI"): one command at a time to a
 * flash chip, its data by the FIFO or by DMA.
 *
 * + sysbus MMIO region 0: the registers
 * + sysbus IRQ 0
 * + bus "spi": the chip with select 0
 */
#ifndef HW_RK3588_RK_SFC_H
#define HW_RK3588_RK_SFC_H

#include "hw/ssi/ssi.h"
#include "hw/sysbus.h"
#include "qom/object.h"

#define TYPE_RK_SFC "rk-sfc"
OBJECT_DECLARE_SIMPLE_TYPE(RkSfcState, RK_SFC)

#define RK_SFC_NUM_REGS (0x400 / 4)

struct RkSfcState {
    SysBusDevice parent_obj;

    MemoryRegion iomem;
    SSIBus *spi;
    qemu_irq irq;
    qemu_irq cs;

    uint32_t regs[RK_SFC_NUM_REGS];
    uint32_t raw_status;
    uint32_t remaining;         /* bytes of the command still to move */
    bool wait_address;          /* CMD is written, ADDR is not */
};

#endif
