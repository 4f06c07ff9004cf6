# SPDX-License-Identifier: MIT
"""Placement in the arena, jobs and the places that tell whether they ran, failures; random graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from graph_networks import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device, open_device
from rknpu_userspace.errors import JobError
from rknpu_userspace.graph import GraphProgram, Tensor, reference
from rknpu_userspace.graph.program import NpuStage
from rknpu_userspace.ops.arena import Lifetime, place
from rknpu_userspace.ops.schedule import Schedule
from rknpu_userspace.plan import limits

LIFETIMES = st.builds(
    lambda size, first, length: Lifetime(size, first, first + length),
    st.integers(1, 500).map(lambda n: 16 * n),
    st.integers(0, 20),
    st.integers(0, 8),
)


@given(st.lists(LIFETIMES, min_size=1, max_size=25))
def test_tensors_that_meet_do_not_overlap(lifetimes: list[Lifetime]) -> None:
    offsets, total = place(lifetimes)
    assert all(offset % 16 == 0 for offset in offsets)
    for number, (a, at) in enumerate(zip(lifetimes, offsets, strict=True)):
        assert at >= 0 and at + a.size <= total
        for b, other in zip(lifetimes[:number], offsets[:number], strict=True):
            assert not a.meets(b) or at + a.size <= other or other + b.size <= at
    busiest = max(sum(a.size for a in lifetimes if a.first <= step <= a.last) for step in range(30))
    assert busiest <= total <= sum(a.size + 64 for a in lifetimes)


def test_a_chain_takes_two_places() -> None:
    _, total = place([Lifetime(640, step, step + 1) for step in range(10)])
    assert total == 2 * 640


def _network() -> Builder:
    net = Builder((1, 24, 24, 16), 1)
    y = net.input
    for _ in range(4):
        z = net.conv(y, 32, 3, activation="relu")
        z = net.conv(z, 16, 1)
        y = net.graph.add(y, z, scale=0.03, zero_point=1)
    net.graph.output(y)
    return net


def _schedule(program: GraphProgram) -> Schedule:
    (stage,) = program._stages
    assert isinstance(stage, NpuStage)
    return stage.schedule


def test_many_jobs_and_their_marks(npu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever jobs end, what they write last shares its place with nothing else, so that a lost job is seen."""
    net = _network()
    wanted = net.value(net.graph.outputs[0])
    for most in (1e-6, 30e-6, 100e-6):
        monkeypatch.setattr(limits, "MAX_JOB_SECONDS", most)
        with npu.compile(net.graph) as program:
            assert program.jobs > 1
            assert np.array_equal(program(net.x), wanted)
            schedule = _schedule(program)
            sizes = {step.writes.root: step.out_bytes for step in schedule.steps}
            marks = [job.sentinel for job in schedule.list_jobs()]
            assert len(marks) == program.jobs == len(set(marks))
            for mark in marks:
                owners = [root for root, at in schedule.offsets.items() if at <= mark < at + sizes[root]]
                assert len(owners) == 1
        if most == 1e-6:
            assert program.jobs == program.tasks


def test_the_next_run_works_after_a_failure(npu: Device) -> None:
    net = _network()
    wanted = net.value(net.graph.outputs[0])
    with npu.compile(net.graph) as program:
        words = _schedule(program).constants.view.view(np.uint64)
        kept = words.copy()
        name, iova, commands = program.commands()[4]
        at = (iova - _schedule(program).constants.iova) // 8
        assert len(commands) and name
        # bank numbers that do not add up: the task never completes
        places = [n for n in range(at, at + 130) if int(words[n]) & 0xFFFF == 0x1040 and int(words[n]) >> 48 == 0x0201]
        words[places] |= np.uint64(0xF << 16)
        with pytest.raises(JobError, match=r"task 5 of \d+") as failure:
            program(net.x)
        assert "step 1: conv2d0" in failure.value.submitted
        words[:] = kept
        assert np.array_equal(program(net.x), wanted)


