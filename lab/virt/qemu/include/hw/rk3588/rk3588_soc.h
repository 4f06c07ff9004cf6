/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The RK3588 as far as a mainline kernel needs it to run jobs on the NPU:
 * CPUs, interrupt controller, clocks, power domains, firmware calls, console,
 * the NPU's cores with their IOMMUs, the controllers of the flash chips, and
 * the USB 3 controllers as hosts.
 *
 * + property "num-cpus": 1..8; the first four are Cortex-A55
 * + property "virtualization": CPUs have EL2, and a kernel starts there
 * + property "its": the interrupt controller has its (first) ITS
 * + property "console": number of the UART that is modelled, 0..9; it takes
 *   the machine's first serial port
 * Children that a board or a test reaches by name: "cpu[n]", "gic", "cru",
 * "pmu", "scmi", "npu[n]", "iommu[n]", "sfc", "emmc", "usb[n]".
 */
#ifndef HW_RK3588_SOC_H
#define HW_RK3588_SOC_H

#include "hw/core/split-irq.h"
#include "hw/intc/arm_gicv3_common.h"
#include "hw/or-irq.h"
#include "hw/rk3588/rk3588_cru.h"
#include "hw/rk3588/rk3588_npu.h"
#include "hw/rk3588/rk3588_pmu.h"
#include "hw/rk3588/rk3588_scmi.h"
#include "hw/rk3588/rk_dwcmshc.h"
#include "hw/rk3588/rk_iommu.h"
#include "hw/rk3588/rk_regfile.h"
#include "hw/rk3588/rk_sfc.h"
#include "hw/usb/hcd-dwc3.h"
#include "target/arm/cpu-qom.h"

#define TYPE_RK3588_SOC "rk3588-soc"
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588SocState, RK3588_SOC)

#define RK3588_MAX_CPUS      8
#define RK3588_NUM_LITTLE    4
#define RK3588_NUM_SPI       480
#define RK3588_NUM_UART      10
#define RK3588_NUM_USB       3
#define RK3588_CATCH_ALL     "rk3588-io"

/* Memory: one block of RAM shows below the I/O space and above 4 GiB */
#define RK3588_IO_BASE       0xf0000000ull
#define RK3588_IO_SIZE       0x10000000ull
#define RK3588_HIGH_BASE     0x100000000ull

enum {
    RK3588_LINE_POWER_OFF,
    RK3588_LINE_CLOCK_OFF,
    RK3588_LINE_RESET,
    RK3588_NUM_LINES
};

enum {
    RK3588_BLOCK_GRF,
    RK3588_BLOCK_QOS,
    RK3588_NUM_BLOCKS
};

struct Rk3588SocState {
    DeviceState parent_obj;

    uint32_t num_cpus;
    uint32_t console;
    bool virtualization;
    bool its;

    ARMCPU *cpu[RK3588_MAX_CPUS];
    GICv3State gic;
    RkRegFile block[RK3588_NUM_BLOCKS];
    Rk3588CruState cru;
    Rk3588PmuState pmu;
    Rk3588ScmiState scmi;
    RkSfcState sfc;
    RkDwcmshcState emmc;
    USBDWC3 usb[RK3588_NUM_USB];
    MemoryRegion sram[2];
    Rk3588NpuState npu[RK3588_NPU_NUM_CORES];
    RkIommuState iommu[RK3588_NPU_NUM_CORES];
    OrIRQState npu_irq[RK3588_NPU_NUM_CORES];
    SplitIRQ npu_line[RK3588_NPU_NUM_CORES][RK3588_NUM_LINES];
};

/* Input of the interrupt controller for shared peripheral interrupt @spi */
qemu_irq rk3588_soc_spi(Rk3588SocState *s, int spi);

/* Number of the UART at @base, -1 when there is none */
int rk3588_soc_uart_at(hwaddr base);

#endif
