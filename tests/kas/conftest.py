# SPDX-License-Identifier: MIT
"""What the tests of kas files and recipes share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KAS = REPOSITORY / "kas"
LAYER = REPOSITORY / "recipes"
MACHINES = sorted(path.stem for path in KAS.glob("*.yml") if not path.name.endswith(".lock.yml"))


@pytest.fixture(scope="session")
def programs() -> Path:
    """Where kas and oelint-adv are: beside this interpreter."""
    return Path(sys.executable).parent
