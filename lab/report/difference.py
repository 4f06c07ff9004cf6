# SPDX-License-Identifier: MIT
"""A comparison of two runs as Markdown or as a page."""

from __future__ import annotations

from collections.abc import Sequence

from lab.report.compare import KINDS, Comparison
from lab.report.page import TEMPLATES, environment, visible


def _cell(text: object) -> str:
    """Text in a Markdown table: one line, nothing that ends the cell or becomes a tag."""
    plain = visible(text).replace("\n", " ")
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'")):
        plain = plain.replace(character, escaped)
    return plain


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows), ""]


def headline(found: Comparison) -> str:
    """The comparison in a line."""
    kinds = [change.kind for change in found.changes]
    words = [f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds]
    drifted, slower = sum(d.worse for d in found.drifts), sum(s.regression for s in found.speeds)
    words += [f"{drifted} less exact"] if drifted else []
    words += [f"{slower} slower"] if slower else []
    verdict = "regression" if found.regressions else "no regression"
    return f"{verdict}: {', '.join(words) or 'nothing changed'}, {found.tests} tests"


def markdown(found: Comparison) -> str:
    """For a mail or a merge request."""
    lines = [f"# {found.old} → {found.new}", "", headline(found), ""]
    lines += _table(["what", "before", "after"], found.subjects)
    for kind, meaning in KINDS.items():
        rows = [c for c in found.changes if c.kind == kind]
        if rows:
            lines += [f"## {kind} ({len(rows)})", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
            lines += _table(
                ["test", "before", "after", "message"], [(c.test, c.before, c.after, c.message) for c in rows]
            )
    if found.drifts:
        rows_of_drifts = [(d.name, d.before, d.after, "worse" if d.worse else "") for d in found.drifts]
        lines += ["## numerics", "", *_table(["result", "before", "after", ""], rows_of_drifts)]
    if found.speeds:
        rows_of_speeds = [
            (s.name, f"{s.before:.4g} {s.unit}", f"{s.after:.4g} {s.unit}", f"{s.ratio:.3f}", s.verdict)
            for s in found.speeds
        ]
        lines += ["## measured", "", *_table(["what", "before", "after", "ratio", ""], rows_of_speeds)]
    repeats = [c.repeat for c in found.changes if c.kind == "new failure" and c.repeat]
    if repeats:
        lines += ["## repeat the new failures", "", *(f"    {visible(line)}" for line in repeats), ""]
    return "\n".join(lines)


def html(found: Comparison) -> str:
    """A page like a run's."""
    template = environment().get_template("compare.html.j2")
    style = (TEMPLATES / "report.css").read_text()
    return visible(template.render(c=found, kinds=KINDS, headline=headline(found), style=style))
