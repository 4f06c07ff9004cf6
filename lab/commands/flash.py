# SPDX-License-Identifier: MIT
"""``npulab flash``: write to a board, never without a verified backup of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.cli import add_board, add_confirmation, add_loader, add_store, board_of, confirm, human, store_of
from lab.firmware.flash import entry, gate, power, session, trial
from lab.firmware.flash.entry import EntrySession
from lab.firmware.flash.session import Session, Wish
from lab.firmware.flash.trial import Trial
from lab.firmware.medium import Transport
from lab.firmware.transports.select import Loader, open_transport
from lab.output import Output

HELP = "plan, run and roll back writes to a board, never without a verified backup"

RUN_HELP = "id of the run, or latest"


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    plan = verbs.add_parser("plan", help="say what would be written, against the backup; keep the plan for run")
    add_store(plan)
    add_board(plan)
    plan.add_argument(
        "--artifacts", type=Path, metavar="DIR", help="artifact set (npulab build BOARD) to put beside what runs"
    )
    plan.add_argument(
        "--heartbeat",
        type=int,
        default=entry.HEARTBEAT,
        metavar="S",
        help=f"seconds that a new kernel has to prove itself before the board restarts (default {entry.HEARTBEAT})",
    )
    plan.add_argument("--storage", metavar="NAME", help="the medium to write an image or a loader to")
    plan.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help="whole-disk image, raw or compressed (zstd, xz, gzip, bzip2); a .bmap beside it is used",
    )
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
        made.add_argument("--power", metavar="WAY", help=f"what restarts the board: {power.FORMS}")
        made.add_argument(
            "--boot-seconds", type=float, default=trial.BOOT_SECONDS, metavar="S", help="how long a start may take"
        )
        if name == "run":
            made.add_argument("--lose-changes", action="store_true", help="overwrite content that no backup holds")
            made.add_argument("--then-via", metavar="WAY", help="how the board is reached after it has started")
            made.add_argument("--smoke", default=trial.SMOKE, metavar="COMMAND", help="test on the board; empty: none")
            made.add_argument("--no-commit", action="store_true", help="leave the last step to npulab flash commit")
    for name, text in (("commit", "the new content has proven itself"), ("show", "where a run is")):
        made = verbs.add_parser(name, help=text)
        add_store(made)
        made.add_argument("run_id", metavar="RUN", help=RUN_HELP)
        if name == "commit":
            made.add_argument("--via", metavar="WAY", help="how to reach the board (runs of an artifact set)")
            add_loader(made)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs = {"plan": _plan, "run": _run, "rollback": _run, "commit": _commit, "show": _state}
    return verbs[args.verb](args, out)


def _plan(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    if args.artifacts is not None:
        return _plan_entry(args, out)
    if not args.storage:
        raise KitError(
            ExitCode.USAGE, "nothing to write is named", "--artifacts DIR, or --storage NAME with --image or --loader"
        )
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


def _plan_entry(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """A kernel beside the one that runs."""
    if args.image or args.loader or args.storage:
        raise KitError(ExitCode.USAGE, "an artifact set goes beside what runs, an image over it", "name one of them")
    if args.heartbeat < 30:
        raise KitError(ExitCode.USAGE, f"{args.heartbeat} s are too short to start in", "--heartbeat 30 or more")
    store = store_of(args)
    wish = entry.EntryWish(args.artifacts, args.backup, args.trust_identity, args.max_age, args.heartbeat)
    command = f"npulab backup create --board {args.board} --via {args.via}"
    with board_of(args) as (board, transport), out.stage("planning") as meter:
        plan = entry.prepare(store, board, transport, wish, meter, command)
    out.table(
        f"{plan.id}: {plan.payload.name} beside {plan.old_default} on {board.title}, behind it {plan.backup}",
        ("file", "size"),
        [(plan.path(file), human(file.size)) for file in plan.payload.files],
    )
    out.say(
        f"extlinux.conf: one start of {plan.payload.name}, then {plan.old_default} again until the run is committed"
    )
    for note in plan.notes:
        out.say(f"way back: {note}")
    if not args.dry_run:
        with store.lock():
            EntrySession(store, plan).save()
        out.say(f"next: npulab flash run {plan.id} --via {args.via}")
    files = [{"path": plan.path(file), "bytes": file.size} for file in plan.payload.files]
    return {
        "run": plan.id,
        "backup": plan.backup,
        "entry": plan.payload.name,
        "beside": plan.old_default,
        "regions": [item.label for item in plan.items],
        "files": files,
        "notes": list(plan.notes),
    }


def _reach(args: argparse.Namespace, via: str) -> trial.Reach:
    """How the board is reached again after a restart."""
    board = boards.load(args.board)
    return lambda: open_transport(via, board, Loader(args.usb_loader, args.usb_loader_sha256))


def _run_entry(args: argparse.Namespace, out: Output, run: EntrySession) -> dict[str, Any]:
    """`run` and `rollback` of an artifact set."""
    args.board = run.plan.board
    back, name = args.verb == "rollback", run.plan.payload.name
    what = f"takes {name} away from" if back else f"puts {name} beside {run.plan.old_default} on"
    title = boards.load(args.board).title
    if args.dry_run:
        out.say(f"{run.plan.id} {what} {title}; it is {run.journal.state}")
        return {"run": run.plan.id, "state": run.journal.state, "entry": name}
    confirm(args, f"This {what} {title} and restarts it.", args.board)
    chosen = power.choose(args.power, args.via)
    reach = _reach(args, (not back and args.then_via) or args.via)
    limits = trial.Limits(args.boot_seconds, trial.SMOKE if back else args.smoke)
    if back:
        with run.store.lock():
            count = trial.rollback(run, reach, chosen, limits, out)
        out.say(f"{run.plan.id}: {run.plan.old_default} is the default, {count} files are gone")
        return {"run": run.plan.id, "state": run.journal.state, "removed": count}
    out.note(f"restarts by {chosen.name}{'' if chosen.real else ' (no power switch)'}")
    with run.store.lock():
        transport = entry.linux(_reach(args, args.via)())
        verdict = Trial(run, reach, chosen, limits, out).flash(transport, commit=not args.no_commit)
    if verdict.state == "armed":
        out.say("next: take the power away and give it back, then run this command again")
    elif verdict.state == "verified":
        out.say(
            f"it passed; without npulab flash commit {run.plan.id} --via {args.via} its next start is the old entry's"
        )
    else:
        out.say(f"{name} runs, computes, and is the default; {run.plan.old_default} is its fallback")
    return {"run": run.plan.id, "state": verdict.state, "release": verdict.found.release, "power": chosen.name}


def _run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    run = EntrySession.load(session.plan_path(store, args.run_id), store)
    if run is not None:
        return _run_entry(args, out, run)
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
    if not back and (args.power or args.then_via):
        _prove(args, out, flash, transport)
    elif not back:
        out.say("next: take the power away and give it back, look whether the board boots, run npulab test on it,")
        out.say(f"then npulab flash commit {flash.plan.id}, or npulab flash rollback {flash.plan.id} --via {args.via}")
        out.say("(with --power WAY, and --then-via WAY where the board is reached otherwise then, run does all this)")
    return {
        "run": flash.plan.id,
        "state": flash.journal.state,
        "written": report.written,
        "compared": report.compared,
        "repeated": report.repeated,
    }


def _prove(args: argparse.Namespace, out: Output, flash: Session, transport: Transport) -> None:
    """The end of a run that wrote an image: power cycle, boot check, smoke test, commit."""
    via = args.then_via or args.via
    limits = trial.Limits(args.boot_seconds, args.smoke)
    board = boards.load(flash.plan.board)
    try:
        found = trial.prove_image(board, transport, _reach(args, via), power.choose(args.power, via), limits, out)
    except KitError as error:
        hint = f"{error.hint}: npulab flash rollback {flash.plan.id} --via {args.via}"
        raise KitError(error.code, f"{flash.plan.id}: {error.message}", hint) from error
    out.say(f"{board.title} runs {found.release} from the new image, and its NPU computes")
    if not args.no_commit:
        with flash.store.lock():
            flash.commit()


def _commit(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    run = EntrySession.load(session.plan_path(store, args.run_id), store)
    if run is not None:
        if not args.via:
            raise KitError(ExitCode.USAGE, f"{run.plan.id} is committed on the board", "say how to reach it: --via WAY")
        args.board = run.plan.board
        with board_of(args) as (_, transport), store.lock():
            run.commit(entry.linux(transport))
        out.say(f"{run.plan.id}: {run.plan.payload.name} is the default; the backup {run.plan.backup} stays")
        return {"run": run.plan.id, "state": run.journal.state}
    flash = Session.load(store, args.run_id)
    with store.lock():
        flash.commit()
    out.say(f"{flash.plan.id}: committed; the backup {flash.plan.backup} stays")
    return {"run": flash.plan.id, "state": flash.journal.state}


def _state(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    flash = EntrySession.load(session.plan_path(store, args.run_id), store) or Session.load(store, args.run_id)
    out.say(f"{flash.plan.id}: {flash.journal.state} (backup {flash.plan.backup})")
    return {"run": flash.plan.id, "state": flash.journal.state, "states": flash.journal.states()}
