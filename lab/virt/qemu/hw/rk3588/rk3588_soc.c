/*
 * RK3588 system on chip: what is where, and what is wired to what. Addresses
 * and interrupts are those of rk3588-base.dtsi in Linux.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qlist.h"
#include "cpu.h"
#include "hw/arm/bsa.h"
#include "hw/char/serial-mm.h"
#include "hw/intc/arm_gicv3.h"
#include "hw/intc/arm_gicv3_its_common.h"
#include "hw/irq.h"
#include "hw/misc/unimp.h"
#include "hw/qdev-properties.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_soc.h"
#include "system/system.h"
#include "target/arm/gtimer.h"

#define GICD_BASE         0xfe600000
#define GICR_BASE         0xfe680000
#define ITS0_BASE         0xfe640000
#define CRU_BASE          0xfd7c0000
#define PMU_BASE          0xfd8d8000
#define SFC_BASE          0xfe2b0000
#define SFC_SPI           206
#define EMMC_BASE         0xfe2e0000
#define EMMC_SPI          205
#define SRAM0_BASE        0xff001000
#define SRAM0_SIZE        0xef000
#define SRAM1_BASE        0xfd600000
#define SRAM1_SIZE        0x100000
#define SCMI_SHMEM        0x0010f000
#define UART_BAUDBASE     1500000
#define UART_SPI(n)       (331 + (n))
#define USB_SPI(n)        (220 + (n))
#define USB_INTERRUPTERS  1
#define USB_SLOTS         64
#define NPU_BASE(n)       (0xfdab0000 + (n) * 0x10000)
#define NPU_SPI(n)        (110 + (n))

static const hwaddr uart_base[RK3588_NUM_UART] = {
    0xfd890000, 0xfeb40000, 0xfeb50000, 0xfeb60000, 0xfeb70000, 0xfeb80000,
    0xfeb90000, 0xfeba0000, 0xfebb0000, 0xfebc0000,
};

/* usb_host0_xhci .. usb_host2_xhci; the first has a type C or OTG port */
static const hwaddr usb_base[RK3588_NUM_USB] = {
    0xfc000000, 0xfc400000, 0xfcd00000,
};

/* IOMMU banks of a core, as offsets from the core's registers */
static const struct {
    const char *name;
    uint32_t num_banks;
    uint32_t bank[RK_IOMMU_MAX_BANKS];
    Rk3588PowerDomain domain;
} npu_cores[RK3588_NPU_NUM_CORES] = {
    { "fdab9000.iommu", 2, { 0x9000, 0xa000 }, RK3588_PD_NPUTOP },
    { "fdaca000.iommu", 1, { 0xa000 }, RK3588_PD_NPU1 },
    { "fdada000.iommu", 1, { 0xa000 }, RK3588_PD_NPU2 },
};

int rk3588_soc_uart_at(hwaddr base)
{
    for (int i = 0; i < RK3588_NUM_UART; i++) {
        if (uart_base[i] == base) {
            return i;
        }
    }
    return -1;
}

qemu_irq rk3588_soc_spi(Rk3588SocState *s, int spi)
{
    return qdev_get_gpio_in(DEVICE(&s->gic), spi);
}

static bool soc_realize_cpus(Rk3588SocState *s, Error **errp)
{
    for (int i = 0; i < s->num_cpus; i++) {
        const char *type = i < RK3588_NUM_LITTLE
                           ? ARM_CPU_TYPE_NAME("cortex-a55")
                           : ARM_CPU_TYPE_NAME("cortex-a76");
        g_autofree char *name = g_strdup_printf("cpu[%d]", i);
        Object *cpu = object_new(type);

        s->cpu[i] = ARM_CPU(cpu);
        object_property_add_child(OBJECT(s), name, cpu);
        object_unref(cpu);
        object_property_set_int(cpu, "mp-affinity", i << 8, &error_abort);
        object_property_set_int(cpu, "cntfrq", 24000000, &error_abort);
        object_property_set_int(cpu, "psci-conduit", QEMU_PSCI_CONDUIT_SMC,
                                &error_abort);
        object_property_set_bool(cpu, "start-powered-off", i > 0,
                                 &error_abort);
        if (!s->virtualization) {
            object_property_set_bool(cpu, "has_el2", false, &error_abort);
        }
        s->cpu[i]->firmware_smc = rk3588_scmi_smc;
        s->cpu[i]->firmware_opaque = &s->scmi;
        if (!qdev_realize(DEVICE(cpu), NULL, errp)) {
            return false;
        }
    }
    return true;
}

