# SPDX-License-Identifier: MIT
"""``npulab demo``: from nothing to matmul and convolution on the NPU of a virtual board, in one command."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.assemble.artifacts import ArtifactSet
from lab.commands.virt import add_board_options
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import tail
from lab.virt.results import new_results_dir
from lab.virt.select import board_config, find_artifacts
from lab.virt.session import BoardSession
from lab.virt.workloads import ModelCount, attribute, documents, parse_rows, read_stats

HELP = "assemble, boot the virtual board, run matmul and convolution on its NPU"
SELFTEST = "python3 -m rknpu_userspace.selftest --json"
SELFTEST_SECONDS = 600.0


class Timings:
    """Where the time of a run went."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; an error that leaves it says in which stage it was."""
        started = time.monotonic()
        try:
            yield
        except KitError as error:
            error.message = f"{name}: {error.message}"
            raise
        finally:
            self.rows.append((name, time.monotonic() - started))


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_board_options(parser)
    parser.add_argument("--timings", action="store_true", help="show where the time went")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where to put logs and the picture")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """The whole path."""
    timings = Timings()
    started = time.monotonic()
    with timings.stage("assemble"):
        artifacts = find_artifacts(args.artifacts, args.kernel, out)
        config = board_config(artifacts, args.dtb, memory=args.memory, cpus=args.cpus)
    results = _results(args.results)
    with BoardSession(config, results) as session:
        with timings.stage("boot"), out.stage("booting the virtual board"):
            session.to("shell")
        board = session.board
        with timings.stage("workloads"), out.stage("running workloads on the NPU"):
            rows = _selftest(session)
        counts = attribute(rows, read_stats(board.stats))
        model = board.tree.model if board.tree else ""
        with timings.stage("power off"):
            session.to("off")
    workloads = documents(rows, counts)
    with timings.stage("report"):
        picture = _picture(workloads, model, results)
    timings.rows.append(("total", time.monotonic() - started))
    _show(workloads, model, artifacts, results, picture, out)
    if args.timings:
        out.table("where the time went", ["stage", "seconds"], [[name, f"{took:.1f}"] for name, took in timings.rows])
    problem = _problem(counts)
    ok = bool(workloads) and not problem and all(row["ok"] for row in workloads)
    if problem:
        out.note(problem)
    return {
        "ok": ok,
        "board": model,
        "kernel": artifacts.manifest["kernel"],
        "workloads": workloads,
        "timings": {name: round(took, 2) for name, took in timings.rows},
        "results": str(results),
        "roofline": str(picture),
    }


def _results(chosen: Path | None) -> Path:
    if chosen is None:
        return new_results_dir("demo")
    results = chosen.absolute()
    results.mkdir(parents=True, exist_ok=True)
    return results


def _selftest(session: BoardSession) -> list[dict[str, Any]]:
    """Run all workloads in one process on the board."""
    lines, code = session.run(SELFTEST, SELFTEST_SECONDS)
    (session.results / "selftest.jsonl").write_text("\n".join(lines) + "\n")
    rows = parse_rows(lines)
    if not rows:
        raise KitError(
            ExitCode.FAILED,
            f"the selftest ended with {code} and without a result",
            "log in and run it by hand: npulab virt up, npulab virt shell",
            tail="\n".join(lines[-15:]),
            log=session.results / "console.log",
        )
    if code and all(row.get("ok") for row in rows):
        rows.append({"name": "selftest", "ok": False, "error": f"ended with {code} after {len(rows)} workloads"})
    return rows


def _problem(counts: Sequence[ModelCount] | None) -> str:
    """What is wrong with the run as a whole, whatever the single workloads say."""
    if counts is None:
        return "the model ran another number of tasks than the workloads report; no figures are attributed"
    idle = {0, 1, 2}.difference(*(figures.cores for figures in counts))
    return f"no task ran on core {', '.join(str(core) for core in sorted(idle))}" if idle else ""


def _picture(workloads: Sequence[dict[str, Any]], model: str, results: Path) -> Path:
    from lab.virt.roofline import draw

    path = results / "roofline.png"
    draw(workloads, f"Workloads on the virtual NPU ({model}), by the model's estimate", path)
    return path


def _result(row: dict[str, Any]) -> str:
    """The words for a workload's result."""
    if not row["ok"]:
        return f"FAILED {row.get('error', '')}".strip()
    if row.get("max_ulp"):
        return f"max {row['max_ulp']:g} ulp"
    return "exact"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1024:.0f} KiB" if count < 10 << 20 else f"{count / (1 << 20):.1f} MiB"


def _show(
    workloads: Sequence[dict[str, Any]],
    model: str,
    artifacts: ArtifactSet,
    results: Path,
    picture: Path,
    out: Output,
) -> None:
    """The table, where the logs are, and what to try next."""
    columns = ["workload", "datatype", "result", "jobs", "tasks", "DMA", "NPU ms (200 MHz)", "guest ms", "cores"]
    table = []
    for row in workloads:
        npu = f"{row['npu_us'] / 1000:.2f}" if "npu_us" in row else "-"
        cores = ",".join(str(core) for core in row.get("ran_on", [])) or "-"
        guest = f"{1000 * row['npu_seconds']:.1f}" if "npu_seconds" in row else "-"
        dma = _bytes(row.get("dma_bytes"))
        name, kind = row["name"], row.get("dtype", "-")
        table.append([name, kind, _result(row), row.get("jobs", "-"), row.get("tasks", "-"), dma, npu, guest, cores])
    release = artifacts.manifest["kernel"].get("release", "")
    out.table(f"{model} (virtual board), Linux {release}, driver rocket", columns, table)
    failed = [row["name"] for row in workloads if not row["ok"]]
    if failed:
        out.say(f"{len(failed)} of {len(workloads)} workloads failed: {', '.join(failed)}")
        words = tail(results / "model.log", 5)
        if words:
            out.say(f"the model's last words:\n{words}")
    else:
        out.say(f"{len(workloads)} workloads ran through the rocket driver and equal numpy's results.")
    out.say(f"logs: {results}   picture: {picture}")
    out.say("next: npulab test   |   npulab demo --dtb rk3588-rock-5-itx   |   npulab virt up; npulab virt shell")
