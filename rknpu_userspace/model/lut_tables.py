# SPDX-License-Identifier: MIT
"""Contents of the DPU's two look-up tables and the port through which a command stream writes them."""

from __future__ import annotations

import numpy as np

from .errors import IllegalConfig

ENTRIES = 513
LE, LO = 0, 1


class LutTables:
    """Contents of both tables, written through the access port; they outlive tasks."""

    def __init__(self) -> None:
        self.entries = np.zeros((2, ENTRIES), np.int16)
        self._table = LE
        self._address = 0
        self._writing = False

    def configure(self, value: int) -> None:
        """LUT_ACCESS_CFG: start address, table, direction."""
        self._address = value & 0x3FF
        self._table = value >> 16 & 1
        self._writing = bool(value >> 17 & 1)

    def write(self, value: int) -> None:
        """LUT_ACCESS_DATA: the next entry; ignored unless the port was set to write."""
        if not self._writing:
            return
        if self._address >= ENTRIES:
            raise IllegalConfig(f"look-up table entry {self._address} does not exist")
        self.entries[self._table, self._address] = np.int64(value & 0xFFFF).astype(np.uint16).astype(np.int16)
        self._address += 1
