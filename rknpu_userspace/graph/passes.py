# SPDX-License-Identifier: MIT
"""Rewrites of a graph that change where work is done but not its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rknpu_userspace.formats import INPUTS
from rknpu_userspace.layout import weight_channels
from rknpu_userspace.plan import limits

from .ir import Node, Tensor


def simplify(nodes: Sequence[Node], outputs: Sequence[Tensor]) -> list[Node]:
    """Fold padding into the convolution behind it, and flattening into the linear layer behind it."""
    uses = Counter(tensor for node in nodes for tensor in node.inputs)
    uses.update(outputs)
    makers = {node.output: node for node in nodes}
    folded: set[Node] = set()
    result = []
    for node in nodes:
        maker = makers.get(node.inputs[0])
        if maker is not None and uses[maker.output] == 1:
            merged = _padded(maker, node) or _flattened(maker, node)
            if merged is not None:
                folded.add(maker)
                node = merged
        result.append(node)
    return [node for node in result if node not in folded]


def _padded(pad: Node, conv: Node) -> Node | None:
    """A convolution that pads by itself."""
    if pad.kind != "pad" or conv.kind != "conv2d":
        return None
    edges = pad.attributes["edges"]
    if len(edges) != 4 or any(edges[0]) or any(edges[3]):
        return None
    x, padded = pad.inputs[0], pad.output
    if (x.scale, x.zero_point) != (padded.scale, padded.zero_point):
        return None
    more = (edges[1][0], edges[2][0], edges[1][1], edges[2][1])
    padding = tuple(a + b for a, b in zip(conv.attributes["padding"], more, strict=True))
    kernel, dilation = conv.constants["weights"].shape[1:3], conv.attributes["dilation"]
    for side, size in enumerate(padding):
        if size > min(limits.MAX_PAD, (kernel[side % 2] - 1) * dilation[side % 2]):
            return None
    return replace(conv, inputs=(x,), attributes={**conv.attributes, "padding": padding})


def _flattened(reshape: Node, linear: Node) -> Node | None:
    """A linear layer over a flattened image as a convolution whose window is the image."""
    if reshape.kind != "reshape" or linear.kind != "linear":
        return None
    x = reshape.inputs[0]
    if len(x.shape) != 4 or x.shape[0] != 1 or reshape.output.pixels != 1 or x.dtype not in INPUTS:
        return None
    height, width, channels = x.shape[1:]
    form = INPUTS[x.dtype]
    size = form.nbytes(height * width * weight_channels(channels, form))
    if max(height, width) > limits.MAX_KERNEL or size > limits.MAX_BYTES_PER_KERNEL or height * width == 1:
        return None
    weights = linear.constants["weights"].reshape(-1, height, width, channels)
    attributes = {**linear.attributes, "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    attributes["float_product"] = 1
    constants = {**linear.constants, "weights": weights}
    return replace(linear, kind="conv2d", inputs=(x,), attributes=attributes, constants=constants)
