# SPDX-License-Identifier: MIT
"""The tools of the library: ``python3 -m rknpu_userspace TOOL``. Numpy is all they need."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

EXIT_FAILED, EXIT_USAGE = 1, 2
TOOLS = {
    "disasm": ("isa.disasm", "what a command stream computes, block by block, and which rules it breaks"),
    "selftest": ("selftest", "compare the NPU with numpy"),
    "jobloop": ("jobloop", "time a small job"),
}
"""Module with ``main(arguments)`` and one line of help, by name."""


def _usage() -> str:
    lines = [f"  {name:10} {summary}" for name, (_, summary) in TOOLS.items()]
    return "\n".join(["usage: python3 -m rknpu_userspace TOOL [OPTIONS]", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one tool; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else EXIT_USAGE
    name, *rest = words
    if name not in TOOLS:
        print(f"error: no tool {name!r}; there are {', '.join(TOOLS)}", file=sys.stderr)
        return EXIT_USAGE
    tool: Callable[[Sequence[str]], int] = importlib.import_module(f"rknpu_userspace.{TOOLS[name][0]}").main
    return quietly(lambda: tool(rest))


def quietly(run: Callable[[], int]) -> int:
    """Run a tool; a reader of its output that goes away (``| head``) ends it without a word."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
