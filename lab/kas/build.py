# SPDX-License-Identifier: MIT
"""``npulab build BOARD --with kas``: kas and BitBake driven, their results checked and put into the kit's own forms."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import boards
from lab.assemble import board, mirror
from lab.assemble.apt import Apt
from lab.assemble.artifacts import ArtifactSet, export
from lab.assemble.virt import BuildOptions, around
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kas import collect, drive, source
from lab.kas.drive import Outcome, Places
from lab.kas.request import Request
from lab.output import Output

IMAGES_FOLDER = "images"


@dataclass(frozen=True)
class Result:
    """What came out: the artifact set that boots the virtual board, for a real board also its kernel set."""

    outcome: Outcome
    artifacts: ArtifactSet
    board_set: board.BoardSet | None
    kernel: Path
    images: dict[str, Path]


def run(
    request: Request, options: BuildOptions, cache: Cache, apt: Apt, out: Output, where: Places
) -> tuple[Outcome, dict[str, Any]]:
    """kas and BitBake alone; what became of it, and the manifest's origin of the source."""
    kas = drive.preflight(request, where)
    spec = str(options.source) if options.source is not None else None
    variables, origin = source.find(request, spec, cache, apt, out)
    if options.jobs != os.cpu_count():
        variables |= {"BB_NUMBER_THREADS": str(options.jobs), "PARALLEL_MAKE": f"-j {options.jobs}"}
    return drive.build(kas, request, where, out, variables), origin


def build(request: Request, options: BuildOptions, out: Output, where: Places | None = None) -> Result:
    """Build with kas and collect; ``options.source`` as `source.find` takes it."""
    cache = Cache()
    where = where or drive.places(cache, request.machine)
    apt = Apt(cache, mirror.find(options.debian_mirror), where.log, update=options.update)
    outcome, origin = run(request, options, cache, apt, out, where)
    found = collect.look(request, where)
    kernel = collect.kernel_entry(found, request, origin, apt, cache, out, where.log)
    virtual = boards.load(request.board).virtual
    parts = {"kernel": kernel}
    rootfs = collect.image_rootfs(found, request, cache) if virtual else None
    if rootfs is not None:
        parts["rootfs"] = rootfs
    artifacts = around(parts, options, out)
    fixes = request.kernel_options.fixes
    board_set = None if virtual else board.from_kernel(request.board, kernel, fixes=fixes, cache=cache)
    _remember(cache, request, artifacts, board_set)
    return Result(outcome, artifacts, board_set, kernel, found.extra)


def _remember(cache: Cache, request: Request, artifacts: ArtifactSet, board_set: board.BoardSet | None) -> None:
    """Which set is the newest, for comparisons."""
    path = newest(cache, request.board)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    document = {"artifacts": str(artifacts.root), "kernel_set": str(board_set.root) if board_set else ""}
    partial.write_text(json.dumps(document) + "\n")
    partial.rename(path)


def newest(cache: Cache, name: str) -> Path:
    """The file that names the newest sets of a board."""
    return cache.root / "kas-newest" / f"{name}.json"


def command(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """The command line's part; see `lab.commands.build`."""
    name = "virt" if args.board == "virt" else args.board
    if args.qemu_source and name != "virt":
        raise KitError(ExitCode.USAGE, "--qemu-source is for the virtual board", "leave it out")
    wanted = tuple(dict.fromkeys([*args.option, *_words(args)]))
    request = Request(name, args.kernel or "7.3", args.image or "bringup", wanted)
    options = BuildOptions(
        source=args.source,
        qemu_source=args.qemu_source,
        jobs=args.jobs,
        debian_mirror=args.debian_mirror,
        update=args.update,
    )
    if args.deb and name == "virt":
        raise KitError(ExitCode.USAGE, "--deb is for real boards", "the virtual board boots its set as it is")
    result = build(request, options, out)
    package = ""
    if args.deb and result.board_set is not None:
        args.deb.mkdir(parents=True, exist_ok=True)
        package = str(board.package(result.board_set, args.deb, result.outcome.places.log))
    artifacts = export(result.artifacts, args.out) if args.out else result.artifacts
    if args.out:
        _copy_images(result, args.out)
    return _report(request, result, artifacts, package, out)


def _words(args: argparse.Namespace) -> list[str]:
    """Options that the minutes path has as switches."""
    return ["without-fixes"] if args.without_fixes else []


def _copy_images(result: Result, target: Path) -> None:
    folder = target / IMAGES_FOLDER
    for name, path in result.images.items():
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)


def _report(request: Request, result: Result, artifacts: ArtifactSet, package: str, out: Output) -> dict[str, Any]:
    progress, linux = result.outcome.progress, artifacts.manifest["kernel"]
    rebuilt = progress.rebuilt()
    ran = sum(len(tasks) for tasks in rebuilt.values())
    rows = [
        ["kernel", f"{linux['release']}, rocket {linux['rocket']}, {linux['compiler']}"],
        ["device trees", ", ".join(request.trees)],
        *([["image", ", ".join(sorted(result.images))]] if result.images else []),
        ["tasks", f"{progress.attempted}, of which {ran} ran, {progress.kept} did not need to"],
        ["time", f"{result.outcome.seconds:.0f} s, of which {progress.parse_seconds:.0f} s to the first task"],
        *([["to install", f"{result.board_set.root}/install/install.sh ROOT"]] if result.board_set else []),
        *([["package", package]] if package else []),
        ["artifact set", str(artifacts.root)],
        ["deploy directory", str(result.outcome.places.deploy(request.machine))],
        ["log", str(result.outcome.places.log)],
    ]
    out.table(f"{boards.load(request.board).title}, with kas", ["part", "what"], rows)
    return {
        "ok": True,
        "board": request.board,
        "machine": request.machine,
        "files": request.files,
        "target": request.target,
        "artifacts": str(artifacts.root),
        "kernel_set": str(result.board_set.root) if result.board_set else "",
        "kernel": linux["release"],
        "images": {name: str(path) for name, path in sorted(result.images.items())},
        "package": package,
        "seconds": round(result.outcome.seconds, 1),
        "parse_seconds": round(progress.parse_seconds, 1),
        "tasks": progress.attempted,
        "kept": progress.kept,
        "ran": rebuilt,
        "warnings": progress.warnings,
        "log": str(result.outcome.places.log),
    }
