# SPDX-License-Identifier: MIT
# OE-core's base class gives tasks this function: make with the flags of a cross build.
oe_runmake_call() {
    make ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- ${PARALLEL_MAKE} CC="${KERNEL_CC}" HOSTCC="${BUILD_CC}" "$@"
}
