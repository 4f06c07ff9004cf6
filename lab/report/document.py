# SPDX-License-Identifier: MIT
"""The results of a run as one JSON document: made from the lines that the suites wrote, checked, found again.

``results.schema.json`` beside this module is its schema; ``version`` counts incompatible changes.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from lab.errors import ExitCode, KitError, from_os_error

NAME = "results.json"
SCHEMA = Path(__file__).with_name("results.schema.json")
VERSION = 1
OUTCOMES = ("failed", "error", "flaky", "xfailed", "passed", "skipped")
BAD = ("failed", "error")
WHOLE = (0, 1, 5)
"""pytest's exit codes of a run that went through: passed, failed, nothing selected."""
_EXITS = {2: "interrupted, or tests that cannot be read", 3: "an error inside pytest", 4: "wrong options"}
_RUN = re.compile(r"test-\d{8}-\d{6}(-\d+)?")

Document = dict[str, Any]


@cache
def schema() -> Document:
    """The JSON schema of results."""
    document: Document = json.loads(SCHEMA.read_text())
    return document


def area_of(test: str) -> str:
    """The area of a test by its id: a folder of the unit tests, or a file of the other suites."""
    path, _, _ = test.partition("::")
    parts = path.removesuffix(".py").split("/")
    if parts and parts[0] == "tests":
        parts = parts[1:]
    if len(parts) > 2:
        return f"{parts[0]}: {parts[1]}"
    name = parts[-1].removeprefix("test_").replace("_", " ")
    return f"{parts[0]}: {name}" if len(parts) > 1 else name


def read_lines(path: Path) -> Iterable[Document]:
    """The documents of a file of lines; an unfinished last line (a suite that was killed) is left out."""
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if not isinstance(document, dict) or "kind" not in document:
            raise KitError(ExitCode.USAGE, f"{path}:{number}: not a line of results", "give a results directory")
        yield document


def suite_of(path: Path, *, seconds: float, exit_code: int) -> tuple[Document, list[Document], Document]:
    """A suite's row, its tests and what it said about the board, from its file of lines."""
    suite = path.stem.removeprefix("tests-")
    tests: list[Document] = []
    facts: Document = {}
    trouble: list[str] = []
    ended = False
    for line in read_lines(path) if path.is_file() else ():
        kind = line.pop("kind")
        if kind == "test":
            tests.append({**line, "suite": suite, "area": area_of(line["id"])})
        elif kind == "facts":
            facts |= line
        elif kind == "state":
            facts["end"] = line
        elif kind == "trouble":
            trouble.append(line["message"])
        elif kind == "end":
            ended = True
            trouble += line["trailing"]
    if ended and exit_code not in WHOLE:
        trouble.append(f"pytest ended with {exit_code} ({_EXITS.get(exit_code, 'killed')}): not all tests ran")
        ended = False
    if not ended and not trouble:
        trouble.append(f"the suite ended (exit code {exit_code}) before it was through")
    counts = Counter(test["outcome"] for test in tests)
    row = {
        "name": suite,
        "ok": exit_code == 0 and ended,
        "complete": ended,
        "exit_code": exit_code,
        "seconds": round(seconds, 1),
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES},
        "trouble": trouble,
    }
    return row, tests, facts


def validate(document: Any, where: str) -> Document:
    """The document when it is one of ours; KitError (usage) with its place when it is not."""
    if not isinstance(document, dict) or document.get("schema") != "npulab-results":
        raise KitError(ExitCode.USAGE, f"{where}: not results of npulab test", "give a run's directory or results.json")
    if document.get("version") != VERSION:
        found = document.get("version")
        raise KitError(ExitCode.USAGE, f"{where}: results of version {found}, not {VERSION}", "use that kit's npulab")
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "top level"
        message = error.message if len(error.message) < 200 else f"{error.message[:200]} ..."
        raise KitError(ExitCode.USAGE, f"{where}: {place}: {message}", "the file is damaged; run the tests again")
    return document


def load(path: Path) -> Document:
    """The results in a run's directory, or in a file."""
    file = path / NAME if path.is_dir() else path
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError:
        killed = path.is_dir() and any(path.glob("tests-*.jsonl"))
        why = f"no {NAME}; the run was killed, its tests are in tests-*.jsonl" if killed else f"no {NAME}"
        raise KitError(
            ExitCode.USAGE, f"{path}: {why}", "give a run's directory; npulab report list shows them"
        ) from None
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except ValueError as error:
        raise KitError(ExitCode.USAGE, f"{file}: not JSON: {error}", "the file is damaged") from error
    return validate(document, str(file))


def write_text(path: Path, text: str) -> None:
    """Write a file in one step; KitError where that is not possible."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise from_os_error(error, f"writing {path}") from error


def save(document: Document, directory: Path) -> Path:
    """Write ``results.json``."""
    path = directory / NAME
    validate(document, str(path))
    write_text(path, json.dumps(document, indent=1, ensure_ascii=True) + "\n")
    return path


def runs(root: Path) -> list[Path]:
    """The runs below a directory, oldest first."""
    if not root.is_dir():
        return []
    found = [path.parent for path in root.glob(f"*/{NAME}")]
    return sorted(found, key=lambda path: ((path / NAME).stat().st_mtime, path.name))


def find(word: str, root: Path) -> Path:
    """A run by its path, its name below ``root``, or ``latest``."""
    if word == "latest":
        found = runs(root)
        if not found:
            raise KitError(ExitCode.USAGE, f"there is no run below {root}", "make one: npulab test")
        return found[-1]
    for path in (Path(word).expanduser(), root / word):
        if path.exists():
            return path
    close = ", ".join(path.name for path in runs(root)[-5:]) or "none"
    raise KitError(ExitCode.USAGE, f"there is no run {word}", f"the newest below {root}: {close}")


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the newest ``keep`` runs that ``npulab test`` named itself; returns what went."""
    named = [path for path in runs(root) if _RUN.fullmatch(path.name)]
    gone = named[: max(0, len(named) - keep)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def counts(document: Mapping[str, Any]) -> dict[str, int]:
    """How many tests ended how."""
    found = Counter(test["outcome"] for test in document["tests"])
    return {outcome: found[outcome] for outcome in OUTCOMES}


def verdict(document: Mapping[str, Any]) -> tuple[str, str]:
    """``passed``, ``failed`` or ``error`` (nothing failed, but the laboratory was in trouble), and why in a line."""
    found = counts(document)
    broken = [suite["name"] for suite in document["suites"] if not suite["ok"]]
    words = ", ".join(f"{number} {outcome}" for outcome, number in found.items() if number)
    incomplete = [suite["name"] for suite in document["suites"] if not suite["complete"]]
    if found["failed"]:
        return "failed", words
    if found["error"] or incomplete:
        more = f"; not through: {', '.join(incomplete)}" if incomplete else ""
        return "error", (words or "no test ran") + more
    if broken and words:
        return "failed", f"{words}; suites that did not end well: {', '.join(broken)}"
    return ("passed", words) if document["tests"] else ("failed", "no test ran")


def by_area(tests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts and seconds by area, in the order of the tests."""
    areas: dict[str, dict[str, Any]] = {}
    for test in tests:
        row = areas.setdefault(test["area"], {**dict.fromkeys(OUTCOMES, 0), "seconds": 0.0, "tests": 0})
        row[test["outcome"]] += 1
        row["tests"] += 1
        row["seconds"] += test["seconds"]
    return areas
