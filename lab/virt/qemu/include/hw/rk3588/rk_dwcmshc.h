/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Synopsys DWC MSHC as the RK3588 has it for its eMMC: a standard SD host
 * controller with vendor registers behind it.
 *
 * + sysbus MMIO region 0: the registers
 * + sysbus IRQ 0
 * + child "sdhci" with bus "sd-bus": the card
 */
#ifndef HW_RK3588_RK_DWCMSHC_H
#define HW_RK3588_RK_DWCMSHC_H

#include "hw/sd/sdhci.h"
#include "hw/sysbus.h"
#include "qom/object.h"

#define TYPE_RK_DWCMSHC "rk-dwcmshc"
OBJECT_DECLARE_SIMPLE_TYPE(RkDwcmshcState, RK_DWCMSHC)

#define RK_DWCMSHC_SIZE 0x1000

struct RkDwcmshcState {
    SysBusDevice parent_obj;

    MemoryRegion container, pointers, vendor;
    SDHCIState sdhci;
    uint8_t regs[RK_DWCMSHC_SIZE];      /* those that are not the standard's */
};

#endif
