# SPDX-License-Identifier: MIT
"""Userspace library for the RK3588 NPU on the mainline rocket driver: Python and numpy, nothing else."""
