# SPDX-License-Identifier: MIT
"""The front end against TensorFlow Lite's reference kernels: host kernels exact, the NPU within one step a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tflite_network import INT8, UINT8, Network, byte, interpret, word

from lab.npu import tflite
from rknpu_userspace.device import open_device
from rknpu_userspace.graph import GraphProgram, reference

pytest.importorskip("ai_edge_litert", reason="TensorFlow Lite's reference kernels are not installed")
RELU, RELU6 = 1, 3


def compare(net: Network, outputs: list[int], path: Path, *, host: int = 0, npu: int = 0) -> GraphProgram:
    """Host kernels and NPU (on the model) against TensorFlow Lite; the NPU may be off by one for every layer."""
    model = net.finish(*outputs)
    path.write_bytes(model)
    expected = interpret(model, net.x)
    graph = tflite.load(path)
    with open_device("model") as device:
        for host_only in (True, False):
            with GraphProgram(graph, None if host_only else device.contexts()[0]) as program:
                most = host if host_only else npu or len(program.layers)
                results = program.run(net.x)
                for result, wanted in zip(results, expected, strict=True):
                    assert result.shape == wanted.shape
                    assert result.dtype == wanted.dtype
                    distance = np.abs(result.astype(int) - wanted.astype(int))
                    assert distance.max() <= most, f"{distance.max()}, mean {distance.mean()}"
                    assert len(np.unique(wanted)) > 1
    return program


SINGLE: dict[str, Callable[[Network], int]] = {
    "conv": lambda n: n.conv(n.input, 24, 3),
    "conv per tensor": lambda n: n.conv(n.input, 24, 3, per_channel=False),
    "conv stride 2": lambda n: n.conv(n.input, 24, 3, stride=2),
    "conv valid": lambda n: n.conv(n.input, 24, 5, same=False, stride=2),
    "conv dilated": lambda n: n.conv(n.input, 24, 3, dilation=2),
    "conv relu": lambda n: n.conv(n.input, 24, 3, activation=RELU, zero=-128),
    "conv relu6": lambda n: n.conv(n.input, 24, 1, activation=RELU6, zero=-30),
    "depthwise": lambda n: n.depthwise(n.input, 3),
    "depthwise stride 2": lambda n: n.depthwise(n.input, 5, stride=2, activation=RELU),
    "depthwise multiplier": lambda n: n.depthwise(n.input, 3, multiplier=3),
    "linear": lambda n: n.linear(n.input, 30),
    "add": lambda n: n.binary("ADD", n.input, n.conv(n.input, 16, 1)),
    "add relu": lambda n: n.binary("ADD", n.conv(n.input, 16, 1), n.input, RELU),
    "sub": lambda n: n.binary("SUB", n.input, n.conv(n.input, 16, 1)),
    "mul": lambda n: n.binary("MUL", n.input, n.input),
    "average": lambda n: n.pool("AVERAGE_POOL_2D", n.input, 3, 2),
    "average same": lambda n: n.pool("AVERAGE_POOL_2D", n.input, 3, 1, same=True),
    "maximum": lambda n: n.pool("MAX_POOL_2D", n.input, 3, 2, same=True),
    "maximum valid": lambda n: n.pool("MAX_POOL_2D", n.input, 2, 2),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("kind", [INT8, UINT8], ids=["int8", "uint8"])
def test_single_operators(name: str, kind: int, tmp_path: Path) -> None:
    net = Network((1, 13, 14, 16), sum(name.encode()), kind)
    program = compare(net, [SINGLE[name](net)], tmp_path / "model.tflite")
    assert len(program.layers) <= 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("narrowest", [1e-3, 1e-5])
def test_channels_with_tiny_scales(seed: int, narrowest: float, tmp_path: Path) -> None:
    """As trained networks have them; the NPU's multipliers have 16 bits for all channels together."""
    net = Network((1, 10, 10, 24), seed)
    net.narrowest = narrowest
    y = net.depthwise(net.input, 3) if seed % 2 else net.conv(net.input, 40, 3)
    program = compare(net, [y], tmp_path / "model.tflite")
    assert [layer.unit for layer in program.layers] == ["npu"]


def test_operators_that_move_data(tmp_path: Path) -> None:
    net = Network((1, 8, 10, 16), 2)
    x = net.input
    a = net.like("PAD", x, (1, 10, 12, 16), [net.indices([[0, 0], [1, 1], [2, 0], [0, 0]])], "PadOptions")
    b = net.conv(a, 32, 3, same=False)
    c = net.operator(
        "CONCATENATION", [x, x], net.tensor((1, 8, 20, 16), *net.quantisation[x]), "ConcatenationOptions", {}
    )
    d = net.tensor((1, 8, 10, 32), *net.quantisation[x])
    net.operator("CONCATENATION", [x, x], d, "ConcatenationOptions", {0: word(3)})
    e = net.like("TRANSPOSE", x, (1, 10, 8, 16), [net.indices([0, 2, 1, 3])], "TransposeOptions")
    f = net.like("RESHAPE", x, (80, 16), [net.indices([80, 16])], "ReshapeOptions")
    del c
    compare(net, [b, d, e, f], tmp_path / "model.tflite")


