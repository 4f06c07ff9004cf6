# SPDX-License-Identifier: MIT
"""Compiled graphs: stages on the NPU, each one submission over resident weights, and stages on the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.errors import DeviceError
from rknpu_userspace.ops.schedule import Schedule
from rknpu_userspace.ops.steps import Cube, Step
from rknpu_userspace.program import Program, RunStats, Spec, Unit

from . import host
from .common import Lowering, cube_of
from .graph import Graph
from .ir import Node, Tensor
from .moving import Concat, Reshape
from .passes import simplify
from .placement import Placed, Segment, place, segments

Array = npt.NDArray[Any]
Values = dict[Tensor, Array]


@dataclass
class Layer:
    """What became of a node.

    ``dma_bytes`` and ``estimate`` (seconds at 200 MHz) are the plan's, ``seconds`` is what a profile measured,
    ``model_seconds`` and ``model_bytes`` what the model of the NPU counted meanwhile, if that is the device.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    unit: str
    reason: str = ""
    macs: int = 0
    dma_bytes: int = 0
    tasks: int = 0
    estimate: float = 0.0
    seconds: float = 0.0
    model_seconds: float | None = None
    model_bytes: int | None = None


class Stage(Protocol):
    """A segment, ready to run."""

    layers: list[Layer]
    jobs: int
    tasks: int

    def run(self, values: Values, timeout: float) -> float:
        """Compute, adding to ``values``; seconds of the NPU."""
        ...

    def profile(self, values: Values, timeout: float) -> None:
        """The same, with the time of every layer."""
        ...

    def close(self) -> None:
        """Give buffers back."""
        ...


class HostStage:
    """Nodes in numpy."""

    jobs = tasks = 0

    def __init__(self, placed: Sequence[Placed]) -> None:
        self._nodes = [item.node for item in placed]
        self.layers = [_layer(item, "cpu") for item in placed]

    def run(self, values: Values, timeout: float) -> float:
        """See Stage."""
        for node in self._nodes:
            values[node.output] = host.run(node, *(values[tensor] for tensor in node.inputs))
        return 0.0

    def profile(self, values: Values, timeout: float) -> None:
        """See Stage."""
        for node, layer in zip(self._nodes, self.layers, strict=True):
            begin = time.perf_counter()
            values[node.output] = host.run(node, *(values[tensor] for tensor in node.inputs))
            layer.seconds = time.perf_counter() - begin

    def close(self) -> None:
        """Nothing to give back."""


class NpuStage:
    """Nodes as one schedule; ``wanted`` are the tensors that others need."""

    def __init__(self, context: Context, placed: Sequence[Placed], wanted: Sequence[Tensor], uses: Uses) -> None:
        self._context = context
        made = {item.node.output for item in placed}
        inputs: dict[Tensor, None] = {}
        for item in placed:
            inputs.update(dict.fromkeys(tensor for tensor in item.node.inputs if tensor not in made))
        self._inputs, self._outputs = list(inputs), list(wanted)
        cubes = _cubes(placed, self._inputs, uses)
        steps: list[Step] = []
        self.layers: list[Layer] = []
        self._owners: list[Layer] = []
        for item in placed:
            own = _lowering(item).steps([cubes[tensor] for tensor in item.node.inputs], cubes[item.node.output])
            layer = _layer(item, "npu")
            layer.macs = sum(step.macs for step in own)
            layer.dma_bytes = sum(step.dma_bytes for step in own)
            times = [seconds for step in own for seconds in step.seconds()]
            layer.tasks, layer.estimate = len(times), sum(times)
            steps += own
            self.layers.append(layer)
            self._owners += [layer] * len(own)
        self._cubes = [cubes[tensor] for tensor in self._outputs]
        self.schedule = Schedule(context, [cubes[tensor] for tensor in self._inputs], steps, self._cubes)
        self.jobs, self.tasks = self.schedule.jobs, self.schedule.tasks

    def _read(self, values: Values) -> None:
        for tensor, cube in zip(self._outputs, self._cubes, strict=True):
            values[tensor] = np.empty(tensor.shape, tensor.dtype)
            self.schedule.read(cube, values[tensor])

    def run(self, values: Values, timeout: float) -> float:
        """See Stage."""
        self.schedule.pack(*(values[tensor] for tensor in self._inputs))
        begin = time.perf_counter()
        self.schedule.start()
        self.schedule.wait(timeout)
        seconds = time.perf_counter() - begin
        self._read(values)
        return seconds

    def profile(self, values: Values, timeout: float) -> None:
        """See Stage. Every step is a submission of its own."""
        self.schedule.pack(*(values[tensor] for tensor in self._inputs))
        for layer in self.layers:
            layer.seconds = 0.0
            layer.model_seconds = layer.model_bytes = None
        for layer, submission in zip(self._owners, self.schedule.by_step(), strict=True):
            before = _counted(self._context)
            begin = time.perf_counter()
            submission.start()
            submission.wait(timeout)
            layer.seconds += time.perf_counter() - begin
            after = _counted(self._context)
            if before is not None and after is not None:
                layer.model_seconds = (layer.model_seconds or 0.0) + after[0] - before[0]
                layer.model_bytes = (layer.model_bytes or 0) + after[1] - before[1]
        self._read(values)

    def close(self) -> None:
        """Give the buffers back."""
        self.schedule.close()


