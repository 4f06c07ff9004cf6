# SPDX-License-Identifier: MIT
"""The rocket driver's user-space interface as a kernel has it: structures and ioctl numbers, from its header.

The header is C of a narrow kind (fixed-width integers in plain structures, linux include/uapi/drm/rocket_accel.h); it
is read here without a compiler, so that any tree can be checked on any host. The comment-stripped hash tells whether
the interface changed between kernels: comments alone changed from 6.18 to 7.2.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

HEADER = "include/uapi/drm/rocket_accel.h"
SIZES = {"__u8": 1, "__s8": 1, "__u16": 2, "__s16": 2, "__u32": 4, "__s32": 4, "__u64": 8, "__s64": 8}
DRM_COMMAND_BASE = 0x40
"""linux include/uapi/drm/drm.h"""
_DIRECTIONS = {"DRM_IO": 0, "DRM_IOW": 1, "DRM_IOR": 2, "DRM_IOWR": 3}

_STRUCT = re.compile(r"struct\s+(\w+)\s*\{([^}]*)\}\s*;")
_FIELD = re.compile(r"(__[us]\d+)\s+(\w+)\s*(?:\[(\d+)\])?\s*;")
_NUMBER = re.compile(r"#define\s+DRM_ROCKET_(\w+)\s+(0x[0-9a-fA-F]+|\d+)")
_IOCTL = re.compile(
    r"#define\s+DRM_IOCTL_ROCKET_(\w+)\s+(DRM_IO\w*)\(\s*DRM_COMMAND_BASE\s*\+\s*DRM_ROCKET_(\w+),\s*struct\s+(\w+)\)"
)


@dataclass(frozen=True)
class Structure:
    """A structure: its size in bytes and each field's offset and width."""

    size: int
    fields: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Interface:
    """What user space sees."""

    structures: dict[str, Structure]
    ioctls: dict[str, int]
    """Name (``SUBMIT``) to the number that ioctl(2) takes."""
    fingerprint: str
    """First 16 hex digits of the SHA-256 of the header without comments and white space."""

    def sizes(self) -> dict[str, int]:
        """Structure name to size in bytes."""
        return {name: structure.size for name, structure in self.structures.items()}


def strip(text: str) -> str:
    """C without comments, white space folded."""
    bare = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in bare.splitlines())
    return "\n".join(line for line in lines if line)


def parse(text: str) -> Interface:
    """The interface of a header; ValueError when it holds something that this reader does not know."""
    bare = strip(text)
    structures = {match[1]: _structure(match[1], match[2]) for match in _STRUCT.finditer(bare)}
    numbers = {match[1]: int(match[2], 0) for match in _NUMBER.finditer(bare)}
    ioctls: dict[str, int] = {}
    for match in _IOCTL.finditer(bare):
        name, macro, number, structure = match.groups()
        if macro not in _DIRECTIONS or number not in numbers or structure not in structures:
            raise ValueError(f"ioctl {name} is not understood")
        size = structures[structure].size
        ioctls[name] = _DIRECTIONS[macro] << 30 | size << 16 | ord("d") << 8 | DRM_COMMAND_BASE + numbers[number]
    if not ioctls:
        raise ValueError("it defines no rocket ioctl")
    return Interface(structures, ioctls, hashlib.sha256(bare.encode()).hexdigest()[:16])


def _structure(name: str, body: str) -> Structure:
    fields: dict[str, tuple[int, int]] = {}
    offset, widest = 0, 1
    rest = _FIELD.sub("", body).strip()
    if rest:
        raise ValueError(f"struct {name} holds {rest.splitlines()[0]!r}")
    for kind, field, count in _FIELD.findall(body):
        width = SIZES[kind]
        offset = -(-offset // width) * width
        fields[field] = (offset, width * int(count or 1))
        offset += width * int(count or 1)
        widest = max(widest, width)
    return Structure(-(-offset // widest) * widest, fields)
