# SPDX-License-Identifier: MIT
"""Is what was read plausible? Reads that succeed and are wrong are the known way to lose a board.

A vendor loader answers reads past 32 MiB with 0xCC and success; a dead SPI bus reads all ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.firmware import gpt

IDBLOCK_MAGICS = (b"RKNS", b"RKSS")
WINDOW = 32 << 20
"""Bytes that a vendor loader reads truthfully; past them it may answer 0xCC."""

SAMPLE = 4096


@dataclass(frozen=True)
class Finding:
    """``fatal`` findings keep a backup from being verified; the others are stated in the manifest."""

    where: str
    text: str
    fatal: bool


def _uniform(data: bytes) -> int | None:
    return data[0] if data and data.count(data[:1]) == len(data) else None


def idblock(read: Callable[[int, int], bytes], offset: int) -> str:
    """``idblock``, ``rc4-idblock``, ``empty`` or ``other`` for what lies at ``offset``."""
    head = read(offset, 512)
    if head[:4] in IDBLOCK_MAGICS:
        return "idblock"
    # The older idblock is scrambled with RC4; its first word is a constant.
    if head[:4] == b"\x3b\x8c\xdc\xfc":
        return "rc4-idblock"
    return "empty" if _uniform(head) in (0, 0xFF) else "other"


def check_medium(where: str, read: Callable[[int, int], bytes], size: int, *, firmware: bool) -> list[Finding]:
    """Findings about a whole medium; ``firmware`` media (SPI NOR, boot partitions) may not be doubtful."""
    findings = []
    if size > WINDOW + SAMPLE:
        inside, outside = read(WINDOW - SAMPLE, SAMPLE), read(WINDOW, SAMPLE)
        last = read(size - SAMPLE, SAMPLE)
        if _uniform(outside) == 0xCC and _uniform(last) == 0xCC and _uniform(inside) != 0xCC:
            text = "everything past 32 MiB reads 0xCC: this is the loader's read window, not the content"
            findings.append(Finding(where, text, True))
    elif _uniform(read(max(0, size - SAMPLE), min(SAMPLE, size))) == 0xCC:
        findings.append(Finding(where, "the end reads 0xCC, as a loader answers outside its window", True))
    if firmware:
        step = max(SAMPLE, size // 64 // SAMPLE * SAMPLE)
        values = {_uniform(read(at, min(SAMPLE, size - at))) for at in range(0, size, step)}
        if len(values) == 1 and None not in values:
            value = values.pop()
            fatal = value == 0xCC
            findings.append(
                Finding(where, f"every sample reads 0x{value:02X}: erased, or the bus does not answer", fatal)
            )
    _, problems = gpt.read(read, size)
    findings += [Finding(where, text, False) for text in problems]
    return findings
