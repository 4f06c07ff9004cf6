# SPDX-License-Identifier: MIT
"""Fixtures of the model's tests; makes ``streams`` importable whatever the import mode."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from streams import Bench


@pytest.fixture
def bench() -> Bench:
    """A machine with 64 MiB of arena."""
    return Bench()


@pytest.fixture
def rng() -> np.random.Generator:
    """Reproducible random numbers."""
    return np.random.default_rng(20)
