/*
 * The same sources for QEMU 10.0 and 10.2: headers and types that moved between them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef HW_RK3588_QEMU_COMPAT_H
#define HW_RK3588_QEMU_COMPAT_H

#include "qom/object.h"
#include "chardev/char-fe.h"

#if QEMU_VERSION_MAJOR > 10 || QEMU_VERSION_MINOR >= 2
#include "exec/icount.h"
#include "hw/arm/machines-qom.h"
#include "system/address-spaces.h"
#include "system/memory.h"
typedef const void RkClassData;
/* a binary lists only machines that name its target */
#define RK_MACHINE_INTERFACES .interfaces = aarch64_machine_interfaces,
#else
#include "exec/address-spaces.h"
#include "exec/memory.h"
typedef void RkClassData;
typedef CharBackend CharFrontend;
#define RK_MACHINE_INTERFACES
#endif

#endif
