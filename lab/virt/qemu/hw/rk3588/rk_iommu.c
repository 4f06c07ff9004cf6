/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rockchip IOMMU, second generation: register banks.
 *
 * Behaviour follows what linux drivers/iommu/rockchip-iommu.c relies on. The
 * block descends from the MMU of ARM's Mali-400, whose public description
 * settles the order of stall and fault. Where boards have shown STATUS values
 * (0x1d stalled, 0x18b with a fault active) those decide: bit 31
 * ("stall not active" in Linux) reads 0 in both, and the replay buffer is not
 * empty while a fault is active.
 *
 * Not modelled: the bus id of a fault (STATUS 10:6), bus errors (interrupt
 * bit 1), and the replay of a faulted access after PAGE_FAULT_DONE. The
 * access stays undone and the NPU job that made it never completes, which is
 * what a replay into a page that is still unmapped amounts to.
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "hw/irq.h"
#include "hw/qdev-properties.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk_iommu.h"
#include "migration/vmstate.h"

#define MMU_DTE_ADDR        0x00
#define MMU_STATUS          0x04
#define MMU_COMMAND         0x08
#define MMU_PAGE_FAULT_ADDR 0x0c
#define MMU_ZAP_ONE_LINE    0x10
#define MMU_INT_RAWSTAT     0x14
#define MMU_INT_CLEAR       0x18
#define MMU_INT_MASK        0x1c
#define MMU_INT_STATUS      0x20
#define MMU_AUTO_GATING     0x24

#define STATUS_PAGING_ENABLED    BIT(0)
#define STATUS_PAGE_FAULT_ACTIVE BIT(1)
#define STATUS_STALL_ACTIVE      BIT(2)
#define STATUS_IDLE              BIT(3)
#define STATUS_REPLAY_EMPTY      BIT(4)
#define STATUS_FAULT_IS_WRITE    BIT(5)

#define CMD_ENABLE_PAGING   0
#define CMD_DISABLE_PAGING  1
#define CMD_ENABLE_STALL    2
#define CMD_DISABLE_STALL   3
#define CMD_ZAP_CACHE       4
#define CMD_PAGE_FAULT_DONE 5
#define CMD_FORCE_RESET     6

#define INT_PAGE_FAULT      BIT(0)
#define INT_BUS_ERROR       BIT(1)
#define INT_ALL             (INT_PAGE_FAULT | INT_BUS_ERROR)

#define AUTO_GATING_RESET   0x3

static const struct {
    uint8_t offset;
    const char *name;
} rk_iommu_reg[] = {
    { MMU_DTE_ADDR,        "MMU_DTE_ADDR" },
    { MMU_STATUS,          "MMU_STATUS" },
    { MMU_COMMAND,         "MMU_COMMAND" },
    { MMU_PAGE_FAULT_ADDR, "MMU_PAGE_FAULT_ADDR" },
    { MMU_ZAP_ONE_LINE,    "MMU_ZAP_ONE_LINE" },
    { MMU_INT_RAWSTAT,     "MMU_INT_RAWSTAT" },
    { MMU_INT_CLEAR,       "MMU_INT_CLEAR" },
    { MMU_INT_MASK,        "MMU_INT_MASK" },
    { MMU_INT_STATUS,      "MMU_INT_STATUS" },
    { MMU_AUTO_GATING,     "MMU_AUTO_GATING" },
};

static int rk_iommu_find_reg(hwaddr off)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(rk_iommu_reg); i++) {
        if (rk_iommu_reg[i].offset == off) {
            return i;
        }
    }
    return -1;
}

