# SPDX-License-Identifier: MIT
"""What of the NPU's support is in which kernel, with the evidence of each statement."""