static void soc_connect_cpu(Rk3588SocState *s, int i)
{
    static const int timer_irq[] = {
        [GTIMER_PHYS] = ARCH_TIMER_NS_EL1_IRQ,
        [GTIMER_VIRT] = ARCH_TIMER_VIRT_IRQ,
        [GTIMER_HYP] = ARCH_TIMER_NS_EL2_IRQ,
        [GTIMER_SEC] = ARCH_TIMER_S_EL1_IRQ,
        [GTIMER_HYPVIRT] = ARCH_TIMER_NS_EL2_VIRT_IRQ,
    };
    static const int cpu_input[] = {
        ARM_CPU_IRQ, ARM_CPU_FIQ, ARM_CPU_VIRQ, ARM_CPU_VFIQ
    };
    DeviceState *gic = DEVICE(&s->gic);
    DeviceState *cpu = DEVICE(s->cpu[i]);
    int ppi = RK3588_NUM_SPI + i * GIC_INTERNAL;

    for (int j = 0; j < ARRAY_SIZE(timer_irq); j++) {
        qdev_connect_gpio_out(cpu, j, qdev_get_gpio_in(gic,
                                                       ppi + timer_irq[j]));
    }
    qdev_connect_gpio_out_named(cpu, "gicv3-maintenance-interrupt", 0,
                                qdev_get_gpio_in(gic,
                                                 ppi + ARCH_GIC_MAINT_IRQ));
    qdev_connect_gpio_out_named(cpu, "pmu-interrupt", 0,
                                qdev_get_gpio_in(gic, ppi + VIRTUAL_PMU_IRQ));
    for (int j = 0; j < ARRAY_SIZE(cpu_input); j++) {
        sysbus_connect_irq(SYS_BUS_DEVICE(gic), i + j * s->num_cpus,
                           qdev_get_gpio_in(cpu, cpu_input[j]));
    }
}

/*
 * The interrupt controller has two security states, as on silicon. With one,
 * Linux switches the CPU interface off before a PSCI CPU_SUSPEND, and QEMU
 * has no redistributor wake request that would get it out again.
 */
static bool soc_realize_gic(Rk3588SocState *s, Error **errp)
{
    DeviceState *gic = DEVICE(&s->gic);
    SysBusDevice *sbd = SYS_BUS_DEVICE(gic);
    QList *redist = qlist_new();

    qdev_prop_set_uint32(gic, "revision", 3);
    qdev_prop_set_uint32(gic, "num-cpu", s->num_cpus);
    qdev_prop_set_uint32(gic, "num-irq", RK3588_NUM_SPI + GIC_INTERNAL);
    qdev_prop_set_bit(gic, "has-security-extensions", true);
    qlist_append_int(redist, s->num_cpus);
    qdev_prop_set_array(gic, "redist-region-count", redist);
    if (s->its) {
        object_property_set_link(OBJECT(gic), "sysmem",
                                 OBJECT(get_system_memory()), &error_abort);
        qdev_prop_set_bit(gic, "has-lpi", true);
    }
    if (!sysbus_realize(sbd, errp)) {
        return false;
    }
    sysbus_mmio_map(sbd, 0, GICD_BASE);
    sysbus_mmio_map(sbd, 1, GICR_BASE);
    for (int i = 0; i < s->num_cpus; i++) {
        soc_connect_cpu(s, i);
    }
    if (s->its) {
        DeviceState *its = qdev_new(its_class_name());

        object_property_add_child(OBJECT(s), "its0", OBJECT(its));
        object_property_set_link(OBJECT(its), "parent-gicv3", OBJECT(gic),
                                 &error_abort);
        if (!sysbus_realize_and_unref(SYS_BUS_DEVICE(its), errp)) {
            return false;
        }
        sysbus_mmio_map(SYS_BUS_DEVICE(its), 0, ITS0_BASE);
    }
    return true;
}