/* "rk-iommu: fdab9000.iommu bank 1: read of MMU_STATUS (0x04) while ..." */
static void G_GNUC_PRINTF(4, 5)
rk_iommu_log(RkIommuBank *b, const char *verb, hwaddr off, const char *fmt,
             ...)
{
    g_autofree char *text = NULL;
    g_autofree char *bank = NULL;
    int i = rk_iommu_find_reg(off & ~3ull);
    va_list ap;

    if (!qemu_loglevel_mask(LOG_GUEST_ERROR)) {
        return;
    }
    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    if (b->iommu->num_banks > 1) {
        bank = g_strdup_printf(" bank %d", (int)(b - b->iommu->bank));
    }
    qemu_log("rk-iommu: %s%s: %s of %s (0x%02" HWADDR_PRIx ") %s\n",
             b->iommu->name, bank ?: "", verb,
             i < 0 ? "an undocumented register" : rk_iommu_reg[i].name, off,
             text);
}

/* True, and a line in the log, if the access is a bus error. */
static bool rk_iommu_refuse(RkIommuBank *b, const char *verb, hwaddr off,
                            unsigned int size)
{
    const char *why = rk_access_refusal(&b->iommu->access, off, size);

    if (why) {
        rk_iommu_log(b, verb, off, "%s", why);
    }
    return why;
}

static void rk_iommu_update_irq(RkIommuState *s)
{
    bool level = false;
    int i;

    for (i = 0; i < s->num_banks; i++) {
        level |= s->bank[i].int_raw & s->bank[i].int_mask;
    }
    qemu_set_irq(s->irq, level);
}

static void rk_iommu_bank_reset(RkIommuBank *b)
{
    b->dte_addr = 0;
    b->fault_addr = 0;
    b->int_raw = 0;
    b->int_mask = 0;
    b->auto_gating = AUTO_GATING_RESET;
    b->paging = false;
    b->stall = false;
    b->fault = false;
    b->fault_is_write = false;
}

static uint32_t rk_iommu_status(RkIommuBank *b)
{
    return (b->paging ? STATUS_PAGING_ENABLED : 0) |
           (b->fault ? STATUS_PAGE_FAULT_ACTIVE : STATUS_REPLAY_EMPTY) |
           (b->stall ? STATUS_STALL_ACTIVE : 0) |
           STATUS_IDLE |
           (b->fault_is_write ? STATUS_FAULT_IS_WRITE : 0);
}

static MemTxResult rk_iommu_read(void *opaque, hwaddr off, uint64_t *data,
                                 unsigned int size, MemTxAttrs attrs)
{
    RkIommuBank *b = opaque;

    *data = 0;
    if (rk_iommu_refuse(b, "read", off, size)) {
        return MEMTX_ERROR;
    }
    switch (off) {
    case MMU_DTE_ADDR:
        *data = b->dte_addr;
        break;
    case MMU_STATUS:
        *data = rk_iommu_status(b);
        break;
    case MMU_PAGE_FAULT_ADDR:
        *data = b->fault_addr;
        break;
    case MMU_INT_RAWSTAT:
        *data = b->int_raw;
        break;
    case MMU_INT_MASK:
        *data = b->int_mask;
        break;
    case MMU_INT_STATUS:
        *data = b->int_raw & b->int_mask;
        break;
    case MMU_AUTO_GATING:
        *data = b->auto_gating;
        break;
    default:
        rk_iommu_log(b, "read", off, "returns 0: it cannot be read");
        break;
    }
    return MEMTX_OK;
}

static void rk_iommu_command(RkIommuBank *b, uint32_t cmd)
{
    switch (cmd) {
    case CMD_ENABLE_PAGING:
        b->paging = true;
        break;
    case CMD_DISABLE_PAGING:
        b->paging = false;
        break;
    case CMD_ENABLE_STALL:
        /*
         * Without paging there is nothing to stall, and a bank that waits
         * for PAGE_FAULT_DONE ignores the command (both are known to Linux'
         * rk_iommu_enable_stall()). A hung NPU has no access under way here,
         * so otherwise the stall is immediate.
         */
        if (b->paging && !b->fault) {
            b->stall = true;
        } else {
            rk_iommu_log(b, "write", MMU_COMMAND, "cannot stall: %s",
                         b->fault ? "a page fault is active" : "paging is off");
        }
        break;
    case CMD_DISABLE_STALL:
        b->stall = false;
        break;
    case CMD_ZAP_CACHE:
        break;                  /* no translation is kept between jobs */
    case CMD_PAGE_FAULT_DONE:
        b->fault = false;
        b->fault_is_write = false;
        break;
    case CMD_FORCE_RESET:
        rk_iommu_bank_reset(b);
        break;
    default:
        rk_iommu_log(b, "write", MMU_COMMAND, "unknown command %u", cmd);
        break;
    }
}

