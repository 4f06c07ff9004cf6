# SPDX-License-Identifier: MIT
"""Files that are no models, damaged, or not quantised: one clear line each, never a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tflite_network import FLOAT32, Network

from lab.errors import KitError
from lab.npu import tflite


def _network() -> Network:
    net = Network((1, 8, 8, 16), 1)
    weights, scale = net.weights((8, 3, 3, 16), True, 0)
    inputs = [net.input, weights, net.bias(8, net.input, scale)]
    from tflite_network import byte, word

    fields = {0: byte(0), 1: word(1), 2: word(1), 3: byte(0), 4: word(1), 5: word(1)}
    net.operator("CONV_2D", inputs, net.tensor((1, 8, 8, 8), 0.5, 2), "Conv2DOptions", fields)
    return net


def _load(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    tflite.load(path)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="can not be read: No such file"):
        tflite.load(tmp_path / "no.tflite")
    with pytest.raises(KitError, match="can not be read: Is a directory"):
        tflite.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"short", b"\0" * 4096, b"PK\3\4 something else"])
def test_no_model(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="is not a TensorFlow Lite model"):
        _load(data, tmp_path / "x.tflite")


def test_every_truncation_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A cut file either says so or still has everything that is read from it."""
    whole = _network().finish(3)
    _load(whole, tmp_path / "x.tflite")
    noticed = 0
    for size in range(8, len(whole) - 16, 97):
        try:
            _load(whole[:size], tmp_path / "x.tflite")
        except KitError as error:
            noticed += 1
            assert "\n" not in error.message
    assert noticed > len(whole) // 97 // 2


def test_flipped_bytes(tmp_path: Path) -> None:
    """Damage anywhere is a model, or an error in one line."""
    whole = _network().finish(3)
    rng = np.random.default_rng(2)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(8, len(whole), 8):
            damaged[place] = int(rng.integers(0, 256))
        try:
            _load(bytes(damaged), tmp_path / "x.tflite")
        except KitError as error:
            assert "\n" not in error.message


def test_float_model(tmp_path: Path) -> None:
    net = Network((1, 4, 4, 8), 1)
    net.kind = FLOAT32
    source = net.tensor((1, 4, 4, 8))
    net.input = source
    net.operator("RELU", [source], net.tensor((1, 4, 4, 8)))
    with pytest.raises(KitError, match="a float model: quantise it to int8"):
        _load(net.finish(source + 1), tmp_path / "x.tflite")


def test_unknown_operator(tmp_path: Path) -> None:
    net = Network((1, 4, 4, 8), 1)
    net.operator("COS", [net.input], net.tensor((1, 4, 4, 8), 0.1))
    with pytest.raises(KitError, match=r"operator 0 \(COS\) runs on neither NPU nor CPU"):
        _load(net.finish(1), tmp_path / "x.tflite")


def test_missing_scale(tmp_path: Path) -> None:
    net = Network((1, 4, 4, 8), 1)
    net.operator("RELU", [net.input], net.tensor((1, 4, 4, 8)))
    with pytest.raises(KitError, match="has 0 scales"):
        _load(net.finish(1), tmp_path / "x.tflite")
