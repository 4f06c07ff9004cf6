/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Synopsys DWC MSHC as the RK3588 has it for its eMMC.
 *
 * The standard part is QEMU's; what is added is what linux
 * drivers/mmc/host/sdhci-of-dwcmshc.c relies on: where the vendor areas are,
 * registers that keep what is written, a delay line that locks, and a command
 * queue engine that is there but unused, as the card cannot queue.
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/qdev-properties.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk_dwcmshc.h"
#include "hw/sd/sd.h"
#include "migration/vmstate.h"

#define P_VENDOR_AREAS          0xe8
#define VENDOR_AREA1            0x500
#define VENDOR_AREA2            0x180

/* offsets in the whole register space, as in the driver */
#define CQHCI_VER               VENDOR_AREA2
#define EMMC_DLL_CTRL           0x800
#define EMMC_DLL_STATUS0        0x840

#define CQHCI_VERSION_5_10      0x510
#define DLL_CTRL_START          BIT(0)
#define DLL_CTRL_BYPASS         BIT(24)
#define DLL_STATUS0_LOCKED      BIT(8)

/* Capabilities. QEMU's controller has no slot type "embedded". */
#define SD_SPEC_VERSION         3
#define CAP_TIMEOUT_24MHZ       (24 | BIT(7))
#define CAP_BASE_200MHZ         (200 << 8)
#define CAP_8BIT                BIT(18)
#define CAP_ADMA2               BIT(19)
#define CAP_HIGH_SPEED          BIT(21)
#define CAP_SDMA                BIT(22)
#define CAP_3V3                 BIT(24)
#define CAP_1V8                 BIT(26)
#define CAPABILITIES            (CAP_TIMEOUT_24MHZ | CAP_BASE_200MHZ | \
                                 CAP_8BIT | CAP_ADMA2 | CAP_HIGH_SPEED | \
                                 CAP_SDMA | CAP_3V3 | CAP_1V8)

static uint64_t dwcmshc_pointers_read(void *opaque, hwaddr off,
                                      unsigned int size)
{
    return extract32(VENDOR_AREA2 << 16 | VENDOR_AREA1, off * 8, size * 8);
}

static uint64_t dwcmshc_vendor_read(void *opaque, hwaddr off,
                                    unsigned int size)
{
    RkDwcmshcState *s = opaque;
    uint32_t dll = ldl_le_p(s->regs + EMMC_DLL_CTRL);

    switch (off) {
    case CQHCI_VER:
        return CQHCI_VERSION_5_10;
    case EMMC_DLL_STATUS0:
        return dll & DLL_CTRL_START && !(dll & DLL_CTRL_BYPASS)
               ? DLL_STATUS0_LOCKED : 0;
    default:
        return ldn_le_p(s->regs + off, size);
    }
}

static void dwcmshc_vendor_write(void *opaque, hwaddr off, uint64_t value,
                                 unsigned int size)
{
    RkDwcmshcState *s = opaque;

    stn_le_p(s->regs + off, size, value);
}

static void dwcmshc_no_write(void *opaque, hwaddr off, uint64_t value,
                             unsigned int size)
{
}

static const MemoryRegionOps dwcmshc_pointers_ops = {
    .read = dwcmshc_pointers_read,
    .write = dwcmshc_no_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 4 },
};

static const MemoryRegionOps dwcmshc_vendor_ops = {
    .read = dwcmshc_vendor_read,
    .write = dwcmshc_vendor_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 4 },
};

static void dwcmshc_reset_hold(Object *obj, ResetType type)
{
    RkDwcmshcState *s = RK_DWCMSHC(obj);

    memset(s->regs, 0, sizeof(s->regs));
}

static void dwcmshc_realize(DeviceState *dev, Error **errp)
{
    RkDwcmshcState *s = RK_DWCMSHC(dev);
    SysBusDevice *sdhci = SYS_BUS_DEVICE(&s->sdhci);

    qdev_prop_set_uint8(DEVICE(sdhci), "sd-spec-version",
                        SD_SPEC_VERSION);
    qdev_prop_set_uint64(DEVICE(sdhci), "capareg", CAPABILITIES);
    if (!sysbus_realize(sdhci, errp)) {
        return;
    }
    memory_region_add_subregion_overlap(&s->container, 0,
                                        sysbus_mmio_get_region(sdhci, 0), 1);
    sysbus_pass_irq(SYS_BUS_DEVICE(dev), sdhci);
}

static void dwcmshc_init(Object *obj)
{
    RkDwcmshcState *s = RK_DWCMSHC(obj);

    object_initialize_child(obj, "sdhci", &s->sdhci, TYPE_SYSBUS_SDHCI);
    memory_region_init(&s->container, obj, TYPE_RK_DWCMSHC, RK_DWCMSHC_SIZE);
    memory_region_init_io(&s->pointers, obj, &dwcmshc_pointers_ops, s,
                          TYPE_RK_DWCMSHC ".pointers", 4);
    memory_region_init_io(&s->vendor, obj, &dwcmshc_vendor_ops, s,
                          TYPE_RK_DWCMSHC ".vendor", RK_DWCMSHC_SIZE);
    memory_region_add_subregion(&s->container, 0, &s->vendor);
    memory_region_add_subregion_overlap(&s->container, P_VENDOR_AREAS,
                                        &s->pointers, 2);
    sysbus_init_mmio(SYS_BUS_DEVICE(obj), &s->container);
}

static const VMStateDescription dwcmshc_vmstate = {
    .name = TYPE_RK_DWCMSHC,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT8_ARRAY(regs, RkDwcmshcState, RK_DWCMSHC_SIZE),
        VMSTATE_END_OF_LIST()
    },
};

static void dwcmshc_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "Rockchip eMMC host controller (DWC MSHC)";
    dc->realize = dwcmshc_realize;
    dc->vmsd = &dwcmshc_vmstate;
    RESETTABLE_CLASS(oc)->phases.hold = dwcmshc_reset_hold;
}

static const TypeInfo dwcmshc_types[] = {
    {
        .name = TYPE_RK_DWCMSHC,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(RkDwcmshcState),
        .instance_init = dwcmshc_init,
        .class_init = dwcmshc_class_init,
    },
};

DEFINE_TYPES(dwcmshc_types)