static MemTxResult rk_iommu_write(void *opaque, hwaddr off, uint64_t value,
                                  unsigned int size, MemTxAttrs attrs)
{
    RkIommuBank *b = opaque;

    if (rk_iommu_refuse(b, "write", off, size)) {
        return MEMTX_ERROR;
    }
    switch (off) {
    case MMU_DTE_ADDR:
        b->dte_addr = value;
        break;
    case MMU_COMMAND:
        rk_iommu_command(b, value);
        break;
    case MMU_ZAP_ONE_LINE:
        break;                  /* no translation is kept between jobs */
    case MMU_INT_CLEAR:
        b->int_raw &= ~value;
        break;
    case MMU_INT_MASK:
        b->int_mask = value & INT_ALL;
        break;
    case MMU_AUTO_GATING:
        b->auto_gating = value;
        break;
    default:
        rk_iommu_log(b, "write", off,
                     "ignored: it cannot be written (value 0x%08x)",
                     (uint32_t)value);
        break;
    }
    rk_iommu_update_irq(b->iommu);
    return MEMTX_OK;
}

static const MemoryRegionOps rk_iommu_ops = {
    .read_with_attrs = rk_iommu_read,
    .write_with_attrs = rk_iommu_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = RK_ACCESS_ANY_SIZE,
    .impl = RK_ACCESS_ANY_SIZE,
};

RkIommuBankView rk_iommu_bank_view(RkIommuState *s, unsigned int bank)
{
    RkIommuBankView view = { 0 };

    if (bank < s->num_banks) {
        view.exists = true;
        view.dte_addr = s->bank[bank].dte_addr;
        view.paging = s->bank[bank].paging;
        view.stall = s->bank[bank].stall;
    }
    return view;
}

void rk_iommu_fault(RkIommuState *s, unsigned int bank, uint32_t iova,
                    bool is_write)
{
    RkIommuBank *b = &s->bank[bank];

    assert(bank < s->num_banks);
    if (b->fault || s->access.power_off || s->access.in_reset) {
        return;
    }
    b->fault = true;
    b->fault_is_write = is_write;
    b->fault_addr = iova;
    b->int_raw |= INT_PAGE_FAULT;
    rk_iommu_update_irq(s);
}

static void rk_iommu_lose_registers(RkIommuState *s)
{
    int i;

    for (i = 0; i < s->num_banks; i++) {
        rk_iommu_bank_reset(&s->bank[i]);
    }
    rk_iommu_update_irq(s);
}

static void rk_iommu_set_power_off(void *opaque, int n, int level)
{
    RkIommuState *s = opaque;

    if (level && !s->access.power_off) {
        rk_iommu_lose_registers(s);
    }
    s->access.power_off = level;
}

static void rk_iommu_set_clock_off(void *opaque, int n, int level)
{
    RkIommuState *s = opaque;

    s->access.clock_off = level;
}

static void rk_iommu_set_reset(void *opaque, int n, int level)
{
    RkIommuState *s = opaque;

    if (level && !s->access.in_reset) {
        rk_iommu_lose_registers(s);
    }
    s->access.in_reset = level;
}

/*
 * The levels of the gpio inputs are not touched: they belong to the devices
 * that drive them, which change them in their own reset.
 */
