# SPDX-License-Identifier: MIT
"""What the blocks share while a task runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cbuf import Cbuf
from .cost import Meter
from .lut_tables import LutTables
from .memory import DmaPort, WriteGuard
from .quirks import Quirks

MAX_ELEMENTS = 1 << 26
"""Output elements of one task that the model accepts; the hardware would need longer than any driver waits."""
MAX_MACS = 1 << 38
"""Multiply-accumulates of one task that the model accepts, for the same reason."""


@dataclass
class Context:
    """A task under way: the data DMA port, CBUF and look-up tables of the core, quirks, the cost meter, the log."""

    port: DmaPort
    cbuf: Cbuf
    lut: LutTables
    quirks: Quirks
    meter: Meter
    guard: WriteGuard
    warn: Callable[[str], None]
