# SPDX-License-Identifier: MIT
"""``npulab kas``: the product path, checked with the real tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.cache import Cache
from lab.kas import verify
from lab.kas.verify_plan import CONFIGURATIONS, STEPS, choose, machines
from lab.output import Output

HELP = "check kas files and layer with the real kas and BitBake"

_NAMES = ", ".join(one.name for one in CONFIGURATIONS)


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    checks = verbs.add_parser(
        "verify",
        help="parse, graphs and dry runs of every image, layer checks, a kernel's build and its boot",
        description="Needs the layers' repositories (the network, or KAS_REPO_REF_DIR), a normal user and hours; what "
        "passed is not done again. Steps: " + "; ".join(f"{name}: {meaning}" for name, meaning in STEPS.items()),
    )
    checks.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step (repeatable)")
    checks.add_argument("--machine", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    checks.add_argument("--configuration", action="append", default=[], metavar="NAME", help=f"one of {_NAMES}")
    checks.add_argument("--work", type=Path, metavar="DIR", help="layers, builds, results (default: in the cache)")
    checks.add_argument("--threads", type=int, default=2, metavar="N", help="BitBake's threads (default %(default)s)")
    checks.add_argument("--quick", action="store_true", help="a selection of the board suite instead of all of it")
    checks.add_argument("--fresh", action="store_true", help="do again what passed before")
    checks.add_argument("--artifacts", type=Path, metavar="DIR", help="a set that build --with kas made before")
    checks.add_argument("--board", default="rock-5-itx-plus", metavar="BOARD", help="whose kernel (%(default)s)")
    checks.add_argument("--dtb", default="rk3588-rock-5-itx-plus", metavar="TREE", help="what boots (%(default)s)")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Verify; the document is the state file's."""
    options = verify.Options(
        steps=choose("step", args.only, list(STEPS)),
        machines=choose("machine", args.machine, machines()),
        configurations=choose("configuration", args.configuration, [one.name for one in CONFIGURATIONS]),
        work=(args.work or Cache().root / "kas-verify").absolute(),
        threads=args.threads,
        quick=args.quick,
        fresh=args.fresh,
        artifacts=args.artifacts.absolute() if args.artifacts else None,
        board=args.board,
        tree=args.dtb,
    )
    document = verify.Verification(options, out).run()
    out.say(f"\nresults: {options.work / verify.REPORT}, {options.work / verify.STATE}")
    return document
