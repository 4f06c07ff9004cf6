# SPDX-License-Identifier: MIT
"""Kernels and device trees, the kit's own and foreign ones: what is in them and whether the NPU can work with it."""
