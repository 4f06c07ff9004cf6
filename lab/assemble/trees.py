# SPDX-License-Identifier: MIT
"""What a compiled device tree says about its NPU, and what is wrong with it.

Followed from each enabled NPU core: IOMMU, power domain and its parent (``pd_npu``), clocks, resets, and the supplies
of the cores and of the domain. A reference that leads nowhere or to a disabled node is a problem: the driver would be
deferred for ever, or the domain switched on over a dead rail. Sources: linux Documentation/devicetree/bindings/npu/
rockchip,rk3588-rknn-core.yaml, drivers/pmdomain/rockchip/pm-domains.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fdt

CORE = "rockchip,rk3588-rknn-core"
SUPPLIES = ("npu-supply", "sram-supply")


@dataclass
class _Node:
    path: str
    parent: _Node | None
    properties: dict[str, bytes] = field(default_factory=dict)

    @property
    def enabled(self) -> bool:
        status = self.properties.get("status", b"okay\0").rstrip(b"\0")
        return status in (b"okay", b"ok") and (self.parent is None or self.parent.enabled)

    def strings(self, name: str) -> list[str]:
        raw = self.properties.get(name, b"").rstrip(b"\0")
        return raw.decode(errors="replace").split("\0") if raw else []

    def words(self, name: str) -> list[int]:
        raw = self.properties.get(name, b"")
        return list(struct.unpack(f">{len(raw) // 4}I", raw[: len(raw) // 4 * 4]))


def _bytes(prop: fdt.Property) -> bytes:
    # the library guesses each property's type; here it is bytes again
    data = getattr(prop, "data", [])
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if isinstance(prop, fdt.PropStrings):
        return b"".join(str(value).encode() + b"\0" for value in data)
    if isinstance(prop, fdt.PropWords):
        return b"".join(struct.pack(">I", value) for value in data)
    return bytes(data)


def _nodes(node: fdt.Node, parent: _Node | None, path: str) -> Iterator[_Node]:
    mine = _Node(path or "/", parent, {prop.name: _bytes(prop) for prop in node.props})
    yield mine
    for child in node.nodes:
        yield from _nodes(child, mine, f"{path}/{child.name}")


class Tree:
    """A device tree with its references."""

    def __init__(self, blob: bytes) -> None:
        self.nodes = list(_nodes(fdt.parse_dtb(blob).root, None, ""))
        self.root = self.nodes[0]
        self.by_phandle = {words[0]: node for node in self.nodes if (words := node.words("phandle"))}

    def cores(self) -> list[_Node]:
        """The NPU core nodes, enabled or not."""
        return [node for node in self.nodes if CORE in node.strings("compatible")]

    def references(self, node: _Node, name: str, cells: str | None) -> Iterator[tuple[_Node | None, list[int]]]:
        """Targets and arguments of a property of phandles; ``cells`` names the target's count of arguments."""
        words = node.words(name)
        position = 0
        while position < len(words):
            target = self.by_phandle.get(words[position])
            if target is None:
                yield None, []
                return
            count = (target.words(cells) or [0])[0] if cells else 0
            yield target, words[position + 1 : position + 1 + count]
            position += 1 + count


def _follow(tree: Tree, node: _Node, name: str, cells: str | None, problems: list[str]) -> None:
    if name not in node.properties:
        problems.append(f"{node.path} has no {name}")
        return
    for target, _ in tree.references(node, name, cells):
        if target is None:
            problems.append(f"{name} of {node.path} leads nowhere")
        elif not target.enabled:
            problems.append(f"{name} of {node.path}: {target.path} is disabled")


def _domain(tree: Tree, core: _Node) -> _Node | None:
    """The outermost power domain that the core's lies in, ``pd_npu``: the one with the supply."""
    for controller, arguments in tree.references(core, "power-domains", "#power-domain-cells"):
        if controller is None or not arguments:
            return None
        for node in tree.nodes:
            if node.words("reg") == arguments[:1] and node.path.startswith(controller.path + "/"):
                while node.parent is not None and node.parent is not controller:
                    node = node.parent
                return node
    return None


def problems_of(tree: Tree) -> list[str]:
    """What is wrong with the tree's enabled NPU cores; empty when all is well or none is enabled."""
    problems: list[str] = []
    for core in tree.cores():
        if not core.enabled:
            continue
        _follow(tree, core, "iommus", "#iommu-cells", problems)
        _follow(tree, core, "power-domains", "#power-domain-cells", problems)
        _follow(tree, core, "clocks", "#clock-cells", problems)
        _follow(tree, core, "resets", "#reset-cells", problems)
        for supply in SUPPLIES:
            _follow(tree, core, supply, None, problems)
        domain = _domain(tree, core)
        if domain is None:
            problems.append(f"{core.path}: its power domain has no node")
        else:
            _follow(tree, domain, "domain-supply", None, problems)
    return list(dict.fromkeys(problems))


def describe(path: Path) -> dict[str, Any]:
    """The manifest's entry of a dtb: ``npu`` is enabled (all cores), partial, disabled or absent.

    Raises ValueError when the file is no device tree.
    """
    try:
        tree = Tree(path.read_bytes())
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"{path.name}: damaged ({error})") from error
    cores = tree.cores()
    enabled = [core for core in cores if core.enabled]
    if not cores:
        state = "absent"
    elif not enabled:
        state = "disabled"
    else:
        state = "enabled" if len(enabled) == len(cores) else "partial"
    return {
        "model": (tree.root.strings("model") or [""])[0],
        "compatible": tree.root.strings("compatible"),
        "npu": state,
        "cores": len(enabled),
        "problems": problems_of(tree),
    }
