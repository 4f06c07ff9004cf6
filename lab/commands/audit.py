# SPDX-License-Identifier: MIT
"""``npulab audit``: what of the NPU's support is in which kernel, and what changed from one to the next."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.audit import facts, render, userspace
from lab.audit.table import Change, Column, Table, changes
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kernel import check, parts
from lab.output import Output

HELP = "say what of the NPU's support is in which kernel, with evidence"
DEFAULT = ("6.12", "7.2", "7.3")
"""Kernels that Debian has the source of."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help="a tree, tarball, .deb or version, repeatable; with NAME= before it the column is called so "
        f"(default {' '.join(DEFAULT)})",
    )
    parser.add_argument("--since", metavar="KERNEL", help="print only what changed since this one; 1 if it regressed")
    parser.add_argument(
        "--mesa", action="append", default=[], type=Path, metavar="FILE", help="libteflon.so or its .deb"
    )
    parser.add_argument("--no-userspace", action="store_true", help="leave user space out")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table as a page")
    parser.add_argument("--debian-mirror", metavar="URI", help="where Debian's packages come from")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Fill the table, write it, and compare."""
    cache, table = Cache(), Table()
    specs = list(dict.fromkeys([*([args.since] if args.since else []), *(args.kernel or DEFAULT)]))
    for spec in specs:
        _column(table, spec, args, cache, out)
    consumers = _consumers(args, cache, out)
    command = "npulab audit" + "".join(f" --kernel {_public(spec)}" for spec in args.kernel)
    if args.markdown:
        _write(args.markdown, render.markdown(table, consumers, command), out)
    if args.html:
        _write(args.html, render.html_page(table, consumers, command), out)
    document = {**table.document(), "userspace": [consumer.document() for consumer in consumers]}
    if args.since:
        return {**document, **_compare(table, out)}
    if not args.markdown and not args.html:
        _show(table, consumers, out)
    return document


def _public(spec: str) -> str:
    """A kernel as the command line in a document shows it: a path's last part."""
    name, separator, path = spec.rpartition("=")
    return f"{name}{separator}{Path(path).name if '/' in path else path}"


def _column(table: Table, spec: str, args: argparse.Namespace, cache: Cache, out: Output) -> None:
    name, _, where = spec.rpartition("=") if "=" in spec and "#sha256=" not in spec else ("", "", spec)
    kernel = parts.open_kernel(where, cache, out, mirror=args.debian_mirror)
    config = _debian_config(kernel, args, cache, out)
    label = name or kernel.version
    if any(column.label == label for column in table.columns):
        raise KitError(ExitCode.USAGE, f"two kernels are called {label}", "name them: --kernel NAME=KERNEL")
    origin = {key: value for key, value in kernel.origin.items() if key != "path"}
    column = Column(label, label, origin)
    table.add(column, facts.facts(kernel, config, cache, out))


def _debian_config(kernel: parts.Kernel, args: argparse.Namespace, cache: Cache, out: Output) -> Path | None:
    """The arm64 configuration that belongs to a Debian source package; None for other kernels."""
    if kernel.built or kernel.origin.get("kind") != "debian":
        return None
    from lab.assemble import mirror as mirrors
    from lab.assemble.apt import TARGET, Apt

    apt = Apt(cache, mirrors.find(args.debian_mirror), cache.root / "log" / "audit.log")
    try:
        package = apt.locate([f"linux-config-{parts.base_of(kernel.version)}"], TARGET, out)
        (deb,) = apt.fetch(package, f"Debian configuration {kernel.label}", out)
    except KitError as error:
        out.note(f"Linux {kernel.version}: no Debian configuration: {error.message}")
        return None
    return check.collect(parts.open_kernel(str(deb), cache, out).root).config


def _consumers(args: argparse.Namespace, cache: Cache, out: Output) -> list[userspace.Consumer]:
    if args.mesa:
        return [userspace.from_file(path) for path in args.mesa]
    if args.no_userspace or args.since:
        return []
    return userspace.from_debian(cache, out, args.debian_mirror)


def _write(path: Path, text: str, out: Output) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    out.note(f"wrote {path}")


def _show(table: Table, consumers: list[userspace.Consumer], out: Output) -> None:
    titles = ["fact", *(column.version for column in table.columns)]
    for group, rows in table.groups().items():
        cells = [[row.title, *(_short(table.cell(row, column).value) for column in table.columns)] for row in rows]
        out.table(group, titles, cells)
    if consumers:
        libraries = [(c.name, c.version, "yes" if c.rocket else "no") for c in consumers]
        out.table("user space", ("library", "version", "drives rocket"), libraries)
    out.say("evidence for each value: --json, --markdown FILE or --html FILE")


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}..."


def _compare(table: Table, out: Output) -> dict[str, Any]:
    """What changed from the first column to each of the others."""
    old, documents, good = table.columns[0], [], True
    for new in table.columns[1:]:
        found = changes(table, old, new)
        out.say(render.changes_markdown(found, old, new))
        lost = [change for change in found if change.regressed and change.row.relied]
        good = good and not lost
        documents.append({"from": old.version, "to": new.version, "changes": [_change(change) for change in found]})
    return {"ok": good, "since": documents}


def _change(change: Change) -> dict[str, Any]:
    return {
        "key": change.row.key,
        "title": change.row.title,
        "was": change.old.value,
        "is": change.new.value,
        "evidence": change.new.evidence,
        "regressed": change.regressed and change.row.relied,
    }