@dataclass
class Uses:
    """Who reads a tensor: how many nodes, and whether it is a result of the graph."""

    readers: dict[Tensor, int] = field(default_factory=dict)
    results: set[Tensor] = field(default_factory=set)

    def only_one(self, tensor: Tensor) -> bool:
        """Whether a single node reads it, and nobody else."""
        return self.readers.get(tensor, 0) == 1 and tensor not in self.results


def _counted(context: Context) -> tuple[float, int] | None:
    """Seconds and bytes that the model has counted so far; None on a device."""
    from rknpu_userspace.backend.model import ModelContext

    if not isinstance(context, ModelContext):
        return None
    return context.stats.ns * 1e-9, sum(context.stats.dma_bytes.values())


def _lowering(item: Placed) -> Lowering:
    if item.lowering is None:
        raise ValueError(f"{item.node.name} has no lowering: {item.reason}")
    return item.lowering


def _layer(item: Placed, unit: str) -> Layer:
    node = item.node
    return Layer(node.name, node.kind, node.output.shape, unit, item.reason)


def _cubes(placed: Sequence[Placed], inputs: Sequence[Tensor], uses: Uses) -> dict[Tensor, Cube]:
    """A cube for every tensor: those that are concatenated lie where they belong if they can, reshapes are aliases."""
    cubes = {tensor: cube_of(tensor) for tensor in inputs}
    order = {item.node.output: number for number, item in enumerate(placed)}
    slots: dict[Tensor, tuple[Tensor, int]] = {}
    for item in placed:
        if not isinstance(item.lowering, Concat):
            continue
        latest = -1
        for index, tensor in enumerate(item.node.inputs):
            made = order.get(tensor, -1)
            # a convolution may write whole groups of channels, over what is to come behind its own
            if made > latest and item.lowering.is_in_place(index) and uses.only_one(tensor):
                maker = placed[made]
                if isinstance(maker.lowering, (Reshape, Concat)):
                    continue
                slots[tensor] = item.node.output, item.lowering.starts[index]
                latest = made
    roots: dict[Tensor, Cube] = {}
    for item in placed:
        out = item.node.output
        if isinstance(item.lowering, Reshape):
            cubes[out] = cubes[item.node.inputs[0]]
        elif out in slots:
            whole, start = slots[out]
            root = roots.setdefault(whole, cube_of(whole))
            cubes[out] = Cube(out.pixels, out.channels, out.dtype, root, start)
        else:
            cubes[out] = roots.get(out) or cube_of(out)
    return cubes


