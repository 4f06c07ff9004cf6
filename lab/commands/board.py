# SPDX-License-Identifier: MIT
"""``npulab board``: which boards the kit knows, what is connected, and a made-up board to practise on."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from lab import boards
from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware.cli import add_board, add_store, board_of, human, store_of
from lab.firmware.medium import StorageInfo
from lab.firmware.rockusb.client import Rockusb, choose
from lab.firmware.standin import faults
from lab.firmware.standin.engine import PERSONALITIES, Engine, Options
from lab.firmware.standin.media import make_board
from lab.firmware.transports.select import USB_WAYS, open_bus
from lab.output import Output

HELP = "list boards, and find out what is connected, in which mode, and what to do next"


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="the boards that the kit knows")
    show = verbs.add_parser("show", help="what the kit knows about a board")
    show.add_argument("name")
    probe = verbs.add_parser("probe", help="what is this board, in which mode, and what to do next")
    add_store(probe)
    add_board(probe)
    _configure_env(verbs.add_parser("env", help="a labgrid environment for a board: virtual, on the desk, or a place"))
    made = verbs.add_parser("standin", help="make a board of files to practise on, or serve one as a USB device")
    made.add_argument("directory", type=Path)
    made.add_argument("--board", default="rock-5-itx-plus", metavar="NAME")
    made.add_argument("--serial", default="0001", help="makes it an individual")
    serve = made.add_mutually_exclusive_group()
    serve.add_argument("--serve", type=Path, metavar="SOCKET", help="answer as a rockusb device until interrupted")
    serve.add_argument(
        "--usbredir",
        action="append",
        metavar="SOCKET",
        help="be a USB device for npulab virt up --usbredir SOCKET until interrupted; tcp:PORT for a port of this "
        "machine; a second one is the port that the fault `move` goes to",
    )
    made.add_argument("--personality", choices=PERSONALITIES, default="loader")
    made.add_argument("--fault", action="append", default=[], metavar="KIND[:OP[:AFTER[:TIMES]]]")


def _configure_env(env: argparse.ArgumentParser) -> None:
    from lab.labgrid.environments import TRANSPORTS, Desk

    desk = Desk()
    env.add_argument("name", nargs="?", help="which board")
    env.add_argument("--all", action="store_true", help="write the files that the kit ships")
    env.add_argument("--transport", choices=TRANSPORTS, default=None, help="how it is reached (default local)")
    env.add_argument("--serial", default=desk.serial, metavar="DEVICE", help="adapter on the debug header")
    env.add_argument("--power", default=desk.power, metavar="URL", help="relay; {index} and {value} are filled in")
    env.add_argument("--power-model", default=desk.power_model, metavar="MODEL", help="labgrid's name of it")
    env.add_argument("--power-index", default=desk.power_index, metavar="N", help="which outlet")
    env.add_argument("--address", default=desk.address, metavar="HOST", help="the board's own")
    env.add_argument("--user", default=desk.user, help="to log in as")
    env.add_argument("--key", default=desk.key, metavar="FILE", help="ssh key")
    env.add_argument("--output", type=Path, metavar="FILE", help="write it there (default: print it)")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    return {"list": _list, "show": _show, "probe": _probe, "env": _env, "standin": _standin}[args.verb](args, out)


def _list(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    known = [boards.load(name) for name in boards.names()]
    rows = [(b.name, b.title, b.soc, ", ".join(s.name for s in b.storage)) for b in known]
    out.table("boards", ("name", "board", "chip", "media"), rows)
    return {"boards": [{"name": b.name, "title": b.title, "soc": b.soc} for b in known]}


def _show(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    board = boards.load(args.name)
    out.say(f"{board.title} ({board.soc}), device tree {board.dtb}")
    out.say(f"console: {board.console.device} at {board.console.baud} baud; boots from {', '.join(board.boot_order)}")
    rows = [(s.name, s.kind, f"{s.controller:x}", "yes" if s.optional else "") for s in board.storage]
    out.table("media", ("name", "kind", "controller", "optional"), rows)
    for note in board.notes:
        out.say(f"note: {note}")
    return {"board": board.name, "dtb": board.dtb, "media": [s.name for s in board.storage], "notes": list(board.notes)}


def _env(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from lab.labgrid import environments

    if args.all:
        changed = environments.write_all()
        out.say("\n".join(f"{path} written" for path in changed) or "all files are as they should be")
        return {"written": [str(path) for path in changed]}
    if args.name is None:
        raise KitError(ExitCode.USAGE, "which board?", f"one of {', '.join(boards.names())}, or --all")
    board = boards.load(args.name)
    desk = environments.Desk(
        args.serial, args.power_model, args.power, args.power_index, args.address, args.user, args.key
    )
    text = environments.text(board, args.transport or ("virtual" if board.virtual else "local"), desk)
    if args.output is None:
        out.say(text.rstrip())
        return {"environment": text}
    if args.output.exists():
        raise KitError(ExitCode.USAGE, f"{args.output} is there already", "name a new file, or remove that one")
    args.output.write_text(text)
    out.say(f"{args.output} written; try it: npulab test board --env {args.output}")
    return {"environment": text, "file": str(args.output)}


def _in_maskrom(args: argparse.Namespace, out: Output) -> dict[str, Any] | None:
    """A board in mask ROM answers nothing but downloads: say so instead of failing."""
    kind, _, rest = args.via.partition(":")
    if kind not in USB_WAYS or args.usb_loader:
        return None
    where, _, extra = rest.partition(",")
    bus, path = open_bus(kind, where, extra)
    try:
        found = choose(bus, path)
        device = Rockusb(bus, found.path)
        try:
            if device.ready():
                return None
        finally:
            device.close()
    finally:
        bus.close()
    out.say(f"{found.path}: an RK3588 in mask ROM; it cannot say which board it is")
    todo = "start a loader: --usb-loader FILE --usb-loader-sha256 HASH (the vendor's rk3588_spl_loader for this board)"
    out.say(f"next: {todo}")
    return {"mode": "maskrom", "port": found.path, "next": todo}


def _probe(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    asleep = _in_maskrom(args, out)
    if asleep is not None:
        return asleep
    store = store_of(args)
    with board_of(args) as (board, transport):
        media, identity = transport.storages(), dict(transport.identify())
    out.say(f"{board.title} over {transport.name}")
    for key, value in identity.items():
        out.say(f"  {key}: {value}")
    out.table("media", ("medium", "kind", "size", "readable", "mounted"), [_row(info) for info in media])
    backups = store.of_device(identity, [info.name for info in media])
    good = next((backup for backup in backups if backup.verified), None)
    if good:
        todo = f"the verified backup {good.id} stands: npulab flash plan, or npulab test"
    else:
        todo = f"npulab backup create --board {board.name} --via {args.via}"
    out.say(f"backups of this very board: {len(backups)}, verified: {good.id if good else 'none'}")
    out.say(f"next: {todo}")
    return {
        "mode": transport.name.partition(":")[0].partition("+")[0],
        "identity": identity,
        "media": [{"name": i.name, "kind": i.kind, "size": i.size, "readable": i.readable} for i in media],
        "backups": [backup.id for backup in backups],
        "verified": good.id if good else None,
        "next": todo,
    }


def _row(info: StorageInfo) -> tuple[str, ...]:
    readable = "all" if info.readable is None else f"{human(info.readable)} (the loader's window)"
    return info.name, info.kind, human(info.size), readable, ", ".join(info.mounted)


def _standin(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    board: Board = boards.load(args.board)
    if not (args.directory / "board.json").exists():
        if args.directory.exists() and any(args.directory.iterdir()):
            raise KitError(ExitCode.USAGE, f"{args.directory} holds something else", "name a new directory")
        with out.stage("making the media"):
            make_board(args.directory, board, args.serial)
        out.say(f"{args.directory}: a {board.title} of files; reach it with --via file:{args.directory}")
    if args.serve is None and not args.usbredir:
        return {"directory": str(args.directory), "via": f"standin:{args.directory}"}
    engine = Engine(args.directory, args.personality, Options(faults=[faults.parse(text) for text in args.fault]))
    what = f"serving {args.directory} as {args.personality}"
    if args.usbredir:
        from lab.firmware.standin.usbport import UsbPorts

        with UsbPorts(args.usbredir, [engine], out.note):
            out.note(f"{what}; npulab virt up --usbredir {args.usbredir[0]} sees it as a USB device; Ctrl-C ends it")
            threading.Event().wait()
    else:
        from lab.firmware.standin.server import Server

        with Server(args.serve, [engine]):
            out.note(f"{what}; --via rockusb+unix:{args.serve}; Ctrl-C ends it")
            threading.Event().wait()
    return {"directory": str(args.directory)}
