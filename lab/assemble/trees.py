# SPDX-License-Identifier: MIT
"""What a compiled device tree says about its NPU, for an artifact set's manifest; `lab.kernel.graph` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.errors import KitError
from lab.kernel import fdtree, graph

CORE = graph.CORE


def describe(path: Path) -> dict[str, Any]:
    """The manifest's entry of a dtb: ``npu`` is enabled (all cores), partial, disabled or absent.

    ``problems`` are those of a tree with an enabled core: what a disabled NPU lacks is nobody's business here. Raises
    ValueError when the file is no device tree.
    """
    try:
        found = graph.examine(fdtree.load(path))
    except KitError as error:
        raise ValueError(error.message) from error
    findings = found.findings if found.cores else []
    return {
        "model": found.model,
        "compatible": found.compatible,
        "npu": found.state,
        "cores": len(found.cores),
        "problems": [f"{finding.path}: {finding.what}" for finding in findings],
    }
