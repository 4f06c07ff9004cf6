/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which accesses to a device's registers are bus errors, and why.
 */
#include "qemu/osdep.h"
#include "hw/rk3588/rk_access.h"

const char *rk_access_refusal(const RkAccess *a, hwaddr off,
                              unsigned int size)
{
    if (a->power_off) {
        return "while power domain is off";
    }
    if (a->in_reset) {
        return "while reset is asserted";
    }
    if (a->clock_off) {
        return "while clock is gated";
    }
    if (size != 4 || off % 4) {
        return "is a bus error: only aligned 32-bit accesses work";
    }
    return NULL;
}
