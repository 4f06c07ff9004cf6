# SPDX-License-Identifier: MIT
"""Networks with random weights for the tests of graphs, on the model and on boards."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rknpu_userspace.graph import Graph, Tensor, host
from rknpu_userspace.graph.placement import place
from rknpu_userspace.ops import reference as arithmetic


class Builder:
    """A graph under construction, computed in numpy while it grows so that every layer uses the range of int8."""

    def __init__(self, shape: tuple[int, ...], seed: int, scale: float = 0.02, zero_point: int = -3) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph()
        self.input = self.graph.input("image", shape, scale=scale, zero_point=zero_point)
        self.x = self.rng.integers(-128, 128, shape, dtype=np.int8)
        self._values = {self.input: self.x}

    def value(self, tensor: Tensor) -> Any:
        """What a tensor holds for ``x``; everything that is not known yet is computed."""
        for item in place([node for node in self.graph.nodes if node.output not in self._values]):
            inputs = [self._values[source] for source in item.node.inputs]
            run = item.lowering.reference if item.lowering else partial(host.run, item.node)
            self._values[item.node.output] = run(*inputs)
        return self._values[tensor]

    def conv(self, x: Tensor, outputs: int, kernel: int, **options: Any) -> Tensor:
        """Padded to keep the size; weights per tensor or (``per_channel``) per channel."""
        depthwise = options.pop("depthwise", False)
        per_channel = options.pop("per_channel", False)
        groups, per_group = (x.channels, 1) if depthwise else (1, x.channels)
        weights = self.rng.integers(-127, 128, (outputs, kernel, kernel, per_group), dtype=np.int8)
        bias = self.rng.integers(-2000, 2000, outputs)
        padding = options.pop("padding", kernel // 2)
        stride = options.pop("stride", 1)
        few = slice(0, 8)  # enough to see how far the sums spread
        sums = arithmetic.conv2d(
            self.value(x)[..., few] if depthwise else self.value(x),
            weights[few],
            bias[few],
            stride=(stride, stride),
            padding=arithmetic.pads(padding),
            groups=len(weights[few]) if depthwise else 1,
            x_zero_point=x.zero_point,
        )
        w_scale: Any = 0.01 * self.rng.uniform(0.3, 1.0, outputs) if per_channel else 0.01
        scale = float(sums.std()) * x.scale * 0.01 / 50
        return self.graph.conv2d(
            x,
            weights,
            bias,
            stride=stride,
            padding=padding,
            groups=groups,
            w_scale=w_scale,
            **{"scale": scale, "zero_point": 5, **options},
        )

    def average(self, x: Tensor, kernel: int) -> Tensor:
        """Mean over the whole image."""
        return self.graph.average_pool(x, kernel)


def mobilenet_v1(seed: int) -> Builder:
    """All 27 convolutions of MobileNetV1 at 224x224, average and classifier; the graph ends in 1001 scores."""
    net = Builder((1, 224, 224, 3), seed)
    relu6 = {"activation": "relu6", "zero_point": -128}
    y = net.conv(net.input, 32, 3, stride=2, padding=(0, 0, 1, 1), **relu6)
    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for outputs, stride in widths:
        padding = (0, 0, 1, 1) if stride == 2 else 1
        y = net.conv(y, y.channels, 3, stride=stride, padding=padding, depthwise=True, per_channel=True, **relu6)
        y = net.conv(y, outputs, 1, per_channel=True, **relu6)
    assert y.shape == (1, 7, 7, 1024)
    y = net.average(y, 7)
    net.graph.output(net.graph.reshape(net.conv(y, 1001, 1), (1, 1001)))
    return net
