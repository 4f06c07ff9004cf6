# SPDX-License-Identifier: MIT
"""What the commands ``board``, ``backup`` and ``flash`` share: options, confirmation, words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.medium import Transport
from lab.firmware.store import Store, default_root
from lab.firmware.transports.select import FORMS, Loader, open_transport


def add_store(parser: argparse.ArgumentParser) -> None:
    """``--store``."""
    parser.add_argument("--store", type=Path, default=None, metavar="DIR", help="backup store (default: user data)")


def add_board(parser: argparse.ArgumentParser) -> None:
    """Which board, and how it is reached."""
    parser.add_argument("--board", required=True, metavar="NAME", help=f"one of {', '.join(boards.names())}")
    parser.add_argument("--via", required=True, metavar="WAY", help=FORMS)
    add_loader(parser)


def add_loader(parser: argparse.ArgumentParser) -> None:
    """A loader for boards in mask ROM."""
    parser.add_argument("--usb-loader", type=Path, metavar="FILE", help="rk3588_spl_loader file to start from mask ROM")
    parser.add_argument("--usb-loader-sha256", metavar="HASH", help="its SHA-256, when the board file does not list it")


def add_confirmation(parser: argparse.ArgumentParser) -> None:
    """Destructive verbs."""
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, write nothing")


def store_of(args: argparse.Namespace) -> Store:
    """The store of ``--store``."""
    return Store(args.store.absolute() if args.store else default_root())


@contextmanager
def board_of(args: argparse.Namespace) -> Iterator[tuple[boards.Board, Transport]]:
    """The board and an open transport."""
    board = boards.load(args.board)
    transport = open_transport(args.via, board, Loader(args.usb_loader, args.usb_loader_sha256))
    try:
        yield board, transport
    finally:
        transport.close()


def confirm(args: argparse.Namespace, what: str, word: str) -> None:
    """Go on only with ``--yes`` or when the user types ``word``; KitError (refused or aborted) otherwise."""
    if args.yes:
        return
    if args.json or not sys.stdin.isatty():
        raise KitError(ExitCode.REFUSED, f"{what}: nobody is there to confirm it", "add --yes when you are sure")
    print(f"{what}\nType {word} to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != word:
        raise KitError(ExitCode.ABORTED, "not confirmed; nothing was written")


def human(size: float) -> str:
    """``12.3 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
