# SPDX-License-Identifier: MIT
#
# A kernel from this repository's patches, configuration fragments and device trees, each from its one place, as
# `npulab build` takes them. The recipe sets LINUX_VERSION and where the tarball is.

inherit kernel

DEPENDS += "flex-native openssl-native"

# "module" or "builtin"
NPULAB_ROCKET ?= "module"
# "0": without the fixes of the driver
NPULAB_FIXES ?= "1"
# "1": with the kernel's own checkers
NPULAB_KERNEL_DEBUG ?= "0"

NPULAB_KERNEL_BASE ?= "${@'.'.join(d.getVar('LINUX_VERSION').split('.')[:2])}"
NPULAB_FRAGMENTS = "npu.cfg virt.cfg ${NPULAB_BOARD_FRAGMENT} rocket-${NPULAB_ROCKET}.cfg"
NPULAB_BOARD_FRAGMENT ?= "board.cfg"
NPULAB_FRAGMENTS .= "${@' debug.cfg' if bb.utils.to_boolean(d.getVar('NPULAB_KERNEL_DEBUG')) else ''}"
NPULAB_FRAGMENTS .= "${@npulab_own_fragment(d)}"
NPULAB_PATCHES = "${@npulab_patches(d)}"
NPULAB_TREES = "${@npulab_trees(d)}"
# from the kernel's own defaults, so that workarounds of errata stay what it wants
NPULAB_DEFAULTS ?= "alldefconfig"

FILESEXTRAPATHS:prepend := "${NPULAB_REPOSITORY}/kernel-patches:${NPULAB_REPOSITORY}/dts:"

SRC_URI += "\
    ${@npulab_uris(d, 'NPULAB_FRAGMENTS')} \
    ${@npulab_uris(d, 'NPULAB_PATCHES')} \
    ${@npulab_uris(d, 'NPULAB_TREES')} \
"

# device trees with symbols, so that overlays apply
KERNEL_DTC_FLAGS = "-@"
COMPATIBLE_MACHINE = "^npulab$"

def npulab_uris(d, variable):
    return " ".join("file://" + name for name in d.getVar(variable).split())

def npulab_own_fragment(d):
    """What a kernel of this series alone needs, where there is such a file."""
    import os
    name = "linux-%s.cfg" % d.getVar("NPULAB_KERNEL_BASE")
    folder = os.path.join(d.getVar("NPULAB_REPOSITORY"), "recipes/recipes-kernel/linux/files")
    return " " + name if os.path.exists(os.path.join(folder, name)) else ""

def npulab_patches(d):
    """The base's patches that concern this version (boards, and fixes if they are wanted), below kernel-patches/."""
    import os
    root = os.path.join(d.getVar("NPULAB_REPOSITORY"), "kernel-patches")
    folder = os.path.join(root, d.getVar("NPULAB_KERNEL_BASE"))
    bb.parse.mark_dependency(d, os.path.join(folder, "series"))
    groups = ("board", "fix") if bb.utils.to_boolean(d.getVar("NPULAB_FIXES")) else ("board",)
    version = npulab_series(d.getVar("LINUX_VERSION"))
    names = []
    with open(os.path.join(folder, "series")) as series:
        listed = [line.split("#")[0].strip() for line in series]
    for name in filter(None, listed):
        header = npulab_patch_header(os.path.join(folder, name))
        first, _, last = header["Kit-Applies"].partition(" - ")
        if header["Kit-Group"] in groups and npulab_series(first) <= version <= npulab_series(last or first):
            names.append(os.path.relpath(os.path.join(folder, name), root))
    return " ".join(names)

def npulab_series(version):
    return tuple(int(part) for part in version.split(".")[:2])

def npulab_patch_header(path):
    """The fields that every patch of kernel-patches/ has, see the README there."""
    import re
    with open(path, errors="replace") as file:
        notes = file.read().partition("\n---\n")[2].partition("\ndiff --git ")[0]
    return dict(re.findall(r"^([A-Z][A-Za-z-]+): (.*)$", notes, re.MULTILINE))

