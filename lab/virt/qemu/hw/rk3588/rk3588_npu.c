/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RK3588 NPU core, as far as the CPU sees it: the PC block (command fetch,
 * interrupts), the windows of the other blocks, power, clock and reset.
 *
 * The other blocks' registers and all computation live in the model process.
 * A kick of the PC sends it a job; its answer comes back as interrupt bits,
 * which are raised after the modelled time has passed on the guest's clock.
 *
 * Evidence: RK3588 TRM part 1 ch. 36; linux drivers/accel/rocket for what the
 * driver relies on.
 */
#include "qemu/osdep.h"
#include "qemu/log.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/irq.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_npu.h"
#include "hw/rk3588/rk3588_npu_reg.h"
#include "migration/blocker.h"

/*
 * Boards print the sum of VERSION and VERSION_NUM[15:0] as 1179210309; how it
 * splits is not public.
 */
#define VERSION_VALUE           0x46495245
#define VERSION_NUM_VALUE       0

#define OPERATION_ENABLE_OP_EN  BIT(0)
#define BASE_ADDRESS_PC_SEL     BIT(0)  /* 1: slave mode, no fetch */
#define BASE_ADDRESS_SOURCE     0xfffffff0
#define AMOUNTS_MASK            0xffff  /* pairs of words, minus 1 */
#define INTERRUPT_BITS          0x1ffff
#define TASK_CON_COUNT_CLEAR    BIT(13)
#define TASK_DMA_BASE_MASK      0xfffffff0
#define TASK_STATUS_COUNT       0xfff

/* "rk3588-npu: core 0: read of PC_VERSION (0x0000) while ..." */
static void G_GNUC_PRINTF(5, 6)
npu_log_access(Rk3588NpuState *s, int mask, const char *verb, hwaddr off,
               const char *fmt, ...)
{
    g_autofree char *text = NULL;
    g_autofree char *name = NULL;
    va_list ap;

    if (!qemu_loglevel_mask(mask)) {
        return;
    }
    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    name = rk3588_npu_reg_name(off);
    qemu_log("rk3588-npu: core %u: %s of %s (0x%04x) %s\n", s->core, verb,
             name, (unsigned)off, text);
}

static void npu_update_irq(Rk3588NpuState *s)
{
    qemu_set_irq(s->irq, !!(s->int_raw & s->int_mask));
}

/* --------------------------------- jobs -------------------------------- */

/* The modelled time is over. */
static void npu_complete(Rk3588NpuState *s)
{
    const Rk3588NpuResult *r = &s->result;

    s->done_held = false;
    s->phase = r->outcome == RK3588_NPU_DONE ? RK3588_NPU_IDLE
                                             : RK3588_NPU_HUNG;
    s->task_status = r->task_status;
    s->int_raw |= r->interrupts;
    if (r->outcome == RK3588_NPU_FAULT) {
        rk_iommu_fault(s->iommu, r->fault_bank, r->fault_addr,
                       r->fault_is_write);
    }
    npu_update_irq(s);
}

static void npu_done_timer(void *opaque)
{
    Rk3588NpuState *s = opaque;

    if (s->access.clock_off) {
        s->done_held = true;            /* until the clock runs again */
        return;
    }
    npu_complete(s);
}

static void npu_link_done(void *opaque, const Rk3588NpuResult *result)
{
    Rk3588NpuState *s = opaque;

    s->result = *result;
    s->phase = RK3588_NPU_FINISHING;
    timer_mod(s->done_timer,
              qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL) + result->ns);
}

static void npu_link_lost(void *opaque)
{
    Rk3588NpuState *s = opaque;

    if (s->phase == RK3588_NPU_RUNNING) {
        s->phase = RK3588_NPU_HUNG;
    }
}

static const Rk3588NpuLinkOps npu_link_ops = {
    .done = npu_link_done,
    .lost = npu_link_lost,
};

static void npu_kick(Rk3588NpuState *s)
{
    Rk3588NpuJob job = {
        .regcmd = s->base_address & BASE_ADDRESS_SOURCE,
        .words = ((s->register_amounts & AMOUNTS_MASK) + 1) * 2,
        .task_con = s->task_con,
        .dma_base = s->task_dma_base,
    };
    int i;

    for (i = 0; i < RK3588_NPU_LINK_BANKS; i++) {
        RkIommuBankView bank = rk_iommu_bank_view(s->iommu, i);

        job.bank[i].dte_addr = bank.dte_addr;
        job.bank[i].flags = (bank.paging ? RK3588_NPU_BANK_PAGING : 0) |
                            (bank.stall ? RK3588_NPU_BANK_STALLED : 0) |
                            (bank.exists ? RK3588_NPU_BANK_EXISTS : 0);
    }
    s->jobs++;
    /* the answer may come at any time from here on */
    s->phase = RK3588_NPU_RUNNING;
    if (!rk3588_npu_link_job(&s->link, &job)) {
        s->phase = RK3588_NPU_HUNG;
        qemu_log_mask(LOG_GUEST_ERROR, "rk3588-npu: core %u: job at 0x%08x "
                      "hangs: no NPU model is connected\n",
                      s->core, job.regcmd);
    }
}

