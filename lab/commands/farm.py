# SPDX-License-Identifier: MIT
"""``npulab farm``: boards for many, through labgrid's own coordinator; places always come back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lab.commands.virt import add_board_options
from lab.errors import ExitCode, KitError
from lab.farm import state
from lab.farm.client import DEFAULT_PORT, Client, Place
from lab.output import Output

HELP = "a farm of boards: start one, run jobs on it, see who has what"
PLACES_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["match"],
        "additionalProperties": False,
        "properties": {
            "match": {"type": "string", "pattern": "^[^/]+/[^/]+(/[^/]+){0,2}$"},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
            "comment": {"type": "string"},
        },
    },
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    up = verbs.add_parser("up", help="start labgrid's coordinator and exporter on 127.0.0.1, with virtual boards")
    up.add_argument("--boards", type=int, default=2, metavar="N", help="how many (default 2)")
    up.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"of the coordinator (default {DEFAULT_PORT}, 0 any)"
    )
    up.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="a tag for all its places")
    up.add_argument("--detach", action="store_true", help="leave it in the background")
    down = verbs.add_parser("down", help="end the farm of this host")
    down.add_argument("--force", action="store_true", help="also when a place is in use")
    place = verbs.add_parser("place", help="the places").add_subparsers(dest="what", metavar="WHAT", required=True)
    apply = place.add_parser("apply", help="make the places of a file, as they stand there")
    apply.add_argument("file", type=Path, help="see lab/labgrid/examples/places.yaml")
    for sub in (
        apply,
        verbs.add_parser("status", help="the coordinator, its places, who waits"),
        place.add_parser("list", help="the places of the coordinator"),
        verbs.add_parser("sweep", help="release what killed runs of this host left"),
    ):
        _add_coordinator(sub)
    text = "wait for a place, run what stands after -- on it (default: the board suite with its report), give it back"
    run = verbs.add_parser("run", help=text, description=text)
    _add_coordinator(run)
    _configure_run(run)


def _add_coordinator(parser: argparse.ArgumentParser) -> None:
    text = "default: $LG_COORDINATOR, else the farm of this host"
    parser.add_argument("--coordinator", metavar="HOST[:PORT]", help=text)


def _configure_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--place", metavar="NAME", help="this place")
    run.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="any place with this tag")
    run.add_argument("--env", type=Path, metavar="FILE", help="labgrid environment (default: the kit's for the board)")
    run.add_argument("--wait", type=float, default=3600.0, metavar="SECONDS", help="how long for a turn (default 3600)")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="how long the command may take")
    run.add_argument(
        "--lost-after",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="how long the coordinator or an exporter may be away (default 15)",
    )
    run.add_argument("--priority", type=float, default=0.0, help="before those with less (default 0)")
    run.add_argument("--results", type=Path, metavar="DIR", help="where to put the log and the reports")
    run.add_argument("--kernelci-job", type=Path, metavar="FILE", help="a pull-lab job of KernelCI, instead of --")
    add_board_options(run)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    verbs: dict[str, Callable[[argparse.Namespace, Output], dict[str, Any]]] = {
        "up": _up,
        "down": _down,
        "status": _status,
        "place": _places,
        "sweep": _sweep,
        "run": _run,
    }
    return verbs[args.verb](args, out)


def tags_of(words: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` words as a dictionary; KitError (usage) for any other word."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals or not value:
            raise KitError(ExitCode.USAGE, f"--tag {word}: not KEY=VALUE", "for example --tag board=virt")
        found[key] = value
    return found


def _up(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from lab.farm.server import LocalFarm

    server = LocalFarm(args.boards, args.port, tags_of(args.tag))
    with out.stage("starting the farm"):
        farm = server.start()
    try:
        out.say(f"coordinator at {farm.coordinator}, places {', '.join(farm.places)}; logs: {farm.results}")
        out.say("run something: npulab farm run --tag board=virt")
        if args.detach:
            server.detach()
            out.say("end it: npulab farm down")
        else:
            out.note("Ctrl-C ends it")
            server.wait()
    finally:
        server.stop()
    return {"farm": farm.document()}


def _down(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from lab.farm.server import stop_local

    farm = stop_local(args.force)
    out.say(f"the farm at {farm.coordinator} is down")
    return {"farm": farm.document()}


def _list_places(address: str, out: Output) -> tuple[list[Place], Client]:
    client = Client(address)
    try:
        places = client.places()
    except BaseException:
        client.close()
        raise
    rows = [[p.name, " ".join(f"{k}={v}" for k, v in sorted(p.tags.items())), p.acquired or "free"] for p in places]
    out.table(f"places at {client.address}", ["place", "tags", "held by"], rows)
    return places, client


def _document(place: Place) -> dict[str, Any]:
    return {"name": place.name, "tags": dict(place.tags), "acquired": place.acquired, "matches": list(place.matches)}


def _places(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    if args.what == "apply":
        _apply(args.file, state.coordinator_address(args.coordinator))
    places, client = _list_places(state.coordinator_address(args.coordinator), out)
    client.close()
    return {"places": [_document(place) for place in places]}


def _apply(path: Path, address: str) -> None:
    """Make or correct the places of a file; others stay as they are."""
    try:
        document = yaml.safe_load(path.read_text())
        jsonschema.validate(document, PLACES_SCHEMA)
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"{path}: {error.strerror}", "name a file that is there") from error
    except (yaml.YAMLError, jsonschema.ValidationError) as error:
        why = getattr(error, "message", "") or " ".join(str(error).split())
        raise KitError(ExitCode.USAGE, f"{path}: {why}", "see lab/labgrid/examples/places.yaml") from error
    client = Client(address)
    try:
        for name, entry in document.items():
            client.ensure_place(name, entry["match"], entry.get("tags", {}), entry.get("comment", ""))
    finally:
        client.close()


def _status(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    farm = state.local_farm()
    if farm is None:
        out.say("no farm of this user runs on this host")
    else:
        out.say(f"the farm of this host: {farm.coordinator}; logs: {farm.results}")
    places, client = _list_places(state.coordinator_address(args.coordinator), out)
    try:
        waiting = [entry for entry in client.reservations() if entry.state == "waiting"]
    finally:
        client.close()
    for entry in waiting:
        words = " ".join(f"{key}={value}" for key, value in entry.filters.items())
        out.say(f"{entry.owner} waits for a place with {words}")
    return {
        "farm": farm.document() if farm else None,
        "coordinator": client.address,
        "places": [_document(place) for place in places],
        "waiting": [{"owner": entry.owner, "filters": dict(entry.filters)} for entry in waiting],
    }


def _sweep(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    places = state.sweep(state.coordinator_address(args.coordinator))
    out.say(f"released {', '.join(places)}" if places else "nothing was left")
    return {"released": places}


def _run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from lab.farm.runner import Job, Runner, check_command, is_pytest

    address = state.coordinator_address(args.coordinator)
    if args.kernelci_job is not None:
        from lab.farm import kernelci

        return kernelci.run(args, address, out)
    filters = wanted(args)
    command = list(args.rest)
    if command:
        check_command(command)
    if args.env is not None:
        from lab.labgrid.envcheck import check

        check(args.env)
    job = Job(
        address,
        filters,
        command,
        args.env,
        wait=args.wait,
        timeout=args.timeout,
        priority=args.priority,
        lost_after=args.lost_after,
        results=args.results,
        variables=board_variables(args, filters, out) if is_pytest(command) or not command else {},
    )
    record = Runner(job, out).run()
    ok = record.code == 0
    out.say(f"{record.place}: {'passed' if ok else f'ended with {record.code}'}; results: {record.results}")
    return {"ok": ok, "job": vars(record)}


def wanted(args: argparse.Namespace) -> dict[str, str]:
    """The tags that ``--place`` and ``--tag`` ask for; any place when neither does."""
    filters = tags_of(args.tag)
    if args.place:
        filters["name"] = args.place
    if not filters:
        raise KitError(ExitCode.USAGE, "which place? neither --place nor --tag was given", "npulab farm place list")
    return filters


def board_variables(args: argparse.Namespace, filters: dict[str, str], out: Output) -> dict[str, str]:
    """What a virtual board is to boot, for the command's environment.

    The artifact set is found (and assembled) before the place is taken, so that nobody waits for a build. Only when
    the job names virtual boards: for others nothing is built.
    """
    variables = {"NPULAB_MEMORY": args.memory, "NPULAB_DTB": args.dtb, "NPULAB_KERNEL": args.kernel}
    virtual = filters.get("board") == "virt" or filters.get("virtual") or filters.get("name", "").startswith("virt-")
    chosen = args.artifacts or os.environ.get("NPULAB_ARTIFACTS")
    if chosen or virtual:
        from lab.virt.select import find_artifacts, find_dtb

        artifacts = find_artifacts(chosen, args.kernel, out)
        variables |= {"NPULAB_ARTIFACTS": str(artifacts.root), "NPULAB_DTB": str(find_dtb(artifacts, args.dtb))}
    return variables
