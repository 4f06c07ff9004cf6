# SPDX-License-Identifier: MIT
"""What a JUnit file says about a job: product failures and infrastructure errors are counted apart."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

KINDS = ("tests", "failures", "errors", "skipped")
PYTEST_BROKEN = (2, 3, 4)
"""pytest was interrupted, had an internal error, or did not understand its command line (or its environment file)."""
PYTEST_NO_TESTS = 5


def counts(path: Path) -> dict[str, int]:
    """Tests, failures, errors and skips; empty when there is no readable file."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {}
    return {kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in KINDS}


def infrastructure_trouble(code: int, tests: dict[str, int], *, is_pytest: bool) -> str:
    """Why a command's end says nothing about the product; empty when it does (or all is well)."""
    if not is_pytest:
        return "the command says that its infrastructure failed" if code == 8 else ""
    if code in PYTEST_BROKEN or code < 0:
        return f"pytest ended with {code} and without a verdict"
    if code and not tests:
        return f"pytest ended with {code} and left no report"
    if code and tests.get("errors") and not tests.get("failures"):
        return f"{tests['errors']} of {tests['tests']} tests could not be run"
    return ""
