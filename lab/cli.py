# SPDX-License-Identifier: MIT
"""The command line: one module of ``lab.commands`` per noun, loaded when it is asked for.

A command module has ``HELP`` (one line), ``configure(parser)`` and ``run(args, out) -> dict``: the returned document
is what ``--json`` prints, completed with ``ok``.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from lab import __version__
from lab.errors import ExitCode, KitError, from_os_error
from lab.output import Output

COMMANDS = {
    "demo": "assemble, boot the virtual board, run matmul and convolution on its NPU",
    "test": "run the test suites",
    "build": "assemble a kernel, root file system and board into an artifact set",
    "kas": "check kas files and layer with the real kas and BitBake",
    "audit": "say what of the NPU's support is in which kernel, with evidence",
    "dtb": "check device trees, any board's and any kernel's, for what the NPU needs",
    "kernel": "check kernels, the kit's and foreign ones, and what the patches would do to them",
    "virt": "start, use and stop the virtual board",
    "board": "list boards, and find out what is connected, in which mode, and what to do next",
    "backup": "make, verify, show, restore and prune backups of a board's storage",
    "flash": "plan, run and roll back writes to a board, never without a verified backup",
    "npu": "the NPU or its model: what it is, what it computes, what it answers",
    "farm": "a farm of boards: start one, run jobs on it, see who has what",
    "report": "show what a test run found, compare two runs, convert one for other tools",
    "bench": "measure the figures that the kit promises",
    "doctor": "check what this host has and say what is missing",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KitError(ExitCode.USAGE, f"{self.prog}: {message}", f"see {self.prog} --help")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser(noun: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="npulab", description="From a boxed RK3588 board to a proven NPU.")
    parser.add_argument("--version", action="version", version=f"npulab {__version__}")
    nouns = parser.add_subparsers(dest="noun", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, summary in COMMANDS.items():
        sub = nouns.add_parser(name, help=summary, description=summary)
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        sub.add_argument("--quiet", action="store_true", help="no progress")
        if name == noun:
            importlib.import_module(f"lab.commands.{name}").configure(sub)
    return parser


def _fail(error: KitError, as_json: bool) -> int:
    print(f"npulab: {error.message}", file=sys.stderr)
    if error.tail:
        print("".join(f"    | {line}\n" for line in error.tail.splitlines()), end="", file=sys.stderr)
    if error.log:
        print(f"    log: {error.log}", file=sys.stderr)
    if error.hint:
        print(f"    what to do: {error.hint}", file=sys.stderr)
    if as_json:
        failure = {"code": int(error.code), "message": error.message, "hint": error.hint}
        Output(as_json=True).document({"ok": False, "error": failure})
    return int(error.code)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    # what stands after -- belongs to another program (pytest, a shell on the board)
    cut = words.index("--") if "--" in words else len(words)
    arguments, rest = words[:cut], words[cut + 1 :]
    noun = next((word for word in arguments if not word.startswith("-")), None)
    as_json = "--json" in arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # these two may stand anywhere, also behind a verb
        flags = {flag: flag in arguments for flag in ("--json", "--quiet")}
        args = _parser(noun if noun in COMMANDS else None).parse_args([word for word in arguments if word not in flags])
        args.json, args.quiet, args.rest = flags["--json"], flags["--quiet"], rest
        out = Output(as_json=args.json, quiet=args.quiet)
        document: dict[str, Any] = importlib.import_module(f"lab.commands.{args.noun}").run(args, out)
        document = {"ok": True, **document}
        out.document(document)
        return int(document.get("exit", ExitCode.OK if document["ok"] else ExitCode.FAILED))
    except KitError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        return _fail(
            KitError(ExitCode.ABORTED, "stopped; nothing half-made was kept", "run it again to go on"), as_json
        )
    except BrokenPipeError:
        return int(ExitCode.FAILED)
    except OSError as error:
        return _fail(from_os_error(error, f"npulab {noun or ''}".strip()), as_json)
