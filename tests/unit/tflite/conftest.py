# SPDX-License-Identifier: MIT
"""The networks of the front end's tests are shared with the board suite."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "board"))
