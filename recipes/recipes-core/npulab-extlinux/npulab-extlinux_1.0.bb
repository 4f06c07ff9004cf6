# SPDX-License-Identifier: MIT
SUMMARY = "Boot entries of the bring-up image"
DESCRIPTION = "extlinux.conf with the image's kernel and, as a fallback, the same kernel with the NPU left alone"
HOMEPAGE = "https://uapi-group.org/specifications/specs/boot_loader_specification/"
SECTION = "bootloaders"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COREBASE}/meta/COPYING.MIT;md5=3da9cfbcb788c80a0384361b4de20420"

SRC_URI = ""

inherit uboot-extlinux-config

S = "${UNPACKDIR}"
B = "${WORKDIR}/build"

COMPATIBLE_MACHINE = "^npulab$"
PACKAGE_ARCH = "${MACHINE_ARCH}"

UBOOT_EXTLINUX = "1"
UBOOT_EXTLINUX_LABELS = "npu fallback"
UBOOT_EXTLINUX_DEFAULT_LABEL = "NPU"
UBOOT_EXTLINUX_TIMEOUT = "30"
UBOOT_EXTLINUX_MENU_TITLE = "RK3588 NPU bring-up image"
UBOOT_EXTLINUX_MENU_DESCRIPTION:npu = "NPU"
UBOOT_EXTLINUX_MENU_DESCRIPTION:fallback = "Fallback: the driver of the NPU is not loaded"
UBOOT_EXTLINUX_KERNEL_IMAGE = "/boot/${KERNEL_IMAGETYPE}"
UBOOT_EXTLINUX_FDT = "/boot/${@os.path.basename(d.getVar('KERNEL_DEVICETREE').split()[0])}"
UBOOT_EXTLINUX_FDTDIR = ""
UBOOT_EXTLINUX_ROOT = "root=PARTLABEL=npulab-root"
UBOOT_EXTLINUX_CONSOLE = "console=${@','.join(reversed(d.getVar('SERIAL_CONSOLES').split()[0].split(';')))}n8"
UBOOT_EXTLINUX_KERNEL_ARGS:npu = "rootwait rw"
UBOOT_EXTLINUX_KERNEL_ARGS:fallback = "rootwait rw module_blacklist=rocket initcall_blacklist=rocket_register"

do_create_extlinux_config[dirs] += "${B}"

do_install() {
    install -D -m 0644 ${B}/extlinux.conf ${D}/boot/extlinux/extlinux.conf
}

FILES:${PN} += "/boot/extlinux/extlinux.conf"
CONFFILES:${PN} = "/boot/extlinux/extlinux.conf"
