# SPDX-License-Identifier: MIT
SUMMARY = "Image to bring an RK3588 board's NPU up with"
DESCRIPTION = "Log-in on the serial console, ssh, the NPU's userspace library with its self-tests, Mesa's Teflon \
delegate with TensorFlow Lite's runtime, and tools to back up the board's storage"
LICENSE = "MIT"

inherit core-image

IMAGE_FEATURES += "ssh-server-dropbear allow-empty-password allow-root-login empty-root-password"
IMAGE_INSTALL = "\
    packagegroup-core-boot \
    kernel-modules \
    python3-rknpu-userspace \
    python3-rknpu-userspace-ptest \
    libteflon \
    python3-ai-edge-litert \
    packagegroup-npulab-storage \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"
IMAGE_LINGUAS = ""
IMAGE_ROOTFS_EXTRA_SPACE = "65536"
