# SPDX-License-Identifier: MIT
"""``npulab dtb``: can the NPU work with this device tree, and what is missing?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kernel import dtsource, fdtree, graph, parts, picture, schema
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
    valid = verbs.add_parser("validate", help="compare with the kernel's bindings; only what mainline lacks counts")
    valid.add_argument("files", nargs="*", metavar="DTB", type=Path, help="device trees (default: the kit's own)")
    valid.add_argument("--kernel", default="7.3", metavar="KERNEL", help="tree, tarball or version (default 7.3)")
    valid.add_argument("--npu", action="store_true", help="the NPU's nodes only: seconds instead of minutes")
    valid.add_argument("--debian-mirror", metavar="URI", help="where Debian's sources come from")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb; the document has one entry per file."""
    return _validate(args, out) if args.verb == "validate" else _check(args, out)


def _check(args: argparse.Namespace, out: Output) -> dict[str, Any]:
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


def _validate(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    cache = Cache()
    kernel = parts.open_kernel(args.kernel, cache, out, mirror=args.debian_mirror)
    files = list(args.files)
    for path in files:
        fdtree.load_rk3588(path)
    schemas = schema.processed(kernel, cache, out)
    limit = schema.NPU_SCHEMAS if args.npu else ""
    own = sorted(dtsource.OWN.glob("*.dts"))
    folder = dtsource.compile_boards(kernel.root, cache, out, f"Linux {kernel.version}", own)
    files = files or [folder / f"{source.stem}.dtb" for source in own]
    results = []
    for path in files:
        found = schema.validate(path, schemas, cache, out, limit)
        reference = _reference(path, folder)
        known = schema.validate(reference, schemas, cache, out, limit) if found and reference else []
        new = schema.beyond(found, known)
        against = f", of which mainline's {reference.stem} has {len(found) - len(new)}" if known and reference else ""
        out.say(f"{path.name}: {len(found)} findings{against}, {len(new)} new")
        for line in new:
            out.say(f"  {line}")
        results.append({"file": path.name, "ok": not new, "findings": found, "new": new})
    return {"ok": all(entry["ok"] for entry in results), "kernel": kernel.version, "trees": results}


def _reference(path: Path, folder: Path) -> Path | None:
    """Mainline's tree of the same board, or of the one that its name extends (``-plus``)."""
    names = (path.stem, path.stem.rpartition("-")[0])
    found = (folder / f"{name}.dtb" for name in names)
    return next((candidate for candidate in found if candidate.is_file() and candidate != path), None)


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
