# SPDX-License-Identifier: MIT
"""``npulab test``: the suites, each by its own tool, with pytest's summaries and a table of them all at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lab.labgrid
from lab.assemble.artifacts import ArtifactSet
from lab.commands.virt import add_board_options
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.virt.guard import die_with
from lab.virt.results import new_results_dir
from lab.virt.select import find_artifacts, find_dtb
from lab.virt.supervisor import PACKAGE_ROOT, python_environment

HELP = "run the test suites"
SUITES = ("static", "unit", "firmware", "qtest", "board")
ENVIRONMENTS = Path(lab.labgrid.__file__).parent / "env"
STATIC = (
    ("ruff check", ("ruff", "check")),
    ("ruff format", ("ruff", "format", "--check")),
    ("mypy", ("mypy",)),
)
"""Static checks: name, module and arguments for ``python -m``."""
TEST_SECONDS = {"unit": 300, "firmware": 300, "qtest": 120, "board": 600}
"""No single test of a suite takes longer than this on a busy machine; one that does hangs."""
NO_TESTS = 5
"""pytest's exit code when nothing was selected."""


@dataclass(frozen=True)
class SuiteResult:
    """How a suite, or one of the static checks, ended."""

    name: str
    ok: bool
    tests: int
    failures: int
    skipped: int
    seconds: float
    exit_code: int
    junit: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options; what stands after ``--`` goes to pytest."""
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help=f"{', '.join(SUITES)} or all (default); what stands after -- goes to pytest",
    )
    parser.add_argument("-k", dest="keyword", metavar="EXPRESSION", help="only tests that match (pytest -k)")
    parser.add_argument("--board", default="virt", metavar="NAME", help="which of lab/labgrid/env (default virt)")
    parser.add_argument("--lg-env", type=Path, metavar="FILE", help="a labgrid environment of your own")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where to put JUnit files and logs")
    add_board_options(parser)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run the suites one after the other, also after a failure."""
    suites, passed_on = _chosen(args.suites), list(args.rest)
    if args.keyword:
        passed_on = ["-k", args.keyword, *passed_on]
    environment = _environment_file(args)
    results = args.results.absolute() if args.results else new_results_dir("test")
    results.mkdir(parents=True, exist_ok=True)
    virtual = "board" in suites and environment == ENVIRONMENTS / "virt.yaml"
    artifacts = find_artifacts(args.artifacts, args.kernel, out) if virtual or "qtest" in suites else None
    variables = _variables(args, artifacts, results)
    rows: list[SuiteResult] = []
    for suite in suites:
        if suite == "static":
            rows += [_static(name, command, as_json=args.json, out=out) for name, command in STATIC]
            continue
        more = ["--lg-env", str(environment), "--lg-log", str(results)] if suite == "board" else []
        rows.append(_pytest(suite, [*more, *passed_on], results, variables, as_json=args.json, out=out))
    # a selection that leaves nothing of one suite is fine as long as it leaves something
    selected = any(row.tests for row in rows if row.junit)
    rows = [_settle(row, selected=bool(passed_on) and selected) for row in rows]
    _show(rows, results, out)
    documents = [asdict(row) for row in rows]
    return {"ok": all(row.ok for row in rows), "suites": documents, "results": str(results)}


def _chosen(words: Sequence[str]) -> list[str]:
    """The suites that were named, in their own order; all when none was."""
    for word in words:
        if word not in (*SUITES, "all"):
            raise KitError(ExitCode.USAGE, f"no suite is called {word}", f"suites: {' '.join(SUITES)} all")
    return list(SUITES) if not words or "all" in words else [name for name in SUITES if name in words]


def _environment_file(args: argparse.Namespace) -> Path:
    path: Path = args.lg_env.absolute() if args.lg_env else ENVIRONMENTS / f"{args.board}.yaml"
    if not path.is_file():
        known = " ".join(sorted(entry.stem for entry in ENVIRONMENTS.glob("*.yaml")))
        raise KitError(ExitCode.USAGE, f"there is no labgrid environment {path}", f"known boards: {known}")
    return path


