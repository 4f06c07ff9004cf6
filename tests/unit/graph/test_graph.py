# SPDX-License-Identifier: MIT
"""Graphs on the model: equal to their integer reference bit for bit, tensors staying on the NPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_networks import Builder, mobilenet_v1
from hypothesis import given
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.graph import Graph, GraphProgram, reference
from rknpu_userspace.graph.common import bound_of
from rknpu_userspace.quant import derive, requantize


def run(npu: Device, net: Builder, units: str = "npu") -> GraphProgram:
    """Compile, compare three runs with the reference; the (closed) program."""
    with npu.compile(net.graph) as program:
        assert isinstance(program, GraphProgram)
        assert {layer.unit for layer in program.layers} == set(units.split())
        flipped = net.x[:, ::-1].copy()
        for x in (net.x, flipped, net.x):
            for result, expected in zip(program.run(x), reference(net.graph, x), strict=True):
                assert np.array_equal(result, expected)
                assert len(np.unique(result)) > 6
        profiled = program.profile(net.x)
        for result, expected in zip(profiled, reference(net.graph, net.x), strict=True):
            assert np.array_equal(result, expected)
        for layer in program.layers:
            if layer.tasks:
                assert layer.seconds > 0 and layer.model_seconds and layer.model_bytes
                # commands and per-channel operands come on top of the plan's bytes
                assert 0 <= layer.model_bytes - layer.dma_bytes <= layer.tasks * (1100 + 16 * layer.shape[-1])
        return program


def test_inverted_residual(npu: Device) -> None:
    """MobileNetV2's block: expand, depthwise, project, add; the scales of both operands differ."""
    net = Builder((1, 28, 28, 24), 1)
    y = net.conv(net.input, 144, 1, activation="relu6")
    y = net.conv(y, 144, 3, depthwise=True, activation="relu6", per_channel=True)
    y = net.conv(y, 24, 1)
    net.graph.output(net.graph.add(y, net.input, scale=0.03, zero_point=-7))
    program = run(npu, net)
    assert program.submissions == program.jobs == 1


def test_mobilenet_v1(npu: Device) -> None:
    """The whole network at 224x224 is one submission of one job."""
    net = mobilenet_v1(3)
    wanted = net.value(net.graph.outputs[0])
    assert len(np.unique(wanted)) > 100
    with npu.compile(net.graph) as program:
        assert isinstance(program, GraphProgram)
        assert all(layer.unit == "npu" for layer in program.layers)
        assert (program.submissions, program.jobs) == (1, 1)
        assert program.macs == 568_740_352 + 7 * 7 * 1024 + 1024  # the published 569 M, the average, one class more
        assert np.array_equal(program(net.x), wanted)


def test_relu6_has_an_upper_bound(npu: Device) -> None:
    """Real 6 well inside the range: the bound in the accumulator's units is the clamp of the result."""
    net = Builder((1, 9, 9, 16), 2)
    y = net.conv(net.input, 40, 3, scale=0.1, zero_point=-20, activation="relu6")
    z = net.conv(y, 40, 1, scale=0.1, zero_point=-20, activation="relu6", per_channel=True)
    for tensor in (y, z):
        net.graph.output(tensor)
        values = net.value(tensor)
        assert (values.min(), values.max()) == (-20, 40)
    run(npu, net)


def test_basic_residual(npu: Device) -> None:
    """ResNet's blocks: with an identity, and with a projection and stride 2; ReLU after the sum."""
    net = Builder((1, 20, 20, 32), 3)
    y = net.conv(net.input, 32, 3, activation="relu")
    y = net.conv(y, 32, 3)
    y = net.graph.add(y, net.input, scale=0.04, zero_point=-128, activation="relu")
    z = net.conv(y, 48, 3, stride=2, activation="relu")
    z = net.conv(z, 48, 3)
    side = net.conv(y, 48, 1, stride=2)
    net.graph.output(net.graph.add(z, side, scale=0.05, zero_point=2, activation="relu"))
    run(npu, net)


def test_bottleneck_with_stem(npu: Device) -> None:
    """ResNet-50's start: 7x7 stride 2, maximum 3x3 stride 2, a bottleneck, the head with average and classifier."""
    net = Builder((1, 64, 64, 3), 4)
    graph = net.graph
    y = net.conv(net.input, 32, 7, stride=2, activation="relu")
    y = graph.max_pool(y, 3, stride=2, padding=1)
    z = net.conv(y, 16, 1, activation="relu")
    z = net.conv(z, 16, 3, activation="relu")
    z = net.conv(z, 64, 1)
    y = graph.add(z, net.conv(y, 64, 1), scale=0.05, zero_point=-128, activation="relu")
    y = graph.average_pool(y, 16)
    y = graph.reshape(y, (1, 64))
    weights = net.rng.integers(-127, 128, (100, 64), dtype=np.int8)
    y = graph.linear(y, weights, net.rng.integers(-500, 500, 100), w_scale=0.01, scale=0.09, zero_point=3)
    graph.output(y)
    program = run(npu, net)
    assert program.submissions == 1


