# SPDX-License-Identifier: MIT
"""Small boards and stores for the firmware tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import boards
from lab.firmware import regions
from lab.firmware.medium import Transport
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, create
from lab.firmware.transports.block import DrillTransport


@dataclass
class Silent:
    """A meter that remembers the last report."""

    last: tuple[float, float | None] = (0, None)
    texts: list[str] = field(default_factory=list)

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        self.last = (done, total)
        self.texts.append(text)


SMALL = {"spi": 1 << 20, "emmc": 40 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536}


@pytest.fixture
def meter() -> Silent:
    return Silent()


@pytest.fixture
def board() -> boards.Board:
    return boards.load("rock-5-itx-plus")


@pytest.fixture
def drill(tmp_path: Path, board: boards.Board) -> Path:
    root = tmp_path / "board"
    make_board(root, board, sizes=SMALL)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def back_up(store: Store, board: boards.Board, meter: Silent) -> Callable[..., create.Result]:
    def make(target: Path | Transport, **options: bool) -> create.Result:
        transport = DrillTransport(target) if isinstance(target, Path) else target
        return create.create(store, board, transport, regions.make(board, transport), meter, **options)

    return make
