# SPDX-License-Identifier: MIT
"""The summary of ``npulab kas verify`` as Markdown: versions, counts, times, and what was not executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def summary(document: dict[str, Any]) -> str:
    """The whole page; the document is that of the state file."""
    results = list(document["items"].values())
    parts = [
        _versions(document["versions"]),
        _table("Parse and task graph (`bitbake -g`)", _GRAPH, _graphs(results)),
        _table("Dry run (`bitbake -n`)", _DRY, _dry_runs(results)),
        *(_one(step, results) for step in ("layer", "patches", "kernel", "board")),
        _failed(results),
        _missing(document["not_executed"]),
    ]
    return "\n\n".join(part for part in parts if part)


_GRAPH = ("machine", "options", "targets", "recipe files parsed", "recipes", "tasks", "LLVM", "s")
_DRY = ("machine", "options", "tasks", "result", "s")


def _versions(found: dict[str, str]) -> str:
    tools = ", ".join(f"{name} {found[name]}" for name in ("kas", "bitbake", "python") if name in found)
    commits = {name.removesuffix(" commit"): value for name, value in found.items() if name.endswith(" commit")}
    return "\n".join([f"Run with {tools}.", "", *_rows(("repository", "commit"), list(commits.items()))])


def _rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join([f"{title}:", "", *_rows(columns, rows)]) if rows else ""


def _graphs(results: Sequence[dict[str, Any]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for entry in results:
        if entry["step"] == "graph" and entry["ok"]:
            targets = ", ".join(f"`{target}`" for target in entry["targets"])
            counts = [entry["parse"].get("recipe_files", ""), entry["recipes"], entry["tasks"]]
            llvm = "yes" if entry["llvm"] else "no"
            rows.append([entry["machine"], _options(entry), targets, *counts, llvm, f"{entry['seconds']:.0f}"])
    return rows


def _options(entry: dict[str, Any]) -> str:
    return ", ".join(entry["options"]) or "none"


def _dry_runs(results: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [
        [entry["machine"], _options(entry), entry["tasks"], "all succeeded", f"{entry['seconds']:.0f}"]
        for entry in results
        if entry["step"] == "dryrun" and entry["ok"]
    ]


def _one(step: str, results: Sequence[dict[str, Any]]) -> str:
    """A sentence for a step that passed."""
    entry = next((entry for entry in results if entry["step"] == step and entry["ok"]), None)
    return f"{_SENTENCES[step](entry)} ({entry['seconds']:.0f} s)." if entry else ""


def _layer(entry: dict[str, Any]) -> str:
    verdicts = ", ".join(f"{name} {verdict}" for name, verdict in entry["verdicts"].items())
    return f"yocto-check-layer: {verdicts}, {entry['tests']} tests"


def _patches(entry: dict[str, Any]) -> str:
    counts = entry["patches"]
    pending = counts.get("Patches in Pending state", 0)
    return f"patchreview: {counts['Total patches found']} patches, nothing missing or malformed, {pending} pending"


def _kernel(entry: dict[str, Any]) -> str:
    how = "built by BitBake in an earlier run" if entry["reused"] else "built by BitBake"
    return f"Kernel, {how} with this machine's compiler: Linux {entry['release']}, rocket {entry['rocket']}"


def _board(entry: dict[str, Any]) -> str:
    which = "a selection of the board suite (`--quick`)" if entry["quick"] else "the whole board suite"
    counts = f"{entry['tests']} tests, {entry['failures']} failed, {entry['skipped']} skipped"
    return f"That kernel on the virtual board with {entry['tree']}: {which}, {counts}"


_SENTENCES = {"layer": _layer, "patches": _patches, "kernel": _kernel, "board": _board}


def _failed(results: Sequence[dict[str, Any]]) -> str:
    """What did not pass, and why."""
    rows = []
    for entry in results:
        if not entry["ok"]:
            name = " ".join(filter(None, (entry["step"], entry["machine"], entry.get("configuration", ""))))
            rows.append([name, entry["wrong"].replace("|", "\\|")])
    return _table("**Not passed**", ("what", "why"), rows)


def _missing(keys: Sequence[str]) -> str:
    always = "No image was built: their recipes were parsed, resolved and dry-run."
    if not keys:
        return always
    return "\n".join([always, "", "Not executed in this run:", "", *(f"- {key}" for key in keys)])
