# SPDX-License-Identifier: MIT
"""Expectation files: what is known about tests, per board and kernel, each with a reason and its evidence.

``lab/boards/expectations/BOARD.yaml``. A test that fails without being expected to, and one that passes though it is
expected to fail, both fail the run: a file that is not true any more does not stay.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lab import boards
from lab.errors import ExitCode, KitError

ROOT = boards.ROOT / "expectations"
SCHEMA = ROOT / "expectations.schema.json"


@dataclass(frozen=True)
class Expectation:
    """One entry. ``test`` is a test's id, in which ``*`` stands for anything, as in each of ``kernels``.

    ``fixed_by``: file names of kernel patches; it does not speak of a kernel that is known to have one of them.
    """

    board: str
    test: str
    expect: str
    reason: str
    evidence: str
    file: str
    kernels: tuple[str, ...] = ("*",)
    fixed_by: tuple[str, ...] = ()
    attempts: int = 3

    def is_for(self, test: str) -> bool:
        """Whether it speaks of a test."""
        return _pattern(self.test).fullmatch(test) is not None

    def applies(self, test: str, kernel: str, patches: Iterable[str] = ()) -> bool:
        """Whether it speaks of a test on that kernel release with those patches."""
        fixed = not set(self.fixed_by).isdisjoint(patches)
        return not fixed and self.is_for(test) and any(_pattern(one).fullmatch(kernel) for one in self.kernels)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def brief(self) -> dict[str, str]:
        """For the results of the test that it speaks of."""
        return {"expect": self.expect, "reason": self.reason, "evidence": self.evidence, "file": self.file}


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Only ``*`` is special: ids of tests have brackets."""
    return re.compile(".*".join(re.escape(part) for part in text.split("*")))


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of expectation files."""
    document: dict[str, Any] = json.loads(SCHEMA.read_text())
    return document


def names(board: str | None = None) -> list[str]:
    """Boards with expectation files, or that one; KitError (usage) when it has none."""
    known = sorted(path.stem for path in ROOT.glob("*.yaml"))
    if board is None:
        return known
    if board not in known:
        close = difflib.get_close_matches(board, known, 3, 0.4) or known
        raise KitError(ExitCode.USAGE, f"there are no expectations of a board {board}", f"boards: {', '.join(close)}")
    return [board]


def load(board: str) -> list[Expectation]:
    """A board's expectations."""
    return read(ROOT / f"{names(board)[0]}.yaml")


def read(path: Path) -> list[Expectation]:
    """The expectations of a file."""
    try:
        text = path.read_text()
    except OSError as error:
        raise KitError(
            ExitCode.USAGE, f"{path}: {error.strerror}", "npulab report expectations shows the files"
        ) from None
    return parse(text, path.name if path.parent == ROOT else str(path), path.stem)


def parse(text: str, where: str, board: str) -> list[Expectation]:
    """Expectations from a file's text; ``where`` names it, ``board`` is whose it has to be."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise KitError(ExitCode.USAGE, f"{where}: not YAML: {line}", "correct the file") from error
    wrong: Any = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(raw))
    if wrong is not None:
        raise KitError(ExitCode.USAGE, f"{where}: {_place(raw, wrong)}: {_say(wrong)}", "docs/report.md has the format")
    if raw["board"] != board:
        raise KitError(ExitCode.USAGE, f"{where}: board: {raw['board']}, not {board}", "correct the file")
    found = [_entry(entry, board, where) for entry in raw["expectations"]]
    seen: set[tuple[str, str]] = set()
    for entry in found:
        for kernel in entry.kernels:
            if (entry.test, kernel) in seen:
                message = f"{where}: {entry.test} on {kernel} stands there twice"
                raise KitError(ExitCode.USAGE, message, "keep one of them")
            seen.add((entry.test, kernel))
    return found


def _entry(raw: dict[str, Any], board: str, where: str) -> Expectation:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Expectation(**{**fields, "board": board, "file": where})


def _place(raw: Any, error: Any) -> str:
    """Where in the file, by the test's id instead of a number."""
    path = list(error.absolute_path)
    if len(path) > 1 and path[0] == "expectations":
        entry = raw["expectations"][path[1]]
        name = entry.get("test", "") if isinstance(entry, dict) else ""
        first = f"entry {int(path[1]) + 1}" + (f" ({name})" if name else "")
        return "/".join([first, *(str(part) for part in path[2:])])
    return "/".join(str(part) for part in path) or "top level"


def _say(error: Any) -> str:
    """The validator's words; for a wrong key, the key that was meant."""
    message = str(error.message)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        extra = [key for key in error.instance if key not in known]
        close = difflib.get_close_matches(str(extra[0]), known, 1, 0.5) if extra else []
        return f"unknown key {extra[0]}" + (f", do you mean {close[0]}?" if close else f", known: {', '.join(known)}")
    return message if len(message) < 160 else f"{message[:160]} ..."


def check_ids(found: Iterable[Expectation], tests: Sequence[str], files: Iterable[str]) -> None:
    """KitError (usage) when an entry speaks of a test that ``files``, collected whole, do not have."""
    whole = set(files)
    for entry in found:
        file = entry.test.partition("::")[0]
        if file in whole and not any(entry.is_for(test) for test in tests):
            close = difflib.get_close_matches(entry.test, tests, 1, 0.5)
            hint = f"do you mean {close[0]}?" if close else f"remove it from {entry.file}"
            raise KitError(ExitCode.USAGE, f"{entry.file}: there is no test {entry.test}", hint)


def select(found: Iterable[Expectation], test: str, kernel: str, patches: Iterable[str] = ()) -> Expectation | None:
    """The first entry that speaks of a test on a kernel release with those patches."""
    return next((entry for entry in found if entry.applies(test, kernel, patches)), None)
