# SPDX-License-Identifier: MIT
"""Layers of well-known networks, as the convolutions that the NPU is asked for.

Convolutions and fully connected layers only, 224 x 224 images, int8 in and out with a bias and a requantisation. First
layers read packed images.

* MobileNetV1: Howard et al. 2017, table 1; "same" padding as in TensorFlow.
* MobileNetV2: Sandler et al. 2018, table 2; the same padding.
* ResNet-50: He et al. 2015, table 1, with the stride in the 3x3 layer (as torchvision does).
* Qwen2.5-1.5B: the matmuls of one of its 28 equal decoder layers (hidden size 1536, 12 query and 2 key/value heads of
  128, intermediate size 8960), and in decoding the output layer (vocabulary 151936). Its published configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rknpu_userspace.plan import Problem

IMAGE = 224
CLASSES = 1000
_IMAGE_CHANNELS = 4
"""Up to as many, the first layer reads pixels as they lie side by side."""
_HIDDEN, _KEYS, _INNER, _VOCABULARY = 1536, 256, 8960, 151936
PREFILL = (128, 512)


@dataclass(frozen=True)
class Layer:
    """One layer: its name and what it computes."""

    name: str
    problem: Problem


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after that gives ``ceil(size / stride)`` outputs; what is odd goes behind."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _conv(
    name: str, size: int, channels: int, outputs: int, kernel: int = 1, stride: int = 1, depthwise: bool = False
) -> Layer:
    before, after = _same(size, kernel, stride)
    padding = (before, before, after, after)
    steps = (kernel, kernel, stride, stride, 1, 1)
    packed = channels <= _IMAGE_CHANNELS
    sizes = (size, size, channels, outputs)
    return Layer(name, Problem("int8", "int8", *sizes, *steps, *padding, depthwise=depthwise, packed=packed))


def _symmetric(name: str, size: int, channels: int, outputs: int, kernel: int, stride: int) -> Layer:
    pad = kernel // 2
    steps = (kernel, kernel, stride, stride, 1, 1)
    sizes = (size, size, channels, outputs)
    return Layer(name, Problem("int8", "int8", *sizes, *steps, pad, pad, pad, pad, packed=channels <= _IMAGE_CHANNELS))


def matmul(name: str, rows: int, inner: int, outputs: int, form: str = "int8", out: str = "int8") -> Layer:
    """``rows`` x ``inner`` times ``inner`` x ``outputs``, row-major."""
    return Layer(name, Problem.matmul(form, out, rows, inner, outputs))


def mobilenet_v1() -> Iterator[Layer]:
    """MobileNetV1, width 1.0."""
    size, channels = IMAGE // 2, 32
    yield _conv("conv 1", IMAGE, 3, channels, 3, 2)
    blocks = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]
    for number, (stride, outputs) in enumerate(blocks, 1):
        yield _conv(f"dw {number}", size, channels, channels, 3, stride, True)
        size = -(-size // stride)
        yield _conv(f"pw {number}", size, channels, outputs)
        channels = outputs
    yield _conv("fc", 1, channels, CLASSES)


def mobilenet_v2() -> Iterator[Layer]:
    """MobileNetV2, width 1.0."""
    size, channels = IMAGE // 2, 32
    yield _conv("conv 1", IMAGE, 3, channels, 3, 2)
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    number = 0
    for expansion, outputs, repeats, first_stride in stages:
        for repeat in range(repeats):
            number += 1
            stride = first_stride if repeat == 0 else 1
            inner = channels * expansion
            if expansion > 1:
                yield _conv(f"expand {number}", size, channels, inner)
            yield _conv(f"dw {number}", size, inner, inner, 3, stride, True)
            size = -(-size // stride)
            yield _conv(f"project {number}", size, inner, outputs)
            channels = outputs
    yield _conv("conv 2", size, channels, 1280)
    yield _conv("fc", 1, 1280, CLASSES)


def resnet_50() -> Iterator[Layer]:
    """ResNet-50."""
    yield _symmetric("conv 1", IMAGE, 3, 64, 7, 2)
    size, channels = IMAGE // 4, 64
    for stage, (width, repeats) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 2):
        for block in range(1, repeats + 1):
            stride = 2 if block == 1 and stage > 2 else 1
            name = f"{stage}.{block}"
            if block == 1:
                yield _conv(f"{name} shortcut", size, channels, 4 * width, 1, stride)
            yield _conv(f"{name} reduce", size, channels, width)
            yield _symmetric(f"{name} 3x3", size, width, width, 3, stride)
            size //= stride
            yield _conv(f"{name} expand", size, width, 4 * width)
            channels = 4 * width
    yield _conv("fc", 1, channels, CLASSES)


def qwen(rows: int, form: str = "int8", out: str = "int8") -> Iterator[Layer]:
    """The matmuls of a decoder layer of Qwen2.5-1.5B over ``rows`` tokens; with one token also the output layer."""
    for name, inner, outputs in (
        ("query", _HIDDEN, _HIDDEN),
        ("key", _HIDDEN, _KEYS),
        ("value", _HIDDEN, _KEYS),
        ("attention out", _HIDDEN, _HIDDEN),
        ("gate", _HIDDEN, _INNER),
        ("up", _HIDDEN, _INNER),
        ("down", _INNER, _HIDDEN),
    ):
        yield matmul(name, rows, inner, outputs, form, out)
    if rows == 1:
        yield matmul("output", rows, _HIDDEN, _VOCABULARY, form, out)


NETWORKS: dict[str, Callable[[], Iterator[Layer]]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "resnet-50": resnet_50,
    "qwen-prefill-128": lambda: qwen(PREFILL[0]),
    "qwen-prefill-512": lambda: qwen(PREFILL[1]),
    "qwen-decode": lambda: qwen(1),
}
CNN = ("mobilenet-v1", "mobilenet-v2", "resnet-50")
MATMUL = ("qwen-prefill-128", "qwen-prefill-512")
