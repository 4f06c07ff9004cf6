# SPDX-License-Identifier: MIT
"""The backup store: content-addressed zstd chunks shared between backups, and one manifest per backup."""

from lab.firmware.store.store import Store, default_root

__all__ = ["Store", "default_root"]
