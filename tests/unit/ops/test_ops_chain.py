# SPDX-License-Identifier: MIT
"""Chains of layers on the model, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rknpu_userspace.device import Device
from rknpu_userspace.ops import reference
from rknpu_userspace.ops.chain import Chain
from rknpu_userspace.ops.conv2d import Conv2d
from rknpu_userspace.quant import derive, requantize

ZERO = -3


class Network:
    """Layers with random weights, run in numpy while they are added; scales follow the sums, so that values spread."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.x = self.rng.integers(-128, 128, shape, dtype=np.int8)
        self.y = self.x
        self.layers: list[Conv2d] = []

    def conv(self, outputs: int, kernel: int, stride: int = 1, depthwise: bool = False) -> None:
        """Padded to keep the size, ReLU, zero points in input, weights and output."""
        channels = self.y.shape[3]
        groups, per_group = (channels, 1) if depthwise else (1, channels)
        weights = self.rng.integers(-127, 128, (outputs, kernel, kernel, per_group), dtype=np.int8)
        bias = self.rng.integers(-2000, 2000, outputs)
        options: dict[str, Any] = {"stride": (stride, stride), "padding": (kernel // 2,) * 4, "groups": groups}
        options |= {"x_zero_point": ZERO, "w_zero_point": 2, "relu": True}
        sums = reference.conv2d(self.y, weights, bias, **options)
        scale = 60 / float(sums.std())
        self.layers.append(Conv2d(weights, self.y.shape, bias=bias, scale=scale, out_zero_point=ZERO, **options))
        self.y = requantize(sums, derive(scale, ZERO))


def test_mixed_layers(npu: Device) -> None:
    """Channels that are not whole atoms, depthwise, strides that leave lines over."""
    net = Network((1, 30, 27, 5), 1)
    net.conv(24, 3, stride=2)
    net.conv(24, 3, depthwise=True)
    net.conv(70, 1)
    net.conv(70, 3, stride=2, depthwise=True)
    net.conv(9, 1)
    assert len(np.unique(net.y)) > 50
    with npu.compile(Chain(net.layers)) as program:
        assert np.array_equal(program(net.x), net.y)
        other = program(net.x[:, ::-1])
        assert not np.array_equal(other, net.y)
        assert np.array_equal(program(net.x), net.y)


def test_float16_chain(npu: Device) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 12, 12, 10)).astype(np.float16)
    first = rng.normal(size=(20, 3, 3, 10)).astype(np.float16) / 8
    second = rng.normal(size=(7, 1, 1, 20)).astype(np.float16) / 4
    layers = [
        Conv2d(first, x.shape, padding=1, relu=True, out_dtype="float16"),
        Conv2d(second, (1, 12, 12, 20), out_dtype="float32"),
    ]
    with npu.compile(Chain(layers)) as program:
        result = program(x)
    middle = npu.conv2d(x, first, padding=1, relu=True, out_dtype="float16")
    assert np.array_equal(result, npu.conv2d(middle, second))


def test_bad_chains() -> None:
    weights = np.ones((8, 3, 3, 4), np.int8)
    layer = Conv2d(weights, (1, 9, 9, 4), scale=0.1)
    with pytest.raises(ValueError, match="at least one layer"):
        Chain([])
    with pytest.raises(ValueError, match=r"layer 0 gives \(1, 7, 7, 8\), layer 1 takes \(1, 9, 9, 4\)"):
        Chain([layer, layer])
    with pytest.raises(ValueError, match="layer 0 has 2 images"):
        Chain([Conv2d(weights, (2, 9, 9, 4), scale=0.1)])
    wide = Conv2d(weights, (1, 9, 9, 4))
    with pytest.raises(ValueError, match="layer 0 gives int32, layer 1 takes int8"):
        Chain([wide, Conv2d(np.ones((3, 1, 1, 8), np.int8), (1, 7, 7, 8))])
    with pytest.raises(ValueError, match="has 2 groups"):
        Chain([Conv2d(weights, (1, 9, 9, 8), groups=2)])
