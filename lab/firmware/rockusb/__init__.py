# SPDX-License-Identifier: MIT
"""The rockusb protocol: what a Rockchip chip speaks in mask ROM, in its loader and in U-Boot's ``rockusb`` command."""

VENDOR = 0x2207
PRODUCTS = {0x350B: "rk3588"}
SECTOR = 512
