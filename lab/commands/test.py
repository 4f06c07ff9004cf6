# SPDX-License-Identifier: MIT
"""``npulab test``: the suites, each by its own tool, with pytest's summaries and a report of them all at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lab.labgrid
from lab.assemble.artifacts import ArtifactSet
from lab.commands.virt import add_board_options
from lab.errors import ExitCode, KitError
from lab.labgrid import envcheck
from lab.output import Output
from lab.report import document as results_document
from lab.report.run import PAGE, Run, command_line, end_static, finishing, write_static
from lab.virt.guard import die_with
from lab.virt.results import new_results_dir, results_root
from lab.virt.select import DEFAULT_BOARD, find_artifacts, find_dtb
from lab.virt.supervisor import PACKAGE_ROOT, python_environment

HELP = "run the test suites"
SUITES = ("static", "unit", "kas", "firmware", "qtest", "farm", "board")
ENVIRONMENTS = Path(lab.labgrid.__file__).parent / "env"
STATIC = (
    ("ruff check", ("ruff", "check")),
    ("ruff format", ("ruff", "format", "--check")),
    ("mypy", ("mypy",)),
)
"""Static checks: name, module and arguments for ``python -m``."""
TEST_SECONDS = {"unit": 300, "kas": 300, "firmware": 300, "qtest": 120, "farm": 400, "board": 600}
"""No single test of a suite takes longer than this on a busy machine; one that does hangs."""
KEPT_RUNS = 20
NO_TESTS = 5
"""pytest's exit code when nothing was selected."""


@dataclass(frozen=True)
class SuiteResult:
    """How a suite, or one of the static checks, ended."""

    name: str
    ok: bool
    tests: int
    failures: int
    errors: int
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
    parser.add_argument("--env", "--lg-env", dest="lg_env", type=Path, metavar="FILE", help="a labgrid environment")
    parser.add_argument("--test", action="append", default=[], metavar="ID", help="only this test (repeatable)")
    parser.add_argument(
        "--report", "--results", dest="results", type=Path, metavar="DIR", help="where to put the report and the logs"
    )
    parser.add_argument("--keep", type=int, default=KEPT_RUNS, metavar="N", help="runs to keep (default %(default)s)")
    add_board_options(parser)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run the suites one after the other, also after a failure, and write the report."""
    suites, passed_on = _chosen(args.suites), list(args.rest)
    if args.keep < 1:
        raise KitError(ExitCode.USAGE, f"--keep {args.keep}: this run is one of those kept", "give 1 or more")
    if args.keyword:
        passed_on = ["-k", args.keyword, *passed_on]
    environment = _environment_file(args)
    results = args.results.absolute() if args.results else new_results_dir("test")
    results.mkdir(parents=True, exist_ok=True)
    virtual = "board" in suites and "KitQEMUDriver" in environment.read_text()
    needed = virtual or {"qtest", "farm"} & set(suites)
    artifacts = find_artifacts(args.artifacts, args.kernel, out) if needed else None
    variables = _variables(args, artifacts, results)
    tree = Path(variables.get("NPULAB_DTB", "")).name if virtual else ""
    report = Run(results, command_line(), artifacts, str(environment.name) if "board" in suites else None, tree)
    rows: list[SuiteResult] = []
    with finishing(report):
        for suite in suites:
            if suite == "static":
                rows += _statics(report, as_json=args.json, out=out)
                continue
            more = ["--lg-env", str(environment), "--lg-log", str(results)] if suite == "board" else []
            words = _Words(args.test, [*more, *passed_on], _repeat(args, suite))
            rows.append(_pytest(suite, words, report, variables, as_json=args.json, out=out))
    # a selection that leaves nothing of one suite is fine as long as it leaves something
    selected = bool(passed_on or args.test) and any(row.tests for row in rows if row.junit)
    rows = [_settle(row, report, selected=selected) for row in rows]
    found = report.finish()
    verdict, words_of_it = results_document.verdict(found)
    trouble = [f"suite {suite['name']}: {line}" for suite in found["suites"] for line in suite["trouble"]]
    _show(rows, results, [*trouble, f"{verdict}: {words_of_it}"], out)
    if not args.results:
        results_document.prune(results_root(), args.keep)
    documents = [asdict(row) for row in rows]
    ok = all(row.ok for row in rows)
    code = ExitCode.INFRASTRUCTURE if verdict == "error" and not ok else ExitCode.OK if ok else ExitCode.FAILED
    return {"ok": ok, "exit": int(code), "suites": documents, "results": str(results), "report": str(results / PAGE)}


@dataclass(frozen=True)
class _Words:
    """What a suite's pytest is told: tests to run instead of all, options, and how one test is repeated."""

    tests: Sequence[str]
    options: Sequence[str]
    repeat: str


