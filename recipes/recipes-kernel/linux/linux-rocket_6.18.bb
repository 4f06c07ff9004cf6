# SPDX-License-Identifier: MIT
SUMMARY = "Mainline Linux 6.18 (long-term) with the RK3588's NPU"

LINUX_VERSION = "6.18.39"

require linux-rocket.inc

SRC_URI[kernel.sha256sum] = "a7a7e3d2ae9d95e74197223a8d4eb5f6be7aac21b6e6de27e9685d001c1f8cb0"

# 7.3 is the default
DEFAULT_PREFERENCE = "-1"
