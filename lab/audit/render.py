# SPDX-License-Identifier: MIT
"""The audit as Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lab.audit.table import BAD, GOOD, Cell, Change, Column, Table
from lab.audit.userspace import Consumer

_COLOUR = {GOOD: "#d9ead3", BAD: "#f4cccc"}
_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "td,th{border:1px solid #999;padding:.3em .5em;text-align:left;vertical-align:top;font-size:90%}"
    "small{display:block;color:#555;word-break:break-word}"
)


def _cell(cell: Cell) -> str:
    value = f"**{_escaped(cell.value)}**" if cell.state == BAD else _escaped(cell.value)
    return f"{value}<br><sub>{_escaped(cell.evidence)}</sub>" if cell.evidence else value


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _heading(columns: Sequence[Column]) -> list[str]:
    titles = [column.version for column in columns]
    return ["| fact | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]


def markdown(table: Table, consumers: Sequence[Consumer], command: str) -> str:
    """The whole table; ``command`` is what makes it."""
    lines = [
        "<!-- SPDX-License-Identifier: MIT -->",
        "# Audit of the NPU's support in Linux",
        "",
        f"Output of `{command}`. Below each value stands where it was found; `-` is what a kernel's files do not tell.",
        "",
        "| column | from |",
        "|---|---|",
        *(f"| {column.version} | {_origin(column)} |" for column in table.columns),
    ]
    for group, rows in table.groups().items():
        lines += ["", f"## {group[0].upper()}{group[1:]}", "", *_heading(table.columns)]
        for row in rows:
            cells = " | ".join(_cell(table.cell(row, column)) for column in table.columns)
            lines.append(f"| {_escaped(row.title)} | {cells} |")
    if consumers:
        lines += ["", "## User space", "", "| library | version | drives rocket | evidence |", "|---|---|---|---|"]
        lines += [f"| {c.name} | {c.version} | {'yes' if c.rocket else '**no**'} | {c.evidence} |" for c in consumers]
    return "\n".join(lines) + "\n"


def _origin(column: Column) -> str:
    """Where a kernel came from, in words that mean something on another machine."""
    origin = column.origin
    if origin.get("kind") == "tree":
        what = f"commit {origin['commit']}" if "commit" in origin else f"contents {origin.get('contents', 'unknown')}"
        return f"tree, {what}"
    return f"{origin.get('kind', '')} {origin.get('name', '')} {origin.get('version', '')}".strip()


def changes_markdown(changes: Sequence[Change], old: Column, new: Column) -> str:
    """What differs between two kernels."""
    lines = [f"# From {old.version} to {new.version}", ""]
    if not changes:
        return "\n".join([*lines, "Nothing that the audit looks at changed.", ""])
    lines += ["| fact | was | is | |", "|---|---|---|---|"]
    for change in changes:
        verdict = "**regressed**" if change.regressed and change.row.relied else "worse" if change.regressed else ""
        title = f"{change.row.group}: {change.row.title}"
        lines.append(f"| {_escaped(title)} | {_cell(change.old)} | {_cell(change.new)} | {verdict} |")
    return "\n".join(lines) + "\n"


def html_page(table: Table, consumers: Sequence[Consumer], command: str) -> str:
    """One self-contained page."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Audit of the NPU's support in Linux</title><style>{_STYLE}</style>"
    ]
    parts.append(f"<h1>Audit of the NPU's support in Linux</h1><p>Output of <code>{html.escape(command)}</code></p>")
    for group, rows in table.groups().items():
        head = "".join(f"<th>{html.escape(column.version)}</th>" for column in table.columns)
        parts.append(f"<h2>{html.escape(group)}</h2><table><tr><th>fact</th>{head}</tr>")
        for row in rows:
            cells = "".join(_html_cell(table.cell(row, column)) for column in table.columns)
            parts.append(f"<tr><td>{html.escape(row.title)}</td>{cells}</tr>")
        parts.append("</table>")
    if consumers:
        parts.append("<h2>user space</h2><table><tr><th>library</th><th>version</th><th>drives rocket</th></tr>")
        for consumer in consumers:
            cell = Cell("yes" if consumer.rocket else "no", GOOD if consumer.rocket else BAD, consumer.evidence)
            name, version = html.escape(consumer.name), html.escape(consumer.version)
            parts.append(f"<tr><td>{name}</td><td>{version}</td>{_html_cell(cell)}</tr>")
        parts.append("</table>")
    return "\n".join(parts) + "\n"


def _html_cell(cell: Cell) -> str:
    colour = _COLOUR.get(cell.state)
    style = f' style="background:{colour}"' if colour else ""
    return f"<td{style}>{html.escape(cell.value)}<small>{html.escape(cell.evidence)}</small></td>"
