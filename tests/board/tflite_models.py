# SPDX-License-Identifier: MIT
"""The models of the Teflon test: what Mesa's rocket driver says that it runs, each in a form that tells errors apart.

Mesa's driver takes tensors of unsigned bytes (it stores ``u - 128``, the NPU's int8) with one scale and zero point,
square images, and sums only with the scales of the networks it was made for (src/gallium/drivers/rocket, Mesa 26.1).
Weights, biases and inputs are random with a fixed seed; output scales spread the results over the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tflite_builder import Model

SPREAD = 60.0
"""Standard deviation of the outputs, in steps: saturation at both ends takes part."""
INPUT_SCALE, WEIGHT_SCALE = 0.05, 0.01
RESIDUAL_SCALE, RESIDUAL_FACTOR = 0.100618, 313.671875
RESIDUAL_OUT = 16874 / 2**23
"""Scale of a summand, and Mesa's factors for it (rkt_regcmd.c): of the summand, and of the sum to the output."""


@dataclass(frozen=True)
class Case:
    """One model.

    ``convolutions``: how many the NPU has to run. ``tasks``: at least so many are needed, since the input does not fit
    the convolution buffer. ``off_by_one``: the share of outputs that may differ by one step from the processor's; the
    NPU multiplies by 15 bits where TensorFlow Lite uses 31, and adds before it rounds. ``interior``: compare without
    the outermost pixels.
    """

    name: str
    build: Callable[[], bytes]
    convolutions: int = 1
    tasks: int = 1
    off_by_one: float = 0.02
    interior: bool = False


def _random() -> np.random.Generator:
    return np.random.default_rng(20261121)


def _conv(model: Model, source: int, channels: int, kernel: int, rng: np.random.Generator, **options: Any) -> int:
    """A convolution with random weights and an output scale that gives `SPREAD`; depthwise without ``channels``."""
    depth = model.shapes[source][3]
    depthwise = channels == 0
    shape = (1, kernel, kernel, depth) if depthwise else (channels, kernel, kernel, depth)
    weights = rng.integers(1, 256, shape).astype(np.uint8)
    bias = rng.integers(-2000, 2000, depth if depthwise else channels).astype(np.int32)
    # a random byte has a standard deviation of 74 steps
    spread = 74.0 * 74.0 * np.sqrt(kernel * kernel * (1 if depthwise else depth))
    scale = float(np.float32(model.scales[source] * WEIGHT_SCALE * spread / SPREAD))
    chosen: dict[str, Any] = {"weight_scale": WEIGHT_SCALE, "scale": scale, "zero_point": 125, "depthwise": depthwise}
    return model.conv(source, weights, bias, **chosen | options)


def _single(
    size: int, depth: int, channels: int, kernel: int, *, input_zero_point: int = 132, **options: Any
) -> Callable[[], bytes]:
    """A model of one convolution of a ``size`` x ``size`` image."""

    def build() -> bytes:
        model = Model()
        source = model.input((1, size, size, depth), INPUT_SCALE, input_zero_point)
        return model.finish([_conv(model, source, channels, kernel, _random(), **options)])

    return build


def _mobilenet_blocks() -> bytes:
    """The head of a MobileNetV1: a convolution with stride, then twice depthwise and pointwise."""
    model, rng = Model(), _random()
    relu = {"activation": "relu", "zero_point": 0}
    tensor = _conv(model, model.input((1, 32, 32, 3), INPUT_SCALE, 128), 32, 3, rng, stride=2, **relu)
    tensor = _conv(model, _conv(model, tensor, 0, 3, rng, **relu), 64, 1, rng, **relu)
    tensor = _conv(model, _conv(model, tensor, 0, 3, rng, stride=2, **relu), 128, 1, rng)
    return model.finish([tensor])


def _residual() -> bytes:
    """Three convolutions, the last one's result added to the first one's: the NPU adds in the last convolution."""
    model, rng = Model(), _random()
    source = model.input((1, 16, 16, 32), INPUT_SCALE, 128)
    first = _conv(model, source, 32, 1, rng, scale=RESIDUAL_SCALE, zero_point=128)
    second = _conv(model, first, 32, 1, rng, scale=5 * RESIDUAL_SCALE, zero_point=128)
    # so small that the processor's sum does not suffer from a summand cut at the ends of the byte
    unit = RESIDUAL_SCALE / RESIDUAL_FACTOR
    out_scale = unit / RESIDUAL_OUT
    weights = rng.integers(96, 161, (32, 1, 1, 32)).astype(np.uint8)
    bias = rng.integers(-2000, 2000, 32).astype(np.int32)
    weight_scale = unit / model.scales[second]
    third = model.conv(second, weights, bias, weight_scale=weight_scale, scale=out_scale, zero_point=128)
    return model.finish([model.add(third, first, scale=out_scale, zero_point=128)])


CASES = (
    Case("3x3", _single(16, 16, 32, 3)),
    Case("1x1", _single(16, 64, 48, 1)),
    Case("3x3-stride-2", _single(17, 16, 32, 3, stride=2, padding="valid")),
    Case("3x3-stride-2-same", _single(16, 16, 32, 3, stride=2)),
    Case("relu", _single(16, 16, 32, 3, activation="relu", zero_point=0)),
    Case("three-channels", _single(32, 3, 16, 3, input_zero_point=128, stride=2)),
    Case("one-channel", _single(32, 1, 16, 3, input_zero_point=128)),
    Case("deep", _single(14, 512, 128, 3)),
    Case("tiled", _single(112, 32, 8, 3), tasks=2),
    Case("depthwise", _single(16, 64, 0, 3, input_zero_point=128)),
    Case("depthwise-stride-2", _single(16, 32, 0, 3, input_zero_point=128, stride=2)),
    # Mesa sets the pad value of one byte of a pair only, and a board pads every other channel with 0 (a capture of a
    # depthwise layer on an RK3588, register 0x1184 = 0x7e): the client's error, at the edges
    Case("depthwise-padded-with-4", _single(16, 64, 0, 3), interior=True),
    Case("mobilenet-blocks", _mobilenet_blocks, convolutions=5, off_by_one=0.05),
    # the processor rounds the third convolution to a byte before it adds
    Case("residual", _residual, convolutions=3, off_by_one=0.5),
)