static bool soc_realize_blocks(Rk3588SocState *s, Error **errp)
{
    const struct {
        const char *name;
        hwaddr base;
        uint32_t size;
        bool hiword;
    } blocks[RK3588_NUM_BLOCKS] = {
        /* every GRF and IOC of the SoC */
        [RK3588_BLOCK_GRF] = { "grf", 0xfd580000, 0x80000, true },
        [RK3588_BLOCK_QOS] = { "qos", 0xfdf35000, 0x4e000, false },
    };

    for (int i = 0; i < RK3588_NUM_BLOCKS; i++) {
        DeviceState *dev = DEVICE(&s->block[i]);

        qdev_prop_set_string(dev, "name", blocks[i].name);
        qdev_prop_set_uint32(dev, "size", blocks[i].size);
        qdev_prop_set_bit(dev, "hiword", blocks[i].hiword);
        if (!sysbus_realize(SYS_BUS_DEVICE(dev), errp)) {
            return false;
        }
        sysbus_mmio_map(SYS_BUS_DEVICE(dev), 0, blocks[i].base);
    }
    return true;
}

/*
 * DesignWare's registers beyond the 16550's fall on the catch-all: read as
 * zero, they say that there is no fractional divider and no FIFO to size.
 */
static bool soc_realize_uart(Rk3588SocState *s, Error **errp)
{
    DeviceState *uart = qdev_new(TYPE_SERIAL_MM);
    SysBusDevice *sbd = SYS_BUS_DEVICE(uart);

    object_property_add_child(OBJECT(s), "uart", OBJECT(uart));
    qdev_prop_set_uint8(uart, "regshift", 2);
    qdev_prop_set_uint32(uart, "baudbase", UART_BAUDBASE);
    qdev_prop_set_uint8(uart, "endianness", DEVICE_LITTLE_ENDIAN);
    qdev_prop_set_chr(uart, "chardev", serial_hd(0));
    if (!sysbus_realize_and_unref(sbd, errp)) {
        return false;
    }
    sysbus_mmio_map(sbd, 0, uart_base[s->console]);
    sysbus_connect_irq(sbd, 0, rk3588_soc_spi(s, UART_SPI(s->console)));
    return true;
}

static bool soc_realize_storage(Rk3588SocState *s, Error **errp)
{
    SysBusDevice *sfc = SYS_BUS_DEVICE(&s->sfc);
    SysBusDevice *emmc = SYS_BUS_DEVICE(&s->emmc);

    if (!sysbus_realize(sfc, errp) || !sysbus_realize(emmc, errp)) {
        return false;
    }
    sysbus_mmio_map(sfc, 0, SFC_BASE);
    sysbus_connect_irq(sfc, 0, rk3588_soc_spi(s, SFC_SPI));
    sysbus_mmio_map(emmc, 0, EMMC_BASE);
    sysbus_connect_irq(emmc, 0, rk3588_soc_spi(s, EMMC_SPI));
    return true;
}

/*
 * DesignWare's USB 3 controllers, as hosts only. Their order gives the buses'
 * names: "usb-bus.0" to "usb-bus.2". PHYs are not modelled: the device tree's
 * fixup drops them, and a driver goes on without.
 */
static bool soc_realize_usb(Rk3588SocState *s, Error **errp)
{
    for (int i = 0; i < RK3588_NUM_USB; i++) {
        SysBusDevice *usb = SYS_BUS_DEVICE(&s->usb[i]);

        object_property_set_uint(OBJECT(usb), "intrs", USB_INTERRUPTERS,
                                 &error_abort);
        object_property_set_uint(OBJECT(usb), "slots", USB_SLOTS,
                                 &error_abort);
        if (!sysbus_realize(usb, errp)) {
            return false;
        }
        sysbus_mmio_map(usb, 0, usb_base[i]);
        sysbus_connect_irq(SYS_BUS_DEVICE(&s->usb[i].sysbus_xhci), 0,
                           rk3588_soc_spi(s, USB_SPI(i)));
    }
    return true;
}

static bool soc_realize_srams(Rk3588SocState *s, Error **errp)
{
    MemoryRegion *sysmem = get_system_memory();

    if (!memory_region_init_ram(&s->sram[0], OBJECT(s), "rk3588.sram0",
                                SRAM0_SIZE, errp) ||
        !memory_region_init_ram(&s->sram[1], OBJECT(s), "rk3588.sram1",
                                SRAM1_SIZE, errp)) {
        return false;
    }
    memory_region_add_subregion(sysmem, SRAM0_BASE, &s->sram[0]);
    memory_region_add_subregion(sysmem, SRAM1_BASE, &s->sram[1]);
    return true;
}

