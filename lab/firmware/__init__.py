# SPDX-License-Identifier: MIT
"""Firmware safety: backup, restore, flash, rollback, and a rockusb device to try them on without hardware."""
