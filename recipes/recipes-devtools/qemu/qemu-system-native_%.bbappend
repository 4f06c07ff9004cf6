# SPDX-License-Identifier: MIT
# QEMU with the virtual board: the very files that `npulab build virt` compiles, for this layer's machines. Recipes for
# the build machine have no machine's overrides (native.bbclass), so they say it by a variable.
# nooelint: oelint.vars.inconspaces,oelint.vars.noncoreoverride,oelint.vars.outofcontext
MACHINEOVERRIDES:append = "${@':npulab' if bb.utils.to_boolean(d.getVar('NPULAB_QEMU') or '0') else ''}"

FILESEXTRAPATHS:prepend:npulab := "${NPULAB_REPOSITORY}/lab/virt/qemu:"

# our folders of QEMU's tree, and the hooks in its own files
SRC_URI:append:npulab = " file://hw file://include file://configs ${@npulab_qemu_patches(d)}"

# One machine, no display: without SDL and virgl there is no Mesa, and with it no LLVM, among the host's tools
QEMU_TARGETS:npulab = "aarch64"
PACKAGECONFIG:npulab = "fdt pie slirp"
EXTRA_OECONF:append:npulab = " --without-default-devices --with-devices-aarch64=rk3588"

def npulab_qemu_patches(d):
    """The hooks, in their order."""
    import os
    folder = os.path.join(d.getVar("NPULAB_REPOSITORY"), "lab/virt/qemu/patches")
    bb.parse.mark_dependency(d, folder)
    return " ".join("file://patches/" + name for name in sorted(os.listdir(folder)) if name.endswith(".patch"))

do_configure:prepend:npulab() {
    for folder in hw include configs; do
        cp -r --no-preserve=ownership ${UNPACKDIR}/$folder ${S}/
    done
}
