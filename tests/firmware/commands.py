# SPDX-License-Identifier: MIT
"""The commands a user types, run in this process against a backup store of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import cli


class Commands:
    """``root`` holds the store; ``capture`` what a command prints."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root, self.capture = root, capture

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        """A command, and the document it prints."""
        self.capture.readouterr()
        noun, verb, *rest = words
        store = ["--store", str(self.root / "store")] if noun in ("backup", "flash") else []
        found = cli.main([noun, "--json", "--quiet", verb, *store, *rest])
        captured = self.capture.readouterr()
        assert found == code, captured.err
        document: dict[str, Any] = json.loads(captured.out)
        return document
