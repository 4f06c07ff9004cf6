# SPDX-License-Identifier: MIT
"""Runs experiments and writes down what they found: ``python3 -m rknpu_userspace probe``.

The document (``schema`` "rknpu-probe-1") has ``quirks``, the answers by the name of the model's switch, ``board`` and
``kernel``, and a row per experiment: name, number, question, status, answer, quirks, confidence, observed, seconds.
Status: "measured", "undecided" (the data fits no known answer), "needs" (not possible here, ``needs`` says why),
"failed" (a job never ran, ``error`` says why).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rknpu_userspace.errors import DeviceError, JobError

from . import convolution, floats, machine, rounding, stages
from .rig import Experiment, Rig

if TYPE_CHECKING:
    from rknpu_userspace.device import Device

SCHEMA = "rknpu-probe-1"
EXPERIMENTS: tuple[Experiment, ...] = tuple(
    sorted(
        (
            *rounding.EXPERIMENTS,
            *stages.EXPERIMENTS,
            *convolution.EXPERIMENTS,
            *floats.EXPERIMENTS,
            *machine.EXPERIMENTS,
        ),
        key=lambda experiment: experiment.number,
    )
)
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_DEVICE = 0, 1, 2, 4
_TREE = Path("/proc/device-tree")
Row = dict[str, Any]


def run_one(device: Device, experiment: Experiment) -> Row:
    """Run one experiment on a core of the device; its row."""
    row: Row = {
        "experiment": experiment.name,
        "number": experiment.number,
        "question": experiment.question,
        "status": "needs",
        "answer": "",
        "quirks": {},
        "confidence": "none",
        "observed": {},
        "seconds": 0.0,
    }
    if experiment.measure is None:
        return {**row, "needs": experiment.needs, "open": list(experiment.quirks)}
    begin = time.monotonic()
    rig = Rig(device.contexts(1)[0])
    try:
        found = experiment.measure(rig)
    except JobError as error:
        row |= {"status": "failed", "error": str(error), "open": list(experiment.quirks)}
    else:
        row |= {
            "status": "undecided" if found.confidence == "none" else "measured",
            "answer": found.answer,
            "quirks": found.quirks,
            "confidence": found.confidence,
            "observed": found.observed,
            "open": [name for name in experiment.quirks if name not in found.quirks],
        }
    finally:
        rig.close()
    row["seconds"] = round(time.monotonic() - begin, 3)
    return row


def identity(device: str) -> dict[str, Any]:
    """What was measured: the board by its device tree, and the kernel."""
    if device == "model":
        return {"board": {"name": "the model"}, "kernel": None}
    board = {}
    for name, file in (("name", "model"), ("compatible", "compatible"), ("serial", "serial-number")):
        with contextlib.suppress(OSError):
            board[name] = (_TREE / file).read_bytes().rstrip(b"\0").decode("ascii", "replace").replace("\0", " ")
    return {"board": board, "kernel": f"{platform.release()} {platform.version()}"}


def document(device: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The file's contents; the model reads ``quirks`` of it."""
    quirks: dict[str, str] = {}
    for row in rows:
        quirks |= row["quirks"]
    return {"schema": SCHEMA, "device": device, **identity(device), "quirks": quirks, "experiments": list(rows)}


def run(
    device: Device, experiments: Iterable[Experiment] = EXPERIMENTS, shown: Callable[[Row], None] | None = None
) -> list[Row]:
    """Run experiments one after the other; ``shown`` receives each row when it is there."""
    rows = []
    for experiment in experiments:
        rows.append(run_one(device, experiment))
        if shown is not None:
            shown(rows[-1])
    return rows


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def line(row: Row) -> str:
    """A row for people."""
    text = row.get("needs") or row.get("error") or row["answer"]
    return f"{row['number']:2} {row['experiment']:18} {row['status']:9} {text}"


def add_options(parser: argparse.ArgumentParser, device: str = 'device node, or "model"') -> None:
    """Options of the command; ``device`` says what may be named."""
    parser.add_argument("--device", default="/dev/accel/accel0", help=device)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answers there, for the model to load")
    parser.add_argument("--quirks", type=Path, metavar="FILE", help="answers that the model is to give (model only)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run this one (repeatable)")
    parser.add_argument("--list", action="store_true", help="list the experiments and end")


def chosen(names: Sequence[str]) -> list[Experiment]:
    """Experiments by name, all without names; ValueError for one that there is not."""
    split = [name for group in names for name in group.split(",")]
    for name in split:
        if name not in BY_NAME:
            raise ValueError(f"no experiment {name!r}; there are {', '.join(BY_NAME)}")
    return [experiment for experiment in EXPERIMENTS if not split or experiment.name in split]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="rknpu-probe", description="Measure what is not known about the NPU.")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the document instead of lines")
    options = parser.parse_args(arguments)
    try:
        experiments = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for experiment in experiments:
            print(f"{experiment.number:2} {experiment.name:18} {experiment.question}")
        return EXIT_OK
    from rknpu_userspace.device import open_device

    try:
        with open_device(options.device, quirks=options.quirks) as device:
            rows = run(device, experiments, None if options.json else lambda row: print(line(row), flush=True))
        contents = document(options.device, rows)
        if options.out is not None:
            save(options.out, contents)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NO_DEVICE
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    if options.json:
        print(json.dumps(contents, indent=2))
    return EXIT_FAILED if any(row["status"] == "failed" for row in rows) else EXIT_OK


if __name__ == "__main__":
    from rknpu_userspace.console import quietly

    sys.exit(quietly(main))
