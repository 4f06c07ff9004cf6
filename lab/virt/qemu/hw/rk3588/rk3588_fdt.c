/*
 * A real board's device tree on the virtual board: what the tree enables and
 * the machine does not model is disabled, what the machine adds is added, and
 * every change is told.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "hw/rk3588/qemu_compat.h"
#include "hw/rk3588/rk3588_fdt.h"
#include "system/device_tree.h"
#include <libfdt.h>

#define MAX_CPUS 8
#define MAX_PATH 256

typedef struct FixupContext {
    void *fdt;
    const Rk3588FdtOptions *opts;
    GString *report;
} FixupContext;

static void G_GNUC_PRINTF(2, 3) fixup_report(FixupContext *ctx,
                                             const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_string_append_vprintf(ctx->report, fmt, ap);
    va_end(ap);
    g_string_append_c(ctx->report, '\n');
}

static const char *fixup_path(FixupContext *ctx, int node, char *buf)
{
    return fdt_get_path(ctx->fdt, node, buf, MAX_PATH) ? "?" : buf;
}

static bool node_enabled(void *fdt, int node)
{
    const char *status = fdt_getprop(fdt, node, "status", NULL);

    return !status || !strcmp(status, "okay") || !strcmp(status, "ok");
}

/* Offsets of the node and of those before it stay valid */
static void fixup_disable(FixupContext *ctx, int node, const char *reason)
{
    char path[MAX_PATH];

    fdt_setprop_string(ctx->fdt, node, "status", "disabled");
    fixup_report(ctx, "disabled %s %s", fixup_path(ctx, node, path), reason);
}

static uint64_t read_cells(const fdt32_t *cell, int num)
{
    uint64_t val = 0;

    while (num--) {
        val = val << 32 | fdt32_to_cpu(*cell++);
    }
    return val;
}

static bool is_modelled(FixupContext *ctx, hwaddr addr)
{
    MemoryRegionSection sec = memory_region_find(get_system_memory(), addr, 4);
    bool modelled;

    if (!sec.mr) {
        return false;
    }
    modelled = strcmp(memory_region_name(sec.mr), ctx->opts->catch_all);
    memory_region_unref(sec.mr);
    return modelled;
}

/*
 * Disable what is not modelled among the children of @bus, whose addresses
 * are the CPU's, and of the buses below it that do not translate either. The
 * memory map is asked: there is no list of devices to keep.
 */
static void fixup_bus(FixupContext *ctx, int bus)
{
    void *fdt = ctx->fdt;
    int acells = fdt_address_cells(fdt, bus);
    int node, len;

    fdt_for_each_subnode(node, fdt, bus) {
        const fdt32_t *reg = fdt_getprop(fdt, node, "reg", &len);

        if (!node_enabled(fdt, node)) {
            continue;
        }
        if (reg && len >= acells * 4) {
            hwaddr addr = read_cells(reg, acells);

            if (addr >= ctx->opts->io_base && addr < ctx->opts->high_base &&
                !is_modelled(ctx, addr)) {
                fixup_disable(ctx, node, "not modelled");
                continue;
            }
        }
        if (fdt_getprop(fdt, node, "ranges", &len) && len == 0) {
            fixup_bus(ctx, node);
        }
    }
}

/* Reserved memory without an address, for devices that are not there */
static void fixup_reserved_memory(FixupContext *ctx)
{
    void *fdt = ctx->fdt;
    int parent = fdt_path_offset(fdt, "/reserved-memory");
    g_autoptr(GHashTable) used = g_hash_table_new(NULL, NULL);
    int node, len;

    if (parent < 0) {
        return;
    }
    for (node = 0; node >= 0; node = fdt_next_node(fdt, node, NULL)) {
        const fdt32_t *ref = fdt_getprop(fdt, node, "memory-region", &len);

        for (int i = 0; ref && node_enabled(fdt, node) && i < len / 4; i++) {
            g_hash_table_add(used, GUINT_TO_POINTER(fdt32_to_cpu(ref[i])));
        }
    }
    fdt_for_each_subnode(node, fdt, parent) {
        uint32_t phandle = fdt_get_phandle(fdt, node);

        if (node_enabled(fdt, node) && !fdt_getprop(fdt, node, "reg", NULL) &&
            !fdt_getprop(fdt, node, "linux,cma-default", NULL) && phandle &&
            !g_hash_table_contains(used, GUINT_TO_POINTER(phandle))) {
            fixup_disable(ctx, node, "no user");
        }
    }
}

