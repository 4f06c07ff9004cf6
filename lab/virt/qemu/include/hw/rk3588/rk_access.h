/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a device's registers can be reached: its power domain, clock gate
 * and reset line, and the accesses that its bus takes.
 */
#ifndef HW_RK3588_RK_ACCESS_H
#define HW_RK3588_RK_ACCESS_H

#include "exec/hwaddr.h"
#include "hw/rk3588/qemu_compat.h"

typedef struct RkAccess {
    bool power_off;
    bool clock_off;
    bool in_reset;
} RkAccess;

/*
 * Why an access of @size bytes at @off is a bus error, as the end of a log
 * line; NULL if it is none. A register block takes aligned 32-bit accesses.
 */
const char *rk_access_refusal(const RkAccess *a, hwaddr off,
                              unsigned int size);

/* For .valid and .impl: every size arrives, so that the log can name it. */
#define RK_ACCESS_ANY_SIZE \
    { .min_access_size = 1, .max_access_size = 8, .unaligned = true }

#endif
