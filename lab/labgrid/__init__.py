# SPDX-License-Identifier: MIT
"""What the kit adds to labgrid; environment files load it with ``imports: [lab.labgrid]``."""

from lab.labgrid.backupdriver import BackupDriver
from lab.labgrid.kernellog import KernelLogDriver
from lab.labgrid.qemudriver import KitQEMUDriver
from lab.labgrid.rockusbdriver import RockusbDriver
from lab.labgrid.strategy import KitStrategy, Status

__all__ = ["BackupDriver", "KernelLogDriver", "KitQEMUDriver", "KitStrategy", "RockusbDriver", "Status"]
