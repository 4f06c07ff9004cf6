# SPDX-License-Identifier: MIT
"""Assembling: kernel, root file system, kit layer and virtual machine become one checked artifact set."""
