# SPDX-License-Identifier: MIT
"""``npulab bench``: measures the figures that the kit promises, each with its goal and the command that makes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.figures import Figure
from lab.output import Output
from lab.virt.results import new_results_dir

HELP = "measure the figures that the kit promises"
AREAS = ("virt", "model", "npu", "firmware", "farm", "kernel", "kas")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("area", nargs="?", default="virt", metavar="AREA", help=f"one of: {' '.join(AREAS)}")
    parser.add_argument("--quick", action="store_true", help="leave out what takes more than a minute")
    parser.add_argument("--soak", type=int, metavar="N", help="boots in a row (default 200, with --quick 3)")
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME", help="of firmware: only this part (repeatable)"
    )
    parser.add_argument("--cuts", type=int, default=500, metavar="N", help="random power cuts of the virtual board")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keep what cuts of the virtual board came to, and go on from there"
    )
    parser.add_argument(
        "--kernel", choices=("fast", "distro"), default="fast", help="trimmed mainline, or Debian's own"
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Measure, print the table; not ok when a figure misses its goal."""
    if args.area not in AREAS:
        raise KitError(ExitCode.USAGE, f"there are no figures of {args.area}", f"areas: {' '.join(AREAS)}")
    results = new_results_dir("bench")
    figures = _measure(args, results, out)
    rows = [figure.cells() for figure in figures]
    out.table("figures", ["figure", "value", "unit", "goal", "", "command"], rows)
    out.say(f"logs: {results}")
    documents = [figure.document() for figure in figures]
    missed = any(not figure.ok and not figure.missing for figure in figures)
    missing = any(figure.missing for figure in figures)
    code = ExitCode.FAILED if missed else ExitCode.INFRASTRUCTURE if missing else ExitCode.OK
    return {"ok": code is ExitCode.OK, "exit": int(code), "figures": documents, "results": str(results)}


def _measure(args: argparse.Namespace, results: Path, out: Output) -> list[Figure]:
    if args.area == "firmware":
        from lab.firmware import figures as firmware

        for part in args.part:
            if part not in firmware.PARTS:
                hint = f"one of {', '.join(firmware.PARTS)}"
                raise KitError(ExitCode.USAGE, f"the figures of firmware have no part {part}", hint)
        board = firmware.BoardOptions(cuts=args.cuts, state=(args.state or results).absolute())
        return firmware.measure(out, quick=args.quick, parts=args.part, board=board)
    if args.area == "kernel":
        from lab.kernel import figures as kernel

        return kernel.measure(out, quick=args.quick)
    if args.area == "kas":
        from lab.kas import figures as product

        return product.measure(out, quick=args.quick)
    if args.area in ("model", "npu"):
        from lab.npu import figures as npu

        return (npu.measure_model if args.area == "model" else npu.measure_npu)(out, quick=args.quick)
    if args.area == "farm":
        from lab.farm import figures as farm

        return farm.measure(args.kernel, results, out, quick=args.quick)
    from lab.virt import figures as virt

    return virt.measure(args.kernel, results, out, quick=args.quick, soak_boots=args.soak)
