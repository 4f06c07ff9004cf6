# SPDX-License-Identifier: MIT
"""A whole network through the kernel driver as one program: MobileNetV1, 224x224 int8, equal to numpy bit for bit.

Made and computed in numpy on the host; the board gets a program file and numpy runs there, nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_networks import mobilenet_v1
from on_board import PLACE, Board

from rknpu_userspace.graph.file import save

pytestmark = pytest.mark.lg_feature(["npu", "ssh"])
SEED = 20261121
SECONDS = 180.0


def test_mobilenet_v1(board: Board, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    net = mobilenet_v1(SEED)
    wanted = net.value(net.graph.outputs[0])
    assert len(np.unique(wanted)) > 100, "the scores say nothing"
    save(net.graph, tmp_path / "program.npz")
    np.save(tmp_path / "x.npy", net.x)
    place = f"{PLACE}/mobilenet"
    board.put(tmp_path, place)
    command = (
        f"python3 -m rknpu_userspace run {place}/program.npz {place}/x.npy -o {place}/y.npy --repeat 3 --json 2>&1"
    )
    lines, code = board.run(command, SECONDS)
    assert code == 0, "\n".join(lines)
    document = json.loads(lines[-1])
    for key in ("jobs", "tasks", "macs", "dma_bytes", "npu_seconds", "seconds", "compile_seconds"):
        record_property(key, document[key])
    assert {layer["unit"] for layer in document["layers"]} == {"npu"}
    assert (document["submissions"], document["jobs"]) == (1, 1)
    (tmp_path / "y.npy").write_bytes(base64.b64decode(board.output(f"base64 {place}/y.npy")))
    assert np.array_equal(np.load(tmp_path / "y.npy"), wanted)
    board.output(f"rm -r {place}")
