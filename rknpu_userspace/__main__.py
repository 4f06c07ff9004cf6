# SPDX-License-Identifier: MIT
"""The tools of the library: ``python3 -m rknpu_userspace TOOL``. Numpy is all they need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from .console import quietly

EXIT_USAGE = 2
TOOLS = {
    "info": ("info", "what NPU there is: driver, cores, IOMMUs, power, clocks, limits"),
    "disasm": ("isa.disasm", "what a command stream computes, block by block, and which rules it breaks"),
    "probe": ("probe.runner", "measure what is not known about the NPU, for the model to load"),
    "ops": ("ops.table", "what every operation takes and how exact it is, as a Markdown table"),
    "selftest": ("selftest", "compare the NPU with numpy"),
    "jobloop": ("jobloop", "time a small job"),
    "run": ("run", "run a program file: a model that was converted on the host"),
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


if __name__ == "__main__":
    sys.exit(main())
