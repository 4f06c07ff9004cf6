# SPDX-License-Identifier: MIT
"""What the kit adds to labgrid; environment files load it with ``imports: [lab.labgrid]``."""

from lab.labgrid.qemudriver import KitQEMUDriver
from lab.labgrid.strategy import KitStrategy, Status

__all__ = ["KitQEMUDriver", "KitStrategy", "Status"]
