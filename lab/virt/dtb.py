# SPDX-License-Identifier: MIT
"""Is this device tree blob one that the virtual board can boot, and does it have an NPU?"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import fdt

from lab.errors import ExitCode, KitError

FDT_MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_BEGIN, _PROP, _NOP = 1, 3, 4
"""Tokens of the structure block (Devicetree Specification 0.4, 5.4)."""
SOC_COMPATIBLES = ("rockchip,rk3588", "rockchip,rk3588s")
USB_COMPATIBLE = "snps,dwc3"
NPU_COMPATIBLE = "rockchip,rk3588-rknn-core"
"""linux Documentation/devicetree/bindings/npu/rockchip,rk3588-rknn-core.yaml"""


@dataclass(frozen=True)
class BoardTree:
    """What a board's device tree says about itself and its NPU."""

    model: str
    compatible: tuple[str, ...]
    enabled_cores: tuple[str, ...]
    """Paths of NPU core nodes with status okay."""
    disabled_cores: tuple[str, ...]
    console: str = ""
    """Value of ``console=`` that selects the UART of ``/chosen/stdout-path``, e.g. ``ttyS2,1500000n8``."""
    usb_hosts: tuple[str, ...] = ()
    """Addresses of the enabled USB 3 controllers that can be hosts; those that can be nothing else first."""


def _values(prop: object) -> list[str]:
    # the library guesses types: anything that is no string list has no .data of str
    return [value for value in getattr(prop, "data", []) if isinstance(value, str)]


def _strings(node: fdt.Node, name: str) -> list[str]:
    return _values(node.get_property(name))


def read_board_tree(path: Path) -> BoardTree:
    """Parse a dtb; KitError (usage) when it cannot be read or is not an RK3588's."""
    hint = "give a compiled device tree (.dtb) of an RK3588 board"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"device tree {path}: {error.strerror}", hint) from error
    if len(data) < 40 or struct.unpack_from(">I", data)[0] != FDT_MAGIC:
        raise KitError(ExitCode.USAGE, f"device tree {path}: not a compiled device tree", hint)
    total = struct.unpack_from(">I", data, 4)[0]
    if total > len(data):
        message = f"device tree {path}: cut off at {len(data)} of {total} bytes"
        raise KitError(ExitCode.USAGE, message, "fetch or build it again")
    try:
        tree = fdt.parse_dtb(data)
    except Exception as error:
        raise KitError(ExitCode.USAGE, f"device tree {path}: damaged ({error})", hint) from error
    compatible = tuple(_strings(tree.root, "compatible"))
    if not any(name in SOC_COMPATIBLES for name in compatible):
        named = ", ".join(compatible) or "nothing"
        raise KitError(ExitCode.USAGE, f"device tree {path}: not an RK3588 board (compatible: {named})", hint)
    enabled: list[str] = []
    disabled: list[str] = []
    for node_path, nodes, _ in tree.walk():
        for node in nodes:
            if NPU_COMPATIBLE in _strings(node, "compatible"):
                where = f"{node_path.rstrip('/')}/{node.name}"
                (enabled if _enabled(node) else disabled).append(where)
    model = _strings(tree.root, "model")
    name = model[0] if model else compatible[0]
    return BoardTree(
        name, compatible, tuple(sorted(enabled)), tuple(sorted(disabled)), _console(tree), _usb_hosts(tree)
    )


def _enabled(node: fdt.Node) -> bool:
    status = _strings(node, "status")
    return not status or status[0] in ("okay", "ok")


def _usb_hosts(tree: fdt.FDT) -> tuple[str, ...]:
    found = []
    for _, nodes, _ in tree.walk():
        for node in nodes:
            role = (_strings(node, "dr_mode") or ["otg"])[0]
            if USB_COMPATIBLE in _strings(node, "compatible") and _enabled(node) and role != "peripheral":
                found.append((role != "host", node.name.rpartition("@")[2]))
    return tuple(address for _, address in sorted(found))


def _console(tree: fdt.FDT) -> str:
    """The console that the tree names, as a kernel parameter; empty when it names none."""
    if not (tree.exist_node("/chosen") and tree.exist_node("/aliases")):
        return ""
    chosen = _strings(tree.get_node("/chosen"), "stdout-path")
    if not chosen:
        return ""
    place, _, options = chosen[0].partition(":")
    if place.startswith("/"):
        aliases = {value: prop.name for prop in tree.get_node("/aliases").props for value in _values(prop)}
        place = aliases.get(place, "")
    found = re.fullmatch(r"serial(\d+)", place)
    return f"ttyS{found[1]}{',' if options else ''}{options}" if found else ""


def require_npu(path: Path) -> BoardTree:
    """The board's tree, or KitError (usage) if none of its NPU cores is enabled."""
    tree = read_board_tree(path)
    if not tree.enabled_cores:
        count = len(tree.disabled_cores)
        found = f"its {count} NPU nodes are disabled" if count else "it has no NPU node"
        raise KitError(
            ExitCode.USAGE,
            f"device tree {path}: {found} ({tree.model})",
            "take a kernel whose tree of this board enables the NPU, or apply an overlay that does",
        )
    return tree


def with_serial(blob: bytes, serial: str) -> bytes:
    """The tree with the board's serial number, as a boot loader passes it on; one that has a number keeps it.

    U-Boot writes the property ``serial-number`` of the root node from its variable ``serial#``
    (boot/fdt_support.c, fdt_root), on Rockchip boards made of the chip's OTP id (arch/arm/mach-rockchip/misc.c).
    A blob that is no tree is returned as it is.
    """
    name, value = b"serial-number\0", serial.encode() + b"\0"
    try:
        magic, _, structure, strings, reserved, version, last, cpu, strings_size, size = _HEADER.unpack_from(blob)
        at, begin = structure + 4, struct.unpack_from(">I", blob, structure)[0]
        at += -(-(blob.index(b"\0", at) + 1 - at) // 4) * 4
        first = at
        while (token := struct.unpack_from(">I", blob, at)[0]) in (_PROP, _NOP):
            if token == _NOP:
                at += 4
                continue
            length, offset = struct.unpack_from(">2I", blob, at + 4)
            if blob[strings + offset :].startswith(name):
                return blob
            at += 12 + -(-length // 4) * 4
    except (struct.error, ValueError):
        return blob
    if magic != FDT_MAGIC or version < 17 or begin != _BEGIN or not reserved < structure < strings:
        return blob
    added = struct.pack(">3I", _PROP, len(value), strings_size) + value.ljust(-(-len(value) // 4) * 4, b"\0")
    nodes = blob[structure:first] + added + blob[first : structure + size]
    names = blob[strings : strings + strings_size] + name
    end = structure + len(nodes)
    header = _HEADER.pack(magic, end + len(names), structure, end, reserved, version, last, cpu, len(names), len(nodes))
    return header + blob[_HEADER.size : structure] + nodes + names