static void npu_operation_enable(Rk3588NpuState *s, uint32_t value)
{
    bool was_on = s->operation_enable & OPERATION_ENABLE_OP_EN;
    bool on = value & OPERATION_ENABLE_OP_EN;

    s->operation_enable = value & OPERATION_ENABLE_OP_EN;
    if (!on) {
        /*
         * The PC goes idle: the driver's late write of 0 is known to stop a
         * job that was kicked in between. What is stopped leaves no
         * interrupt, keeps the registers (so this is no RESET of the model),
         * and may have written any part of its output. Waiting for the model
         * and dropping the result gives the guest a defined state: nothing is
         * written after this write has returned. A job that hangs leaves the
         * blocks behind the PC waiting for data, which only a reset ends.
         */
        if (s->phase == RK3588_NPU_RUNNING) {
            rk3588_npu_link_finish_job(&s->link);
        }
        if (s->phase == RK3588_NPU_FINISHING &&
            s->result.outcome == RK3588_NPU_DONE) {
            timer_del(s->done_timer);
            s->done_held = false;
            s->phase = RK3588_NPU_IDLE;
            npu_log_access(s, LOG_GUEST_ERROR, "write", PC_OPERATION_ENABLE,
                           "stops a job before its end");
        }
        return;
    }
    if (s->phase == RK3588_NPU_HUNG) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", PC_OPERATION_ENABLE,
                       "starts nothing: an earlier job hangs, reset the core");
    } else if (s->phase != RK3588_NPU_IDLE) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", PC_OPERATION_ENABLE,
                       "starts nothing: a job is running");
    } else if (was_on) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", PC_OPERATION_ENABLE,
                       "starts nothing: OP_EN is already 1, and only a change "
                       "from 0 to 1 starts a job");
    } else if (s->base_address & BASE_ADDRESS_PC_SEL) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", PC_OPERATION_ENABLE,
                       "starts nothing: PC_SEL is 1 (slave mode)");
    } else {
        npu_kick(s);
    }
}

/* ------------------------------- registers ----------------------------- */

/* True, and a line in the log, if the access is a bus error. */
static bool npu_refuse(Rk3588NpuState *s, const char *verb, hwaddr off,
                       unsigned int size)
{
    const char *why = rk_access_refusal(&s->access, off, size);

    if (!why && off / NPU_BLOCK_SIZE == NPU_BLOCK_HOLE) {
        why = "is a bus error: nothing is there; on silicon it locks up the "
              "SoC";
    }
    if (why) {
        npu_log_access(s, LOG_GUEST_ERROR, verb, off, "%s", why);
    }
    return why;
}

static uint32_t npu_pc_read(Rk3588NpuState *s, hwaddr off)
{
    switch (off) {
    case PC_VERSION:
        return VERSION_VALUE;
    case PC_VERSION_NUM:
        return VERSION_NUM_VALUE;
    case PC_OPERATION_ENABLE:
        return s->operation_enable;
    case PC_BASE_ADDRESS:
        return s->base_address;
    case PC_REGISTER_AMOUNTS:
        return s->register_amounts;
    case PC_INTERRUPT_MASK:
        return s->int_mask;
    case PC_INTERRUPT_STATUS:
        return s->int_raw & s->int_mask;
    case PC_INTERRUPT_RAW_STATUS:
        return s->int_raw;
    case PC_TASK_CON:
        return s->task_con & ~TASK_CON_COUNT_CLEAR;     /* clears itself */
    case PC_TASK_DMA_BASE_ADDR:
        return s->task_dma_base;
    case PC_TASK_STATUS:
        return s->task_status;
    default:
        npu_log_access(s, LOG_UNIMP, "read", off,
                       "returns 0: no such register is known");
        return 0;
    }
}