static void fixup_drop(FixupContext *ctx, int node, const char *prop)
{
    char path[MAX_PATH];

    if (fdt_getprop(ctx->fdt, node, prop, NULL)) {
        fdt_nop_property(ctx->fdt, node, prop);
        fixup_report(ctx, "dropped %s %s", fixup_path(ctx, node, path), prop);
    }
}

/*
 * The PHYs of the USB controllers are not modelled, and drivers wait for a PHY
 * that is named and not there, even if it is disabled.
 */
static void fixup_usb_phys(FixupContext *ctx)
{
    int node = -1;

    while ((node = fdt_node_offset_by_compatible(ctx->fdt, node,
                                                 "snps,dwc3")) >= 0) {
        if (node_enabled(ctx->fdt, node)) {
            fixup_drop(ctx, node, "phys");
            fixup_drop(ctx, node, "phy-names");
        }
    }
}

static void fixup_domain_supplies(FixupContext *ctx, int parent)
{
    int node;

    fdt_for_each_subnode(node, ctx->fdt, parent) {
        fixup_drop(ctx, node, "domain-supply");
        fixup_domain_supplies(ctx, node);
    }
}

/*
 * The regulators sit on buses that are not modelled, and drivers wait for a
 * supply that is named and not there.
 */
static void fixup_supplies(FixupContext *ctx)
{
    void *fdt = ctx->fdt;
    int node;

    node = fdt_node_offset_by_compatible(fdt, -1,
                                         "rockchip,rk3588-power-controller");
    if (node >= 0) {
        fixup_domain_supplies(ctx, node);
    }
    node = -1;
    while ((node = fdt_node_offset_by_compatible(fdt, node,
                       "rockchip,rk3588-rknn-core")) >= 0) {
        fixup_drop(ctx, node, "npu-supply");
        fixup_drop(ctx, node, "sram-supply");
    }
}

/* Cut the phandles of absent CPUs out of an interrupt partition */
static void fixup_partition(FixupContext *ctx, int node, const uint32_t *gone,
                            int num_gone)
{
    fdt32_t keep[MAX_CPUS];
    char path[MAX_PATH];
    int len, num = 0;
    const fdt32_t *old = fdt_getprop(ctx->fdt, node, "affinity", &len);

    for (int i = 0; old && i < len / 4 && num < MAX_CPUS; i++) {
        int j = 0;

        while (j < num_gone && gone[j] != fdt32_to_cpu(old[i])) {
            j++;
        }
        if (j == num_gone) {
            keep[num++] = old[i];
        }
    }
    if (!old || num == len / 4) {
        return;
    }
    fixup_report(ctx, "trimmed %s affinity %d of %d",
                 fixup_path(ctx, node, path), num, len / 4);
    if (num) {
        fdt_setprop(ctx->fdt, node, "affinity", keep, num * 4);
    } else {
        fdt_nop_node(ctx->fdt, node);
    }
}

/* The tree has eight CPUs; keep as many as there are */
static void fixup_cpus(FixupContext *ctx)
{
    void *fdt = ctx->fdt;
    int cpus = fdt_path_offset(fdt, "/cpus");
    int acells = cpus < 0 ? 0 : fdt_address_cells(fdt, cpus);
    uint32_t gone[MAX_CPUS];
    char path[MAX_PATH];
    int node, len, num_gone = 0;

    fdt_for_each_subnode(node, fdt, cpus) {
        const char *type = fdt_getprop(fdt, node, "device_type", NULL);
        const fdt32_t *reg = fdt_getprop(fdt, node, "reg", &len);

        if (!type || strcmp(type, "cpu") || !reg || len < acells * 4 ||
            read_cells(reg, acells) >> 8 < ctx->opts->num_cpus ||
            num_gone == MAX_CPUS) {
            continue;
        }
        gone[num_gone++] = fdt_get_phandle(fdt, node);
        fdt_setprop_string(fdt, node, "status", "fail");
        fixup_report(ctx, "absent %s", fixup_path(ctx, node, path));
    }
    if (!num_gone) {
        return;
    }
    node = fdt_path_offset(fdt, "/cpus/cpu-map");
    if (node >= 0) {
        fdt_nop_node(fdt, node);
    }
    node = fdt_node_offset_by_compatible(fdt, -1, "arm,gic-v3");
    node = node < 0 ? node : fdt_subnode_offset(fdt, node, "ppi-partitions");
    if (node >= 0) {
        int part;

        fdt_for_each_subnode(part, fdt, node) {
            fixup_partition(ctx, part, gone, num_gone);
        }
    }
}

