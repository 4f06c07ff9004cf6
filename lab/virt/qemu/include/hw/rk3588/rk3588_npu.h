/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 NPU core: the PC front end, with the other blocks' registers and
 * the arithmetic in a model process (see rk3588_npu_link.h).
 *
 * Properties
 *   core             0..2
 *   iommu            link to the core's rk-iommu
 *   chardev          socket to the model process; absent: no job completes
 *   ram-low          bytes of RAM in the first window, at guest address 0;
 *                    the rest lies at 0x1_0000_0000
 *   ram-size         bytes of RAM in all
 *   link-timeout-ms  how long an answer of the model is waited for
 * Read-only, for tests and debugging
 *   jobs             number of jobs started since QEMU began
 *   time-frozen      this core holds guest time
 * sysbus mmio 0: registers, 0x9000 bytes
 * sysbus irq 0: (INTERRUPT_RAW_STATUS & INTERRUPT_MASK) != 0
 * named gpio inputs, one line each, 1 = true:
 *   "power-off"  the power domain is off: registers are lost and the job is
 *                abandoned on the rising edge, an access is a bus error
 *   "clock-off"  a clock gate is closed: an access is a bus error, a job
 *                under way does not complete before the line falls
 *   "reset"      a soft reset is asserted: as power-off
 */
#ifndef HW_RK3588_RK3588_NPU_H
#define HW_RK3588_RK3588_NPU_H

#include "hw/sysbus.h"
#include "qemu/timer.h"
#include "qom/object.h"
#include "hw/rk3588/rk_access.h"
#include "hw/rk3588/rk_iommu.h"
#include "hw/rk3588/rk3588_npu_link.h"

#define TYPE_RK3588_NPU "rk3588-npu"
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588NpuState, RK3588_NPU)

#define RK3588_NPU_NUM_CORES 3
#define RK3588_NPU_MMIO_SIZE 0x9000

typedef enum Rk3588NpuPhase {
    RK3588_NPU_IDLE,
    RK3588_NPU_RUNNING,         /* the model computes, guest time is frozen */
    RK3588_NPU_FINISHING,       /* computed; the modelled time passes */
    RK3588_NPU_HUNG,            /* never ends: only a reset helps */
} Rk3588NpuPhase;

struct Rk3588NpuState {
    SysBusDevice parent_obj;

    MemoryRegion iomem;
    qemu_irq irq;
    QEMUTimer *done_timer;
    Rk3588NpuLink link;
    Error *migration_blocker;

    uint32_t core;
    RkIommuState *iommu;
    uint64_t ram_low;
    uint64_t ram_size;
    uint32_t link_timeout_ms;

    Rk3588NpuPhase phase;
    Rk3588NpuResult result;     /* valid while FINISHING */
    bool done_held;             /* modelled time is over, the clock is gated */
    uint64_t jobs;

    uint32_t operation_enable;
    uint32_t base_address;
    uint32_t register_amounts;
    uint32_t int_mask;
    uint32_t int_raw;
    uint32_t task_con;
    uint32_t task_dma_base;
    uint32_t task_status;

    RkAccess access;
};

#endif
