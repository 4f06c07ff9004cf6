# SPDX-License-Identifier: MIT
"""The product path: kas and BitBake driven, their results in the same form as those of the minutes path."""
