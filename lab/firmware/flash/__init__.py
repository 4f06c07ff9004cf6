# SPDX-License-Identifier: MIT
"""Writing to a board: planned, gated by a verified backup, journalled, read back, and reversible."""
