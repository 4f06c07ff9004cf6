# SPDX-License-Identifier: MIT
"""``npulab npu``: one module of ``lab.npu`` per verb, with ``HELP``, ``configure(parser)`` and ``run(args, out)``."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType
from typing import Any

from lab.errors import ExitCode, KitError
from lab.output import Output

HELP = "the NPU or its model: what it is, what it computes, what it answers"

VERBS = (
    "bench",
    "disasm",
    "info",
    "probe",
    "run",
)
"""Modules of ``lab.npu``; what they need beyond the standard library is imported when they run."""


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"lab.npu.{verb}")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = _module(name)
        module.configure(verbs.add_parser(name, help=module.HELP, description=module.HELP))


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb; failures of the NPU become the kit's error."""
    from rknpu_userspace.errors import DeviceError, NpuError

    module = _module(args.verb)
    try:
        document: dict[str, Any] = module.run(args, out)
    except DeviceError as error:
        raise KitError(ExitCode.NO_DEVICE, f"npu {args.verb}: {error}", "npulab npu info says what is there") from error
    except NpuError as error:
        raise KitError(ExitCode.FAILED, f"npu {args.verb}: {error}", "the kernel's log may say more") from error
    return document
