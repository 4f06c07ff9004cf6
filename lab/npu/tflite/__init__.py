# SPDX-License-Identifier: MIT
"""TensorFlow Lite models as graphs of the library: ``reader`` parses the file, ``convert`` maps its operators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rknpu_userspace.graph import Graph


def load(path: Path) -> Graph:
    """A .tflite file as a graph. KitError in one line for what is no model, damaged, or can not be run."""
    from .convert import convert
    from .reader import read

    return convert(read(path))
