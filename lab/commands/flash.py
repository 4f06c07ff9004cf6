# SPDX-License-Identifier: MIT
"""``npulab flash``: write to a board, never without a verified backup of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.firmware.cli import add_board, add_confirmation, add_loader, add_store, board_of, confirm, human, store_of
from lab.firmware.flash import gate, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.medium import Transport
from lab.output import Output

HELP = "plan, run and roll back writes to a board, never without a verified backup"

RUN_HELP = "id of the run, or latest"


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    plan = verbs.add_parser("plan", help="say what would be written, against the backup; keep the plan for run")
    add_store(plan)
    add_board(plan)
    plan.add_argument("--storage", required=True, metavar="NAME", help="the medium to write")
    plan.add_argument("--image", type=Path, metavar="FILE", help="whole-disk image (FILE.bmap beside it is used)")
    plan.add_argument("--bmap", type=Path, metavar="FILE", help="its block map, when it has another name")
    plan.add_argument(
        "--loader", type=Path, metavar="FILE", help="u-boot-rockchip.bin, for SPI NOR u-boot-rockchip-spi.bin"
    )
    plan.add_argument("--loader-sha256", metavar="HASH", help="its SHA-256; nothing boot-critical is written without")
    plan.add_argument("--backup", metavar="ID", help="the backup that stands behind it (default: the newest good one)")
    plan.add_argument("--max-age", type=int, default=gate.MAX_AGE_DAYS, metavar="DAYS", help="of the backup")
    plan.add_argument("--trust-identity", action="store_true", help="the board shows no identity; I know it is the one")
    plan.add_argument("--dry-run", action="store_true", help="do not keep the plan")
    for name, text in (
        ("run", "write, or go on after an interruption"),
        ("rollback", "bring the backup's content back"),
    ):
        made = verbs.add_parser(name, help=text)
        add_store(made)
        made.add_argument("run_id", metavar="RUN", help=RUN_HELP)
        made.add_argument("--via", required=True, metavar="WAY", help="how to reach the board")
        add_loader(made)
        add_confirmation(made)
        if name == "run":
            made.add_argument("--lose-changes", action="store_true", help="overwrite content that no backup holds")
    for name, text in (("commit", "the new content has proven itself"), ("show", "where a run is")):
        made = verbs.add_parser(name, help=text)
        add_store(made)
        made.add_argument("run_id", metavar="RUN", help=RUN_HELP)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs = {"plan": _plan, "run": _run, "rollback": _run, "commit": _commit, "show": _state}
    return verbs[args.verb](args, out)


def _plan(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    wish = Wish(
        args.storage,
        args.image,
        args.bmap,
        args.loader,
        args.loader_sha256,
        args.backup,
        args.trust_identity,
        args.max_age,
    )
    command = f"npulab backup create --board {args.board} --via {args.via} --storage {args.storage}"
    with board_of(args) as (board, transport), out.stage("planning") as meter:
        plan = session.prepare(store, board, transport, wish, meter, command)
        infos = {info.name: info for info in transport.storages()}
        rows = session.changes(store, plan, infos)
    out.table(
        f"{plan.id}: {board.title}, behind it {plan.backup}",
        ("region", "covers", "at most changes", "boot-critical"),
        [
            (r["region"], human(int(str(r["bytes"]))), human(int(str(r["changed"]))), "yes" if r["critical"] else "")
            for r in rows
        ],
    )
    for note in plan.notes:
        out.say(note)
    if not args.dry_run:
        with store.lock():
            Session(store, plan).save()
        out.say(f"next: npulab flash run {plan.id} --via {args.via}")
    return {"run": plan.id, "backup": plan.backup, "regions": rows, "notes": list(plan.notes)}


def _run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    flash = Session.load(store, args.run_id)
    args.board = flash.plan.board
    back = args.verb == "rollback"
    what = "brings back" if back else "overwrites"
    if args.dry_run:
        regions = list(dict.fromkeys(item.label for item in flash.plan.items))
        out.say(f"{flash.plan.id} {what} {', '.join(regions)}; it is {flash.journal.state}")
        return {"run": flash.plan.id, "state": flash.journal.state, "regions": regions}
    with board_of(args) as (board, transport):
        confirm(args, f"This {what} {', '.join(flash.plan.storages())} of {board.title}.", board.name)
        return _write(args, out, flash, transport, back)


def _write(args: argparse.Namespace, out: Output, flash: Session, transport: Transport, back: bool) -> dict[str, Any]:
    with flash.store.lock(), out.stage("rolling back" if back else "flashing") as meter:
        if back:
            report = flash.rollback(transport, meter)
        else:
            report = flash.run(transport, meter, lose_changes=args.lose_changes)
    out.say(f"{flash.plan.id}: {human(report.written)} written, {human(report.compared)} read back from the medium")
    if not back:
        out.say("next: take the power away and give it back, look whether the board boots, run npulab test on it,")
        out.say(f"then npulab flash commit {flash.plan.id}, or npulab flash rollback {flash.plan.id} --via {args.via}")
    return {
        "run": flash.plan.id,
        "state": flash.journal.state,
        "written": report.written,
        "compared": report.compared,
        "repeated": report.repeated,
    }


def _commit(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    flash = Session.load(store, args.run_id)
    with store.lock():
        flash.commit()
    out.say(f"{flash.plan.id}: committed; the backup {flash.plan.backup} stays")
    return {"run": flash.plan.id, "state": flash.journal.state}


def _state(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    flash = Session.load(store_of(args), args.run_id)
    out.say(f"{flash.plan.id}: {flash.journal.state} (backup {flash.plan.backup})")
    return {"run": flash.plan.id, "state": flash.journal.state, "states": flash.journal.states()}
