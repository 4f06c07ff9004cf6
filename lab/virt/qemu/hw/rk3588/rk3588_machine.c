/*
 * Machine "rk3588": the SoC with RAM and virtio transports, which boots a
 * mainline kernel with any RK3588 board's device tree.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "cpu.h"
#include "chardev/char.h"
#include "hw/arm/boot.h"
#include "hw/boards.h"
#include "hw/irq.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_fdt.h"
#include "hw/rk3588/rk3588_soc.h"
#include "hw/sd/sd.h"
#include "hw/ssi/ssi.h"
#include "system/block-backend.h"
#include "system/blockdev.h"

#define TYPE_RK3588_MACHINE MACHINE_TYPE_NAME("rk3588")
OBJECT_DECLARE_SIMPLE_TYPE(Rk3588MachineState, RK3588_MACHINE)

/*
 * Eight transports in a hole of the SoC's own map, on interrupts that the SoC
 * does not use (its highest is 400, message interrupts start at 424).
 */
#define VIRTIO_BASE  0xfef00000
#define VIRTIO_SIZE  0x200
#define VIRTIO_SPI   402
#define NUM_VIRTIO   8

#define MAX_RAM_SIZE (32 * GiB)

#define NOR_CHIP            "n25q128a13"        /* 16 MiB */
#define EMMC_BOOT_SIZE      (4 * MiB)

struct Rk3588MachineState {
    MachineState parent_obj;

    Rk3588SocState soc;
    MemoryRegion ram_low, ram_high;
    struct arm_boot_info bootinfo;
    char *dt_report;
    bool strict_supplies;
    bool virtualization;
    bool its;
};

static void machine_init_ram(Rk3588MachineState *m)
{
    MachineState *ms = MACHINE(m);
    MemoryRegion *sysmem = get_system_memory();
    uint64_t low = MIN(ms->ram_size, RK3588_IO_BASE);

    if (ms->ram_size > MAX_RAM_SIZE) {
        error_report("rk3588: %" PRIu64 " MiB of RAM: there is room for %"
                     PRIu64, ms->ram_size / MiB, (uint64_t)MAX_RAM_SIZE / MiB);
        exit(1);
    }
    memory_region_init_alias(&m->ram_low, OBJECT(m), "rk3588.ram-low", ms->ram,
                             0, low);
    memory_region_add_subregion(sysmem, 0, &m->ram_low);
    if (ms->ram_size > low) {
        memory_region_init_alias(&m->ram_high, OBJECT(m), "rk3588.ram-high",
                                 ms->ram, low, ms->ram_size - low);
        memory_region_add_subregion(sysmem, RK3588_HIGH_BASE, &m->ram_high);
    }
}

/* The board's console is the serial port that its device tree says it is */
static int machine_console(MachineState *ms)
{
    hwaddr base = ms->dtb ? rk3588_fdt_console(ms->dtb) : 0;
    int uart = base ? rk3588_soc_uart_at(base) : 2;

    if (uart < 0) {
        error_report("rk3588: %s: no UART at the console's address 0x%"
                     HWADDR_PRIx, ms->dtb, base);
        exit(1);
    }
    return uart;
}

static void machine_init_soc(Rk3588MachineState *m)
{
    MachineState *ms = MACHINE(m);
    DeviceState *soc;

    object_initialize_child(OBJECT(m), "soc", &m->soc, TYPE_RK3588_SOC);
    soc = DEVICE(&m->soc);
    qdev_prop_set_uint32(soc, "num-cpus", ms->smp.cpus);
    qdev_prop_set_uint32(soc, "console", machine_console(ms));
    qdev_prop_set_bit(soc, "virtualization", m->virtualization);
    qdev_prop_set_bit(soc, "its", m->its);
    for (int i = 0; i < RK3588_NPU_NUM_CORES; i++) {
        g_autofree char *id = g_strdup_printf("npu%d", i);
        DeviceState *npu = DEVICE(&m->soc.npu[i]);
        Chardev *chr = qemu_chr_find(id);

        qdev_prop_set_uint64(npu, "ram-low", m->bootinfo.ram_size);
        qdev_prop_set_uint64(npu, "ram-size", ms->ram_size);
        if (chr) {
            qdev_prop_set_chr(npu, "chardev", chr);
        }
    }
    qdev_realize(soc, NULL, &error_fatal);
}

/* The SPI NOR is soldered on; without a file it is erased, and forgets. */
static void machine_init_nor(Rk3588MachineState *m)
{
    DeviceState *sfc = DEVICE(&m->soc.sfc);
    DriveInfo *drive = drive_get(IF_MTD, 0, 0);
    DeviceState *nor = qdev_new(NOR_CHIP);

    if (drive) {
        qdev_prop_set_drive_err(nor, "drive", blk_by_legacy_dinfo(drive),
                                &error_fatal);
    }
    ssi_realize_and_unref(nor, m->soc.sfc.spi, &error_fatal);
    qdev_connect_gpio_out_named(sfc, "cs", 0,
                                qdev_get_gpio_in_named(nor, SSI_GPIO_CS, 0));
}

/* A drive holds both boot partitions, then the user area, as QEMU's card has */
static void machine_init_emmc(Rk3588MachineState *m)
{
    DriveInfo *drive = drive_get(IF_SD, 0, 0);
    DeviceState *card;

    if (!drive) {
        return;
    }
    card = qdev_new(TYPE_EMMC);
    qdev_prop_set_uint64(card, "boot-partition-size", EMMC_BOOT_SIZE);
    qdev_prop_set_drive_err(card, "drive", blk_by_legacy_dinfo(drive),
                            &error_fatal);
    qdev_realize_and_unref(card,
                           qdev_get_child_bus(DEVICE(&m->soc.emmc.sdhci),
                                              "sd-bus"), &error_fatal);
}

