# SPDX-License-Identifier: MIT
"""Networks through the kernel driver as one program each, equal to numpy bit for bit; MobileNetV1 at 224x224 int8.

Made and computed in numpy on the host; the board gets a program file and numpy runs there, nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_networks import Builder, mobilenet_v1
from on_board import PLACE, Board
from tflite_network import Network, interpret

import lab.npu.run
from lab.cli import main as npulab
from rknpu_userspace.graph.file import save

pytestmark = pytest.mark.lg_feature(["npu", "ssh"])
SEED = 20261121
SECONDS = 180.0


def run_on(board: Board, net: Builder, place: Path, *options: str) -> dict[str, Any]:
    """Run a network's graph on the board; the report, with the outputs as ``results``."""
    save(net.graph, place / "program.npz")
    np.save(place / "x.npy", net.x)
    there = f"{PLACE}/network"
    board.put(place, there)
    outputs = [f"{there}/y{index}.npy" for index in range(len(net.graph.outputs))]
    words = ["python3 -m rknpu_userspace run --json", *options, *(f"-o {path}" for path in outputs)]
    lines, code = board.run(f"{' '.join(words)} {there}/program.npz {there}/x.npy 2>&1", SECONDS)
    assert code == 0, "\n".join(lines)
    document: dict[str, Any] = json.loads(lines[-1])
    document["results"] = []
    for path in outputs:
        (place / "y.npy").write_bytes(base64.b64decode(board.output(f"base64 {path}")))
        document["results"].append(np.load(place / "y.npy"))
    board.output(f"rm -r {there}")
    return document


def test_mobilenet_v1(board: Board, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    net = mobilenet_v1(SEED)
    wanted = net.value(net.graph.outputs[0])
    assert len(np.unique(wanted)) > 100, "the scores say nothing"
    document = run_on(board, net, tmp_path, "--repeat 2")
    for key in ("jobs", "tasks", "macs", "dma_bytes", "npu_seconds", "seconds", "compile_seconds"):
        record_property(key, document[key])
    assert {layer["unit"] for layer in document["layers"]} == {"npu"}
    assert (document["submissions"], document["jobs"]) == (1, 1)
    assert np.array_equal(document["results"][0], wanted)


def test_residuals_and_branches(board: Board, tmp_path: Path) -> None:
    """Sums of different scales, maxima, branches side by side, the processor in between; then step by step."""
    net = Builder((1, 40, 40, 16), SEED)
    graph = net.graph
    y = graph.max_pool(net.conv(net.input, 32, 3, activation="relu"), 3, stride=2, padding=1)
    z = net.conv(net.conv(y, 96, 1, activation="relu6"), 96, 3, depthwise=True, per_channel=True)
    y = graph.add(net.conv(z, 32, 1), y, scale=0.07, zero_point=-128, activation="relu")
    y = graph.concat(
        [net.conv(y, 48, 1, scale=0.1), net.conv(y, 16, 3, scale=0.1), graph.max_pool(y, 3, stride=1, padding=1)]
    )
    graph.output(y)
    y = graph.table(y, np.arange(127, -129, -1).astype(np.int8))
    graph.output(graph.reshape(graph.average_pool(net.conv(y, 24, 1), 20), (1, 24)))
    wanted = [net.value(tensor) for tensor in graph.outputs]
    document = run_on(board, net, tmp_path, "--profile")
    assert [layer["kind"] for layer in document["layers"] if layer["unit"] == "cpu"] == ["table"]
    assert document["submissions"] == document["jobs"] == 2
    assert all(layer["seconds"] > 0 for layer in document["layers"] if layer["tasks"])
    assert all(np.array_equal(a, b) for a, b in zip(document["results"], wanted, strict=True))


class OnBoard:
    """The board under test as what ``npulab npu run`` expects."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def run(self, command: str, timeout: float) -> tuple[str, int]:
        lines, code = self._board.run(command, timeout)
        return "\n".join(lines), code

    def put(self, path: Path, target: str) -> None:
        self._board.put(path, target)

    def get(self, source: str, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._board.output(f"base64 {source}")))


def test_tflite_model(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``npulab npu run`` takes a model there, and brings back what TensorFlow Lite computes, or a step beside it."""
    net = Network((1, 24, 24, 3), SEED)
    y = net.conv(net.input, 32, 3, stride=2, activation=1)
    y = net.binary("ADD", net.depthwise(y, 3), y)
    data = net.finish(net.softmax(net.linear(y, 12)))
    (tmp_path / "model.tflite").write_bytes(data)
    np.save(tmp_path / "x.npy", net.x)
    monkeypatch.setattr(lab.npu.run, "remote", lambda device, out: nullcontext(OnBoard(board)))
    words = ["npu", "run", str(tmp_path / "model.tflite"), "-i", str(tmp_path / "x.npy"), "--device", "virt"]
    assert npulab([*words, "-o", str(tmp_path / "y.npy"), "--compare-cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [layer["unit"] for layer in document["layers"]] == ["npu"] * 4 + ["cpu"]
    assert document["compared"][0]["greatest"] <= 5
    wanted = interpret(data, net.x)[0].astype(int)
    assert np.abs(np.load(tmp_path / "y.npy").astype(int) - wanted).max() <= 5
    assert "npulab-run" not in board.output("ls /tmp")
