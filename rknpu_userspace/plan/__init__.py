# SPDX-License-Identifier: MIT
"""Planning: limits of the hardware, tiling against the CBUF, split over cores, and the tasks of a plan."""

from .geometry import Chunk, Plan, Problem, Tile
from .tiling import Part, make_plan, split

__all__ = ["Chunk", "Part", "Plan", "Problem", "Tile", "make_plan", "split"]