def test_slices(tmp_path: Path) -> None:
    net = Network((1, 9, 10, 24), 7)
    x = net.input
    cuts = [net.indices([0, 1, 2, 8]), net.indices([1, 5, -1, 9])]
    a = net.like("SLICE", x, (1, 5, 8, 9), cuts, "SliceOptions", {})
    cuts = [net.indices([0, 1, 0, -16]), net.indices([0, 9, -2, 24]), net.indices([1, 2, 1, 1])]
    fields = {0: word(1), 1: word(1), 4: word(0)}
    b = net.like("STRIDED_SLICE", x, (1, 4, 8, 16), cuts, "StridedSliceOptions", fields)
    cuts = [net.indices([0, 3]), net.indices([1, 4]), net.indices([1, 1])]
    c = net.like("STRIDED_SLICE", x, (1, 10, 24), cuts, "StridedSliceOptions", {0: word(1), 1: word(1), 4: word(2)})
    parts = [net.tensor((1, 9, 10, 8), *net.quantisation[x]) for _ in range(3)]
    net.operator("SPLIT", [net.indices(3), x], parts[0], "SplitOptions", {0: word(3)})
    net.operators[-1].fields[2] = np.array(parts, "<i4")
    compare(net, [a, b, c, *parts[1:]], tmp_path / "model.tflite")


@pytest.mark.parametrize("code", ["RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"])
@pytest.mark.parametrize("flags", [(0, 0), (1, 0), (0, 1)], ids=["plain", "corners", "half"])
@pytest.mark.parametrize("size", [(14, 21), (5, 4), (7, 1)])
def test_resizing(code: str, flags: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    net = Network((1, 7, 9, 5), 8)
    first = 2 if code == "RESIZE_BILINEAR" else 0
    fields = {first: byte(flags[0]), first + 1: byte(flags[1])}
    options = "ResizeBilinearOptions" if first else "ResizeNearestNeighborOptions"
    y = net.like(code, net.input, (1, *size, 5), [net.indices(size)], options, fields)
    compare(net, [y], tmp_path / "model.tflite")


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "zero"), [(3, 2, 0), (4, 2, 3), (2, 2, 0), (4, 4, 0), (3, 1, 3), (5, 3, 0)]
)
def test_transposed_convolution(kernel: int, stride: int, same: bool, zero: int, tmp_path: Path) -> None:
    """In one piece on the NPU where the inserted zeros are zeros, else on the host."""
    net = Network((1, 6, 7, 16), 9)
    net.quantisation[0] = (0.02, zero)
    net.tensors[0][4].fields[3] = np.array([zero], "<i8")
    weights, _ = net.weights((12, kernel, kernel, 16), False, 0)
    spare = 0 if same else max(0, kernel - stride)
    shape = (1, 6 * stride + spare, 7 * stride + spare, 12)
    fields = {0: byte(not same), 1: word(stride), 2: word(stride)}
    inputs = [net.indices(shape), weights, net.input]
    y = net.spread("TRANSPOSE_CONV", inputs, shape, "TransposeConvOptions", fields)
    program = compare(net, [y], tmp_path / "model.tflite")
    if (zero == 0 and stride != 3) or not same:
        assert [layer.unit for layer in program.layers] == ["npu"]


@pytest.mark.parametrize("code", ["LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6", "LEAKY_RELU"])
def test_activations(code: str, tmp_path: Path) -> None:
    """Tables are rounded once; TensorFlow Lite's fixed-point approximations are within one step of that."""
    from tflite_builder import Scalar

    net = Network((1, 16, 16, 16), 3)
    net.quantisation[0] = (0.05, 3)
    net.tensors[0][4].fields[2] = np.array([0.05], "<f4")
    scale, zero = (1 / 256, -128) if code == "LOGISTIC" else (1 / 128, 0) if code == "TANH" else (0.05, 3)
    options, fields = ("LeakyReluOptions", {0: Scalar("<f", 0.2)}) if code == "LEAKY_RELU" else ("", {})
    y = net.operator(code, [net.input], net.tensor(net.shapes[0], scale, zero), options, fields)
    compare(net, [y], tmp_path / "model.tflite", host=1)


def test_inverted_residuals(tmp_path: Path) -> None:
    """Blocks of MobileNetV2 with its head; every layer may add a step of its own."""
    net = Network((1, 24, 24, 3), 4)
    y = net.conv(net.input, 16, 3, stride=2, activation=RELU6, zero=-128)
    for channels, stride in ((24, 2), (24, 1)):
        z = net.conv(y, 72, 1, activation=RELU6, zero=-128)
        z = net.depthwise(z, 3, stride=stride, activation=RELU6, zero=-128)
        z = net.conv(z, channels, 1)
        y = net.binary("ADD", z, y) if net.shapes[z] == net.shapes[y] else z
    mean = net.tensor((1, 24), *net.quantisation[y])
    net.operator("MEAN", [y, net.indices([1, 2])], mean, "ReducerOptions", {})
    scores = net.linear(mean, 20)
    program = compare(net, [scores, net.softmax(scores)], tmp_path / "model.tflite", host=1, npu=6)
    assert [layer.kind for layer in program.layers if layer.unit == "cpu"] == ["softmax"]
    assert program.submissions == 1


def test_reference_of_the_graph_is_the_model(tmp_path: Path) -> None:
    """What the NPU's model computes for a converted network equals the graph's reference bit for bit."""
    net = Network((1, 20, 20, 8), 5, UINT8)
    y = net.conv(net.input, 24, 3, activation=RELU)
    y = net.pool("MAX_POOL_2D", y, 2, 2)
    y = net.binary("ADD", net.conv(y, 24, 3), y)
    y = net.linear(y, 40)
    path = tmp_path / "model.tflite"
    path.write_bytes(net.finish(y))
    graph = tflite.load(path)
    (wanted,) = reference(graph, (net.x ^ 128).view(np.int8))
    with open_device("model") as device, device.compile(graph) as program:
        assert np.array_equal(program(net.x), wanted.view(np.uint8) ^ 128)
