/*
 * RK3588 power domain controller: registers as
 * drivers/pmdomain/rockchip/pm-domains.c in Linux uses them.
 *
 * A domain follows its gate at once. It is on when its own gate and the gates
 * of the domains above it are open; the status and repair registers show
 * that, and a line per domain tells devices when they have no power. Boot
 * firmware leaves every domain on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "hw/irq.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_pmu.h"
#include "hw/rk3588/rk_regfile.h"
#include "migration/vmstate.h"

#define BIU_IDLE_SFTCON   0x10c         /* two, hiword: 1 = ask for idle */
#define BIU_IDLE_ACK      0x118
#define BIU_IDLE_ST       0x120
#define PWR_GATE_SFTCON   0x14c         /* two, hiword: 1 = off */
#define PWR_GATE_STS      0x180         /* 1 = off */
#define MEM_PWR_SFTCON    0x1a0         /* two, hiword: 1 = off */
#define MEM_CHAIN_STS     0x1f0         /* two: 1 = up */
#define MEM_PWR_STS       0x1f8         /* two: 1 = off */
#define REPAIR_STS        0x290         /* 1 = on */

#define NONE 0xff

typedef struct PmuDomain {
    uint8_t reg, bit;                   /* gate register 0 or 1, and its bit */
    uint8_t status;                     /* bit of PWR_GATE_STS */
    uint8_t repair;                     /* bit of REPAIR_STS */
    uint8_t mem;                        /* bit of MEM_PWR_STS, 32..: 2nd */
    uint8_t parent;
} PmuDomain;

static const PmuDomain pmu_domains[RK3588_PD_COUNT] = {
    /*                   gate    status repair mem   parent */
    [RK3588_PD_GPU]     = { 0, 0,  NONE, 1,    NONE, NONE },
    [RK3588_PD_NPU]     = { 0, 1,  1,    NONE, NONE, NONE },
    [RK3588_PD_VCODEC]  = { 0, 2,  2,    NONE, NONE, NONE },
    [RK3588_PD_NPUTOP]  = { 0, 3,  NONE, 2,    11, RK3588_PD_NPU },
    [RK3588_PD_NPU1]    = { 0, 4,  NONE, 3,    12, RK3588_PD_NPUTOP },
    [RK3588_PD_NPU2]    = { 0, 5,  NONE, 4,    13, RK3588_PD_NPUTOP },
    [RK3588_PD_VENC0]   = { 0, 6,  NONE, 5,    14, RK3588_PD_VCODEC },
    [RK3588_PD_VENC1]   = { 0, 7,  NONE, 6,    15, RK3588_PD_VENC0 },
    [RK3588_PD_RKVDEC0] = { 0, 8,  NONE, 7,    16, RK3588_PD_VCODEC },
    [RK3588_PD_RKVDEC1] = { 0, 9,  NONE, 8,    17, RK3588_PD_VCODEC },
    [RK3588_PD_VDPU]    = { 0, 10, NONE, 9,    18, NONE },
    [RK3588_PD_RGA30]   = { 0, 11, NONE, 10,   19, NONE },
    [RK3588_PD_AV1]     = { 0, 12, NONE, 11,   20, NONE },
    [RK3588_PD_VI]      = { 0, 13, NONE, 12,   21, NONE },
    [RK3588_PD_FEC]     = { 0, 14, NONE, 13,   22, NONE },
    [RK3588_PD_ISP1]    = { 0, 15, NONE, 14,   23, NONE },
    [RK3588_PD_RGA31]   = { 1, 0,  NONE, 15,   24, NONE },
    [RK3588_PD_VOP]     = { 1, 1,  NONE, 16,   25, NONE },
    [RK3588_PD_VO0]     = { 1, 2,  NONE, 17,   26, NONE },
    [RK3588_PD_VO1]     = { 1, 3,  NONE, 18,   27, NONE },
    [RK3588_PD_AUDIO]   = { 1, 4,  NONE, 19,   28, NONE },
    [RK3588_PD_PHP]     = { 1, 5,  NONE, 20,   29, NONE },
    [RK3588_PD_GMAC]    = { 1, 6,  NONE, 21,   30, NONE },
    [RK3588_PD_PCIE]    = { 1, 7,  NONE, 22,   31, NONE },
    [RK3588_PD_NVM]     = { 1, 8,  24,   NONE, NONE, NONE },
    [RK3588_PD_NVM0]    = { 1, 9,  NONE, 23,   33, NONE },
    [RK3588_PD_SDIO]    = { 1, 10, NONE, 24,   34, NONE },
    [RK3588_PD_USB]     = { 1, 11, NONE, 25,   35, NONE },
    [RK3588_PD_SDMMC]   = { 1, 13, NONE, 26,   37, NONE },
};

static bool pmu_gate_closed(Rk3588PmuState *s, uint32_t base,
                            const PmuDomain *d)
{
    return s->regs[base / 4 + d->reg] & BIT(d->bit);
}

static bool pmu_domain_on(Rk3588PmuState *s, int i)
{
    for (; i != NONE; i = pmu_domains[i].parent) {
        if (pmu_gate_closed(s, PWR_GATE_SFTCON, &pmu_domains[i])) {
            return false;
        }
    }
    return true;
}