def npulab_trees(d):
    """Names of this repository's own device trees."""
    import glob, os
    folder = os.path.join(d.getVar("NPULAB_REPOSITORY"), "dts")
    bb.parse.mark_dependency(d, folder)
    return " ".join(sorted(os.path.basename(path) for path in glob.glob(folder + "/*.dts")))

# A stable release may have a fix already: a patch whose probe matches the source is left out, and a line says so.
python npulab_skip_upstreamed() {
    import os, re
    uris = d.getVar("SRC_URI").split()
    for name in d.getVar("NPULAB_PATCHES").split():
        path = os.path.join(d.getVar("UNPACKDIR"), name)
        file, _, pattern = npulab_patch_header(path)["Kit-Probe"].partition(": ")
        source = os.path.join(d.getVar("S"), file)
        if os.path.exists(source) and re.search(pattern, open(source, errors="replace").read()):
            bb.note("%s: the kernel has it already, left out" % name)
            uris.remove("file://" + name)
    d.setVar("SRC_URI", " ".join(uris))
}
do_patch[prefuncs] += "npulab_skip_upstreamed"

npulab_add_trees() {
    for tree in ${NPULAB_TREES}; do
        install -m 0644 ${UNPACKDIR}/$tree ${S}/arch/arm64/boot/dts/rockchip/$tree
    done
}
do_patch[postfuncs] += "npulab_add_trees"

do_configure() {
    for fragment in ${NPULAB_FRAGMENTS}; do
        cat ${UNPACKDIR}/$fragment
    done > ${WORKDIR}/npulab-fragments.cfg
    # where two fragments set a symbol, the later one does
    awk '/^(# )?CONFIG_/ { name = $0; sub(/^# /, "", name); sub(/[ =].*/, "", name); last[name] = $0; order[name] = NR }
        END { for (name in last) print order[name] "\t" last[name] }' ${WORKDIR}/npulab-fragments.cfg |
        sort -n | cut -f 2- > ${WORKDIR}/npulab.cfg
    oe_runmake_call -C ${S} O=${B} KCONFIG_ALLCONFIG=${WORKDIR}/npulab.cfg ${NPULAB_DEFAULTS}
}

# With the machine's own tools (conf/include/npulab-host-toolchain.inc) there is no fakeroot.
NPULAB_HOST_TOOLCHAIN ?= "0"
python () {
    if bb.utils.to_boolean(d.getVar("NPULAB_HOST_TOOLCHAIN")):
        for task in ("install", "package", "package_setscene", "package_write_deb", "package_write_deb_setscene"):
            d.delVarFlag("do_" + task, "fakeroot")
        d.appendVar("PACKAGE_PREPROCESS_FUNCS", " npulab_keep_owners")
}

# do_package gives all files to root, which only root can.
python npulab_keep_owners() {
    import oe.package
    oe.package.fixup_perms = lambda d: None
}

# A line of a fragment that did not survive means that the kernel lacks what the fragment is for.
python do_npulab_check_config() {
    import re
    with open(d.expand("${B}/.config")) as file:
        have = {line.strip() for line in file}
    chosen = {line.split("=")[0] for line in have if line.startswith("CONFIG_")}
    lost = []
    with open(d.expand("${WORKDIR}/npulab.cfg")) as file:
        for line in (raw.strip() for raw in file):
            off = re.fullmatch(r"# (CONFIG_\w+) is not set|(CONFIG_\w+)=n", line)
            if off and (off[1] or off[2]) in chosen or not off and line not in have:
                lost.append(line)
    if lost:
        bb.fatal("lines of the fragments that did not survive into .config: %s. Look at what these symbols depend on "
                 "in Linux %s and add it to the fragment." % (", ".join(lost), d.getVar("LINUX_VERSION")))
}
addtask npulab_check_config after do_configure before do_compile
do_npulab_check_config[dirs] = "${B}"