static void npu_pc_write(Rk3588NpuState *s, hwaddr off, uint32_t value)
{
    switch (off) {
    case PC_OPERATION_ENABLE:
        npu_operation_enable(s, value);
        break;
    case PC_BASE_ADDRESS:
        s->base_address = value & (BASE_ADDRESS_SOURCE | BASE_ADDRESS_PC_SEL);
        break;
    case PC_REGISTER_AMOUNTS:
        s->register_amounts = value & AMOUNTS_MASK;
        break;
    case PC_INTERRUPT_MASK:
        s->int_mask = value & INTERRUPT_BITS;
        npu_update_irq(s);
        break;
    case PC_INTERRUPT_CLEAR:
        s->int_raw &= ~value;
        npu_update_irq(s);
        break;
    case PC_TASK_CON:
        /* the model sees COUNT_CLEAR too, with the job */
        s->task_con = value;
        if (value & TASK_CON_COUNT_CLEAR) {
            s->task_status &= ~TASK_STATUS_COUNT;
        }
        break;
    case PC_TASK_DMA_BASE_ADDR:
        s->task_dma_base = value & TASK_DMA_BASE_MASK;
        break;
    default:
        npu_log_access(s, LOG_UNIMP, "write", off,
                       "ignored: no such register is known (value 0x%08x)",
                       value);
        break;
    }
}

static MemTxResult npu_read(void *opaque, hwaddr off, uint64_t *data,
                            unsigned int size, MemTxAttrs attrs)
{
    Rk3588NpuState *s = opaque;
    const Rk3588NpuReg *reg = rk3588_npu_reg(off);
    uint32_t value = 0;

    *data = 0;
    if (npu_refuse(s, "read", off, size)) {
        return MEMTX_ERROR;
    }
    if (reg && !(reg->access & NPU_REG_R)) {
        npu_log_access(s, LOG_GUEST_ERROR, "read", off,
                       "returns 0: it is write-only");
    } else if (off < NPU_BLOCK_SIZE) {
        value = npu_pc_read(s, off);
    } else if (!rk3588_npu_link_read(&s->link, off, &value)) {
        npu_log_access(s, LOG_GUEST_ERROR, "read", off,
                       "returns 0: no NPU model is connected");
    }
    *data = value;
    return MEMTX_OK;
}

static MemTxResult npu_write(void *opaque, hwaddr off, uint64_t value,
                             unsigned int size, MemTxAttrs attrs)
{
    Rk3588NpuState *s = opaque;
    const Rk3588NpuReg *reg = rk3588_npu_reg(off);

    if (npu_refuse(s, "write", off, size)) {
        return MEMTX_ERROR;
    }
    if (reg && !(reg->access & NPU_REG_W)) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", off,
                       "ignored: it is read-only (value 0x%08x)",
                       (uint32_t)value);
    } else if (off < NPU_BLOCK_SIZE) {
        npu_pc_write(s, off, value);
    } else if (!rk3588_npu_link_write(&s->link, off, value)) {
        npu_log_access(s, LOG_GUEST_ERROR, "write", off,
                       "dropped: no NPU model is connected (value 0x%08x)",
                       (uint32_t)value);
    }
    return MEMTX_OK;
}

static const MemoryRegionOps npu_ops = {
    .read_with_attrs = npu_read,
    .write_with_attrs = npu_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = RK_ACCESS_ANY_SIZE,
    .impl = RK_ACCESS_ANY_SIZE,
};

/* ------------------------ power, clock and reset ----------------------- */

static void npu_reset_registers(Rk3588NpuState *s)
{
    timer_del(s->done_timer);
    s->phase = RK3588_NPU_IDLE;
    s->done_held = false;
    s->operation_enable = 0;
    s->base_address = 0;
    s->register_amounts = 0;
    s->int_mask = INTERRUPT_BITS;
    s->int_raw = 0;
    s->task_con = 0;
    s->task_dma_base = 0;
    s->task_status = 0;
}

/* Everything in the core is lost, in the model too. */
static void npu_lose_state(Rk3588NpuState *s)
{
    if (s->phase == RK3588_NPU_RUNNING || s->phase == RK3588_NPU_FINISHING) {
        qemu_log_mask(LOG_GUEST_ERROR, "rk3588-npu: core %u: a running job is "
                      "lost to a reset or power-off\n", s->core);
    }
    npu_reset_registers(s);
    rk3588_npu_link_reset(&s->link);
    npu_update_irq(s);
}

static void npu_set_power_off(void *opaque, int n, int level)
{
    Rk3588NpuState *s = opaque;

    if (level && !s->access.power_off && !s->access.in_reset) {
        npu_lose_state(s);
    }
    s->access.power_off = level;
}

static void npu_set_reset(void *opaque, int n, int level)
{
    Rk3588NpuState *s = opaque;

    if (level && !s->access.power_off && !s->access.in_reset) {
        npu_lose_state(s);
    }
    s->access.in_reset = level;
}

static void npu_set_clock_off(void *opaque, int n, int level)
{
    Rk3588NpuState *s = opaque;

    if (level && !s->access.clock_off && (s->phase == RK3588_NPU_RUNNING ||
                                   s->phase == RK3588_NPU_FINISHING)) {
        qemu_log_mask(LOG_GUEST_ERROR, "rk3588-npu: core %u: clock gated "
                      "while a job is running\n", s->core);
    }
    s->access.clock_off = level;
    if (!level && s->done_held) {
        npu_complete(s);
    }
}

