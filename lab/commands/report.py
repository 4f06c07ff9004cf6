# SPDX-License-Identifier: MIT
"""``npulab report``: what a run of ``npulab test`` found, what changed between two, and a run for other tools."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.report import compare, document, expectations, junit, kcidb
from lab.virt.results import results_root

HELP = "show what a test run found, compare two runs, convert one for other tools"
FORMATS = ("junit", "kcidb", "html")
SHOWN = 20
"""Failures that are listed on the terminal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    run_help = "a run's directory, its name, or latest"
    show = verbs.add_parser("show", help="a run in a few lines, or as a page")
    show.add_argument("run", nargs="?", default="latest", metavar="RUN", help=f"{run_help} (default latest)")
    show.add_argument("--html", type=Path, metavar="FILE", help="write the page there")
    verbs.add_parser("list", help="the runs there are")
    two = verbs.add_parser("compare", help="what changed between two runs; exit code 1 when something got worse")
    two.add_argument("old", metavar="A", help=run_help)
    two.add_argument("new", metavar="B", help=run_help)
    two.add_argument("--markdown", type=Path, metavar="FILE", help="write it as Markdown")
    two.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    two.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="speed that may be lost, also on a virtual board (0.25)"
    )
    convert = verbs.add_parser("convert", help="a run for other tools")
    convert.add_argument("run", nargs="?", default="latest", metavar="RUN", help=f"{run_help} (default latest)")
    convert.add_argument("--format", required=True, choices=FORMATS, help="JUnit's XML, KCIDB's JSON, or the page")
    convert.add_argument("--output", type=Path, metavar="FILE", help="where to (default standard output)")
    convert.add_argument("--origin", default="npulab", metavar="NAME", help="your CI system's name in KCIDB")
    check = verbs.add_parser("expectations", help="check the expectation files and show what they say of a board")
    check.add_argument("board", nargs="?", metavar="BOARD", help="only this board's")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs: dict[str, Callable[[argparse.Namespace, Output], dict[str, Any]]] = {
        "show": _show,
        "list": _list,
        "compare": _compare,
        "convert": _convert,
        "expectations": _expectations,
    }
    return verbs[args.verb](args, out)


def _load(word: str) -> dict[str, Any]:
    return document.load(document.find(word, results_root()))


def _show(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    found = _load(args.run)
    verdict, words = document.verdict(found)
    board, kernel = found["board"], found["kernel"]
    tested = f"{board['model'] or board['name']}, Linux {kernel['release']}" if board and kernel else "no board"
    out.say(f"{found['id']}, {found['started']}: {tested}")
    rows = [
        [area, row["tests"], *(row[outcome] for outcome in document.OUTCOMES), f"{row['seconds']:.0f}"]
        for area, row in document.by_area(found["tests"]).items()
    ]
    out.table("by area", ["area", "tests", *document.OUTCOMES, "seconds"], rows)
    bad = [test for test in found["tests"] if test["outcome"] in document.BAD]
    for test in bad[:SHOWN]:
        out.say(f"{test['outcome']}: {test['id']}\n    {test['message']}\n    {test['repeat']}")
    if len(bad) > SHOWN:
        out.say(f"and {len(bad) - SHOWN} more")
    for suite in found["suites"]:
        for line in suite["trouble"]:
            out.say(f"suite {suite['name']}: {line}")
    out.say(f"{verdict}: {words}")
    if args.html:
        from lab.report import page

        document.write_text(args.html.absolute(), page.render(found))
        out.say(f"page: {args.html}")
    return {"verdict": verdict, "counts": document.counts(found), "run": found}


def _list(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    root = results_root()
    rows, documents = [], []
    for path in document.runs(root):
        try:
            found = document.load(path)
        except KitError as error:
            rows.append([path.name, "", "", "unreadable", error.message])
            continue
        verdict, words = document.verdict(found)
        board, kernel = found["board"] or {}, found["kernel"] or {}
        rows.append([path.name, board.get("model", ""), kernel.get("release", ""), verdict, words])
        documents.append({"run": path.name, "started": found["started"], "verdict": verdict, "summary": words})
    out.table(f"runs below {root}", ["run", "board", "kernel", "verdict", ""], rows)
    return {"runs": documents, "root": str(root)}


def _compare(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    if args.tolerance is not None and not 0 < args.tolerance < 1:
        raise KitError(ExitCode.USAGE, f"--tolerance {args.tolerance} is no share", "give 0.25 for a quarter")
    found = compare.compare(_load(args.old), _load(args.new), args.tolerance)
    # jinja2 only for who wants a page
    from lab.report import difference

    text = difference.markdown(found)
    out.say(text)
    if args.markdown:
        document.write_text(args.markdown.absolute(), text)
    if args.html:
        document.write_text(args.html.absolute(), difference.html(found))
    return {"ok": found.regressions == 0, **found.document()}


def _convert(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    found = _load(args.run)
    if args.format == "junit":
        text = junit.render(found)
    elif args.format == "kcidb":
        text = json.dumps(kcidb.render(found, args.origin), indent=1) + "\n"
    else:
        from lab.report import page

        text = page.render(found)
    if args.output:
        document.write_text(args.output.absolute(), text)
        out.say(f"written: {args.output}")
    else:
        out.say(text.rstrip("\n"))
    return {"format": args.format, "output": str(args.output) if args.output else None}


def _expectations(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    found = [entry for name in expectations.names(args.board) for entry in expectations.load(name)]
    rows = [
        [e.board, e.expect, e.test, " ".join(e.kernels), "\n".join(e.fixed_by), f"{e.reason} ({e.evidence})"]
        for e in found
    ]
    out.table("expectations", ["board", "expect", "test", "kernels", "unless it has", "why"], rows)
    return {"expectations": [entry.document() for entry in found]}
