# SPDX-License-Identifier: MIT
"""``python -m lab.farm.launch PARENT PROGRAM ARGUMENTS``: become a program that the kernel kills when PARENT ends.

A step of its own because the keeper has threads (gRPC's), and Python code between fork and exec is safe in a process
without threads only.
"""

from __future__ import annotations

import os
import sys

from lab.virt.guard import die_with


def main() -> None:
    """Replace this process."""
    die_with(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