/* One line that tells a core and its IOMMU of power, clock or reset */
static bool soc_connect_line(Rk3588SocState *s, int core, int line,
                             Error **errp)
{
    static const char *const input[RK3588_NUM_LINES] = {
        [RK3588_LINE_POWER_OFF] = "power-off",
        [RK3588_LINE_CLOCK_OFF] = "clock-off",
        [RK3588_LINE_RESET] = "reset",
    };
    DeviceState *split = DEVICE(&s->npu_line[core][line]);
    qemu_irq in;

    qdev_prop_set_uint16(split, "num-lines", 2);
    if (!qdev_realize(split, NULL, errp)) {
        return false;
    }
    /* the IOMMU first: a core that loses its job reports to it no more */
    qdev_connect_gpio_out(split, 0,
                          qdev_get_gpio_in_named(DEVICE(&s->iommu[core]),
                                                 input[line], 0));
    qdev_connect_gpio_out(split, 1,
                          qdev_get_gpio_in_named(DEVICE(&s->npu[core]),
                                                 input[line], 0));
    in = qdev_get_gpio_in(split, 0);
    switch (line) {
    case RK3588_LINE_POWER_OFF:
        qdev_connect_gpio_out_named(DEVICE(&s->pmu), RK3588_PMU_POWER_OFF,
                                    npu_cores[core].domain, in);
        break;
    case RK3588_LINE_CLOCK_OFF:
        qdev_connect_gpio_out_named(DEVICE(&s->cru), RK3588_CRU_CLOCK_OFF,
                                    core, in);
        break;
    case RK3588_LINE_RESET:
        qdev_connect_gpio_out_named(DEVICE(&s->cru), RK3588_CRU_RESET, core,
                                    in);
        break;
    }
    return true;
}

static bool soc_realize_npu(Rk3588SocState *s, int core, Error **errp)
{
    DeviceState *npu = DEVICE(&s->npu[core]);
    DeviceState *iommu = DEVICE(&s->iommu[core]);
    DeviceState *irq = DEVICE(&s->npu_irq[core]);

    qdev_prop_set_string(iommu, "name", npu_cores[core].name);
    qdev_prop_set_uint32(iommu, "banks", npu_cores[core].num_banks);
    qdev_prop_set_uint32(npu, "core", core);
    object_property_set_link(OBJECT(npu), "iommu", OBJECT(iommu),
                             &error_abort);
    object_property_set_int(OBJECT(irq), "num-lines", 2, &error_abort);
    if (!qdev_realize(irq, NULL, errp) ||
        !sysbus_realize(SYS_BUS_DEVICE(iommu), errp) ||
        !sysbus_realize(SYS_BUS_DEVICE(npu), errp)) {
        return false;
    }
    for (int i = 0; i < npu_cores[core].num_banks; i++) {
        sysbus_mmio_map(SYS_BUS_DEVICE(iommu), i,
                        NPU_BASE(core) + npu_cores[core].bank[i]);
    }
    sysbus_mmio_map(SYS_BUS_DEVICE(npu), 0, NPU_BASE(core));
    sysbus_connect_irq(SYS_BUS_DEVICE(npu), 0, qdev_get_gpio_in(irq, 0));
    sysbus_connect_irq(SYS_BUS_DEVICE(iommu), 0, qdev_get_gpio_in(irq, 1));
    qdev_connect_gpio_out(irq, 0, rk3588_soc_spi(s, NPU_SPI(core)));
    for (int i = 0; i < RK3588_NUM_LINES; i++) {
        if (!soc_connect_line(s, core, i, errp)) {
            return false;
        }
    }
    return true;
}

