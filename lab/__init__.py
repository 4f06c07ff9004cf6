# SPDX-License-Identifier: MIT
"""Host tooling of the RK3588 NPU bring-up kit: assemble, boot, test, report."""

__version__ = "0.1.0"
