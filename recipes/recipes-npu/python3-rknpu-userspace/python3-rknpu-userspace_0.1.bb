# SPDX-License-Identifier: MIT
SUMMARY = "Userspace library of the RK3588's NPU"
DESCRIPTION = "Matrix products, convolutions and whole networks on the NPU through the kernel's rocket driver, in \
Python and numpy; with an executable model of the NPU and self-tests"
HOMEPAGE = "https://www.kernel.org"
SECTION = "devel/python"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${NPULAB_REPOSITORY}/LICENSES/MIT.txt;md5=f61b050c2caf90a5cb72697b073e5713"

FILESEXTRAPATHS:prepend := "${NPULAB_REPOSITORY}:"

SRC_URI = "\
    file://rknpu_userspace \
    file://run-ptest \
"

S = "${UNPACKDIR}"

inherit python3-dir ptest

do_install() {
    install -d ${D}${PYTHON_SITEPACKAGES_DIR}
    cp -r --no-preserve=ownership ${S}/rknpu_userspace ${D}${PYTHON_SITEPACKAGES_DIR}/
    find ${D}${PYTHON_SITEPACKAGES_DIR} -name __pycache__ -type d -prune -exec rm -r {} +
}

FILES:${PN} += "${PYTHON_SITEPACKAGES_DIR}/rknpu_userspace"
RDEPENDS:${PN} += "\
    python3-core \
    python3-fcntl \
    python3-json \
    python3-logging \
    python3-mmap \
    python3-multiprocessing \
    python3-numpy \
"
