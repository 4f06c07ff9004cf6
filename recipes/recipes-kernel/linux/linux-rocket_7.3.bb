# SPDX-License-Identifier: MIT
SUMMARY = "Mainline Linux 7.3 with the RK3588's NPU"

LINUX_VERSION = "7.3.4"

require linux-rocket.inc

# The hash of 7.3.4's tarball has not been confirmed against kernel.org's signed list yet; BitBake warns and prints it.
# With a hash of yours (NPULAB_LINUX_SHA256) it is checked.
SRC_URI[kernel.sha256sum] = "${NPULAB_LINUX_SHA256}"
NPULAB_LINUX_SHA256 ?= ""
BB_STRICT_CHECKSUM = "${@'1' if d.getVar('NPULAB_LINUX_SHA256') else '0'}"
