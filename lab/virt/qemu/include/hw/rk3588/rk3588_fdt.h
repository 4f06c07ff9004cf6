/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the virtual board does to a real board's device tree.
 */
#ifndef HW_RK3588_FDT_H
#define HW_RK3588_FDT_H

#include "exec/hwaddr.h"

typedef struct Rk3588FdtOptions {
    unsigned num_cpus;
    bool strict_supplies;       /* leave supplies alone */
    const char *catch_all;      /* memory region of what is not modelled */
    hwaddr io_base;             /* nodes below it are memory */
    hwaddr high_base;           /* second memory window */
    uint64_t high_size;
    hwaddr virtio_base;         /* virtio-mmio transports to add */
    unsigned virtio_spi, num_virtio;
    hwaddr virtio_size;
} Rk3588FdtOptions;

/*
 * Make a real board's tree fit the machine, and append to @report one line per
 * change.
 */
void rk3588_fdt_fixup(void *fdt, const Rk3588FdtOptions *opts,
                      GString *report);

/* Address of the serial port that /chosen/stdout-path names, 0 if none */
hwaddr rk3588_fdt_console(const char *filename);

#endif