OPERATIONS = (
    *("conv", "wide", "stride", "depthwise", "add", "mul", "max", "pool", "average"),
    *("concat", "side", "rescale", "slice", "upsample", "table"),
)


def _grow(net: Builder, operation: str, pick: int, tensors: list[Tensor]) -> Tensor:
    """One more operation over an earlier tensor, or two."""
    graph = net.graph
    x = tensors[-1 - pick % len(tensors)]
    same = [tensor for tensor in tensors if tensor.shape == x.shape]
    other = same[pick % len(same)]
    if operation in ("conv", "wide", "stride", "depthwise"):
        outputs = x.channels if operation == "depthwise" else 40 if operation == "wide" else 7 + pick
        kernel, stride = 1 + 2 * (pick % 2), 1 + (operation == "stride")
        options = {"activation": ("none", "relu", "relu6")[pick % 3], "per_channel": pick % 4 == 0}
        return net.conv(x, outputs, kernel, stride=stride, depthwise=operation == "depthwise", **options)
    if operation in ("add", "mul", "max"):
        return graph.binary(operation, x, other, scale=0.02 + 0.01 * pick, zero_point=pick)
    if operation in ("pool", "average"):
        if min(x.shape[1:3]) < 3:
            return x
        pool = graph.max_pool if operation == "pool" else graph.average_pool
        return pool(x, 2 + pick % 2, stride=1 + pick % 2, padding=pick // 6)
    if operation == "concat":
        return graph.concat([x, other], scale=x.scale, zero_point=x.zero_point)
    if operation == "side":
        return graph.concat([x, other, x], axis=1 + pick % 2, scale=x.scale * 1.1, zero_point=pick)
    if operation == "slice":
        _, height, width, channels = x.shape
        top, left, first = pick % min(3, height), pick % min(2, width), 16 * (channels > 16 + pick)
        return graph.slice(x, [(0, 1), (top, height, 1 + pick % 2), (left, width, 1 + pick // 6), (first, channels)])
    if operation == "upsample":
        return graph.upsample(x, (1 + pick % 2, 1 + pick % 3)) if x.pixels < 100 else x
    if operation == "rescale":
        return graph.requantize(x, scale=x.scale * 1.3, zero_point=2, activation=("none", "relu")[pick % 2])
    return graph.table(x, np.roll(np.arange(-128, 128), pick).astype(np.int8))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(3, 13), st.integers(3, 13), st.integers(1, 40)),
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 11)), min_size=1, max_size=9),
    st.sampled_from((0.1, 20e-6)),
)
def test_random_graphs(
    npu: Device, seed: int, shape: tuple[int, int, int], recipe: list[tuple[str, int]], job_seconds: float
) -> None:
    """Equal to the reference bit for bit, all at once and step by step, whatever the jobs are."""
    net = Builder((1, *shape), seed)
    tensors = [net.input]
    for operation, pick in recipe:
        tensors.append(_grow(net, operation, pick, tensors))
    results = {tensors[-1], tensors[len(tensors) // 2]}
    for tensor in tensors:
        if tensor in results:
            results.discard(tensor)
            net.graph.output(tensor)
    wanted = reference(net.graph, net.x)
    kept, limits.MAX_JOB_SECONDS = limits.MAX_JOB_SECONDS, job_seconds
    try:
        with npu.compile(net.graph) as program:
            for found in (program.run(net.x), program.profile(net.x), program.run(net.x)):
                assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    finally:
        limits.MAX_JOB_SECONDS = kept


def test_programs_side_by_side() -> None:
    """A program per core, from threads of their own, and one program from several threads."""
    net = _network()
    wanted = {flip: reference(net.graph, net.x[:, ::flip].copy())[0] for flip in (1, -1)}
    with open_device("model", cores=3) as device:
        programs = [device.compile(net.graph, core=core) for core in range(3)]
        with ThreadPoolExecutor(6) as pool:
            runs = [
                (flip, pool.submit(program, net.x[:, ::flip].copy()))
                for _ in range(3)
                for program in programs
                for flip in (1, -1)
            ]
            assert all(np.array_equal(run.result(), wanted[flip]) for flip, run in runs)