def _repeat(args: argparse.Namespace, suite: str) -> str:
    """The command that repeats a test of this run; the test's id is appended."""
    words = ["npulab", "test", suite]
    if suite == "board":
        words += ["--lg-env", str(args.lg_env)] if args.lg_env else []
        words += ["--board", args.board] if args.board != "virt" else []
    if suite in ("board", "qtest"):
        words += ["--kernel", args.kernel] if args.kernel != "fast" else []
        words += ["--dtb", str(args.dtb)] if args.dtb != DEFAULT_BOARD else []
        words += ["--artifacts", str(args.artifacts)] if args.artifacts else []
    return shlex.join([*words, "--test"])


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
    envcheck.check(path)
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
        preexec_fn=lambda: _own_signals(parent),
    )
    try:
        return tool.wait()
    except KeyboardInterrupt:
        tool.send_signal(signal.SIGINT)
        raise
    finally:
        _end(tool)


def _own_signals(parent: int) -> None:
    """Ended with ``parent``; interrupts count although a shell that starts us with ``&`` has switched them off."""
    die_with(parent, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(tool: subprocess.Popen[bytes]) -> None:
    steps: tuple[Callable[[], None], ...] = (lambda: None, tool.terminate, tool.kill)
    for step in steps:
        step()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(15.0)
            return


def _statics(report: Run, *, as_json: bool, out: Output) -> list[SuiteResult]:
    """The static checks, each a row and a test of its own in the results."""
    rows = []
    begin = time.monotonic()
    (report.results / "tests-static.jsonl").write_text("")
    for name, command in STATIC:
        row = _static(name, command, as_json=as_json, out=out)
        write_static(report.results, name, row.ok, row.seconds, shlex.join(["python", "-m", *command]))
        rows.append(row)
    end_static(report.results)
    worst = max(row.exit_code for row in rows)
    report.row("static", seconds=time.monotonic() - begin, exit_code=worst)
    return rows


def _static(name: str, command: Sequence[str], *, as_json: bool, out: Output) -> SuiteResult:
    out.note(f"--- {name}")
    started = time.monotonic()
    code = _run(command, {}, as_json=as_json)
    return SuiteResult(name, code == 0, 1, int(code != 0), 0, 0, round(time.monotonic() - started, 1), code)


def _pytest(
    suite: str, words: _Words, report: Run, variables: Mapping[str, str], *, as_json: bool, out: Output
) -> SuiteResult:
    folder = PACKAGE_ROOT / "tests" / suite
    if not folder.is_dir():
        raise KitError(ExitCode.USAGE, f"{folder} is not there", "run npulab from a checkout of its repository")
    out.note(f"--- pytest tests/{suite}")
    ours = [test for test in words.tests if test.startswith(f"tests/{suite}/")]
    targets = ours if words.tests else [str(folder.relative_to(PACKAGE_ROOT))]
    command = ["pytest", "-p", "lab.report.plugin", *targets, "--timeout", str(TEST_SECONDS[suite])]
    command += ["--npulab-results", str(report.results), "--npulab-suite", suite, "--npulab-repeat", words.repeat]
    command.append("--hypothesis-profile=ci")  # the same examples each time; after -- another profile, or a seed
    started = time.monotonic()
    code = _run([*command, *words.options], variables, as_json=as_json) if targets else NO_TESTS
    seconds = round(time.monotonic() - started, 1)
    row = report.row(suite, seconds=seconds, exit_code=code)
    found = row["counts"]
    junit = str(report.results / f"junit-{suite}.xml")
    skipped = found["skipped"] + found["xfailed"]
    return SuiteResult(
        suite, row["ok"], sum(found.values()), found["failed"], found["error"], skipped, seconds, code, junit
    )


def _settle(row: SuiteResult, report: Run, *, selected: bool) -> SuiteResult:
    """A suite of which the selection has left nothing is fine."""
    if row.exit_code != NO_TESTS or not selected:
        return row
    report.suites = [suite for suite in report.suites if suite["name"] != row.name]
    return replace(row, ok=True)


def _show(rows: Sequence[SuiteResult], results: Path, words: Sequence[str], out: Output) -> None:
    columns = ["suite", "result", "tests", "failed", "errors", "skipped", "seconds"]
    table = [
        [row.name, _word(row), row.tests, row.failures, row.errors, row.skipped, f"{row.seconds:.0f}"] for row in rows
    ]
    out.table("suites", columns, table)
    for line in words:
        out.say(line)
    out.say(f"report: {results / PAGE}")
    out.say(f"results, JUnit files and logs: {results}")


def _word(row: SuiteResult) -> str:
    if row.ok:
        return "passed"
    return "ERROR" if row.errors and not row.failures else "FAILED"