static void pmu_update(Rk3588PmuState *s)
{
    for (int i = 0; i < RK3588_PD_COUNT; i++) {
        qemu_set_irq(s->power_off[i], !pmu_domain_on(s, i));
    }
}

static uint32_t pmu_power_status(Rk3588PmuState *s)
{
    uint32_t val = 0;

    for (int i = 0; i < RK3588_PD_COUNT; i++) {
        if (pmu_domains[i].status != NONE && !pmu_domain_on(s, i)) {
            val |= BIT(pmu_domains[i].status);
        }
    }
    return val;
}

static uint32_t pmu_repair_status(Rk3588PmuState *s)
{
    uint32_t val = 0;

    for (int i = 0; i < RK3588_PD_COUNT; i++) {
        if (pmu_domains[i].repair != NONE && pmu_domain_on(s, i)) {
            val |= BIT(pmu_domains[i].repair);
        }
    }
    return val;
}

static uint64_t pmu_mem_status(Rk3588PmuState *s)
{
    uint64_t val = 0;

    for (int i = 0; i < RK3588_PD_COUNT; i++) {
        if (pmu_domains[i].mem != NONE &&
            pmu_gate_closed(s, MEM_PWR_SFTCON, &pmu_domains[i])) {
            val |= BIT_ULL(pmu_domains[i].mem);
        }
    }
    return val;
}

static uint64_t pmu_read(void *opaque, hwaddr off, unsigned size)
{
    Rk3588PmuState *s = opaque;

    switch (off) {
    case BIU_IDLE_ACK:
    case BIU_IDLE_ST:
        return s->regs[BIU_IDLE_SFTCON / 4] |
               s->regs[BIU_IDLE_SFTCON / 4 + 1] << 16;
    case PWR_GATE_STS:
        return pmu_power_status(s);
    case REPAIR_STS:
        return pmu_repair_status(s);
    case MEM_CHAIN_STS:
    case MEM_CHAIN_STS + 4:
        return UINT32_MAX;
    case MEM_PWR_STS:
        return extract64(pmu_mem_status(s), 0, 32);
    case MEM_PWR_STS + 4:
        return extract64(pmu_mem_status(s), 32, 32);
    }
    return s->regs[off / 4];
}

static void pmu_write(void *opaque, hwaddr off, uint64_t val, unsigned size)
{
    Rk3588PmuState *s = opaque;

    switch (off) {
    case BIU_IDLE_ACK:
    case BIU_IDLE_ST:
    case PWR_GATE_STS:
    case REPAIR_STS:
    case MEM_CHAIN_STS:
    case MEM_CHAIN_STS + 4:
    case MEM_PWR_STS:
    case MEM_PWR_STS + 4:
        qemu_log_mask(LOG_GUEST_ERROR, "rk3588-pmu: [%03" HWADDR_PRIx
                      "] = %08x: read-only register\n", off, (uint32_t)val);
        return;
    }
    s->regs[off / 4] = rk_hiword_update(s->regs[off / 4], val);
    if (off == PWR_GATE_SFTCON || off == PWR_GATE_SFTCON + 4) {
        pmu_update(s);
    }
}

static const MemoryRegionOps pmu_ops = {
    .read = pmu_read,
    .write = pmu_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid.min_access_size = 4,
    .valid.max_access_size = 4,
};

static void pmu_reset_enter(Object *obj, ResetType type)
{
    Rk3588PmuState *s = RK3588_PMU(obj);

    memset(s->regs, 0, sizeof(s->regs));
}

static void pmu_reset_hold(Object *obj, ResetType type)
{
    pmu_update(RK3588_PMU(obj));
}

static int pmu_post_load(void *opaque, int version_id)
{
    pmu_update(opaque);
    return 0;
}

static void pmu_init(Object *obj)
{
    Rk3588PmuState *s = RK3588_PMU(obj);

    memory_region_init_io(&s->iomem, obj, &pmu_ops, s, TYPE_RK3588_PMU,
                          RK3588_PMU_SIZE);
    sysbus_init_mmio(SYS_BUS_DEVICE(obj), &s->iomem);
    qdev_init_gpio_out_named(DEVICE(obj), s->power_off, RK3588_PMU_POWER_OFF,
                             RK3588_PD_COUNT);
}

static const VMStateDescription pmu_vmstate = {
    .name = TYPE_RK3588_PMU,
    .version_id = 1,
    .minimum_version_id = 1,
    .post_load = pmu_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32_ARRAY(regs, Rk3588PmuState, RK3588_PMU_SIZE / 4),
        VMSTATE_END_OF_LIST()
    },
};

static void pmu_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    dc->desc = "RK3588 power domain controller";
    dc->vmsd = &pmu_vmstate;
    rc->phases.enter = pmu_reset_enter;
    rc->phases.hold = pmu_reset_hold;
}

static const TypeInfo pmu_types[] = {
    {
        .name = TYPE_RK3588_PMU,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(Rk3588PmuState),
        .instance_init = pmu_init,
        .class_init = pmu_class_init,
    },
};

DEFINE_TYPES(pmu_types)
