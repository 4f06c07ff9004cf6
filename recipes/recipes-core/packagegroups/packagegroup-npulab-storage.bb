# SPDX-License-Identifier: MIT
SUMMARY = "Tools to read and write a board's storage"
DESCRIPTION = "What a backup over ssh or the serial console uses, and what a restore by hand needs"
LICENSE = "MIT"

inherit packagegroup

RDEPENDS:${PN} = "\
    bmaptool \
    coreutils \
    mmc-utils \
    mtd-utils \
    nvme-cli \
    util-linux-blkdiscard \
    util-linux-fdisk \
    util-linux-lsblk \
    zstd \
"
# of meta-openembedded, where the build has it
RDEPENDS:${PN}:remove = "${@'' if 'openembedded-layer' in d.getVar('BBFILE_COLLECTIONS').split() else 'nvme-cli'}"
