/*
 * Rockchip register blocks without behaviour: GRF, IOC, QoS ...
 *
 * Drivers set bits in them and read them back; nothing in the virtual board
 * depends on what they hold.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "qapi/error.h"
#include "hw/qdev-properties.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk_regfile.h"
#include "migration/vmstate.h"

static uint64_t rk_regfile_read(void *opaque, hwaddr off, unsigned size)
{
    RkRegFile *s = opaque;

    return s->regs[off >> 2];
}

static void rk_regfile_write(void *opaque, hwaddr off, uint64_t val,
                             unsigned size)
{
    RkRegFile *s = opaque;
    uint32_t *reg = &s->regs[off >> 2];

    *reg = s->hiword ? rk_hiword_update(*reg, val) : val;
    qemu_log_mask(LOG_UNIMP, "%s: [%05" HWADDR_PRIx "] = %08x has no effect\n",
                  s->name, off, (uint32_t)val);
}

static const MemoryRegionOps rk_regfile_ops = {
    .read = rk_regfile_read,
    .write = rk_regfile_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid.min_access_size = 4,
    .valid.max_access_size = 4,
};

static void rk_regfile_reset_hold(Object *obj, ResetType type)
{
    RkRegFile *s = RK_REGFILE(obj);

    memset(s->regs, 0, s->size);
}

static void rk_regfile_realize(DeviceState *dev, Error **errp)
{
    RkRegFile *s = RK_REGFILE(dev);

    if (!s->name || !s->size || s->size % 4) {
        error_setg(errp, "%s: needs a name and a size in whole words",
                   TYPE_RK_REGFILE);
        return;
    }
    s->num_regs = s->size / 4;
    s->regs = g_new0(uint32_t, s->num_regs);
    memory_region_init_io(&s->iomem, OBJECT(dev), &rk_regfile_ops, s, s->name,
                          s->size);
    sysbus_init_mmio(SYS_BUS_DEVICE(dev), &s->iomem);
}

static void rk_regfile_finalize(Object *obj)
{
    g_free(RK_REGFILE(obj)->regs);
}

static const VMStateDescription rk_regfile_vmstate = {
    .name = TYPE_RK_REGFILE,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_VARRAY_UINT32(regs, RkRegFile, num_regs, 0,
                              vmstate_info_uint32, uint32_t),
        VMSTATE_END_OF_LIST()
    },
};

static const Property rk_regfile_properties[] = {
    DEFINE_PROP_STRING("name", RkRegFile, name),
    DEFINE_PROP_UINT32("size", RkRegFile, size, 0),
    DEFINE_PROP_BOOL("hiword", RkRegFile, hiword, true),
};

static void rk_regfile_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "Rockchip register block without behaviour";
    dc->realize = rk_regfile_realize;
    dc->vmsd = &rk_regfile_vmstate;
    RESETTABLE_CLASS(oc)->phases.hold = rk_regfile_reset_hold;
    device_class_set_props(dc, rk_regfile_properties);
}

static const TypeInfo rk_regfile_types[] = {
    {
        .name = TYPE_RK_REGFILE,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(RkRegFile),
        .instance_finalize = rk_regfile_finalize,
        .class_init = rk_regfile_class_init,
    },
};

DEFINE_TYPES(rk_regfile_types)