static void soc_realize(DeviceState *dev, Error **errp)
{
    Rk3588SocState *s = RK3588_SOC(dev);

    if (s->num_cpus < 1 || s->num_cpus > RK3588_MAX_CPUS ||
        s->console >= RK3588_NUM_UART) {
        error_setg(errp, "%s: %u CPUs or UART %u: there are %u and %u",
                   TYPE_RK3588_SOC, s->num_cpus, s->console, RK3588_MAX_CPUS,
                   RK3588_NUM_UART);
        return;
    }
    /* what is not modelled reads as zero and swallows writes, logged */
    create_unimplemented_device(RK3588_CATCH_ALL, RK3588_IO_BASE,
                                RK3588_IO_SIZE);
    if (!soc_realize_cpus(s, errp) || !soc_realize_gic(s, errp) ||
        !soc_realize_blocks(s, errp) || !soc_realize_srams(s, errp) ||
        !soc_realize_uart(s, errp) || !soc_realize_storage(s, errp) ||
        !soc_realize_usb(s, errp) ||
        !sysbus_realize(SYS_BUS_DEVICE(&s->cru), errp) ||
        !sysbus_realize(SYS_BUS_DEVICE(&s->pmu), errp)) {
        return;
    }
    sysbus_mmio_map(SYS_BUS_DEVICE(&s->cru), 0, CRU_BASE);
    sysbus_mmio_map(SYS_BUS_DEVICE(&s->pmu), 0, PMU_BASE);

    object_property_set_link(OBJECT(&s->scmi), "memory",
                             OBJECT(get_system_memory()), &error_abort);
    object_property_set_uint(OBJECT(&s->scmi), "shmem", SCMI_SHMEM,
                             &error_abort);
    if (!sysbus_realize(SYS_BUS_DEVICE(&s->scmi), errp)) {
        return;
    }
    for (int i = 0; i < RK3588_NPU_NUM_CORES; i++) {
        if (!soc_realize_npu(s, i, errp)) {
            return;
        }
    }
}

static void soc_init(Object *obj)
{
    Rk3588SocState *s = RK3588_SOC(obj);

    object_initialize_child(obj, "gic", &s->gic, gicv3_class_name());
    object_initialize_child(obj, "cru", &s->cru, TYPE_RK3588_CRU);
    object_initialize_child(obj, "pmu", &s->pmu, TYPE_RK3588_PMU);
    object_initialize_child(obj, "scmi", &s->scmi, TYPE_RK3588_SCMI);
    object_initialize_child(obj, "sfc", &s->sfc, TYPE_RK_SFC);
    object_initialize_child(obj, "emmc", &s->emmc, TYPE_RK_DWCMSHC);
    for (int i = 0; i < RK3588_NUM_USB; i++) {
        object_initialize_child(obj, "usb[*]", &s->usb[i], TYPE_USB_DWC3);
    }
    for (int i = 0; i < RK3588_NUM_BLOCKS; i++) {
        object_initialize_child(obj, "block[*]", &s->block[i],
                                TYPE_RK_REGFILE);
    }
    for (int i = 0; i < RK3588_NPU_NUM_CORES; i++) {
        object_initialize_child(obj, "npu[*]", &s->npu[i], TYPE_RK3588_NPU);
        object_initialize_child(obj, "iommu[*]", &s->iommu[i], TYPE_RK_IOMMU);
        object_initialize_child(obj, "npu-irq[*]", &s->npu_irq[i],
                                TYPE_OR_IRQ);
        for (int j = 0; j < RK3588_NUM_LINES; j++) {
            object_initialize_child(obj, "npu-line[*]", &s->npu_line[i][j],
                                    TYPE_SPLIT_IRQ);
        }
    }
}

static const Property soc_properties[] = {
    DEFINE_PROP_UINT32("num-cpus", Rk3588SocState, num_cpus, 1),
    DEFINE_PROP_UINT32("console", Rk3588SocState, console, 2),
    DEFINE_PROP_BOOL("virtualization", Rk3588SocState, virtualization, false),
    DEFINE_PROP_BOOL("its", Rk3588SocState, its, false),
};

static void soc_class_init(ObjectClass *oc, RkClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "Rockchip RK3588";
    dc->realize = soc_realize;
    dc->user_creatable = false;
    device_class_set_props(dc, soc_properties);
}

static const TypeInfo soc_types[] = {
    {
        .name = TYPE_RK3588_SOC,
        .parent = TYPE_DEVICE,
        .instance_size = sizeof(Rk3588SocState),
        .instance_init = soc_init,
        .class_init = soc_class_init,
    },
};

DEFINE_TYPES(soc_types)
