/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 power management unit: the power domain controller (PMU2).
 *
 * + sysbus MMIO region 0: the registers, 0x400 bytes
 * + named GPIO outputs "power-off"[RK3588_PD_COUNT], one per domain in the
 *   order of Rk3588PowerDomain: high while the domain, or one above it, is off
 */
#ifndef HW_RK3588_PMU_H
#define HW_RK3588_PMU_H

#include "hw/sysbus.h"
#include "qom/object.h"

#define TYPE_RK3588_PMU "rk3588-pmu"
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588PmuState, RK3588_PMU)

#define RK3588_PMU_SIZE      0x400
#define RK3588_PMU_POWER_OFF "power-off"

/* In the order of the bits of the two power gate registers */
typedef enum Rk3588PowerDomain {
    RK3588_PD_GPU,
    RK3588_PD_NPU,
    RK3588_PD_VCODEC,
    RK3588_PD_NPUTOP,
    RK3588_PD_NPU1,
    RK3588_PD_NPU2,
    RK3588_PD_VENC0,
    RK3588_PD_VENC1,
    RK3588_PD_RKVDEC0,
    RK3588_PD_RKVDEC1,
    RK3588_PD_VDPU,
    RK3588_PD_RGA30,
    RK3588_PD_AV1,
    RK3588_PD_VI,
    RK3588_PD_FEC,
    RK3588_PD_ISP1,
    RK3588_PD_RGA31,
    RK3588_PD_VOP,
    RK3588_PD_VO0,
    RK3588_PD_VO1,
    RK3588_PD_AUDIO,
    RK3588_PD_PHP,
    RK3588_PD_GMAC,
    RK3588_PD_PCIE,
    RK3588_PD_NVM,
    RK3588_PD_NVM0,
    RK3588_PD_SDIO,
    RK3588_PD_USB,
    RK3588_PD_SDMMC,
    RK3588_PD_COUNT
} Rk3588PowerDomain;

struct Rk3588PmuState {
    SysBusDevice parent_obj;

    MemoryRegion iomem;
    qemu_irq power_off[RK3588_PD_COUNT];
    uint32_t regs[RK3588_PMU_SIZE / 4];
};

#endif
