# SPDX-License-Identifier: MIT
"""Graphs as files: an npz archive with one JSON text (``graph``) and the constants (``c0``, ``c1``, ...).

Numpy reads it anywhere: a model is converted where its parser is installed, and runs where numpy is.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
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
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, MemoryError, OverflowError),
    *(KeyError, IndexError, TypeError, AttributeError),
)
"""What reading an archive, or a document of another form, ends with. RuntimeError: encrypted, or packed otherwise."""


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
    damaged = f"{path} is not a program file of this library, or it is damaged"
    with Path(path).open("rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            document = json.loads(bytes(arrays.pop("graph")).decode())
        except (*_DAMAGE, ValueError, OSError) as error:  # also places in the file where nothing can be
            raise ValueError(damaged) from error
    try:
        return _graph(document, arrays)
    except _DAMAGE as error:
        raise ValueError(damaged) from error


def _graph(document: Any, arrays: dict[str, Array]) -> Graph:
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
        constants = {name: arrays[key] for name, key in entry["constants"].items()}
        inputs = [tensors[number] for number in entry["inputs"]]
        graph.node(entry["kind"], inputs, tensors[entry["output"]], attributes, constants, entry["name"])
    for number in document["outputs"]:
        graph.output(tensors[number])
    return graph


def _tuple(value: Any) -> Any:
    """JSON's lists back to tuples."""
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
