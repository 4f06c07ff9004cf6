# SPDX-License-Identifier: MIT
"""Networks with random weights for the tests of graphs; scales follow the sums, so that values spread."""

from __future__ import annotations

from typing import Any

import numpy as np

from rknpu_userspace.graph import Graph, Tensor, reference
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
        """What a tensor holds for ``x``."""
        if tensor not in self._values:
            outputs, self.graph.outputs = self.graph.outputs, [tensor]
            (self._values[tensor],) = reference(self.graph, self.x)
            self.graph.outputs = outputs
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
        sums = arithmetic.conv2d(
            self.value(x),
            weights,
            bias,
            stride=(stride, stride),
            padding=arithmetic.pads(padding),
            groups=groups,
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
