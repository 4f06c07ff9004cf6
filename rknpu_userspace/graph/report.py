# SPDX-License-Identifier: MIT
"""Running a graph for people: what ran where, for how long, with how many MACs and bytes; how good the result is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.device import Device

from .graph import Graph
from .program import GraphProgram, Layer

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Options:
    """``compare``: run all on the CPU as well; ``profile``: time every layer; ``strict``: no layer on the CPU."""

    compare: bool = False
    profile: bool = False
    strict: bool = False
    repeat: int = 1


class NotOnNpu(ValueError):
    """A layer has to run on the CPU, and that was forbidden."""


def random_inputs(graph: Graph, seed: int) -> list[Array]:
    """Inputs of uniformly distributed stored values (floats: normally distributed)."""
    rng = np.random.default_rng(seed)
    arrays: list[Array] = []
    for tensor in graph.inputs:
        if tensor.outside.kind == "f":
            arrays.append(rng.normal(size=tensor.shape).astype(tensor.outside))
        else:
            limits = np.iinfo(tensor.outside)
            arrays.append(rng.integers(limits.min, limits.max + 1, tensor.shape, tensor.outside))
    return arrays


def execute(
    graph: Graph, device: Device, operands: Sequence[Array], options: Options
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Compile and run; the results and a document about them.

    ValueError or TypeError for operands that do not fit, NotOnNpu with ``strict``, JobError when a job fails.
    """
    begin = time.perf_counter()
    with GraphProgram(graph, device.contexts(1)[0]) as program:
        compiled = time.perf_counter() - begin
        if options.strict:
            _check_strict(program.layers)
        seconds = []
        for _ in range(options.repeat):
            results = program.run(*operands)
            seconds.append(program.last.seconds)
        npu_seconds = program.last.npu_seconds
        if options.profile:
            program.profile(*operands)
        document = _document(program, options.profile)
    document |= {"device": device.name, "compile_seconds": compiled, "npu_seconds": npu_seconds}
    document |= {"seconds": min(seconds), "repeat": options.repeat}
    if options.compare:
        document |= compare(graph, operands, results)
    return results, document


def compare(graph: Graph, operands: Sequence[Array], results: Sequence[Array]) -> dict[str, Any]:
    """The results against those of the host's kernels alone, which are TensorFlow Lite's for integers."""
    begin = time.perf_counter()
    with GraphProgram(graph, None) as program:
        expected = program.run(*operands)
    seconds = time.perf_counter() - begin
    return {
        "cpu_seconds": seconds,
        "compared": [_difference(a, b) for a, b in zip(results, expected, strict=True)],
    }


def _check_strict(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if layer.unit == "cpu":
            raise NotOnNpu(f"layer {layer.name} ({layer.kind}) does not run on the NPU: {layer.reason}")


def _document(program: GraphProgram, profiled: bool) -> dict[str, Any]:
    layers = []
    for layer in program.layers:
        row: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "unit": layer.unit, "shape": list(layer.shape)}
        row |= {"tasks": layer.tasks, "macs": layer.macs, "dma_bytes": layer.dma_bytes}
        row["estimated_seconds"] = layer.estimate
        if profiled:
            row["seconds"] = layer.seconds
        if layer.model_seconds is not None:
            row |= {"model_seconds": layer.model_seconds, "model_bytes": layer.model_bytes}
        if layer.reason:
            row["reason"] = layer.reason
        layers.append(row)
    return {
        "layers": layers,
        "submissions": program.submissions,
        "jobs": program.jobs,
        "tasks": program.tasks,
        "macs": program.macs,
        "dma_bytes": program.dma_bytes,
        "estimated_seconds": sum(layer.estimate for layer in program.layers),
    }


def _difference(result: Array, expected: Array) -> dict[str, Any]:
    distance = np.abs(result.astype(np.float64) - expected.astype(np.float64))
    return {
        "elements": int(distance.size),
        "differing": int(np.count_nonzero(distance)),
        "greatest": float(distance.max()),
        "mean": float(distance.mean()),
    }


def lines(document: dict[str, Any]) -> list[str]:
    """The document as a table of fixed columns."""
    modelled = any("model_seconds" in layer for layer in document["layers"])
    rows = [("layer", "kind", "on", "shape", "MACs", "DMA bytes", "tasks", "plan us", "model us" if modelled else "us")]
    for layer in document["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        seconds = layer.get("model_seconds", None if modelled and layer["unit"] == "npu" else layer.get("seconds"))
        spent = "" if seconds is None else f"{seconds * 1e6:.0f}"
        numbers = [f"{layer[key]}" if layer["unit"] == "npu" else "" for key in ("macs", "dma_bytes", "tasks")]
        estimate = f"{layer['estimated_seconds'] * 1e6:.0f}" if layer["unit"] == "npu" else ""
        rows.append((layer["name"][:32], layer["kind"], layer["unit"], shape, *numbers, estimate, spent))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = []
    for row in rows:
        cells = [
            cell.ljust(width) if n < 4 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    texts += [f"on the CPU: {layer['name']}: {layer['reason']}" for layer in document["layers"] if layer.get("reason")]
    texts.append(summary(document))
    for index, found in enumerate(document.get("compared", [])):
        texts.append(
            f"output {index}: {found['differing']} of {found['elements']} values differ from the CPU's, "
            f"by {found['greatest']:g} at most"
        )
    return texts


def summary(document: dict[str, Any]) -> str:
    """One line about the whole."""
    return (
        f"{document['submissions']} submissions, {document['jobs']} jobs, {document['tasks']} tasks; "
        f"{document['macs']} MACs, {document['dma_bytes']} DMA bytes; {document['seconds'] * 1e3:.1f} ms, "
        f"{document['npu_seconds'] * 1e3:.1f} of them waiting for the NPU, "
        f"{document['estimated_seconds'] * 1e3:.1f} ms by estimate at 200 MHz"
    )
