# SPDX-License-Identifier: MIT
"""``npulab virt``: a virtual board in the background, to log in to and to work with."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.assemble import emmc
from lab.assemble.artifacts import ArtifactSet
from lab.assemble.virt import FLAVOURS
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require, tail
from lab.virt import chips, usb
from lab.virt.background import (
    BackgroundBoard,
    boards_in_background,
    find_board,
    power_cycle,
    stop_board,
    wait_for_ssh,
)
from lab.virt.board import VirtualBoard
from lab.virt.results import new_results_dir
from lab.virt.select import DEFAULT_BOARD, board_config, find_artifacts

HELP = "start, use and stop the virtual board"
PROMPTS = (b"# ", b" login: ")
BOOT_SECONDS = 180.0
"""How long a boot may take; seen: 3 s with the fast kernel, 15 s with Debian's on a busy machine."""


def add_board_options(parser: argparse.ArgumentParser) -> None:
    """What to boot, for every command that boots."""
    parser.add_argument(
        "--kernel",
        choices=FLAVOURS,
        default="fast",
        help="trimmed mainline, the same with the kernel's own checkers, or Debian's own",
    )
    parser.add_argument(
        "--dtb",
        default=DEFAULT_BOARD,
        metavar="BOARD|FILE",
        help=f"device tree, by name or file (default {DEFAULT_BOARD})",
    )
    parser.add_argument("--artifacts", type=Path, metavar="DIR", help="an artifact set instead of the cached one")
    parser.add_argument("--memory", default="1G", metavar="SIZE", help="256M to 32G (default 1G)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="1 to 8 (default 2)")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    up = verbs.add_parser("up", help="start a board in the background and wait for its shell")
    add_board_options(up)
    up.add_argument("--name", help="what to call it (default virt, virt-2, ...)")
    up.add_argument("--ssh-port", type=int, default=0, metavar="PORT", help="port on 127.0.0.1 (default any free one)")
    up.add_argument("--strict-supplies", action="store_true", help="keep the device tree's supplies")
    up.add_argument("--nor", type=Path, metavar="FILE", help="content of the SPI NOR; made erased if it is not there")
    up.add_argument("--emmc", type=Path, metavar="FILE", help="content of the eMMC; made (1 GiB) if it is not there")
    up.add_argument(
        "--boot",
        choices=("emmc", "emmc-bootcount"),
        help="start from the eMMC as U-Boot would (with bootcount: one that counts starts); a new one gets a system",
    )
    up.add_argument("--rescue", action="store_true", help="with --boot: the first start is from the board's own disks")
    up.add_argument(
        "--usbredir",
        action="append",
        default=[],
        metavar="SOCKET",
        help="a device in a USB port, such as npulab board standin --usbredir SOCKET; tcp:PORT for one of this machine",
    )
    up.add_argument("--quirks", type=Path, metavar="FILE", help="answers of a board (npulab npu probe) for its NPU")
    shell = verbs.add_parser("shell", help="log in; after -- a command to run instead of a shell")
    shell.add_argument("--name", help="which board, when several run")
    shell.add_argument("--console", action="store_true", help="the serial console instead of ssh; Ctrl-] leaves it")
    cycle = verbs.add_parser("cycle", help="take the power away and give it back (boards that start from their eMMC)")
    cycle.add_argument("name", nargs="?", help="which board, when several run")
    cycle.add_argument("--label", default="", help="entry to start this once, as set at the loader's prompt")
    cycle.add_argument("--rescue", action="store_true", help="start from the board's own disks, as from a card")
    down = verbs.add_parser("down", help="stop a board")
    down.add_argument("name", nargs="?", help="which board, when several run")
    down.add_argument("--all", action="store_true", help="stop all")
    verbs.add_parser("list", help="the boards that run in the background")
    soak = verbs.add_parser("soak", help="boot again and again and count what fails")
    add_board_options(soak)
    soak.add_argument("--boots", type=int, default=200, metavar="N", help="how often (default 200)")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs: dict[str, Callable[[argparse.Namespace, Output], dict[str, Any]]] = {
        "up": _up,
        "shell": _shell,
        "cycle": _cycle,
        "down": _down,
        "list": _list,
        "soak": _soak,
    }
    return verbs[args.verb](args, out)


def _free_name(wanted: str | None) -> str:
    taken = {board.name for board in boards_in_background()}
    if wanted is not None:
        if wanted in taken:
            raise KitError(ExitCode.USAGE, f"a virtual board called {wanted} is running already", "choose another name")
        return wanted
    names = ("virt" if number == 1 else f"virt-{number}" for number in range(1, 1000))
    return next(name for name in names if name not in taken)


def _up(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    name = _free_name(args.name)
    if args.rescue and not args.boot:
        raise KitError(ExitCode.USAGE, "--rescue is for boards that start from their eMMC", "add --boot emmc")
    quirks = _checked_quirks(args.quirks)
    artifacts = find_artifacts(args.artifacts, args.kernel, out)
    results = new_results_dir("virt")
    chip = _emmc(args, artifacts, results)
    config = board_config(
        artifacts,
        args.dtb,
        memory=args.memory,
        cpus=args.cpus,
        ssh_port=args.ssh_port,
        quirks=quirks,
        nor=chips.nor(args.nor) if args.nor else None,
        emmc=chip,
        usb=_usb_sockets(args.usbredir, out),
        strict_supplies=args.strict_supplies,
    )
    if args.boot:
        loader = "bootcount" if args.boot == "emmc-bootcount" else "stock"
        config = replace(config, loader=loader, rescue=args.rescue)
    board = VirtualBoard(config, results)
    started = time.monotonic()
    with board, out.stage("booting"):
        board.power_on()
        _wait_for_prompt(board)
        seconds = time.monotonic() - started
        if not wait_for_ssh(board.ssh_port):
            out.note("its SSH server does not answer; npulab virt shell --console gets in")
        assert board.tree is not None
        state = {"name": name, "board": board.tree.model, "ssh_key": str(config.ssh_key), "results": str(results)}
        state["loader"] = config.loader
        board.detach(state)
    found = find_board(name)
    out.say(f"{found.board} is up after {seconds:.1f} s, called {name}; ssh on port {found.ssh_port} of 127.0.0.1.")
    out.say(f"log in: npulab virt shell --name {name}    stop it: npulab virt down {name}")
    out.say(f"logs: {results}")
    return {"board": found.document(), "boot_seconds": round(seconds, 2)}


def _emmc(args: argparse.Namespace, artifacts: ArtifactSet, results: Path) -> Path | None:
    """The eMMC's file; a new one is empty, or has a system on it when the board starts from it."""
    if args.emmc is None:
        if args.boot:
            raise KitError(ExitCode.USAGE, f"--boot {args.boot} needs the file of an eMMC", "name it with --emmc")
        return None
    path: Path = args.emmc
    if args.boot and not path.expanduser().exists():
        return emmc.make(artifacts, args.dtb, path, results / "emmc.log")
    return chips.emmc(path)


def _cycle(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    board = find_board(args.name)
    started = time.monotonic()
    with out.stage("starting from the eMMC"):
        power_cycle(board, args.label, rescue=args.rescue)
        if not wait_for_ssh(board.ssh_port, BOOT_SECONDS):
            what = f"{board.name} has no SSH server {BOOT_SECONDS:.0f} s after the power came back"
            raise KitError(ExitCode.LINK, what, "console.log has the boot", tail=tail(board.log))
    seconds = round(time.monotonic() - started, 2)
    out.say(f"{board.name} is up again after {seconds:.1f} s")
    return {"board": board.document(), "boot_seconds": seconds}


def _usb_sockets(texts: list[str], out: Output) -> list[Path | int]:
    """The sockets; a note when nobody listens at one, as the cable may be plugged in later."""
    sockets = [usb.parse_socket(text) for text in texts]
    for text, where in zip(texts, sockets, strict=True):
        if isinstance(where, Path) and not where.is_socket():
            out.note(f"there is no socket {text} yet: the USB port is empty until somebody listens there")
    return sockets


def _checked_quirks(path: Path | None) -> Path | None:
    """The file, when the model can read it."""
    if path is None:
        return None
    from rknpu_userspace.model.quirks import Quirks

    try:
        Quirks.load(path)
    except ValueError as error:
        raise KitError(ExitCode.USAGE, str(error), "npulab npu probe --out FILE writes such a file") from error
    return path.absolute()


def _wait_for_prompt(board: VirtualBoard) -> None:
    """Read the console until a shell's or a log-in's prompt stands at its end."""
    text, deadline = b"", time.monotonic() + BOOT_SECONDS
    while not text.endswith(PROMPTS):
        text = (text + board.read(1.0))[-4096:]
        if board.powered_off or time.monotonic() >= deadline:
            how = "switched itself off" if board.powered_off else f"had no prompt after {BOOT_SECONDS:.0f} s"
            last = "\n".join(text.decode(errors="replace").splitlines()[-15:])
            hint = "the console's log has the whole boot"
            raise KitError(ExitCode.INFRASTRUCTURE, f"the virtual board {how}", hint, tail=last, log=board.console_log)


def ssh_command(board: BackgroundBoard) -> list[str]:
    """ssh to a background board."""
    return [require("ssh", "openssh-client"), *board.ssh_options, "-p", str(board.ssh_port), "root@127.0.0.1"]


def _shell(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    board = find_board(args.name)
    if args.console:
        from lab.virt.console import attach

        attach(board.console)
        return {"board": board.document()}
    captured = subprocess.PIPE if args.json else None
    session = subprocess.run([*ssh_command(board), *args.rest], stdout=captured, check=False)
    code = session.returncode
    if code == 255:
        raise KitError(
            ExitCode.LINK,
            f"ssh to {board.name} on port {board.ssh_port} failed",
            f"look at it from its console: npulab virt shell --name {board.name} --console",
        )
    output = {"output": session.stdout.decode(errors="replace")} if captured else {}
    # a session that ends with an error is the user's affair, a command that does is the answer
    return {"ok": code == 0 or not args.rest, "board": board.document(), "exit_code": code, **output}


def _down(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    boards = boards_in_background() if args.all else [find_board(args.name)]
    for board in boards:
        stop_board(board)
        out.say(f"{board.name} is down")
    return {"stopped": [board.name for board in boards]}


def _list(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    boards = boards_in_background()
    if boards:
        rows = [[board.name, board.board, board.ssh_port, board.results] for board in boards]
        out.table("virtual boards", ["name", "board", "ssh port", "logs"], rows)
    else:
        out.say("no virtual board is running; npulab virt up starts one")
    return {"boards": [board.document() for board in boards]}


def _soak(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from lab.virt.soak import soak

    if args.boots < 1:
        raise KitError(ExitCode.USAGE, f"{args.boots} boots are none", "give a number from 1 on")
    artifacts = find_artifacts(args.artifacts, args.kernel, out)
    config = board_config(artifacts, args.dtb, memory=args.memory, cpus=args.cpus)
    return soak(config, args.boots, new_results_dir("soak"), out)
