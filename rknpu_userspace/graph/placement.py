# SPDX-License-Identifier: MIT
"""Which node runs where, and in which order: as few changes between NPU and host as the dependencies allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .common import Lowering
from .ir import Node, Tensor
from .lowering import lower
from .moving import Reshape


@dataclass(frozen=True, eq=False)
class Placed:
    """A node and its lowering; None where the host computes it, ``reason`` says why."""

    node: Node
    lowering: Lowering | None
    reason: str = ""


@dataclass(frozen=True)
class Segment:
    """Nodes that run one after the other in one place."""

    on_npu: bool
    placed: tuple[Placed, ...]


def place(nodes: Sequence[Node], host_only: bool = False) -> list[Placed]:
    """Decide for every node."""
    result = []
    for node in nodes:
        if host_only:
            result.append(Placed(node, None, "asked for"))
            continue
        try:
            result.append(Placed(node, lower(node)))
        except (ValueError, TypeError) as error:
            result.append(Placed(node, None, str(error)))
    return result


def segments(placed: Sequence[Placed], inputs: Sequence[Tensor]) -> list[Segment]:
    """Cut the graph into pieces for NPU and host, each as long as possible.

    A reshape costs neither anything, so it goes with the node that makes its input.
    """
    ready = set(inputs)
    left = list(placed)
    result: list[Segment] = []
    on_npu = True
    idle = 0
    while left:
        made: set[Tensor] = set()
        taken: list[Placed] = []
        waiting: list[Placed] = []
        for item in left:
            if all(tensor in ready for tensor in item.node.inputs) and _fits(item, on_npu, made):
                taken.append(item)
                ready.add(item.node.output)
                made.add(item.node.output)
            else:
                waiting.append(item)
        if taken:
            result.append(Segment(on_npu, tuple(taken)))
        idle = 0 if taken else idle + 1
        if idle > 1:
            names = ", ".join(item.node.name for item in waiting[:3])
            raise ValueError(f"nothing computes the inputs of {names}")
        left, on_npu = waiting, not on_npu
    return result


def _fits(item: Placed, on_npu: bool, made: set[Tensor]) -> bool:
    if isinstance(item.lowering, Reshape):
        return not on_npu or item.node.inputs[0] in made
    return (item.lowering is not None) == on_npu
