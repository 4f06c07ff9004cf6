# SPDX-License-Identifier: MIT
"""Fixtures of the front end's tests; the flat buffer writer is the board suite's."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "board"))
