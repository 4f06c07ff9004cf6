/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The RK3588's firmware as an operating system sees it: SCMI over SMC, and
 * the SMCCC version call that makes a kernel try it. PSCI is QEMU's own.
 *
 * + property "memory" (link): the address space that holds the shared memory
 * + property "shmem": address of the 256 bytes of shared memory
 * + property "doorbell" (bool, write): handle the message that is in shared
 *   memory now, as the SMC does
 */
#ifndef HW_RK3588_SCMI_H
#define HW_RK3588_SCMI_H

#include "hw/rk3588/qemu_compat.h"
#include "hw/sysbus.h"
#include "target/arm/cpu-qom.h"
#include "qom/object.h"

#define TYPE_RK3588_SCMI "rk3588-scmi"
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588ScmiState, RK3588_SCMI)

#define RK3588_SCMI_SHMEM_SIZE 0x100
#define RK3588_SCMI_NUM_CLOCKS 24
#define RK3588_SCMI_NUM_RESETS 54

struct Rk3588ScmiState {
    SysBusDevice parent_obj;

    MemoryRegion *memory;
    AddressSpace as;
    uint64_t shmem;
    uint64_t rate[RK3588_SCMI_NUM_CLOCKS];
    bool enabled[RK3588_SCMI_NUM_CLOCKS];
    bool asserted[RK3588_SCMI_NUM_RESETS];
};

/* ARMCPU's firmware_smc hook; @opaque is the Rk3588ScmiState */
bool rk3588_scmi_smc(ARMCPU *cpu, void *opaque);

#endif
