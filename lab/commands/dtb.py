# SPDX-License-Identifier: MIT
"""``npulab dtb``: can the NPU work with this device tree, and what is missing?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.kernel import fdtree, graph, picture
from lab.output import Output

HELP = "check device trees, any board's and any kernel's, for what the NPU needs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", help="follow everything the NPU hangs on and say what is missing")
    check.add_argument("files", nargs="+", metavar="DTB", type=Path, help="compiled device trees of RK3588 boards")
    check.add_argument("--strict", action="store_true", help="warnings count as errors")
    check.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the graph, .svg or .png; %%s is the dtb's name"
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Check each file; the document has one entry per file."""
    picture_of = _picture_names(args.files, args.picture)
    results = []
    for path in args.files:
        found = graph.examine(fdtree.load_rk3588(path))
        good = found.ok and not (args.strict and found.findings)
        _show(path, found, good, out)
        entry = {"file": str(path), **found.document(), "ok": good}
        if args.picture:
            picture.draw(found, picture_of[path])
            entry["picture"] = str(picture_of[path])
            out.note(f"picture: {picture_of[path]}")
        results.append(entry)
    return {"ok": all(entry["ok"] for entry in results), "trees": results}


def _picture_names(files: list[Path], pattern: Path | None) -> dict[Path, Path]:
    if pattern is None:
        return {}
    if len(files) > 1 and "%s" not in pattern.name:
        raise KitError(ExitCode.USAGE, f"one picture {pattern} for {len(files)} files", "put %s into its name")
    return {path: pattern.with_name(pattern.name.replace("%s", path.stem)) for path in files}


def _show(path: Path, found: graph.Graph, good: bool, out: Output) -> None:
    cores = len(found.cores)
    verdict = "nothing is missing" if good else "incomplete" if found.errors else "see the warnings"
    out.say(f"{path}: {found.model}: NPU {found.state}, {cores} of 3 cores enabled: {verdict}")
    for finding in found.findings:
        out.say(f"  {finding.level}: {finding.path}: {finding.what}")
        if finding.why:
            out.say(f"      {finding.why}")