def test_memory_is_reused(npu: Device) -> None:
    net = Builder((1, 32, 32, 16), 5)
    y = net.input
    for _ in range(6):
        y = net.conv(y, 32, 3)
    net.graph.output(y)
    with npu.compile(net.graph) as program:
        (stage,) = program._stages
        assert stage.schedule.arena_bytes <= 3 * 32 * 32 * 32
        assert stage.schedule.result_bytes == 6 * 32 * 32 * 32


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "max", "min"])
def test_elementwise(npu: Device, kind: str) -> None:
    net = Builder((1, 7, 9, 21), 6)
    graph = net.graph
    y = net.conv(net.input, 21, 1)
    graph.output(graph.binary(kind, net.input, y, scale=0.03, zero_point=9))
    if kind != "sub":
        vector = net.rng.integers(-128, 128, 21, dtype=np.int8)
        z = graph.binary_constant(kind, y, vector, b_scale=0.015, b_zero_point=4, scale=0.03, activation="relu")
        graph.output(z)
        pixel = graph.average_pool(graph.requantize(y, scale=0.05), (7, 9))
        graph.output(graph.binary(kind, y, pixel, scale=0.03))
    run(npu, net)


def test_concatenation(npu: Device) -> None:
    """Where quantisation agrees a branch is computed in place, though its groups of channels overlap the next one."""
    net = Builder((1, 12, 10, 16), 7)
    graph = net.graph
    a = net.conv(net.input, 48, 3, scale=0.04, zero_point=1)
    b = net.conv(net.input, 16, 1, scale=0.04, zero_point=1)
    c = net.conv(net.input, 16, 5)
    d = net.conv(net.input, 9, 1, scale=0.04, zero_point=1)
    whole = graph.concat([a, b, c, net.input, d], scale=0.04, zero_point=1)
    graph.output(net.conv(whole, 24, 1))
    graph.output(whole)
    program = run(npu, net)
    (layer,) = [layer for layer in program.layers if layer.kind == "concat"]
    assert layer.tasks == 2  # two branches are copied, three lie there already


def test_pooling_and_flattening(npu: Device) -> None:
    net = Builder((1, 12, 12, 20), 8)
    graph = net.graph
    y = graph.max_pool(net.conv(net.input, 20, 3), 2)
    y = graph.max_pool(y, (3, 1), stride=1)
    graph.output(y)
    y = graph.average_pool(y, 2, stride=2)
    flat = graph.reshape(y, (1, 2 * 3 * 20))
    weights = net.rng.integers(-127, 128, (33, 120), dtype=np.int8)
    graph.output(graph.linear(flat, weights, w_scale=0.01, scale=4.0))
    program = run(npu, net)
    assert program.submissions == 1


def test_averages_of_parts(npu: Device) -> None:
    """Windows that leave columns over, and windows that reach beyond the image, whose padding does not count."""
    net = Builder((1, 13, 14, 20), 16)
    for options in ({"stride": 2}, {"stride": 1, "padding": 1}, {"stride": 2, "padding": (0, 1, 1, 0)}):
        net.graph.output(net.graph.average_pool(net.input, 3, scale=0.015, **options))
    run(npu, net)


def test_host_takes_what_the_npu_can_not(npu: Device) -> None:
    net = Builder((1, 8, 8, 32), 9)
    graph = net.graph
    y = net.conv(net.input, 32, 3)
    y = graph.table(y, net.rng.permutation(256).astype(np.uint8).view(np.int8))
    y = net.conv(y, 10, 1)
    graph.output(graph.softmax(y, beta=0.02 / y.scale))
    y = graph.average_pool(y, 3, stride=1, padding=1)
    graph.output(y)
    program = run(npu, net, "npu cpu")
    assert [layer.unit for layer in program.layers] == ["npu", "cpu", "npu", "npu", "cpu"]


def test_views(npu: Device) -> None:
    """Parts, enlarged images and images side by side are copies on the NPU: what YOLO's neck consists of."""
    net = Builder((1, 12, 10, 48), 15)
    graph = net.graph
    small = net.conv(net.input, 32, 3, stride=2)
    large = graph.upsample(small, 2)
    graph.output(graph.concat([large, net.input], scale=0.05))
    even = [graph.slice(net.input, [(0, 1), (y, 12, 2), (x, 10, 2), (16, 48)]) for y in (0, 1) for x in (0, 1)]
    focus = graph.concat(even)
    graph.output(net.conv(focus, 20, 1))
    graph.output(graph.concat([small, graph.max_pool(small, 5, stride=1, padding=2)], axis=2, scale=0.1))
    run(npu, net)


def test_padding_is_folded(npu: Device) -> None:
    net = Builder((1, 11, 11, 8), 10)
    graph = net.graph
    y = graph.pad(net.input, ((0, 0), (0, 1), (0, 1), (0, 0)))
    graph.output(net.conv(y, 24, 3, stride=2, padding=0))
    program = run(npu, net)
    assert len(program.layers) == 1