class GraphProgram(Program):
    """A compiled graph. Call it if it has one result, else ``run`` it; ``layers`` says what runs where.

    Without a context everything runs on the host.
    """

    def __init__(self, graph: Graph, context: Context | None) -> None:
        if not graph.outputs:
            raise ValueError("the graph has no outputs")
        self._graph_inputs, self._graph_outputs = tuple(graph.inputs), tuple(graph.outputs)
        nodes = _needed(simplify(graph.nodes, graph.outputs), graph.outputs)
        uses = Uses(results=set(graph.outputs))
        for node in nodes:
            for tensor in node.inputs:
                uses.readers[tensor] = uses.readers.get(tensor, 0) + 1
        parts = segments(place(nodes, context is None), graph.inputs)
        self._stages: list[Stage] = []
        self._closed = False
        try:
            for index, part in enumerate(parts):
                self._stages.append(_stage(context, part, _wanted(part, parts[index + 1 :], graph.outputs), uses))
        except BaseException:
            for stage in self._stages:
                stage.close()
            raise
        specs = [Spec(tensor.shape, tensor.outside) for tensor in graph.inputs]
        self.outputs = tuple(Spec(tensor.shape, tensor.outside) for tensor in graph.outputs)
        super().__init__([], specs, self.outputs[0])
        self.layers = [layer for stage in self._stages for layer in stage.layers]
        self.jobs = sum(stage.jobs for stage in self._stages)
        self.tasks = sum(stage.tasks for stage in self._stages)
        self.dma_bytes = sum(layer.dma_bytes for layer in self.layers)
        self.macs = sum(layer.macs for layer in self.layers)
        self.submissions = sum(isinstance(stage, NpuStage) for stage in self._stages)

    def _units(self) -> Sequence[Unit]:
        return [stage.schedule for stage in self._stages if isinstance(stage, NpuStage)]

    def __call__(self, *operands: Array, out: Array | None = None) -> Array:
        """Run a graph with one result."""
        if len(self.outputs) > 1:
            raise TypeError(f"the graph has {len(self.outputs)} results: use run()")
        (result,) = self.run(*operands)
        if out is None:
            return result
        if out.shape != result.shape or out.dtype != result.dtype or not out.flags.writeable:
            raise ValueError(f"out must be a writable {result.dtype} array of shape {result.shape}")
        out[...] = result
        return out

    def run(self, *operands: Array) -> tuple[Array, ...]:
        """Run; all results. ValueError or TypeError for an array that does not fit, JobError when a job fails."""
        values = self._values(operands)
        with self._lock:
            begin = time.perf_counter()
            npu = sum(stage.run(values, self.timeout) for stage in self._open())
            self.last = RunStats(self.jobs, self.tasks, npu, time.perf_counter() - begin)
        return self._results(values)

    def profile(self, *operands: Array) -> tuple[Array, ...]:
        """Run layer by layer, every layer a submission of its own, and write their times into ``layers``."""
        values = self._values(operands)
        with self._lock:
            for stage in self._open():
                stage.profile(values, self.timeout)
        return self._results(values)

    def _open(self) -> list[Stage]:
        if self._closed:
            raise DeviceError("the program is closed")
        return self._stages

    def _values(self, operands: Sequence[Array]) -> Values:
        return {
            tensor: (array ^ 128).view(np.int8) if tensor.unsigned else array
            for tensor, array in zip(self._graph_inputs, self._checked(operands), strict=True)
        }

    def _results(self, values: Values) -> tuple[Array, ...]:
        return tuple(
            values[tensor].view(np.uint8) ^ 128 if tensor.unsigned else values[tensor] for tensor in self._graph_outputs
        )

    def close(self) -> None:
        """Give the buffers back. Harmless when already closed."""
        with self._lock:
            for stage in self._stages:
                stage.close()
            self._stages = []
            self._closed = True


def _needed(nodes: Sequence[Node], outputs: Sequence[Tensor]) -> list[Node]:
    """The nodes that the results depend on, in order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if node.output in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _wanted(part: Segment, later: Sequence[Segment], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of a segment that later ones, or callers, read."""
    read = {tensor for other in later for item in other.placed for tensor in item.node.inputs} | set(outputs)
    return [item.node.output for item in part.placed if item.node.output in read]


def _stage(context: Context | None, part: Segment, wanted: Sequence[Tensor], uses: Uses) -> Stage:
    if context is None or not part.on_npu:
        return HostStage(part.placed)
    return NpuStage(context, part.placed, wanted, uses)


def reference(graph: Graph, *operands: Array, host_only: bool = False) -> tuple[Array, ...]:
    """What the program computes, in numpy: nodes on the NPU by their lowerings' references, others as on the host."""
    values: Values = dict(zip(graph.inputs, operands, strict=True))
    for item in place(_needed(simplify(graph.nodes, graph.outputs), graph.outputs), host_only):
        arrays = [values[tensor] for tensor in item.node.inputs]
        values[item.node.output] = (
            host.run(item.node, *arrays) if item.lowering is None else item.lowering.reference(*arrays)
        )
    return tuple(values[tensor] for tensor in graph.outputs)
