# SPDX-License-Identifier: MIT
"""The page of a run: one HTML file that needs nothing else, for a browser, a mail or a printer.

Everything in it comes from a board or a test and is not to be trusted: jinja2 escapes all of it, and control
characters are made visible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from lab.report import document, series, svg

TEMPLATES = Path(__file__).with_name("templates")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def visible(text: Any) -> str:
    """Text without terminal colours and with control characters (also those that turn the direction of text) shown."""
    plain = _COLOURS.sub("", str(text)).replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", plain)


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds else "0 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min {seconds % 60:.0f} s"


def figure(value: Any) -> str:
    """A number with as many digits as matter."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def labels(row: Mapping[str, Any]) -> str:
    """Labels of a measured value."""
    return ", ".join(f"{key}={value}" for key, value in row["labels"].items())


@cache
def environment() -> jinja2.Environment:
    """Templates with escaping on, whatever the file is called."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    found = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"duration": duration, "figure": figure, "labels": labels}
    return found


def anchors(tests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """An anchor for each test: readable, unique, and nothing that an address would have to escape."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for test in tests:
        words = re.sub(r"[^A-Za-z0-9]+", "-", test["id"].removeprefix("tests/")).strip("-").lower()[:80] or "test"
        name, number = f"t-{words}", 2
        while name in taken:
            name, number = f"t-{words}-{number}", number + 1
        taken.add(name)
        found[test["id"]] = name
    return found


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    tests = found["tests"]
    verdict, words = document.verdict(found)
    rows = series.measurements(tests)
    plots = series.plots(rows)
    end = found.get("end") or {}
    picture = _with_versions(end.get("npu"), found["npu"])
    names = anchors(tests)
    values = {
        "run": found,
        "verdict": verdict,
        "summary": words,
        "attention": [test for test in tests if test["outcome"] in document.BAD],
        "expected": [test for test in tests if test["outcome"] in ("xfailed", "flaky") or test.get("expectation")],
        "areas": document.by_area(tests),
        "outcomes": document.OUTCOMES,
        "counts": document.counts(found),
        "anchors": names,
        "picture": svg.npu(picture),
        "numerics": series.numerics(tests),
        "measurements": rows,
        "plots": [(plot, series.legend(rows, plot)) for plot in plots],
        "properties": [test for test in tests if test["properties"]],
        "style": (TEMPLATES / "report.css").read_text(),
    }
    # whatever became of a control character on the way, none has a meaning in a page
    return visible(environment().get_template("report.html.j2").render(values))


def _with_versions(end: Mapping[str, Any] | None, start: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The NPU's state at the end, with what was read when the driver was bound."""
    if not end or not end["cores"] or not start:
        return start
    versions = {core["address"]: core for core in start["cores"]}
    cores = [{**core, **_kept(versions.get(core["address"], {}))} for core in end["cores"]]
    return {**end, "cores": cores}


def _kept(core: Mapping[str, Any]) -> dict[str, Any]:
    return {key: core[key] for key in ("version", "number") if key in core}