static void fixup_add_memory(FixupContext *ctx)
{
    const Rk3588FdtOptions *o = ctx->opts;
    g_autofree char *name = g_strdup_printf("/memory@%" PRIx64, o->high_base);

    if (!o->high_size) {
        return;
    }
    qemu_fdt_add_subnode(ctx->fdt, name);
    qemu_fdt_setprop_string(ctx->fdt, name, "device_type", "memory");
    qemu_fdt_setprop_sized_cells(ctx->fdt, name, "reg", 2, o->high_base,
                                 2, o->high_size);
    fixup_report(ctx, "added %s", name);
}

static void fixup_add_virtio(FixupContext *ctx, uint32_t gic)
{
    const Rk3588FdtOptions *o = ctx->opts;
    void *fdt = ctx->fdt;

    /* a node is added before its siblings: the last one first */
    for (int i = o->num_virtio - 1; i >= 0; i--) {
        hwaddr base = o->virtio_base + i * o->virtio_size;
        g_autofree char *name = g_strdup_printf("/virtio_mmio@%" PRIx64, base);

        qemu_fdt_add_subnode(fdt, name);
        qemu_fdt_setprop(fdt, name, "dma-coherent", NULL, 0);
        qemu_fdt_setprop_cells(fdt, name, "interrupts", 0, o->virtio_spi + i,
                               1, 0);
        qemu_fdt_setprop_cell(fdt, name, "interrupt-parent", gic);
        qemu_fdt_setprop_sized_cells(fdt, name, "reg", 2, base,
                                     2, o->virtio_size);
        qemu_fdt_setprop_string(fdt, name, "compatible", "virtio,mmio");
        fixup_report(ctx, "added %s", name);
    }
}

static void fixup_tell_npu(FixupContext *ctx)
{
    char path[MAX_PATH];
    int node = -1;

    while ((node = fdt_node_offset_by_compatible(ctx->fdt, node,
                       "rockchip,rk3588-rknn-core")) >= 0) {
        fixup_report(ctx, "npu %s %s", fixup_path(ctx, node, path),
                     node_enabled(ctx->fdt, node) ? "okay" : "disabled");
    }
}

/* @return the interrupt controller's phandle; does not return without one */
static uint32_t fixup_check(void *fdt)
{
    static const char *const socs[] = {
        "rockchip,rk3588", "rockchip,rk3588s", "rockchip,rk3582"
    };
    bool known = false;
    int gic;

    for (int i = 0; i < ARRAY_SIZE(socs); i++) {
        known |= !fdt_node_check_compatible(fdt, 0, socs[i]);
    }
    if (!known || fdt_address_cells(fdt, 0) != 2 ||
        fdt_size_cells(fdt, 0) != 2) {
        error_report("rk3588: the device tree is not an RK3588 board's");
        exit(1);
    }
    gic = fdt_node_offset_by_compatible(fdt, -1, "arm,gic-v3");
    if (gic < 0 || !fdt_get_phandle(fdt, gic)) {
        error_report("rk3588: the device tree has no interrupt controller");
        exit(1);
    }
    return fdt_get_phandle(fdt, gic);
}

void rk3588_fdt_fixup(void *fdt, const Rk3588FdtOptions *opts, GString *report)
{
    FixupContext ctx = { .fdt = fdt, .opts = opts, .report = report };
    uint32_t gic = fixup_check(fdt);
    int node;

    fixup_bus(&ctx, 0);
    node = fdt_path_offset(fdt, "/display-subsystem");
    if (node >= 0 && node_enabled(fdt, node)) {
        fixup_disable(&ctx, node, "not modelled");
    }
    fixup_usb_phys(&ctx);
    fixup_reserved_memory(&ctx);
    if (!opts->strict_supplies) {
        fixup_supplies(&ctx);
    }
    fixup_cpus(&ctx);
    fixup_tell_npu(&ctx);
    fixup_add_virtio(&ctx, gic);
    fixup_add_memory(&ctx);
}

hwaddr rk3588_fdt_console(const char *filename)
{
    int size, chosen, node, len;
    g_autofree void *fdt = load_device_tree(filename, &size);
    const char *path;
    const fdt32_t *reg;
    size_t n;

    if (!fdt) {
        error_report("rk3588: %s is not a device tree", filename);
        exit(1);
    }
    chosen = fdt_path_offset(fdt, "/chosen");
    path = chosen < 0 ? NULL : fdt_getprop(fdt, chosen, "stdout-path", NULL);
    if (!path) {
        return 0;
    }
    /* an alias or a path, then ":" and the line's settings */
    n = strcspn(path, ":");
    node = fdt_path_offset_namelen(fdt, path, n);
    reg = node < 0 ? NULL : fdt_getprop(fdt, node, "reg", &len);
    return reg && len >= 8 ? read_cells(reg, 2) : 0;
}
