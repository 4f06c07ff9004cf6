# SPDX-License-Identifier: MIT
"""Stored tasks, register words and data with their provenance, give the stored result, byte for byte.

No function of ``rknpu_userspace`` made or runs them: a mistake that the library's generator and the model share does
not pass here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from on_board import PLACE, Board

pytestmark = pytest.mark.lg_feature("npu")

VECTORS = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_golden_vector(board: Board, path: Path, numerics: Callable[..., None]) -> None:
    board.push(path)
    (found,) = board.python("golden.py", f"{PLACE}/{path.name}")
    numerics(found["name"], "int8", None, None, max(found["different"]), found["bytes"], source="golden vector")
    assert found["different"] == [0, 0], found
    assert not found["beyond"], "the task wrote behind its output"
