# SPDX-License-Identifier: MIT
"""``npulab kernel``: is this kernel good for the NPU, and which of the kit's patches does it need?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab import boards
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kernel import check, parts, patches
from lab.output import Output

HELP = "check kernels, the kit's and foreign ones, and what the kit's patches would do to them"


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs and options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    checks = verbs.add_parser("check", help="configuration, driver, module, interface and device trees of a kernel")
    checks.add_argument("targets", nargs="+", metavar="KERNEL", help="artifact set, build tree, directory or .deb")
    checks.add_argument("--board", action="append", default=[], metavar="BOARD", help="only this board's device tree")
    checks.add_argument("--with", dest="beside", action="append", default=[], type=Path, metavar="DIR|DEB|FILE")
    checks.add_argument("--release", default="", help="the kernel's release, when no image says it")
    state = verbs.add_parser("patches", help="each patch's state against a kernel tree")
    state.add_argument("tree", metavar="KERNEL", help="tree, tarball, .deb of the source, or version such as 7.3")
    state.add_argument("--debian-mirror", metavar="URI", help="where Debian's sources come from")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """One verb."""
    return _check(args, out) if args.verb == "check" else _patches(args, out)


def _check(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    trees = [_board(name) for name in args.board]
    extra = [_files(str(path), out) for path in args.beside]
    kernels = []
    for target in args.targets:
        files = _files(target, out)
        for other in extra:
            _add(files, other)
        results = check.run(files, trees, release=args.release)
        good = check.verdict(results)
        out.table(
            f"{target}: {'no fault found' if good else 'not good for the NPU'}",
            ("check", "result", "found"),
            [(r.name, r.state, r.found) for r in results],
        )
        for result in results:
            if result.why:
                out.say(f"  {result.name}: {result.why}")
        kernels.append({"kernel": target, "ok": good, "checks": check.document(results)})
    return {"ok": all(kernel["ok"] for kernel in kernels), "kernels": kernels}


def _board(name: str) -> str:
    """Name of a board's dtb: that of the kit's board, or as it is."""
    try:
        return Path(boards.load(name).dtb).stem
    except KitError:
        return name.removesuffix(".dtb")


def _files(target: str, out: Output) -> check.Files:
    path = Path(target).expanduser()
    if target.endswith(".deb"):
        return check.collect(parts.open_kernel(target, Cache(), out).root)
    if path.is_dir():
        return check.collect(path)
    if not path.is_file():
        raise KitError(ExitCode.USAGE, f"{target}: there is no such file or directory", "check the path")
    if path.suffix == ".dtb":
        return check.Files(dtbs=[path])
    if ".ko" in path.suffixes:
        return check.Files(module=path)
    if path.name in ("vmlinux", "Module.symvers") or path.name.startswith("System.map"):
        return check.Files(symbols=[path])
    if "config" in path.name:
        return check.Files(config=path)
    return check.Files(image=path)


def _add(files: check.Files, other: check.Files) -> None:
    files.image = files.image or other.image
    files.config = files.config or other.config
    files.module = files.module or other.module
    files.builtin = files.builtin or other.builtin
    files.header = files.header or other.header
    files.modules += other.modules
    files.symbols += other.symbols
    files.dtbs += other.dtbs


def _patches(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    kernel = parts.open_kernel(args.tree, Cache(), out, mirror=args.debian_mirror)
    outcomes = patches.trial(kernel.root, kernel.version, patches.GROUPS)
    rows = [(o.patch.name, o.patch.group, o.state, o.why or o.patch.reason) for o in outcomes]
    out.table(f"patches for Linux {kernel.version}", ("patch", "group", "state", "why"), rows)
    names = ("name", "group", "state", "why")
    ok = all(row[2] != "does not apply" for row in rows)
    return {"ok": ok, "version": kernel.version, "patches": [dict(zip(names, row, strict=True)) for row in rows]}