static void machine_modify_dtb(const struct arm_boot_info *info, void *fdt)
{
    Rk3588MachineState *m = container_of(info, Rk3588MachineState, bootinfo);
    MachineState *ms = MACHINE(m);
    const Rk3588FdtOptions opts = {
        .num_cpus = ms->smp.cpus,
        .strict_supplies = m->strict_supplies,
        .catch_all = RK3588_CATCH_ALL,
        .io_base = RK3588_IO_BASE,
        .high_base = RK3588_HIGH_BASE,
        .high_size = ms->ram_size - info->ram_size,
        .virtio_base = VIRTIO_BASE,
        .virtio_size = VIRTIO_SIZE,
        .virtio_spi = VIRTIO_SPI,
        .num_virtio = NUM_VIRTIO,
    };
    g_autoptr(GString) report = g_string_new(NULL);
    g_autoptr(GError) err = NULL;

    rk3588_fdt_fixup(fdt, &opts, report);
    if (m->dt_report &&
        !g_file_set_contents(m->dt_report, report->str, report->len, &err)) {
        error_report("rk3588: dt-report: %s", err->message);
        exit(1);
    }
}

static void machine_init(MachineState *ms)
{
    Rk3588MachineState *m = RK3588_MACHINE(ms);

    if (ms->kernel_filename && !ms->dtb) {
        error_report("rk3588: a kernel needs a board's device tree: "
                     "-dtb FILE");
        exit(1);
    }
    m->bootinfo.ram_size = MIN(ms->ram_size, RK3588_IO_BASE);
    m->bootinfo.loader_start = 0;
    m->bootinfo.board_id = -1;
    m->bootinfo.psci_conduit = QEMU_PSCI_CONDUIT_SMC;
    m->bootinfo.modify_dtb = machine_modify_dtb;

    machine_init_ram(m);
    machine_init_soc(m);
    machine_init_nor(m);
    machine_init_emmc(m);
    /*
     * From the last: -device takes the newest free transport, so that disks
     * keep their order.
     */
    for (int i = NUM_VIRTIO - 1; i >= 0; i--) {
        sysbus_create_simple("virtio-mmio", VIRTIO_BASE + i * VIRTIO_SIZE,
                             rk3588_soc_spi(&m->soc, VIRTIO_SPI + i));
    }
    arm_load_kernel(m->soc.cpu[0], ms, &m->bootinfo);
}

static char *machine_get_dt_report(Object *obj, Error **errp)
{
    return g_strdup(RK3588_MACHINE(obj)->dt_report);
}

static void machine_set_dt_report(Object *obj, const char *value, Error **errp)
{
    Rk3588MachineState *m = RK3588_MACHINE(obj);

    g_free(m->dt_report);
    m->dt_report = g_strdup(value);
}

static bool machine_get_strict_supplies(Object *obj, Error **errp)
{
    return RK3588_MACHINE(obj)->strict_supplies;
}

static void machine_set_strict_supplies(Object *obj, bool value, Error **errp)
{
    RK3588_MACHINE(obj)->strict_supplies = value;
}

static bool machine_get_virtualization(Object *obj, Error **errp)
{
    return RK3588_MACHINE(obj)->virtualization;
}

static void machine_set_virtualization(Object *obj, bool value, Error **errp)
{
    RK3588_MACHINE(obj)->virtualization = value;
}

static bool machine_get_its(Object *obj, Error **errp)
{
    return RK3588_MACHINE(obj)->its;
}

static void machine_set_its(Object *obj, bool value, Error **errp)
{
    RK3588_MACHINE(obj)->its = value;
}

static void machine_finalize(Object *obj)
{
    g_free(RK3588_MACHINE(obj)->dt_report);
}

static void machine_class_init(ObjectClass *oc, RkClassData *data)
{
    MachineClass *mc = MACHINE_CLASS(oc);

    mc->desc = "Rockchip RK3588 board with a virtual NPU";
    mc->init = machine_init;
    mc->max_cpus = RK3588_MAX_CPUS;
    mc->default_cpus = 2;
    mc->default_cpu_type = ARM_CPU_TYPE_NAME("cortex-a55");
    mc->default_ram_size = 1 * GiB;
    mc->minimum_page_bits = 12;         /* no CPU of it has smaller ones */
    mc->default_ram_id = "rk3588.ram";
    mc->block_default_type = IF_VIRTIO;
    mc->no_parallel = true;
    mc->no_floppy = true;
    mc->no_cdrom = true;

    object_class_property_add_str(oc, "dt-report", machine_get_dt_report,
                                  machine_set_dt_report);
    object_class_property_set_description(oc, "dt-report",
        "File for a list of what was changed in the device tree");
    object_class_property_add_bool(oc, "strict-supplies",
                                   machine_get_strict_supplies,
                                   machine_set_strict_supplies);
    object_class_property_set_description(oc, "strict-supplies",
        "Keep the supplies of power domains and NPU in the device tree");
    object_class_property_add_bool(oc, "virtualization",
                                   machine_get_virtualization,
                                   machine_set_virtualization);
    object_class_property_set_description(oc, "virtualization",
        "CPUs have EL2, and the kernel starts there");
    object_class_property_add_bool(oc, "its", machine_get_its,
                                   machine_set_its);
    object_class_property_set_description(oc, "its",
        "The interrupt controller has an ITS");
}

static const TypeInfo machine_types[] = {
    {
        .name = TYPE_RK3588_MACHINE,
        .parent = TYPE_MACHINE,
        .instance_size = sizeof(Rk3588MachineState),
        .instance_finalize = machine_finalize,
        .class_init = machine_class_init,
        RK_MACHINE_INTERFACES
    },
};

DEFINE_TYPES(machine_types)
