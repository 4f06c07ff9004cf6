# SPDX-License-Identifier: MIT
"""Why a board's console gave no prompt: silent, garbage, or another prompt than the environment says."""

from __future__ import annotations

import re
from typing import Any

from lab.errors import ExitCode, KitError

KEPT_LINES = 15
GARBAGE_SHARE = 0.3
"""At a wrong baud rate about half of the bytes are not text; a boot's messages have none but escape sequences."""
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def garbage_share(data: bytes) -> float:
    """Which part of the bytes is no text (escape sequences left out)."""
    plain = _ESCAPE.sub(b"", data)
    if not plain:
        return 0.0
    try:
        text = plain.decode()
    except UnicodeDecodeError:
        text = plain.decode("latin-1")
        return sum(not (32 <= ord(char) < 127 or char in "\r\n\t\b") for char in text) / len(text)
    return sum(not (char.isprintable() or char in "\r\n\t\b\x07") for char in text) / len(text)


def console_bytes(console: Any) -> bytes:
    """What a console has read and nobody has understood (labgrid's consoles keep it in their pexpect buffer)."""
    expect = getattr(console, "_expect", None)
    if expect is None:
        return b""
    before = expect.before if isinstance(expect.before, bytes) else b""
    buffer = expect.buffer if isinstance(expect.buffer, bytes) else b""
    return before if before.endswith(buffer) else before + buffer


def console_trouble(console: Any, stage: str, expected: str, error: Exception) -> KitError:
    """The error for a stage that waited for a prompt in vain; its tail is what the console said last."""
    data = console_bytes(console)
    lines = data.decode(errors="replace").replace("\r", "").strip("\n").split("\n")
    tail = "\n".join(line for line in lines[-KEPT_LINES:])
    if not data.strip():
        what = "the console is silent"
        hint = "is the board powered, the adapter on the debug header, transmit and receive crossed?"
    elif (share := garbage_share(data[-4096:])) > GARBAGE_SHARE:
        what = f"the console sends garbage ({share:.0%} of the bytes are no text)"
        hint = "the baud rate is wrong, or the adapter cannot do 1500000 baud: npulab doctor"
    else:
        what = f"no prompt; the last line is {lines[-1][-80:]!r}, expected {expected!r}"
        hint = "correct the prompts in the environment, or see below why the boot stopped"
    return KitError(ExitCode.INFRASTRUCTURE, f"the board, {stage}: {what} ({_first(error)})", hint, tail=tail)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
