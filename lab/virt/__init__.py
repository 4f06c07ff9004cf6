# SPDX-License-Identifier: MIT
"""The virtual board: building its QEMU, starting, supervising and using it."""
