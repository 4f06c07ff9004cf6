# SPDX-License-Identifier: MIT
"""One module per noun of the command line."""