def test_groups_become_one_convolution(npu: Device) -> None:
    net = Builder((1, 8, 8, 24), 11)
    weights = net.rng.integers(-127, 128, (48, 3, 3, 4), dtype=np.int8)
    y = net.graph.conv2d(net.input, weights, groups=6, padding=1, w_scale=0.01, scale=0.2)
    weights = net.rng.integers(-127, 128, (96, 3, 3, 1), dtype=np.int8)
    net.graph.output(net.graph.conv2d(y, weights, groups=48, padding=1, w_scale=0.01, scale=0.2))
    run(npu, net)


def test_float16(npu: Device) -> None:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(1, 10, 10, 16)).astype(np.float16)
    graph = Graph()
    source = graph.input("x", x.shape, dtype="float16")
    y = graph.conv2d(source, (rng.normal(size=(16, 3, 3, 16)) / 12).astype(np.float16), padding=1, activation="relu")
    y = graph.requantize(graph.add(y, source), activation="relu")
    graph.output(graph.average_pool(y, 10))
    (expected,) = reference(graph, x)
    with npu.compile(graph) as program:
        assert all(layer.unit == "npu" for layer in program.layers)
        assert np.allclose(program(x), expected, rtol=2e-3, atol=2e-3)


def test_matrices(npu: Device) -> None:
    rng = np.random.default_rng(13)
    graph = Graph()
    x = graph.input("x", (19, 70), scale=0.1, zero_point=2)
    y = graph.linear(x, rng.integers(-127, 128, (45, 70), np.int8), w_scale=0.02, scale=1.5, activation="relu")
    graph.output(graph.linear(y, rng.integers(-127, 128, (7, 45), np.int8), w_scale=0.02, scale=30.0))
    values = rng.integers(-128, 128, (19, 70), np.int8)
    with npu.compile(graph) as program:
        assert np.array_equal(program(values), reference(graph, values)[0])


def test_unsigned_outside(npu: Device) -> None:
    rng = np.random.default_rng(14)
    graph = Graph()
    x = graph.input("x", (1, 6, 6, 16), scale=0.1, zero_point=0, unsigned=True)
    graph.output(graph.requantize(x, scale=0.05, unsigned=True))
    values = rng.integers(0, 256, x.shape, np.uint8)
    expected = np.clip((values.astype(int) - 128) * 2 + 128, 0, 255)
    with npu.compile(graph) as program:
        assert program.output.dtype == np.uint8
        assert np.array_equal(program(values), expected)
        with pytest.raises(TypeError, match="takes uint8, not int8"):
            program(values.view(np.int8))


def _bad(build: Any) -> None:
    graph = Graph()
    build(graph, graph.input("x", (1, 8, 8, 16), scale=0.1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g, x: g.conv2d(x, np.ones((4, 9, 9, 16), np.int8)), "does not fit"),
        (lambda g, x: g.linear(x, np.ones((4, 15), np.int8)), r"weights \[N, 16\]"),
        (lambda g, x: g.requantize(x, scale=0.0), "finite and positive"),
        (lambda g, x: g.requantize(x, zero_point=128), "outside the int8 range"),
        (lambda g, x: g.max_pool(x, 2, scale=0.3), "as its input is"),
        (lambda g, x: g.concat([x, g.input("y", (1, 8, 7, 16))]), "differ in more than"),
        (lambda g, x: g.add(x, Graph().input("y", x.shape)), "not .yet. one of this graph"),
        (lambda g, x: g.requantize(x, activation="gelu"), "not one of none, relu"),
        (lambda g, x: g.input("z", (1, 0, 8, 16)), "empty"),
    ],
)
def test_bad_graphs(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _bad(build)


def test_closed_and_empty(npu: Device) -> None:
    graph = Graph()
    x = graph.input("x", (1, 8, 8, 16))
    with pytest.raises(ValueError, match="no outputs"):
        npu.compile(graph)
    graph.output(graph.requantize(x, scale=0.5))
    program = npu.compile(graph)
    program.close()
    with pytest.raises(Exception, match="closed"):
        program(np.zeros((1, 8, 8, 16), np.int8))


@given(st.floats(1e-14, 1.0), st.integers(-128, 126), st.data())
def test_bounds(multiplier: float, zero_point: int, data: st.DataObject) -> None:
    """Clamping before the requantisation is clamping after it, for every scale up to 1."""
    requant = derive(multiplier, zero_point)
    high = data.draw(st.integers(zero_point, 126))
    bound = bound_of(requant, high)
    near = [0, 1, (1 << 31) - 1, *([] if bound is None else [bound - 1, bound, bound + 1])]
    sums = np.clip(np.array(near, np.int64), 0, (1 << 31) - 1)
    clamped = sums if bound is None else np.minimum(sums, bound)
    assert np.array_equal(requantize(clamped, requant), np.minimum(requantize(sums, requant), high))
