# SPDX-License-Identifier: MIT
"""The environment files that the kit ships: labgrid can make targets of them, and they say what the boards say."""

from __future__ import annotations

from pathlib import Path

import pytest
from labgrid import Environment

import lab.labgrid
from lab import boards

FOLDER = Path(lab.labgrid.__file__).parent / "env"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_environment(path: Path) -> None:
    environment = Environment(str(path))
    target = environment.get_target()
    try:
        strategy = target.get_strategy()
        assert strategy.ssh is not None and strategy.shell is not None
        assert environment.get_features() == set(boards.load(path.stem).features)
    finally:
        environment.cleanup()


def test_there_is_one_for_the_virtual_board_and_both_real_ones() -> None:
    assert {"virt", "orangepi-5", "rock-5-itx-plus"} <= {path.stem for path in FOLDER.glob("*.yaml")}
