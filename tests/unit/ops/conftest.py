# SPDX-License-Identifier: MIT
"""One model device for the tests of the operations: opening it costs nothing, but its planning caches stay warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rknpu_userspace.device import Device, open_device


@pytest.fixture(scope="session")
def npu() -> Iterator[Device]:
    """A model with all three cores in use by default."""
    with open_device("model", cores=3) as device:
        yield device
