# SPDX-License-Identifier: MIT
SUMMARY = "Empty provider of virtual/fakeroot-native"
DESCRIPTION = "For builds with the host's own tools, which need none: a virtual provider cannot be assumed provided."
HOMEPAGE = "https://www.openembedded.org"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

PROVIDES += "virtual/fakeroot-native"

SRC_URI = ""

inherit_defer native

INHIBIT_DEFAULT_DEPS = "1"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"
