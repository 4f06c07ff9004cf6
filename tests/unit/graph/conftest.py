# SPDX-License-Identifier: MIT
"""One model device for the tests of graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rknpu_userspace.device import Device, open_device

# the networks are shared with the board suite
sys.path.insert(0, str(Path(__file__).parents[2] / "board"))


@pytest.fixture(scope="session")
def npu() -> Iterator[Device]:
    """A model; graphs use one of its cores."""
    with open_device("model") as device:
        yield device
