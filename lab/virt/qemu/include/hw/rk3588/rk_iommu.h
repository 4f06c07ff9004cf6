/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rockchip IOMMU, second generation ("rockchip,rk3568-iommu"), as it sits in
 * front of an RK3588 NPU core.
 *
 * Properties
 *   name   string, for the log: "fdab9000.iommu"
 *   banks  1 or 2 independent register sets
 * sysbus mmio n: the registers of bank n (0x100 bytes)
 * sysbus irq 0: some bank has an enabled interrupt
 * named gpio inputs, one line each, 1 = true:
 *   "power-off"  the power domain is off: registers are lost on the rising
 *                edge, an access is a bus error while the line is high
 *   "clock-off"  the clock gate is closed: an access is a bus error
 *   "reset"      the soft reset is asserted: as power-off
 *
 * The device keeps registers only. The page tables are walked by the NPU's
 * model, which is told the state of the banks with every job and reports the
 * faults that it meets.
 */
#ifndef HW_RK3588_RK_IOMMU_H
#define HW_RK3588_RK_IOMMU_H

#include "hw/sysbus.h"
#include "qom/object.h"
#include "hw/rk3588/rk_access.h"

#define TYPE_RK_IOMMU "rk-iommu"
OBJECT_DECLARE_SIMPLE_TYPE(RkIommuState, RK_IOMMU)

#define RK_IOMMU_MAX_BANKS 2
#define RK_IOMMU_BANK_SIZE 0x100

typedef struct RkIommuBank {
    MemoryRegion iomem;
    RkIommuState *iommu;
    uint32_t dte_addr;
    uint32_t fault_addr;
    uint32_t int_raw;
    uint32_t int_mask;
    uint32_t auto_gating;
    bool paging;
    bool stall;
    bool fault;
    bool fault_is_write;
} RkIommuBank;

struct RkIommuState {
    SysBusDevice parent_obj;

    char *name;
    uint32_t num_banks;
    RkIommuBank bank[RK_IOMMU_MAX_BANKS];
    qemu_irq irq;
    RkAccess access;
};

/* What a DMA master has to know of one bank. */
typedef struct RkIommuBankView {
    uint32_t dte_addr;      /* as written, in the packed form of a DTE */
    bool exists;
    bool paging;
    bool stall;
} RkIommuBankView;

RkIommuBankView rk_iommu_bank_view(RkIommuState *s, unsigned int bank);

/*
 * A DMA access through @bank met no valid translation: record it and raise
 * the interrupt. The first fault is kept until the guest acknowledges it.
 */
void rk_iommu_fault(RkIommuState *s, unsigned int bank, uint32_t iova,
                    bool is_write);

#endif
