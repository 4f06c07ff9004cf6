# SPDX-License-Identifier: MIT
"""What changed between two runs, and the report command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import case, results

from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.report import difference, document
from lab.report.compare import compare, direction


def pair(*changes: tuple[str | None, str | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two runs in which test n goes from one outcome to the other; None is a test that is not there."""
    old = [case(f"t{number}", before) for number, (before, _) in enumerate(changes) if before]
    new = [case(f"t{number}", after) for number, (_, after) in enumerate(changes) if after]
    return results([*old, case("same")]), results([*new, case("same")])


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("passed", "failed", "new failure"),
        ("flaky", "failed", "new failure"),
        ("skipped", "failed", "new failure"),
        ("error", "failed", "new failure"),
        ("xfailed", "failed", "new failure"),
        (None, "failed", "new failure"),
        ("failed", "failed", "still failing"),
        ("passed", "error", "unknown"),
        ("failed", "passed", "fixed"),
        ("failed", None, "no longer run"),
        ("failed", "skipped", "no longer run"),
        ("passed", "skipped", "no longer run"),
        ("passed", None, "no longer run"),
        ("skipped", "passed", "newly run"),
        (None, "passed", "newly run"),
        ("error", "passed", "newly run"),
        ("passed", "flaky", "other"),
        ("xfailed", "passed", "other"),
        ("passed", "passed", None),
        ("skipped", "skipped", None),
        ("skipped", None, None),
        (None, "skipped", None),
    ],
)
def test_kinds(before: str | None, after: str | None, kind: str | None) -> None:
    found = compare(*pair((before, after)))
    assert [change.kind for change in found.changes] == ([kind] if kind else [])
    assert found.regressions == (1 if kind == "new failure" else 0)


def test_a_suite_that_only_one_run_has_is_no_change(run: dict[str, Any]) -> None:
    board = results([test for test in run["tests"] if test["suite"] == "board"])
    assert not [c for c in compare(run, board).changes if c.test.startswith("tests/unit")]
    assert not [c for c in compare(board, run).changes if c.test.startswith("tests/unit")]


def _numerics(mismatches: int, ulp: float | None) -> dict[str, Any]:
    row = {"op": "conv2d", "dtype": "float16", "max_abs": 0.1, "max_ulp": ulp, "elements": 100, "labels": {"k": 3}}
    return results([case("t", numerics=[{**row, "mismatches": mismatches}])])


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        ((0, 0.5), (0, 0.5), None),
        ((0, 0.5), (0, 0.52), False),
        ((0, 0.5), (0, 0.6), True),
        ((0, None), (1, None), True),
        ((3, 0.5), (1, 0.4), False),
        ((0, 0.0), (0, 0.1), True),
    ],
)
def test_numerics(old: tuple[int, float | None], new: tuple[int, float | None], worse: bool | None) -> None:
    found = compare(_numerics(*old), _numerics(*new))
    assert [drift.worse for drift in found.drifts] == ([] if worse is None else [worse])
    assert found.regressions == int(bool(worse))


def _speed(value: float, unit: str, *, virtual: bool) -> dict[str, Any]:
    run = results([case("t", measurements=[{"name": "x", "value": value, "unit": unit, "labels": {}}])])
    run["board"]["virtual"] = virtual
    return run


@pytest.mark.parametrize(
    ("unit", "old", "new", "verdict"),
    [
        ("jobs/s", 100.0, 70.0, "worse"),
        ("jobs/s", 100.0, 130.0, "better"),
        ("jobs/s", 100.0, 80.0, "same"),
        ("ms", 10.0, 14.0, "worse"),
        ("ms", 10.0, 7.0, "better"),
        ("ms", 10.0, 0.0, "same"),
        ("apples", 1.0, 100.0, "same"),
    ],
)
def test_speed(unit: str, old: float, new: float, verdict: str) -> None:
    found = compare(_speed(old, unit, virtual=False), _speed(new, unit, virtual=False))
    assert [(speed.verdict, speed.regression) for speed in found.speeds] == [(verdict, verdict == "worse")]
    assert found.regressions == int(verdict == "worse")


