# SPDX-License-Identifier: MIT
"""What tests build for themselves: its progress is seen although pytest keeps what tests print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.output import Output


@contextmanager
def progress(request: pytest.FixtureRequest) -> Iterator[Output]:
    """An output whose lines reach the terminal; a build that finds everything in the cache prints none."""
    manager = request.config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield Output()
        return
    with manager.global_and_fixture_disabled():
        yield Output()
