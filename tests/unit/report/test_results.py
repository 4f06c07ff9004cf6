# SPDX-License-Identifier: MIT
"""The results document, and what is made of it for other tools."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import case, records, results
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import ExitCode, KitError
from lab.kernel.patches import FOLDER as PATCHES
from lab.report import document, junit, kcidb, record
from lab.report.expectations import check_ids, load, names, parse

PUBLISHED = "import json,sys; from kcidb_io.schema import LATEST; LATEST.validate_exactly(json.load(sys.stdin))"


def test_the_schemas_are_schemas() -> None:
    jsonschema.Draft202012Validator.check_schema(document.schema())


def test_the_schema_lists_the_outcomes() -> None:
    assert tuple(document.schema()["$defs"]["test"]["properties"]["outcome"]["enum"]) == document.OUTCOMES


def test_round_trip(run: dict[str, Any], tmp_path: Path) -> None:
    path = document.save(run, tmp_path)
    assert document.load(tmp_path) == run == document.load(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=50, deadline=None)
@given(_texts, _texts, st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**12))
def test_round_trip_of_anything(tmp_path_factory: pytest.TempPathFactory, a: str, b: str, x: float, n: int) -> None:
    recorder = record.Recorder()
    recorder.measure(a, x, b, **{a or "x": n})
    recorder.add_numerics(a, b, abs(x), None, n, n)
    run = results([case(a, "failed", message=b, detail=a, kernel_log=records(a, b), **recorder.documents())])
    place = tmp_path_factory.mktemp("trip")
    document.save(run, place)
    assert document.load(place) == json.loads(json.dumps(run))
    ElementTree.fromstring(junit.render(run).partition("\n")[2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not results of npulab test"),
        ('{"ok": true}', "not results of npulab test"),
        ('{"schema": "npulab-results", "version": 2}', "results of version 2, not 1"),
        ('{"schema": "npulab-results", "version": 1}', "is a required property"),
    ],
)
def test_foreign_files_are_told_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(KitError) as caught:
        document.load(tmp_path)
    assert caught.value.code is ExitCode.USAGE
    assert words in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_damage_is_told_with_its_place(run: dict[str, Any], tmp_path: Path) -> None:
    run["tests"][3]["outcome"] = "perhaps"
    (tmp_path / "results.json").write_text(json.dumps(run))
    with pytest.raises(KitError, match="tests/3/outcome: 'perhaps' is not one of"):
        document.load(tmp_path)


def test_a_bit_of_any_byte(run: dict[str, Any], tmp_path: Path) -> None:
    """A changed byte is either told or harmless; never a traceback."""
    text = bytearray(json.dumps(run).encode())
    for position in range(0, len(text), 211):
        changed = bytearray(text)
        changed[position] ^= 0x04
        (tmp_path / "results.json").write_bytes(changed)
        try:
            document.load(tmp_path)
        except KitError as error:
            assert error.code is ExitCode.USAGE


def test_a_place_that_cannot_be_written(run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError) as caught:
        document.save(run, tmp_path / "file")
    assert "results.json" in caught.value.message


def test_lines_of_a_suite_that_was_killed(tmp_path: Path) -> None:
    line = {**case("test_x"), "kind": "test"}
    path = tmp_path / "tests-board.jsonl"
    path.write_text(json.dumps({"kind": "start"}) + "\n" + json.dumps(line) + "\n" + json.dumps(line)[:50])
    row, tests, _ = document.suite_of(path, seconds=3.0, exit_code=-9)
    assert len(tests) == 1
    assert (row["ok"], row["complete"]) == (False, False)
    assert row["trouble"] == ["the suite ended (exit code -9) before it was through"]
    row, tests, _ = document.suite_of(tmp_path / "tests-unit.jsonl", seconds=0.0, exit_code=0)
    assert (tests, row["ok"]) == ([], False)
    path.write_text('{"no": "kind"}\n')
    with pytest.raises(KitError, match=r"tests-board\.jsonl:1: not a line of results"):
        document.suite_of(path, seconds=0.0, exit_code=0)


@pytest.mark.parametrize("code", [2, 3, 4, -15])
def test_a_suite_that_pytest_did_not_finish(tmp_path: Path, code: int) -> None:
    path = tmp_path / "tests-unit.jsonl"
    path.write_text(json.dumps({"kind": "end", "trailing": []}) + "\n")
    row, _, _ = document.suite_of(path, seconds=1.0, exit_code=code)
    assert (row["ok"], row["complete"], len(row["trouble"])) == (False, False, 1)
    assert f"pytest ended with {code}" in row["trouble"][0]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (("passed", "skipped"), "passed"),
        (("passed", "xfailed", "flaky"), "passed"),
        (("passed", "failed", "error"), "failed"),
        (("passed", "error"), "error"),
        ((), "failed"),
    ],
)
def test_verdict(outcomes: tuple[str, ...], verdict: str) -> None:
    run = results([case(f"t{number}", outcome) for number, outcome in enumerate(outcomes)])
    assert document.verdict(run)[0] == verdict


def test_a_suite_that_was_not_through_is_no_pass() -> None:
    run = results([case("t")])
    run["suites"][0] |= {"complete": False, "ok": False}
    assert document.verdict(run) == ("error", "1 passed; not through: board")


def test_areas() -> None:
    assert document.area_of("tests/board/test_npu_uapi.py::test_x[a::b]") == "board: npu uapi"
    assert document.area_of("tests/unit/firmware/test_store.py::test_x") == "unit: firmware"
    assert document.area_of("static::mypy") == "static"


def test_runs_are_found_and_old_ones_go(run: dict[str, Any], tmp_path: Path) -> None:
    for day in range(1, 6):
        document.save(run, tmp_path / f"test-2026010{day}-000000")
    document.save(run, tmp_path / "kept-by-name")
    assert document.find("latest", tmp_path).name == "kept-by-name"
    assert document.find("test-20260103-000000", tmp_path).is_dir()
    assert [path.name[:13] for path in document.prune(tmp_path, 2)] == [
        "test-20260101",
        "test-20260102",
        "test-20260103",
    ]
    assert len(document.runs(tmp_path)) == 3
    with pytest.raises(KitError, match="there is no run nonsense"):
        document.find("nonsense", tmp_path)
    with pytest.raises(KitError, match="there is no run below"):
        document.find("latest", tmp_path / "nowhere")


def test_junit_tells_errors_from_failures(run: dict[str, Any]) -> None:
    run["tests"][4]["kernel_log"] = records("\x1b[31mWARNING\x00]]>")
    root = ElementTree.fromstring(junit.render(run).partition("\n")[2])
    board = next(suite for suite in root if suite.get("name") == "board")
    assert {key: board.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "9", "failures": "1", "errors": "1", "skipped": "2",
    }  # fmt: skip
    kinds = {
        test.get("name"): [child.tag for child in test if child.tag in ("failure", "error", "skipped")]
        for test in board
    }
    assert kinds["test_hang"] == ["failure"]
    assert kinds["test_fault"] == ["error"]
    assert kinds["test_leak"] == kinds["test_usb"] == ["skipped"]
    assert kinds["test_reload"] == kinds["test_scaling"] == []
    values = {item.get("name"): item.get("value") for item in board.findall("properties/property")}
    assert values["kernel"] == "7.3.4-npulab"
    assert values["identity"] == "cpu-id=c0ffee"
    log = next(test for test in board if test.get("name") == "test_hang").findtext("system-out")
    assert log is not None
    assert "#x1B[31mWARNING#x00]]>" in log


def test_a_suite_that_was_not_through_is_an_error_in_junit(run: dict[str, Any]) -> None:
    run["suites"][1] |= {"complete": False, "trouble": ["killed"]}
    root = ElementTree.fromstring(junit.render(run, "unit").partition("\n")[2])
    assert root[0].get("errors") == "1"


def published(report: dict[str, Any]) -> str:
    """What the database's own package says of a report: nothing when it takes it."""
    pytest.importorskip("kcidb_io", reason="pip install kcidb-io (extra dev)")
    command = [sys.executable, "-c", PUBLISHED]
    done = subprocess.run(command, input=json.dumps(report), capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_kcidb_takes_it(run: dict[str, Any]) -> None:
    nasty = case("test_\x00[a.b/c d\udfff]", "failed", message="\x00" * 3, kernel_log=records(*["x\x00" * 900] * 30))
    run["tests"].append(nasty)
    report = kcidb.render(run)
    assert published(report) == ""
    counts = {
        status: sum(t["status"] == status for t in report["tests"])
        for status in ("PASS", "FAIL", "MISS", "SKIP", "DONE")
    }
    # unit tests say nothing about a kernel; every measured value is a test of its own
    assert counts == {"PASS": 5, "FAIL": 3, "MISS": 1, "SKIP": 1, "DONE": 18}
    assert len({test["id"] for test in report["tests"]}) == len(report["tests"])
    assert report["builds"][0]["checkout_id"] == report["checkouts"][0]["id"]
    assert {test["build_id"] for test in report["tests"]} == {report["builds"][0]["id"]}
    assert "c0ffee" not in json.dumps(report), "the board's serial number is nobody's business"
    leak = next(test for test in report["tests"] if test["comment"].endswith("test_leak"))
    assert leak["path"] == "npu.board.test_npu_recovery.test_leak"
    assert [incident["test_id"] for incident in report["incidents"]] == [leak["id"]]
    assert report["issues"][0]["report_url"] == "https://example.org/1"


def test_kcidb_of_a_board_without_artifacts(run: dict[str, Any]) -> None:
    run |= {"artifacts": None}
    run["board"]["backup"] = {"id": "b1", "created": "2026", "verified": True, "complete": True}
    report = kcidb.render(run, "my_lab")
    assert published(report) == ""
    assert report["tests"][0]["environment"]["misc"]["backup_id"] == "b1"
    assert all(entry["origin"] == "my_lab" for kind in ("checkouts", "builds", "tests") for entry in report[kind])


def test_the_published_schema_is_really_asked(run: dict[str, Any]) -> None:
    report = kcidb.render(run)
    report["tests"][0]["path"] = "no good path"
    assert published(report) != ""


def test_kcidb_needs_a_kernel_and_an_origin(run: dict[str, Any]) -> None:
    with pytest.raises(KitError, match="cannot be an origin"):
        kcidb.render(run, "My Lab")
    with pytest.raises(KitError, match="tested no kernel"):
        kcidb.render(results([case("t", suite="unit")]))
    other = copy.deepcopy(run) | {"kernel": None}
    with pytest.raises(KitError, match="tested no kernel"):
        kcidb.render(other)


ENTRY = "test: tests/board/test_x.py::test_y, expect: fail, reason: it is known to fail, evidence: commit 1234"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: 1\nboard: b\nexpectations: [{", "f.yaml: not YAML"),
        ("schema: 1\nboard: c\nexpectations: []", "f.yaml: board: c, not b"),
        ("schema: 1\nboard: b\nexpectation: []", "unknown key expectation, do you mean expectations?"),
        (f"schema: 1\nboard: b\nexpectations: [{{{ENTRY}, kernel: '7'}}]", "unknown key kernel, do you mean kernels?"),
        (f"schema: 1\nboard: b\nexpectations: [{{{ENTRY}, attempts: 3}}]", "/expect: 'flaky' was expected"),
        (
            f"schema: 1\nboard: b\nexpectations: [{{{ENTRY.replace('fail, r', 'fails, r')}}}]",
            "entry 1 (tests/board/test_x.py::test_y)/expect: 'fails' is not one of",
        ),
        (
            f"schema: 1\nboard: b\nexpectations: [{{{ENTRY.replace('it is known to fail', 'x')}}}]",
            "reason: 'x' is too short",
        ),
        (f"schema: 1\nboard: b\nexpectations: [{{{ENTRY}}}, {{{ENTRY}}}]", "stands there twice"),
        ("- 1", "is not of type 'object'"),
    ],
)
def test_expectations_that_are_wrong(text: str, words: str) -> None:
    with pytest.raises(KitError) as caught:
        parse(text, "f.yaml", "b")
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.message.startswith("f.yaml: ")
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_expectations_match_by_test_and_kernel() -> None:
    entry = ENTRY.replace("tests/board/test_x.py::test_y", "'tests/board/test_x.py::test_y[*-1]'")
    text = f"schema: 1\nboard: b\nexpectations: [{{{entry}, kernels: ['7.3*', '6.18.2']}}]"
    (found,) = parse(text, "f.yaml", "b")
    assert found.applies("tests/board/test_x.py::test_y[a-1]", "7.3.4-npulab")
    assert not found.applies("tests/board/test_x.py::test_y[a-2]", "7.3.4-npulab")
    assert not found.applies("tests/board/test_x.py::test_y[a-1]", "6.18.20")
    check_ids([found], ["tests/board/test_x.py::test_y[a-1]"], ["tests/board/test_x.py"])
    check_ids([found], [], [])
    with pytest.raises(KitError, match="there is no test"):
        check_ids([found], ["tests/board/test_x.py::test_z"], ["tests/board/test_x.py"])


def test_shipped_expectations_are_right() -> None:
    checkout = Path(__file__).parents[3]
    for name in names():
        for entry in load(name):
            assert (checkout / entry.test.partition("::")[0]).is_file(), entry
    patches = {path.name for path in PATCHES.glob("*/*.patch")}
    assert {name for board in names() for entry in load(board) for name in entry.fixed_by} <= patches
    with pytest.raises(KitError, match="no expectations of a board vurt"):
        names("vurt")
