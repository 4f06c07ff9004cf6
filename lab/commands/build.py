# SPDX-License-Identifier: MIT
"""``npulab build <board>``: from sources to a checked artifact set, the minutes path or the product path."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

from lab import boards
from lab.assemble import board
from lab.assemble.artifacts import export
from lab.assemble.virt import FLAVOURS, BuildOptions, assemble
from lab.errors import ExitCode, KitError
from lab.kas.request import IMAGES
from lab.output import Output

HELP = "assemble a kernel, root file system and board into an artifact set"


def _jobs(text: str) -> int:
    jobs = int(text)
    if not 1 <= jobs <= 512:
        raise argparse.ArgumentTypeError(f"{jobs} is not between 1 and 512")
    return jobs


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    real = [name for name in boards.names() if not boards.load(name).virtual]
    parser.add_argument("board", choices=["virt", *real], help="virt, the virtual board, or a real one")
    parser.add_argument(
        "--kernel",
        metavar="KERNEL",
        help="virt: fast, trimmed mainline 7.3, built here (default), debug, the same with its own checkers, or "
        "distro, Debian's own 7.3 with rocket built against it; a real board: 7.3 (default), another version, or a "
        "source as for --source",
    )
    parser.add_argument("--without-fixes", action="store_true", help="a real board's driver as mainline has it")
    parser.add_argument("--deb", metavar="DIR", type=Path, help="also make a Debian package of a real board's kernel")
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="kernel source: apt (default), a kernel tree, a tarball, or https://...#sha256=HEX; not for distro",
    )
    parser.add_argument("--qemu-source", metavar="SOURCE", help="QEMU 10.0 source, in the same forms")
    parser.add_argument("--rocket-module", action="store_true", help="the driver as a module (not for distro)")
    parser.add_argument(
        "--debian-mirror", metavar="URI", help="Debian mirror, where apt has none (NPULAB_DEBIAN_MIRROR)"
    )
    parser.add_argument("--update", action="store_true", help="ask the mirror for newer versions")
    parser.add_argument(
        "--jobs", "-j", type=_jobs, default=os.cpu_count() or 1, help="parallel jobs (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="also copy the artifact set to this directory")
    product = parser.add_argument_group("the product path (docs/kas.md)")
    product.add_argument("--with", dest="engine", choices=("kas",), help="build with kas and BitBake instead")
    product.add_argument(
        "--image", choices=tuple(IMAGES), help="with kas: what to build (default bringup; kernel builds no image)"
    )
    product.add_argument(
        "--option", action="append", default=[], metavar="NAME", help="with kas: a file of kas/opt, repeatable"
    )
    product.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="show where kernel configuration, device trees and modules of two sets differ and why: directories, or "
        "the words minutes and kas for the newest of this board",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Build; the document names the set, what is in it, and whether anything had to be done."""
    if args.compare:
        from lab.kas import compare

        return compare.command(args.board, args.compare, out)
    if args.engine == "kas":
        from lab.kas import build as product

        return product.command(args, out)
    if args.image or args.option:
        raise KitError(ExitCode.USAGE, "--image and --option are for the product path", "add --with kas")
    if args.board != "virt":
        return _real(args, out)
    args.kernel = args.kernel or "fast"
    if args.kernel not in FLAVOURS:
        known = ", ".join(FLAVOURS)
        raise KitError(ExitCode.USAGE, f"--kernel {args.kernel}: the virtual board has {known}", "or use --source")
    if args.without_fixes or args.deb:
        message = "--without-fixes and --deb are for real boards"
        raise KitError(ExitCode.USAGE, message, "the virtual board's kernel is stock")
    if args.kernel == "distro" and (args.source or args.rocket_module):
        raise KitError(
            ExitCode.USAGE,
            "--source and --rocket-module are for kernels that are built here",
            "the distro kernel comes from Debian's packages, with rocket as a module",
        )
    started = time.time()
    options = BuildOptions(
        kernel=args.kernel,
        source=args.source,
        qemu_source=args.qemu_source,
        jobs=args.jobs,
        rocket_module=args.rocket_module,
        debian_mirror=args.debian_mirror,
        update=args.update,
    )
    artifacts = assemble(options, out)
    cached = (artifacts.root / "manifest.json").stat().st_mtime < started
    if args.out:
        artifacts = export(artifacts, args.out)
    manifest = artifacts.manifest
    with_npu = sorted(name for name, tree in manifest["dtbs"].items() if tree["npu"] == "enabled")
    rows = [
        ["kernel", f"{manifest['kernel']['release']}, rocket {manifest['kernel']['rocket']}"],
        ["device trees", f"{len(manifest['dtbs'])}, {len(with_npu)} with the NPU enabled"],
        ["root file system", f"Debian {manifest['rootfs']['suite']}, Python {manifest['rootfs']['python']}"],
        ["QEMU", manifest["qemu"]["version"]],
        ["artifact set", str(artifacts.root)],
    ]
    seconds = time.time() - started
    state = "nothing to do, it was built before" if cached else f"built in {seconds:.0f} s"
    out.table(f"Virtual board: {state}", ["part", "what"], rows)
    return {
        "ok": True,
        "board": args.board,
        "artifacts": str(artifacts.root),
        "cached": cached,
        "seconds": round(seconds, 2),
        "kernel": manifest["kernel"]["release"],
        "dtbs_with_npu": with_npu,
    }


def _real(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """A real board's kernel."""
    started = time.time()
    options = board.BoardKernelOptions(rocket_module=args.rocket_module, jobs=args.jobs, fixes=not args.without_fixes)
    built = board.assemble(args.board, options, args.kernel or args.source, out, args.debian_mirror)
    cached = (built.root / board.MANIFEST).stat().st_mtime < started
    package = ""
    if args.deb:
        args.deb.mkdir(parents=True, exist_ok=True)
        package = str(board.package(built, args.deb, built.root.parent / "package.log"))
    if args.out:
        shutil.copytree(built.root, args.out, dirs_exist_ok=False)
    linux = built.manifest["kernel"]
    seconds = time.time() - started
    rows = [
        ["kernel", f"{linux['release']}, rocket {linux['rocket']}, {len(linux['patches'])} patches"],
        ["device tree", built.manifest["dtb"]],
        ["to install", f"{built.root}/install/install.sh ROOT"],
        *([["package", package]] if package else []),
        ["kernel set", str(built.root)],
    ]
    state = "nothing to do, it was built before" if cached else f"built in {seconds:.0f} s"
    out.table(f"{boards.load(args.board).title}: {state}", ["part", "what"], rows)
    return {
        "ok": True,
        "board": args.board,
        "artifacts": str(built.root),
        "cached": cached,
        "seconds": round(seconds, 2),
        "kernel": linux["release"],
        "dtb": built.manifest["dtb"],
        "package": package,
    }
