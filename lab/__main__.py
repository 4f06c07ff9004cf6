# SPDX-License-Identifier: MIT
"""``python -m lab``: the command line."""

import sys

from lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
