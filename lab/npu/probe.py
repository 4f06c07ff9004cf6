# SPDX-License-Identifier: MIT
"""``npulab npu probe``: experiments that settle what public sources leave open about the NPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab.errors import ExitCode, KitError
from lab.npu.on_board import DEVICE_HELP, is_virtual, tool
from lab.output import Output

if TYPE_CHECKING:
    from rknpu_userspace.probe.rig import Experiment

_SECONDS = 300.0
HELP = "measure what is not known about the NPU, and write the answers for the model to load"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    from rknpu_userspace.probe.runner import add_options

    add_options(parser, DEVICE_HELP)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run experiments on a device or on the model; not ok when a job never ran."""
    from rknpu_userspace.probe import runner

    try:
        experiments = runner.chosen(args.only)
    except ValueError as error:
        raise KitError(ExitCode.USAGE, str(error), "npulab npu probe --list names them") from error
    if args.list:
        listed = [[one.number, one.name, one.question, ", ".join(one.quirks)] for one in experiments]
        out.table("experiments", ["", "name", "question", "switches of the model"], listed)
        names = ("number", "name", "question", "quirks")
        return {"experiments": [dict(zip(names, row, strict=True)) for row in listed]}
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise KitError(ExitCode.USAGE, f"{args.out.parent} is not a directory", "make it, or choose another --out")
    contents = _virtual(args, out) if is_virtual(args.device) else _measure(args, experiments, out)
    rows = contents["experiments"]
    cells = [[row["number"], row["experiment"], row["status"], _said(row)] for row in rows]
    out.table(f"what {contents['board'].get('name', args.device)} answers", ["", "experiment", "status", ""], cells)
    if args.out is not None:
        runner.save(args.out, contents)
        out.say(f"{len(contents['quirks'])} answers for the model: {args.out}")
    return {"ok": not any(row["status"] == "failed" for row in rows), **contents}


def _virtual(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """All on a virtual board."""
    if args.quirks is not None:
        hint = "give them to the board: npulab virt up --quirks FILE, then --device virt:NAME"
        raise KitError(ExitCode.USAGE, "--quirks is for --device model", hint)
    return tool(args.device, ["probe", *(word for name in args.only for word in ("--only", name))], out, _SECONDS)


def _measure(args: argparse.Namespace, experiments: Sequence[Experiment], out: Output) -> dict[str, Any]:
    """Here."""
    from rknpu_userspace.device import open_device
    from rknpu_userspace.probe import runner

    try:
        device = open_device(args.device, quirks=args.quirks)
    except ValueError as error:
        raise KitError(ExitCode.USAGE, str(error), "quirks are a JSON file, for --device model") from error
    with device, out.stage(f"measuring on {args.device}") as meter:
        done = 0

        def shown(row: runner.Row) -> None:
            nonlocal done
            done += 1
            meter.update(done, len(experiments), row["experiment"])

        rows = runner.run(device, experiments, shown)
    return runner.document(args.device, rows)


def _said(row: dict[str, Any]) -> str:
    text = row.get("needs") or row.get("error") or row["answer"]
    return f"needs {text}" if row["status"] == "needs" else str(text)
