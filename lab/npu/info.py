# SPDX-License-Identifier: MIT
"""``npulab npu info``: what NPU there is, and in which state."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.npu.on_board import DEVICE_HELP, is_virtual, tool
from lab.output import Output

HELP = "say what NPU there is: driver, cores, IOMMUs, power, clocks, limits"

_SECONDS = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--device", default="/dev/accel/accel0", help=DEVICE_HELP)
    parser.add_argument("--quirks", type=Path, metavar="FILE", help="answers that the model gives (model only)")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Show it; a device that can not be used is an error after what can be seen without it."""
    from rknpu_userspace import info

    try:
        if is_virtual(args.device):
            found = info.from_document(tool(args.device, ["info"], out, _SECONDS))
        else:
            found = info.gather(args.device, quirks=args.quirks)
    except ValueError as error:
        raise KitError(ExitCode.USAGE, str(error), "npulab npu probe --out FILE writes such a file") from error
    for line in info.head_lines(found):
        out.say(line)
    if found.cores:
        out.table("cores", list(info.COLUMNS), info.core_rows(found))
    if found.problem:
        raise KitError(ExitCode.NO_DEVICE, found.problem, found.hint)
    for line in info.tail_lines(found):
        out.say(line)
    return found.document()
