# SPDX-License-Identifier: MIT
"""A compiled device tree as nodes with raw properties and references that can be followed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fdt

from lab.errors import ExitCode, KitError

MAGIC = 0xD00DFEED
HEADER_BYTES = 40
SOC_COMPATIBLES = ("rockchip,rk3588", "rockchip,rk3588s")


@dataclass(eq=False)
class Node:
    """A node; ``path`` is its full path, ``/`` for the root."""

    path: str
    parent: Node | None
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Last component of the path, with the unit address."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def own_status(self) -> str:
        """Value of ``status``; ``okay`` without one (Devicetree Specification 2.3.4)."""
        return (self.strings("status") or ["okay"])[0]

    @property
    def disabled_at(self) -> Node | None:
        """The node itself or the nearest ancestor that is not enabled; None when the node is usable."""
        if self.own_status not in ("okay", "ok"):
            return self
        return self.parent.disabled_at if self.parent is not None else None

    @property
    def enabled(self) -> bool:
        """Enabled, as are all nodes above it: a device on a disabled bus does not exist for the kernel."""
        return self.disabled_at is None

    def strings(self, name: str) -> list[str]:
        """A property as a list of strings; empty when absent."""
        raw = self.properties.get(name, b"").rstrip(b"\0")
        return raw.decode(errors="replace").split("\0") if raw else []

    def words(self, name: str) -> list[int]:
        """A property as 32-bit words; a rest of one to three bytes is left out."""
        raw = self.properties.get(name, b"")
        return list(struct.unpack(f">{len(raw) // 4}I", raw[: len(raw) // 4 * 4]))

    def walk(self) -> Iterator[Node]:
        """The node and everything below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Reference:
    """One entry of a property of phandles: its target (None: leads nowhere) and arguments."""

    phandle: int
    target: Node | None
    arguments: tuple[int, ...]


class Tree:
    """A parsed blob."""

    def __init__(self, blob: bytes) -> None:
        self.root = _build(fdt.parse_dtb(blob).root, None, "")
        self.nodes = list(self.root.walk())
        self.by_path = {node.path: node for node in self.nodes}
        self.by_phandle = {words[0]: node for node in self.nodes if (words := node.words("phandle"))}

    @property
    def model(self) -> str:
        """The board's name for people."""
        return (self.root.strings("model") or self.compatible or ["(no name)"])[0]

    @property
    def compatible(self) -> list[str]:
        """The board's compatible list."""
        return self.root.strings("compatible")

    @property
    def has_symbols(self) -> bool:
        """Whether overlays that name labels can be applied."""
        return "/__symbols__" in self.by_path

    def matching(self, *compatibles: str) -> list[Node]:
        """Nodes with any of the compatibles, in tree order."""
        return [node for node in self.nodes if set(node.strings("compatible")) & set(compatibles)]

    def references(self, node: Node, name: str, cells: str | None) -> list[Reference]:
        """Entries of a property of phandles; ``cells`` names the target's property with the count of arguments.

        After an entry that leads nowhere the rest cannot be taken apart and is left out.
        """
        words = node.words(name)
        found: list[Reference] = []
        position = 0
        while position < len(words):
            target = self.by_phandle.get(words[position])
            if target is None:
                found.append(Reference(words[position], None, ()))
                break
            count = (target.words(cells) or [0])[0] if cells else 0
            found.append(Reference(words[position], target, tuple(words[position + 1 : position + 1 + count])))
            position += 1 + count
        return found


def _raw(prop: fdt.Property) -> bytes:
    # the library guesses each property's type; here it is bytes again
    data = getattr(prop, "data", b"")
    if isinstance(prop, fdt.PropStrings):
        return b"".join(str(value).encode() + b"\0" for value in data)
    if isinstance(prop, fdt.PropWords):
        return b"".join(struct.pack(">I", value) for value in data)
    return bytes(data)


def _build(source: fdt.Node, parent: Node | None, path: str) -> Node:
    node = Node(path or "/", parent, {prop.name: _raw(prop) for prop in source.props})
    node.children = [_build(child, node, f"{path}/{child.name}") for child in source.nodes]
    return node


def read_blob(path: Path) -> bytes:
    """The bytes of a dtb, after the checks that its header allows; KitError (usage) otherwise."""
    hint = "give a compiled device tree (.dtb) of an RK3588 board"
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"device tree {path}: {error.strerror}", hint) from error
    if len(blob) < HEADER_BYTES or struct.unpack_from(">I", blob)[0] != MAGIC:
        raise KitError(ExitCode.USAGE, f"device tree {path}: not a compiled device tree", hint)
    total: int = struct.unpack_from(">I", blob, 4)[0]
    if total > len(blob):
        message = f"device tree {path}: cut off at {len(blob)} of {total} bytes"
        raise KitError(ExitCode.USAGE, message, "fetch or build it again")
    return blob


def load(path: Path) -> Tree:
    """Parse a dtb of any board; KitError (usage) when it cannot be read or is an overlay."""
    blob = read_blob(path)
    try:
        tree = Tree(blob)
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, struct.error, RecursionError) as error:
        raise KitError(ExitCode.USAGE, f"device tree {path}: damaged ({error})", "fetch or build it again") from error
    except Exception as error:
        # the library reports what it finds wrong as plain Exception; anything else is a bug and goes on
        if type(error) is not Exception:
            raise
        raise KitError(ExitCode.USAGE, f"device tree {path}: damaged ({error})", "fetch or build it again") from error
    if "/fragment@0/__overlay__" in tree.by_path or "/__fixups__" in tree.by_path:
        raise KitError(
            ExitCode.USAGE,
            f"device tree {path}: an overlay, not a board's tree",
            "apply it to its base first: fdtoverlay -i BASE.dtb -o RESULT.dtb OVERLAY.dtbo",
        )
    return tree


def load_rk3588(path: Path) -> Tree:
    """Parse a dtb and insist that it is an RK3588's."""
    tree = load(path)
    if not set(tree.compatible) & set(SOC_COMPATIBLES):
        named = ", ".join(tree.compatible) or "nothing"
        raise KitError(
            ExitCode.USAGE,
            f"device tree {path}: not an RK3588 board (compatible: {named})",
            "give a compiled device tree (.dtb) of an RK3588 board",
        )
    return tree
