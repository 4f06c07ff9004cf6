# SPDX-License-Identifier: MIT
"""Graphs of operations, compiled as one program: see ``graph.Graph``."""

from .graph import Graph
from .ir import Node, Tensor
from .program import GraphProgram, Layer, reference

__all__ = ["Graph", "GraphProgram", "Layer", "Node", "Tensor", "reference"]
