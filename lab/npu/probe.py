# SPDX-License-Identifier: MIT
"""``npulab npu probe``: experiments that settle what public sources leave open about the NPU."""

from __future__ import annotations

import argparse
from typing import Any

from lab.errors import ExitCode, KitError
from lab.output import Output

HELP = "measure what is not known about the NPU, and write the answers for the model to load"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    from rknpu_userspace.probe.runner import add_options

    add_options(parser)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run experiments on a device or on the model; not ok when a job never ran."""
    from rknpu_userspace.device import open_device
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
    contents = runner.document(args.device, rows)
    cells = [[row["number"], row["experiment"], row["status"], _said(row)] for row in rows]
    out.table(f"what {contents['board'].get('name', args.device)} answers", ["", "experiment", "status", ""], cells)
    if args.out is not None:
        runner.save(args.out, contents)
        out.say(f"{len(contents['quirks'])} answers for the model: {args.out}")
    return {"ok": not any(row["status"] == "failed" for row in rows), **contents}


def _said(row: dict[str, Any]) -> str:
    text = row.get("needs") or row.get("error") or row["answer"]
    return f"needs {text}" if row["status"] == "needs" else str(text)