/*
 * The levels of the gpio inputs are not touched: they belong to the devices
 * that drive them, which change them in their own reset.
 */
static void npu_reset_enter(Object *obj, ResetType type)
{
    npu_reset_registers(RK3588_NPU(obj));
}

static void npu_reset_hold(Object *obj, ResetType type)
{
    Rk3588NpuState *s = RK3588_NPU(obj);

    rk3588_npu_link_reset(&s->link);
    npu_update_irq(s);
}

static void npu_realize(DeviceState *dev, Error **errp)
{
    Rk3588NpuState *s = RK3588_NPU(dev);
    uint64_t low = MIN(s->ram_low, s->ram_size);
    Rk3588NpuLinkConfig config = {
        .core = s->core,
        .timeout_ms = s->link_timeout_ms,
        .ram = {
            { .gpa = 0, .offset = 0, .size = low },
            { .gpa = 4 * GiB, .offset = low, .size = s->ram_size - low },
        },
        .num_ram = s->ram_size > low ? 2 : 1,
    };

    if (s->core >= RK3588_NPU_NUM_CORES) {
        error_setg(errp, "rk3588-npu: 'core' must be 0..%d, not %u",
                   RK3588_NPU_NUM_CORES - 1, s->core);
        return;
    }
    if (!s->iommu) {
        error_setg(errp, "rk3588-npu: core %u: the link 'iommu' is missing",
                   s->core);
        return;
    }
    if (!low) {
        error_setg(errp, "rk3588-npu: core %u: 'ram-low' and 'ram-size' must "
                   "not be 0", s->core);
        return;
    }
    config.num_banks = s->iommu->num_banks;

    error_setg(&s->migration_blocker, "rk3588-npu: core %u: the NPU's state "
               "lives in the model process and cannot be saved or migrated",
               s->core);
    if (migrate_add_blocker(&s->migration_blocker, errp) < 0) {
        return;
    }
    memory_region_init_io(&s->iomem, OBJECT(dev), &npu_ops, s, TYPE_RK3588_NPU,
                          RK3588_NPU_MMIO_SIZE);
    sysbus_init_mmio(SYS_BUS_DEVICE(dev), &s->iomem);
    s->done_timer = timer_new_ns(QEMU_CLOCK_VIRTUAL, npu_done_timer, s);
    rk3588_npu_link_init(&s->link, dev, &config, &npu_link_ops, s, errp);
}

static bool npu_get_time_frozen(Object *obj, Error **errp)
{
    return RK3588_NPU(obj)->link.frozen;
}

static void npu_init(Object *obj)
{
    Rk3588NpuState *s = RK3588_NPU(obj);
    DeviceState *dev = DEVICE(obj);

    sysbus_init_irq(SYS_BUS_DEVICE(obj), &s->irq);
    qdev_init_gpio_in_named(dev, npu_set_power_off, "power-off", 1);
    qdev_init_gpio_in_named(dev, npu_set_clock_off, "clock-off", 1);
    qdev_init_gpio_in_named(dev, npu_set_reset, "reset", 1);
    object_property_add_uint64_ptr(obj, "jobs", &s->jobs, OBJ_PROP_FLAG_READ);
}

static const Property npu_properties[] = {
    DEFINE_PROP_UINT32("core", Rk3588NpuState, core, 0),
    DEFINE_PROP_LINK("iommu", Rk3588NpuState, iommu, TYPE_RK_IOMMU,
                     RkIommuState *),
    DEFINE_PROP_CHR("chardev", Rk3588NpuState, link.chr),
    DEFINE_PROP_UINT64("ram-low", Rk3588NpuState, ram_low, 0),
    DEFINE_PROP_UINT64("ram-size", Rk3588NpuState, ram_size, 0),
    DEFINE_PROP_UINT32("link-timeout-ms", Rk3588NpuState, link_timeout_ms,
                       60000),
};

static void npu_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    dc->desc = "RK3588 NPU core";
    dc->realize = npu_realize;
    rc->phases.enter = npu_reset_enter;
    rc->phases.hold = npu_reset_hold;
    device_class_set_props(dc, npu_properties);
    object_class_property_add_bool(oc, "time-frozen", npu_get_time_frozen,
                                   NULL);
}

static const TypeInfo npu_types[] = {
    {
        .name = TYPE_RK3588_NPU,
        .parent = TYPE_SYS_BUS_DEVICE,
        .instance_size = sizeof(Rk3588NpuState),
        .instance_init = npu_init,
        .class_init = npu_class_init,
    },
};

DEFINE_TYPES(npu_types)
