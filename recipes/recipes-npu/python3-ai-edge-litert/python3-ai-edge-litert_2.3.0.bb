# SPDX-License-Identifier: MIT
SUMMARY = "TensorFlow Lite's runtime (LiteRT), as published"
DESCRIPTION = "Runs TensorFlow Lite models, and those parts of them that a delegate such as Mesa's Teflon takes on the \
NPU. The published wheel is installed as it is."
HOMEPAGE = "https://ai.google.dev/edge/litert"
SECTION = "devel/python"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

DEPENDS += "unzip-native"

PYPI_PACKAGE = "ai_edge_litert"
# CPython 3.14 is wrynose's
WHEEL = "${PYPI_PACKAGE}-${PV}-cp314-cp314-manylinux_2_27_aarch64.whl"
PYPI_SRC_URI = "${@pypi_src_uri(d).split(';')[0].replace('/source/', '/cp314/').rsplit('/', 1)[0]}/${WHEEL};downloadfilename=${WHEEL};unpack=0"

SRC_URI[sha256sum] = "899b41423b30f3cef1ce8a361443092fdeefc4d536132511634fa21548347b0a"

inherit pypi python3-dir

S = "${UNPACKDIR}"

COMPATIBLE_HOST = "aarch64.*-linux"

do_install() {
    install -d ${D}${PYTHON_SITEPACKAGES_DIR}
    unzip -q ${UNPACKDIR}/${WHEEL} -d ${D}${PYTHON_SITEPACKAGES_DIR}
}

# a binary distribution: stripped already, and its libraries are its own
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_SYSROOT_STRIP = "1"
INSANE_SKIP:${PN} += "already-stripped dev-so ldflags"
PRIVATE_LIBS:${PN} = "libLiteRt.so"

FILES:${PN} += "${PYTHON_SITEPACKAGES_DIR}"
RDEPENDS:${PN} += "libstdc++ python3-core python3-numpy"
