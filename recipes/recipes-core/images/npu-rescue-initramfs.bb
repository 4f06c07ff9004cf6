# SPDX-License-Identifier: MIT
SUMMARY = "RAM disk that mounts nothing"
DESCRIPTION = "For backups of a board's storage while no system uses it: boots into RAM, brings up the network and \
an ssh server, and leaves every medium alone"
LICENSE = "MIT"

inherit core-image

IMAGE_FSTYPES = "${INITRAMFS_FSTYPES}"
IMAGE_FEATURES = "ssh-server-dropbear allow-empty-password allow-root-login empty-root-password"
PACKAGE_INSTALL = "\
    packagegroup-core-boot \
    packagegroup-npulab-storage \
    npulab-rescue-init \
    dropbear \
    ${ROOTFS_BOOTSTRAP_INSTALL} \
"
PACKAGE_EXCLUDE = "kernel-image-*"
IMAGE_LINGUAS = ""
IMAGE_NAME_SUFFIX = ""
IMAGE_ROOTFS_SIZE = "8192"
IMAGE_ROOTFS_EXTRA_SPACE = "0"
