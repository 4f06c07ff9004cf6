# SPDX-License-Identifier: MIT
SUMMARY = "First program of the rescue RAM disk"
DESCRIPTION = "Mounts the kernel's own file systems and nothing else, brings up the network, and starts a shell"
HOMEPAGE = "https://www.openembedded.org"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

SRC_URI = "file://init"

S = "${UNPACKDIR}"

do_install() {
    install -m 0755 ${S}/init ${D}/init
}

FILES:${PN} += "/init"
RDEPENDS:${PN} = "busybox"
