# SPDX-License-Identifier: MIT
"""``--quiet`` prints no progress, however long a stage takes."""

from __future__ import annotations

import pytest

import lab.output
from lab.output import Output


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_lines(quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.output, "LINE_SECONDS", 0.0)
    with Output(quiet=quiet).stage("work") as meter:
        meter.update(1, 4, "piece")
    assert (capsys.readouterr().err == "") == quiet
