# SPDX-License-Identifier: MIT
"""Graphs as files: an npz archive with one JSON text (``graph``) and the constants (``c0``, ``c1``, ...).

Numpy reads it anywhere: a model is converted where its parser is installed, and runs where numpy is.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import host
from .graph import Graph
from .ir import Tensor

Array = npt.NDArray[Any]
FORMAT = "rknpu-graph"
VERSION = 1


def save(graph: Graph, path: str | Path) -> None:
    """Write a graph; the file appears when it is whole."""
    tensors = [*graph.inputs, *(node.output for node in graph.nodes)]
    numbers = {tensor: index for index, tensor in enumerate(tensors)}
    arrays: dict[str, Array] = {}
    nodes = []
    for node in graph.nodes:
        constants = {}
        for name, array in node.constants.items():
            constants[name] = f"c{len(arrays)}"
            arrays[constants[name]] = array
        nodes.append(
            {
                "kind": node.kind,
                "name": node.name,
                "inputs": [numbers[tensor] for tensor in node.inputs],
                "output": numbers[node.output],
                "attributes": dict(node.attributes),
                "constants": constants,
            }
        )
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "scale": tensor.scale,
                "zero_point": tensor.zero_point,
                "unsigned": tensor.unsigned,
            }
            for tensor in tensors
        ],
        "inputs": [numbers[tensor] for tensor in graph.inputs],
        "outputs": [numbers[tensor] for tensor in graph.outputs],
        "nodes": nodes,
    }
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **{"graph": text, **arrays})  # type: ignore[arg-type]
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path) -> Graph:
    """Read a graph. OSError when there is no file, ValueError when it is none of ours or damaged."""
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a program file of this library, or it is damaged")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _graph(archive)
    except (
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(f"{path} is not a program file of this library, or it is damaged") from error


def _graph(archive: Any) -> Graph:
    document = json.loads(bytes(archive["graph"]).decode())
    if document["format"] != FORMAT or document["version"] != VERSION:
        raise ValueError(f"a program file of version {document['version']}; this library reads version {VERSION}")
    tensors = [Tensor(**{**entry, "shape": tuple(entry["shape"])}) for entry in document["tensors"]]
    graph = Graph()
    for number in document["inputs"]:
        graph.adopt(tensors[number])
    for entry in document["nodes"]:
        if entry["kind"] not in host.KERNELS:
            raise ValueError(f"the program file has an operation {entry['kind']!r} that this library does not know")
        attributes = {name: _tuple(value) for name, value in entry["attributes"].items()}
        constants = {name: archive[key] for name, key in entry["constants"].items()}
        inputs = [tensors[number] for number in entry["inputs"]]
        graph.node(entry["kind"], inputs, tensors[entry["output"]], attributes, constants, entry["name"])
    for number in document["outputs"]:
        graph.output(tensors[number])
    return graph


def _tuple(value: Any) -> Any:
    """JSON's lists back to tuples."""
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
