# SPDX-License-Identifier: MIT
"""What the library's command line tools have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def quietly(run: Callable[[], int]) -> int:
    """Run a tool; returns its exit code.

    A reader of its output that goes away (``| head``) ends it without a word, as does an interrupt.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes stdout once more when it ends, and complains if that fails
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code
