# SPDX-License-Identifier: MIT
"""Operations: what the numpy arguments mean, how they become tasks, and references to compare with."""
