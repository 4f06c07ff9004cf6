# SPDX-License-Identifier: MIT
"""``npulab npu bench``: what the layers of well-known networks cost by their plans, as a table and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import ExitCode, KitError
from lab.output import Output

if TYPE_CHECKING:
    from lab.npu.layers import Cost

HELP = "print what the layers of well-known networks cost: bytes against the lower bound, MAC utilisation, time"
COLUMNS = (
    "layer",
    "shape",
    "MMAC",
    "DMA KiB",
    "x bound",
    "x least",
    "MAC %",
    "tasks",
    "jobs",
    "us 200 MHz",
    "us 1 GHz",
)
SUMMARY = (
    "network",
    "layers",
    "MMAC",
    "DMA MiB",
    "x bound",
    "x least",
    "MAC %",
    "tasks",
    "jobs",
    "ms 200 MHz",
    "ms 1 GHz",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--network", action="append", metavar="NAME", help="only this network (repeatable)")
    parser.add_argument(
        "--cores", type=int, choices=(1, 2, 3), default=1, help="split every layer over this many cores"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the roofline and the layers' times")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Print the tables; write the picture."""
    from lab.npu.layers import network_costs
    from lab.npu.networks import NETWORKS

    names = args.network or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise KitError(ExitCode.USAGE, f"there is no network {unknown[0]!r}", f"networks: {', '.join(NETWORKS)}")
    if args.plot is not None and args.plot.suffix != ".png":
        raise KitError(ExitCode.USAGE, f"--plot writes PNG, not {args.plot.name}", "give a name that ends in .png")
    costs = network_costs(names, args.cores)
    for name, rows in costs.items():
        out.table(f"{name}, {_cores(args.cores)}", COLUMNS, [_cells(row) for row in rows])
    summary = [_summary(name, rows) for name, rows in costs.items()]
    out.table(
        "networks: geometric means of the ratios, sums of the rest", SUMMARY, [list(row.values()) for row in summary]
    )
    out.say("x bound: all DMA by each input, weight and output byte once; x least: by the fewest that the CBUF allows")
    if any(row.partial for rows in costs.values() for row in rows):
        out.say("*: the NPU writes partial sums, which the host adds up")
    document: dict[str, Any] = {
        "cores": args.cores,
        "layers": [row.document() for rows in costs.values() for row in rows],
        "networks": summary,
    }
    if args.plot is not None:
        from lab.npu import picture

        picture.draw(costs, args.cores, args.plot)
        out.say(f"picture: {args.plot}")
        document["picture"] = str(args.plot)
    return document


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


def _cells(row: Cost) -> list[object]:
    slow, fast = (round(time, 1) for time in row.times)
    return [
        row.layer + (" *" if row.partial else ""),
        row.shape,
        round(row.macs / 1e6, 2),
        round(row.dma_bytes / 1024, 1),
        round(row.ratio, 2),
        round(row.dma_bytes / row.least_bytes, 2),
        round(100 * row.utilisation, 1),
        row.tasks,
        row.jobs,
        slow,
        fast,
    ]


def _summary(name: str, rows: Sequence[Cost]) -> dict[str, Any]:
    """A network's row; keys as in SUMMARY's order."""
    from lab.npu.layers import geometric_mean

    cycles = sum(row.cycles for row in rows)
    macs = sum(row.macs for row in rows)
    slow, fast = (round(sum(row.times[index] for row in rows) / 1e3, 2) for index in (0, 1))
    return {
        "network": name,
        "layers": len(rows),
        "mmac": round(macs / 1e6, 1),
        "dma_mib": round(sum(row.dma_bytes for row in rows) / 2**20, 2),
        "ratio": round(geometric_mean(row.ratio for row in rows), 3),
        "least_ratio": round(geometric_mean(row.dma_bytes / row.least_bytes for row in rows), 3),
        "utilisation": round(100 * sum(row.utilisation * row.cycles for row in rows) / cycles, 1),
        "tasks": sum(row.tasks for row in rows),
        "jobs": sum(row.jobs for row in rows),
        "ms_200mhz": slow,
        "ms_1ghz": fast,
    }
