# SPDX-License-Identifier: MIT
SUMMARY = "The user's DDR initialisation blob"
DESCRIPTION = "Deploys the file that NPULAB_DDR_BLOB names, after comparing it with NPULAB_DDR_SHA256. This layer \
ships no such file and fetches none."
HOMEPAGE = "https://www.openembedded.org"
SECTION = "bootloaders"
LICENSE = "CLOSED"

SRC_URI = ""

inherit deploy nopackages

COMPATIBLE_MACHINE = "^npulab$"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

NPULAB_DDR_BLOB ??= ""
NPULAB_DDR_SHA256 ??= ""

python () {
    if bb.utils.to_boolean(d.getVar("NPULAB_LOADER")) and not (d.getVar("NPULAB_DDR_BLOB") and d.getVar("NPULAB_DDR_SHA256")):
        raise bb.parse.SkipRecipe("boot firmware needs a DDR blob: set NPULAB_DDR_BLOB to its path and "
                                  "NPULAB_DDR_SHA256 to its SHA-256")
}

python do_compile() {
    path, wanted = d.getVar("NPULAB_DDR_BLOB"), d.getVar("NPULAB_DDR_SHA256").lower()
    if not os.path.isfile(path):
        bb.fatal("NPULAB_DDR_BLOB: there is no file %s" % path)
    found = bb.utils.sha256_file(path)
    if found != wanted:
        bb.fatal("%s has the SHA-256 %s, NPULAB_DDR_SHA256 says %s: not used" % (path, found, wanted))
}
do_compile[file-checksums] += "${@'%s:True' % d.getVar('NPULAB_DDR_BLOB') if d.getVar('NPULAB_DDR_BLOB') else ''}"

do_deploy() {
    install -D -m 0644 ${NPULAB_DDR_BLOB} ${DEPLOYDIR}/npulab-ddr.bin
}
addtask deploy after do_compile
