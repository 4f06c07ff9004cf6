# SPDX-License-Identifier: MIT
"""Program files: the same graph comes back, damage is an error in one line, and nothing half-written is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_networks import Builder

from rknpu_userspace.graph import Graph, reference
from rknpu_userspace.graph.file import load, save


def _network() -> Builder:
    net = Builder((1, 8, 8, 16), 1)
    graph = net.graph
    y = net.conv(net.input, 16, 3, per_channel=True, activation="relu6")
    y = graph.concat([y, graph.upsample(graph.max_pool(y, 2), 2)], scale=0.03)
    y = graph.binary_constant("mul", y, np.arange(32, dtype=np.int8), b_scale=0.1, scale=0.5)
    y = graph.pad(graph.slice(y, [(0, 1), (1, 7), (0, 8, 2), (0, 32)]), [(0, 0), (1, 1), (0, 0), (0, 0)])
    y = graph.transpose(graph.table(y, np.arange(-128, 128).astype(np.int8)), (0, 2, 1, 3))
    y = graph.reshape(graph.average_pool(y, (4, 8)), (1, 32))
    graph.output(graph.softmax(graph.linear(y, np.ones((5, 32), np.int8), scale=0.2, unsigned=True), beta=0.5))
    graph.output(graph.dequantize(y))
    return net


def test_the_same_graph_comes_back(tmp_path: Path) -> None:
    net = _network()
    path = tmp_path / "program.npz"
    save(net.graph, path)
    save(net.graph, path)
    again = load(path)
    assert isinstance(again, Graph)
    for a, b in zip(net.graph.nodes, again.nodes, strict=True):
        assert (a.kind, a.name, dict(a.attributes)) == (b.kind, b.name, dict(b.attributes))
        assert (a.output.shape, a.output.scale, a.output.unsigned) == (
            b.output.shape,
            b.output.scale,
            b.output.unsigned,
        )
    for result, wanted in zip(reference(again, net.x), reference(net.graph, net.x), strict=True):
        assert np.array_equal(result, wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["program.npz"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    """Cut anywhere, or with a byte changed: an error, or a byte that nobody reads."""
    path = tmp_path / "program.npz"
    save(_network().graph, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    noticed = 0
    for trial in range(120):
        data = bytearray(whole)
        if trial % 2:
            del data[int(rng.integers(0, len(data))) :]
        else:
            data[int(rng.integers(0, len(data)))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            load(path)
        except ValueError as error:
            noticed += 1
            assert "\n" not in str(error)
    assert noticed > 90


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a program file"):
        load(path)
    np.savez(path, graph=np.frombuffer(b'{"format": "rknpu-graph", "version": 99}', np.uint8))
    with pytest.raises(ValueError, match="version 99"):
        load(path)


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save(_network().graph, tmp_path / "program.npz")
    assert not list(tmp_path.iterdir())