def test_speed_on_a_virtual_board_is_judged_when_it_is_asked_for() -> None:
    runs = _speed(100.0, "jobs/s", virtual=True), _speed(50.0, "jobs/s", virtual=True)
    assert compare(*runs).regressions == 0
    assert compare(*runs, 0.25).regressions == 1
    assert compare(*runs, 0.6).regressions == 0


def test_directions() -> None:
    assert [direction(unit) for unit in ("GOP/s", "x", "ms", "KiB", "tasks")] == [1, 1, -1, -1, 0]


def test_an_empty_run_is_told() -> None:
    with pytest.raises(KitError) as caught:
        compare(results([]), results([case("t")]))
    assert (caught.value.code, "has no tests" in caught.value.message) == (ExitCode.USAGE, True)


def test_what_was_tested_is_named_where_it_differs(run: dict[str, Any]) -> None:
    other = results()
    other["kernel"]["release"] = "7.4.0"
    other["board"] = None
    names = {what: (before, after) for what, before, after in compare(run, other).subjects}
    assert names["kernel"] == ("7.3.4-npulab", "7.4.0")
    assert names["board"] == ("Xunlong Orange Pi 5", "-")
    assert "artifacts" not in names


def test_markdown_and_page_of_anything() -> None:
    nasty = "a|b`c<script>\n# x\x1b[1m\x00"
    old, new = results([case(nasty)]), results([case(nasty, "failed", message=nasty)])
    new["kernel"]["release"] = nasty
    found = compare(old, new)
    text = difference.markdown(found)
    rows = [line for line in text.splitlines() if line.startswith("| tests/board")]
    assert len(rows) == 1
    assert "a\\|b'c&lt;script> # x\\\\x00" in rows[0]
    page = difference.html(found)
    assert "<script" not in page
    assert "\x00" not in page
    assert difference.headline(found) == "regression: 1 new failure, 1 tests"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPULAB_RESULTS", str(tmp_path))
    return tmp_path


def test_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = results([case("t"), case("u")]), results([case("t"), case("u", "failed", message="is wrong")])
    for name, run in (("a", good), ("b", bad)):
        run["id"] = name
        document.save(run, place / name)
    assert main(["report", "list"]) == 0
    assert main(["report", "show", "b", "--html", str(place / "b.html")]) == 0
    text = capsys.readouterr().out
    assert "is wrong" in text
    assert "npulab test board --test" in text
    assert (place / "b.html").read_text().startswith("<!DOCTYPE html>")
    options = ["--markdown", str(place / "d.md"), "--html", str(place / "d.html")]
    assert main(["report", "compare", "a", "b", *options]) == 1
    assert "regression: 1 new failure" in (place / "d.md").read_text()
    assert main(["report", "compare", "b", "a"]) == 0
    capsys.readouterr()
    assert main(["report", "compare", "a", "b", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["regressions"], found["changes"][0]["kind"]) == (False, 1, "new failure")
    for name in ("junit", "kcidb", "html"):
        assert main(["report", "convert", "a", "--format", name, "--output", str(place / name)]) == 0
        assert (place / name).stat().st_size > 100
    assert main(["report", "expectations", "virt"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show"], 2, "there is no run below"),
        (["show", "nonsense"], 2, "there is no run nonsense"),
        (["compare", "latest", "latest"], 2, "there is no run below"),
        (["convert", "--format", "tap"], 2, "invalid choice"),
        (["compare", "a", "b", "--tolerance", "7"], 2, "is no share"),
        (["expectations", "vurt"], 2, "no expectations of a board vurt"),
    ],
)
def test_bad_words(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str) -> None:
    assert main(["report", *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_page_that_cannot_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document.save(results([case("t")]), place / "a")
    assert main(["report", "show", "a", "--html", str(place / "a" / "results.json" / "x.html")]) == 8
    assert "writing" in capsys.readouterr().err
    (place / "a" / "results.json").write_text("{")
    assert main(["report", "list"]) == 0
    assert "not JSON" in capsys.readouterr().out
