# SPDX-License-Identifier: MIT
"""``npulab backup``: everything about backups of a board's storage."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import boards
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware import regions
from lab.firmware.cli import add_board, add_confirmation, add_store, board_of, confirm, human, store_of
from lab.firmware.flash import session
from lab.firmware.store import check, create, reader
from lab.firmware.store.manifest import Manifest
from lab.firmware.transports.linux import LinuxTransport
from lab.output import Output

HELP = "make, verify, show, restore and prune backups of a board's storage"

CONSISTENCY = {
    "offline": "nothing was mounted read-write",
    "quiesced": "quiesced: mounted file systems stood still while they were read",
    "crash": "CRASH-CONSISTENT: file systems were in use while they were read, as after a power cut",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        add_store(made)
        return made

    for name, text in (("plan", "show what a backup would read"), ("create", "make a backup and verify it")):
        made = verb(name, text)
        add_board(made)
        made.add_argument("--storage", action="append", default=[], metavar="NAME", help="only this medium")
        made.add_argument("--firmware-only", action="store_true", help="only what the board boots from")
        if name == "create":
            made.add_argument(
                "--no-second-read", action="store_true", help="do not verify; such a backup allows no flash"
            )
            made.add_argument(
                "--no-quiesce",
                action="store_true",
                help="let mounted file systems run on; such a backup is not verified",
            )
            made.add_argument("--dry-run", action="store_true", help="show the plan, write nothing")
    made = verb("verify", "check a backup's chunks, and with --via the board against them")
    made.add_argument("backup", help="id, start of an id, or latest")
    made.add_argument("--via", metavar="WAY", help="also read the board again")
    made.set_defaults(usb_loader=None, usb_loader_sha256=None)
    verb("list", "list backups").add_argument("--board", metavar="NAME", help="only this kind of board")
    made = verb("show", "show a backup")
    made.add_argument("backup", help="id, start of an id, or latest")
    made.add_argument(
        "--plain-restore", action="store_true", help="print commands that restore it with zstd and dd alone"
    )
    made = verb("restore", "write a backup to its board, or to files with --to")
    made.add_argument("backup", help="id, start of an id, or latest")
    made.add_argument("--to", type=Path, metavar="DIR", help="make image files there instead, and compare them")
    made.add_argument("--via", metavar="WAY", help="how to reach the board")
    made.add_argument("--storage", action="append", default=[], metavar="NAME", help="only this medium")
    made.add_argument("--trust-identity", action="store_true", help="the board shows no identity; I know it is the one")
    made.set_defaults(usb_loader=None, usb_loader_sha256=None)
    add_confirmation(made)
    made = verb("prune", "remove old backups, never a board's newest verified one")
    made.add_argument("--keep", type=int, default=3, metavar="N", help="backups to keep of each board (default 3)")
    add_confirmation(made)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs = {
        "plan": _plan,
        "create": _create,
        "verify": _verify,
        "list": _list,
        "show": _show,
        "restore": _restore,
        "prune": _prune,
    }
    return verbs[args.verb](args, out)


def _show_plan(plan: regions.Plan, out: Output) -> dict[str, Any]:
    rows = [(r.storage, r.name, f"{r.start:#x}", human(r.length), "yes" if r.critical else "") for r in plan.regions]
    out.table(f"would read {human(plan.size)}, twice", ("medium", "region", "start", "size", "boot-critical"), rows)
    for text in plan.missing:
        out.say(f"not covered: {text}")
    return {"regions": [asdict(r) for r in plan.regions], "missing": list(plan.missing), "size": plan.size}


def _plan(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    with board_of(args) as (board, transport):
        return _show_plan(regions.make(board, transport, args.storage, firmware_only=args.firmware_only), out)


def _create(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    with board_of(args) as (board, transport):
        plan = regions.make(board, transport, args.storage, firmware_only=args.firmware_only)
        if args.dry_run:
            return _show_plan(plan, out)
        context = transport.context if isinstance(transport, LinuxTransport) else {}
        with out.stage(f"backing up {board.title}") as meter:
            made = create.create(
                store,
                board,
                transport,
                plan,
                meter,
                second_read=not args.no_second_read,
                quiesce=not args.no_quiesce,
                context=context,
            )
    backup = made.manifest
    out.say(f"{backup.id}: {human(made.read)} read, {human(made.added)} new in the store")
    _verdict(backup, out)
    document: dict[str, Any] = {
        "backup": backup.id,
        "verified": backup.verified,
        "complete": backup.complete,
        "added": made.added,
    }
    document["consistency"] = backup.consistency
    if not backup.verified and not args.no_second_read:
        unstable = [region.label for region in backup.regions if region.unstable]
        why = f"two reads differ in {', '.join(unstable)}" if unstable else "see the findings above"
        if backup.consistency == "crash":
            why = "file systems on it were written meanwhile; boot from another medium, or add --firmware-only"
        raise KitError(
            ExitCode.MISMATCH, f"{backup.id} is kept, but not verified: {why}", "try another cable or another way"
        )
    return document


def _verdict(backup: Manifest, out: Output) -> None:
    out.say(f"  verified: {'yes' if backup.verified else 'NO'}, complete: {'yes' if backup.complete else 'NO'}")
    out.say(f"  consistency: {CONSISTENCY[backup.consistency]}")
    for text in backup.missing:
        out.say(f"  not covered: {text}")
    for finding in backup.findings:
        out.say(f"  {'DOUBTFUL' if finding.fatal else 'note'}: {finding.where}: {finding.text}")


def _verify(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    backup = store.load(args.backup)
    with out.stage(f"checking {backup.id}") as meter:
        size = check.check_store(store, backup, meter)
    out.say(f"{backup.id}: {human(size)} of chunks are whole")
    if args.via:
        args.board = backup.board
        with board_of(args) as (_, transport), out.stage("reading the board again") as meter:
            checked = check.check_device(store, backup, transport, meter)
        changed = [region.label for region in checked.regions if region.unstable]
        if changed:
            raise KitError(
                ExitCode.MISMATCH,
                f"the board differs from {backup.id} in {', '.join(changed)}",
                "make a new backup of it",
            )
        with store.lock():
            store.rewrite(checked)
        backup = checked
        out.say("the board agrees with it")
    return {"backup": backup.id, "verified": backup.verified, "bytes": size}


def _list(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store, rows = store_of(args), []
    documents: list[dict[str, Any]] = []
    for entry in store.entries():
        backup = entry.manifest
        if backup is None:
            rows.append((entry.id, "?", "", "", str(entry.problem)))
            documents.append({"backup": entry.id, "problem": str(entry.problem)})
        elif args.board in (None, backup.board):
            size = sum(region.length for region in backup.regions)
            state = "verified" if backup.verified else "NOT VERIFIED"
            state += "" if backup.complete else ", incomplete"
            state += {"crash": ", crash-consistent", "quiesced": ", quiesced"}.get(backup.consistency, "")
            rows.append((backup.id, backup.device, backup.created[:16], human(size), state))
            documents.append(
                {"backup": backup.id, "device": backup.device, "verified": backup.verified, "complete": backup.complete}
                | {"consistency": backup.consistency}
            )
    out.table(f"backups in {store.root}", ("backup", "board", "made", "size", "state"), rows)
    return {"backups": documents, "store": str(store.root)}


def _show(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    backup = store.load(args.backup)
    if args.plain_restore:
        lines = reader.plain_restore(store, backup)
        for line in lines:
            out.say(line)
        return {"backup": backup.id, "commands": lines}
    out.say(f"{backup.id}: {boards.load(backup.board).title}, made {backup.created} over {backup.transport}")
    _verdict(backup, out)
    rows = [
        (r.label, f"{r.start:#x}", human(r.length), human(r.length - r.zeros), "UNSTABLE" if r.unstable else "")
        for r in backup.regions
    ]
    out.table("regions", ("region", "start", "size", "content", ""), rows)
    for key, value in backup.identity.items():
        out.say(f"  {key}: {value}")
    out.say("  cannot be backed up: " + "; ".join(backup.not_backed_up))
    return {"backup": asdict(backup)}


def _restore(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    backup = store.load(args.backup)
    if (args.to is None) == (args.via is None):
        raise KitError(ExitCode.USAGE, "restore needs either --to DIR or --via WAY", "see npulab backup restore --help")
    if args.to is not None:
        return _restore_files(args, out, backup)
    args.board = backup.board
    with board_of(args) as (board, transport):
        plan = session.restore_plan(store, board, transport, backup, args.storage, trust_identity=args.trust_identity)
        rows = [(item.label, human(item.end - item.start)) for item in plan.items]
        out.table(f"restore {backup.id} to {transport.name}", ("region", "size"), rows)
        if args.dry_run:
            return {"backup": backup.id, "regions": [item.label for item in plan.items]}
        confirm(args, f"This overwrites {', '.join(plan.storages())} of {board.title}.", board.name)
        with store.lock(), out.stage("restoring") as meter:
            report = session.restore(store, plan, transport, meter)
    out.say(f"restored: {human(report.written)} written, {human(report.compared)} compared and read back")
    return {"backup": backup.id, "written": report.written, "run": plan.id}


def _restore_files(args: argparse.Namespace, out: Output, backup: Manifest) -> dict[str, Any]:
    store, made = store_of(args), []
    chosen = args.storage or backup.storages()
    for name in chosen:
        if name not in backup.storages():
            raise KitError(
                ExitCode.USAGE, f"{backup.id} has no medium {name}", f"it has {', '.join(backup.storages())}"
            )
    for name in chosen:
        target = args.to / f"{name}.img"
        if args.dry_run:
            out.say(f"would make {target}")
            continue
        try:
            args.to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making {args.to}") from error
        with out.stage(f"restoring {name}"):
            reader.extract(store, backup, name, target)
        out.say(f"{target}: whole, compared")
        made.append(str(target))
    return {"backup": backup.id, "files": made}


def _prune(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    store = store_of(args)
    doomed = [backup.id for backup in store.prunable(args.keep)]
    out.say("would remove: " + (", ".join(doomed) or "nothing"))
    if args.dry_run:
        return {"removed": [], "would_remove": doomed}
    if doomed:
        confirm(args, f"This removes {len(doomed)} backups for ever.", "prune")
    with store.lock():
        removed, freed = store.prune(args.keep)
    out.say(f"removed {len(removed)} backups, {human(freed)} freed")
    return {"removed": removed, "freed": freed}
