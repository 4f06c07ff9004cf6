# SPDX-License-Identifier: MIT
"""The library's tools on a virtual board: what ``python3 -m rknpu_userspace TOOL --json`` prints there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from lab.errors import ExitCode, KitError
from lab.output import Output

DEVICE_HELP = 'device node, "model", "virt" (boots a virtual board), or "virt:NAME" (one that runs)'


def is_virtual(device: str) -> bool:
    """Whether the name means a virtual board."""
    return device == "virt" or device.startswith("virt:")


def tool(device: str, words: Sequence[str], out: Output, timeout: float) -> dict[str, Any]:
    """Run a tool on the board's NPU; its document. KitError when it prints none."""
    from lab.npu.run import remote

    command = shlex.join(["python3", "-m", "rknpu_userspace", *words, "--json"])
    with remote(device, out) as board, out.stage(f"{words[0]} on the virtual board"):
        text, code = board.run(f"{command} 2>/dev/null", timeout)
    try:
        document: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{words[0]} on the virtual board ended with {code} and no document"
        raise KitError(ExitCode.INFRASTRUCTURE, message, f"npulab virt shell, then: {command}") from error
    return document