static void rk_iommu_reset_enter(Object *obj, ResetType type)
{
    RkIommuState *s = RK_IOMMU(obj);
    int i;

    for (i = 0; i < s->num_banks; i++) {
        rk_iommu_bank_reset(&s->bank[i]);
    }
}

static void rk_iommu_reset_hold(Object *obj, ResetType type)
{
    rk_iommu_update_irq(RK_IOMMU(obj));
}

static void rk_iommu_realize(DeviceState *dev, Error **errp)
{
    RkIommuState *s = RK_IOMMU(dev);
    int i;

    if (!s->name) {
        error_setg(errp, "rk-iommu: the property 'name' is missing");
        return;
    }
    if (s->num_banks < 1 || s->num_banks > RK_IOMMU_MAX_BANKS) {
        error_setg(errp, "rk-iommu: %s: 'banks' must be 1..%d, not %u",
                   s->name, RK_IOMMU_MAX_BANKS, s->num_banks);
        return;
    }
    for (i = 0; i < s->num_banks; i++) {
        RkIommuBank *b = &s->bank[i];

        b->iommu = s;
        memory_region_init_io(&b->iomem, OBJECT(dev), &rk_iommu_ops, b,
                              s->name, RK_IOMMU_BANK_SIZE);
        sysbus_init_mmio(SYS_BUS_DEVICE(dev), &b->iomem);
    }
}

static void rk_iommu_init(Object *obj)
{
    RkIommuState *s = RK_IOMMU(obj);
    DeviceState *dev = DEVICE(obj);

    sysbus_init_irq(SYS_BUS_DEVICE(obj), &s->irq);
    qdev_init_gpio_in_named(dev, rk_iommu_set_power_off, "power-off", 1);
    qdev_init_gpio_in_named(dev, rk_iommu_set_clock_off, "clock-off", 1);
    qdev_init_gpio_in_named(dev, rk_iommu_set_reset, "reset", 1);
}

static const VMStateDescription rk_iommu_bank_vmstate = {
    .name = "rk-iommu/bank",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(dte_addr, RkIommuBank),
        VMSTATE_UINT32(fault_addr, RkIommuBank),
        VMSTATE_UINT32(int_raw, RkIommuBank),
        VMSTATE_UINT32(int_mask, RkIommuBank),
        VMSTATE_UINT32(auto_gating, RkIommuBank),
        VMSTATE_BOOL(paging, RkIommuBank),
        VMSTATE_BOOL(stall, RkIommuBank),
        VMSTATE_BOOL(fault, RkIommuBank),
        VMSTATE_BOOL(fault_is_write, RkIommuBank),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription rk_iommu_vmstate = {
    .name = "rk-iommu",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_STRUCT_ARRAY(bank, RkIommuState, RK_IOMMU_MAX_BANKS, 1,
                             rk_iommu_bank_vmstate, RkIommuBank),
        VMSTATE_BOOL(access.power_off, RkIommuState),
        VMSTATE_BOOL(access.clock_off, RkIommuState),
        VMSTATE_BOOL(access.in_reset, RkIommuState),
        VMSTATE_END_OF_LIST()
    },
};

static const Property rk_iommu_properties[] = {
    DEFINE_PROP_STRING("name", RkIommuState, name),
    DEFINE_PROP_UINT32("banks", RkIommuState, num_banks, 1),
};

static void rk_iommu_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    dc->desc = "Rockchip IOMMU v2";
    dc->realize = rk_iommu_realize;
    dc->vmsd = &rk_iommu_vmstate;
    rc->phases.enter = rk_iommu_reset_enter;
    rc->phases.hold = rk_iommu_reset_hold;
    device_class_set_props(dc, rk_iommu_properties);
}

static const TypeInfo rk_iommu_types[] = {
    {
        .name = TYPE_RK_IOMMU,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(RkIommuState),
        .instance_init = rk_iommu_init,
        .class_init = rk_iommu_class_init,
    },
};

DEFINE_TYPES(rk_iommu_types)