def _variables(args: argparse.Namespace, artifacts: ArtifactSet | None, results: Path) -> dict[str, str]:
    """The environment of the suites: what to boot, where to put logs."""
    variables = {**python_environment(), "NPULAB_RESULTS": str(results), "NPULAB_MEMORY": args.memory}
    if artifacts is not None:
        variables |= {
            "NPULAB_ARTIFACTS": str(artifacts.root),
            "NPULAB_QEMU": str(artifacts.qemu),
            "NPULAB_DTB": str(find_dtb(artifacts, args.dtb)),
        }
    return variables


def _run(command: Sequence[str], variables: Mapping[str, str], *, as_json: bool) -> int:
    """Run a tool in the checkout on our own terminal; it ends when we do."""
    parent = os.getpid()
    tool = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=PACKAGE_ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if as_json else None,
        # its own group, so that Ctrl-C reaches it once, from us: a second SIGINT would stop its clearing up
        process_group=0,
        # this process has no other thread now, and the main thread lives as long as it does
        preexec_fn=lambda: die_with(parent, signal.SIGTERM),
    )
    try:
        return tool.wait()
    except KeyboardInterrupt:
        tool.send_signal(signal.SIGINT)
        raise
    finally:
        _end(tool)


def _end(tool: subprocess.Popen[bytes]) -> None:
    steps: tuple[Callable[[], None], ...] = (lambda: None, tool.terminate, tool.kill)
    for step in steps:
        step()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(15.0)
            return


def _static(name: str, command: Sequence[str], *, as_json: bool, out: Output) -> SuiteResult:
    out.note(f"--- {name}")
    started = time.monotonic()
    code = _run(command, {}, as_json=as_json)
    return SuiteResult(name, code == 0, 1, int(code != 0), 0, round(time.monotonic() - started, 1), code)


def _pytest(
    suite: str, options: Sequence[str], results: Path, variables: Mapping[str, str], *, as_json: bool, out: Output
) -> SuiteResult:
    folder = PACKAGE_ROOT / "tests" / suite
    if not folder.is_dir():
        raise KitError(ExitCode.USAGE, f"{folder} is not there", "run npulab from a checkout of its repository")
    out.note(f"--- pytest tests/{suite}")
    junit = results / f"junit-{suite}.xml"
    command = ["pytest", str(folder.relative_to(PACKAGE_ROOT)), "--junitxml", str(junit)]
    command += ["-o", f"junit_suite_name={suite}", "--timeout", str(TEST_SECONDS[suite])]
    started = time.monotonic()
    code = _run([*command, *options], variables, as_json=as_json)
    tests, failures, skipped = _counts(junit)
    seconds = round(time.monotonic() - started, 1)
    return SuiteResult(suite, code == 0, tests, failures, skipped, seconds, code, str(junit))


def _counts(junit: Path) -> tuple[int, int, int]:
    """Tests, failures and errors, and skips of a JUnit file; zeros when pytest did not get as far as writing it."""
    if not junit.is_file():
        return 0, 0, 0
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    return total("tests"), total("failures") + total("errors"), total("skipped")


def _settle(row: SuiteResult, *, selected: bool) -> SuiteResult:
    if row.exit_code == NO_TESTS and selected:
        return SuiteResult(**{**asdict(row), "ok": True})
    return row


def _show(rows: Sequence[SuiteResult], results: Path, out: Output) -> None:
    table = [
        [row.name, "passed" if row.ok else "FAILED", row.tests, row.failures, row.skipped, f"{row.seconds:.0f}"]
        for row in rows
    ]
    out.table("suites", ["suite", "result", "tests", "failed", "skipped", "seconds"], table)
    out.say(f"JUnit files and logs: {results}")
