# SPDX-License-Identifier: MIT
"""A labgrid environment whose virtual board is made of stand-in programs (tests/unit/virt/fake_programs.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "virt"))

from boards import abandoned, make_config, run_directories, wait_until_gone
from labgrid import Environment

from lab.labgrid import KitQEMUDriver

ENVIRONMENT = """
imports: [lab.labgrid]
targets:
  main:
    resources:
      NetworkService: {address: 192.0.2.1, username: root}
    drivers:
      KitQEMUDriver: {}
      ShellDriver: {prompt: 'root@[\\w-]+:[^ ]+ ', login_prompt: ' login: ', username: root}
      KitStrategy: {}
"""


@pytest.fixture
def make_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Environment]]:
    """Makes environments; everything they started is gone after the test."""
    mark = f"NPULAB_TEST_{tmp_path.name}"
    monkeypatch.setenv(mark, "1")
    monkeypatch.setenv("NPULAB_RESULTS", str(tmp_path / "results"))
    before = run_directories()
    made: list[Environment] = []

    def make(**modes: str) -> Environment:
        path = tmp_path / "env.yaml"
        path.write_text(ENVIRONMENT)
        monkeypatch.setattr(KitQEMUDriver, "configure", lambda self: make_config(tmp_path, **modes))
        made.append(Environment(str(path)))
        return made[-1]

    yield make
    for environment in made:
        environment.cleanup()
    assert wait_until_gone(mark, 5.0) == []
    assert abandoned(before) == set()
