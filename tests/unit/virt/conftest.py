# SPDX-License-Identifier: MIT
"""Every test of the launcher ends with nothing left behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from boards import abandoned, processes_mentioning, run_directories, wait_until_gone


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """No process and no run directory of this test survives it; gives the mark in its processes' environment."""
    mark = f"NPULAB_TEST_{secrets.token_hex(6)}"
    monkeypatch.setenv(mark, "1")
    before = run_directories()
    yield mark
    assert wait_until_gone(mark, 5.0) == [], "processes left"
    assert processes_mentioning(mark) == []
    assert abandoned(before) == set(), "files left"
