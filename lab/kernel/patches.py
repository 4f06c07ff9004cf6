# SPDX-License-Identifier: MIT
"""The kernel patches of the kit: which a kernel needs, which it has already, and why one does not apply.

A patch is a file as ``git format-patch`` writes it, with a header below its first ``---`` (``git am`` leaves it out):

    Upstream-Status: Backport [URL] | Submitted [URL] | Pending | Inappropriate [reason]
    Kit-Group: board (a board's device tree), fix (a defect of the driver), binding (documentation, for schema checks)
    Kit-Applies: first and last kernel series, as in ``6.18 - 7.3``
    Kit-Drop-When: for people
    Kit-Probe: file, colon, regular expression that matches in a tree that has the change
    Kit-Reason: one line

Versions lie, because stable and distribution kernels take fixes back; the probe looks at the code.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.process import require

FOLDER = Path(__file__).parents[2] / "kernel-patches"
GROUPS = ("board", "fix", "binding")
FIELDS = ("Upstream-Status", "Kit-Group", "Kit-Applies", "Kit-Probe", "Kit-Reason")
STOCK = ("board",)
"""Groups without which a board's NPU is not even described."""
WITH_FIXES = ("board", "fix")

CONTEXT_LINES = 3
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)$")


@dataclass(frozen=True)
class Probe:
    """A regular expression that matches in ``file`` when a change is there."""

    file: str
    pattern: re.Pattern[str]

    def find(self, tree: Path) -> str | None:
        """``file:line`` of the match in a kernel tree; None when it does not match or the file is not there."""
        try:
            text = (tree / self.file).read_text(errors="replace")
        except OSError:
            return None
        match = self.pattern.search(text)
        return f"{self.file}:{text.count(chr(10), 0, match.start()) + 1}" if match else None


@dataclass(frozen=True)
class Hunk:
    """A hunk: where it starts in the old file, its heading, and its lines with their marks."""

    file: str
    start: int
    heading: str
    lines: tuple[str, ...]

    @property
    def old(self) -> list[str]:
        """What it expects to find."""
        return [line[1:] for line in self.lines if line[:1] in " -"]


@dataclass(frozen=True)
class Patch:
    """A patch and its header."""

    path: Path
    subject: str
    author: str
    status: str
    group: str
    first: tuple[int, int]
    last: tuple[int, int]
    probe: Probe
    reason: str

    @property
    def name(self) -> str:
        """Folder and file."""
        return f"{self.path.parent.name}/{self.path.name}"

    def covers(self, version: str) -> bool:
        """Whether the patch is for a kernel of this version."""
        return self.first <= series_of(version) <= self.last

    def hunks(self) -> list[Hunk]:
        """Its hunks in order."""
        return parse_hunks(self.path.read_text(errors="replace"))


@dataclass(frozen=True)
class Outcome:
    """What happened to a patch: ``applied``, ``applies`` (dry run), ``upstream``, ``other kernel``, ``not wanted``."""

    patch: Patch
    state: str
    why: str = ""

    def line(self) -> str:
        """For people."""
        return f"{self.patch.name}: {self.state}{f' ({self.why})' if self.why else ''}"


def series_of(version: str) -> tuple[int, int]:
    """``(7, 3)`` of ``7.3.4+deb13``."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise KitError(ExitCode.USAGE, f"{version} is no kernel version", "write it as 7.3 or 7.3.4")
    return int(match[1]), int(match[2])


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_hunks(text: str) -> list[Hunk]:
    """Every hunk of a patch file."""
    hunks: list[Hunk] = []
    file, lines = "", iter(text.splitlines())
    for line in lines:
        if line.startswith("+++ "):
            file = line[4:].split("\t")[0].removeprefix("b/")
            continue
        match = _HUNK.match(line)
        if match is None:
            continue
        old, new = (int(match[group]) if match[group] else 1 for group in (2, 4))
        body: list[str] = []
        while old > 0 or new > 0:
            part = next(lines, None)
            if part is None:
                break
            old -= part[:1] in " -" or part == ""
            new -= part[:1] in " +" or part == ""
            body.append(part or " ")
        hunks.append(Hunk(file, int(match[1]), match[5].strip(), tuple(body)))
    return hunks


def parse(path: Path) -> Patch:
    """Read a patch; KitError (usage) names what its header lacks."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"patch {path}: {error.strerror}", "correct the series") from error
    head, _, rest = text.partition("\n---\n")
    notes = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.*)$", rest.partition("\ndiff --git ")[0], re.MULTILINE))
    hint = "see kernel-patches/README.md"
    missing = [name for name in FIELDS if name not in notes]
    if missing:
        raise KitError(ExitCode.USAGE, f"patch {path}: its header has no {missing[0]}", hint)
    if notes["Kit-Group"] not in GROUPS:
        raise KitError(ExitCode.USAGE, f"patch {path}: Kit-Group is one of {', '.join(GROUPS)}", hint)
    file, _, pattern = notes["Kit-Probe"].partition(": ")
    first, _, last = notes["Kit-Applies"].partition(" - ")
    try:
        probe = Probe(file, re.compile(pattern))
    except re.error as error:
        raise KitError(ExitCode.USAGE, f"patch {path}: Kit-Probe: {error}", hint) from error
    subject = re.search(r"^Subject: (?:\[[^]]*\] )?(.*(?:\n[ \t].*)*)", head, re.MULTILINE)
    author = re.search(r"^From: (.*)$", head, re.MULTILINE)
    if subject is None or author is None or "Signed-off-by: " not in head:
        raise KitError(ExitCode.USAGE, f"patch {path}: not as git format-patch writes it, with a sign-off", hint)
    title = re.sub(r"\s+", " ", subject[1])
    status, reason = notes["Upstream-Status"], notes["Kit-Reason"]
    bounds = series_of(first), series_of(last or first)
    return Patch(path, title, author[1], status, notes["Kit-Group"], *bounds, probe, reason)


def folder_for(version: str, root: Path = FOLDER) -> Path | None:
    """The patches' folder for a kernel: that of its series, or of the next later one."""
    wanted = series_of(version)
    folders = {series_of(path.parent.name): path.parent for path in root.glob("*/series")}
    later = sorted(series for series in folders if series >= wanted)
    return folders[later[0]] if later else None


def read_series(folder: Path) -> list[Patch]:
    """The patches that a folder's ``series`` lists, in order; a name may lead into another folder."""
    try:
        text = (folder / "series").read_text()
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"{folder}/series: {error.strerror}", "see kernel-patches/README.md") from error
    names = (line.split("#")[0].strip() for line in text.splitlines())
    return [parse((folder / name).resolve()) for name in names if name]


def selected(version: str, groups: Sequence[str], root: Path = FOLDER) -> list[Patch]:
    """The patches of these groups for a kernel version, in order."""
    folder = folder_for(version, root)
    patches = read_series(folder) if folder else []
    return [patch for patch in patches if patch.group in groups and patch.covers(version)]


# --- applying --------------------------------------------------------------------------------------------------------


def _patch(tree: Path, patch: Patch, *options: str) -> subprocess.CompletedProcess[str]:
    command = [require("patch", "patch"), "-p1", "--force", "--no-backup-if-mismatch", "-r", "-", *options]
    return subprocess.run(
        [*command, "-i", str(patch.path)], cwd=tree, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )


def state(tree: Path, patch: Patch) -> Outcome:
    """Whether a tree has the patch's change already; KitError (failed) when it neither has it nor takes it."""
    where = patch.probe.find(tree)
    if where is not None:
        return Outcome(patch, "upstream", f"the kernel has it: {where}")
    if _patch(tree, patch, "--dry-run", "--reverse").returncode == 0:
        return Outcome(patch, "upstream", "the kernel has it: the patch can be taken out")
    answer = _patch(tree, patch, "--dry-run")
    if answer.returncode:
        raise KitError(
            ExitCode.FAILED,
            f"{patch.name} does not apply: {explain(tree, patch)}",
            "rebase the patch onto this kernel, or leave the fixes out (--without-fixes)",
            tail="\n".join(answer.stdout.splitlines()[-6:]),
        )
    return Outcome(patch, "applies")


def apply(
    tree: Path,
    version: str,
    groups: Sequence[str],
    note: Callable[[str], None] = lambda line: None,
    root: Path = FOLDER,
) -> list[Outcome]:
    """Apply what a tree lacks, in order; each patch's outcome is also told to ``note`` as a line."""
    outcomes: list[Outcome] = []
    for patch in selected(version, groups, root):
        outcome = state(tree, patch)
        if outcome.state == "applies":
            answer = _patch(tree, patch)
            if answer.returncode:
                message = f"{patch.name} did not apply although it did in a dry run"
                raise KitError(ExitCode.INFRASTRUCTURE, message, "is the disk full?", tail=answer.stdout)
            outcome = Outcome(patch, "applied", patch.reason)
        outcomes.append(outcome)
        note(outcome.line())
    return outcomes


def trial(tree: Path, version: str, groups: Sequence[str], root: Path = FOLDER) -> list[Outcome]:
    """What `apply` would do, each patch onto those before it; the tree stays as it is.

    A patch that does not apply has the state ``does not apply``, and those after it are tried without it.
    """
    chosen = selected(version, groups, root)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="npulab-patches-") as name:
        copy = Path(name)
        for file in {hunk.file for patch in chosen for hunk in patch.hunks()} | {patch.probe.file for patch in chosen}:
            if (tree / file).is_file():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / file, copy / file)
        for patch in chosen:
            try:
                outcome = state(copy, patch)
                if outcome.state == "applies":
                    _patch(copy, patch)
            except KitError as error:
                outcome = Outcome(patch, "does not apply", error.message)
            outcomes.append(outcome)
    return outcomes


def explain(tree: Path, patch: Patch) -> str:
    """The first hunk that finds no place, and what the tree has where it should go."""
    for number, hunk in enumerate(patch.hunks(), 1):
        try:
            lines = (tree / hunk.file).read_text(errors="replace").splitlines()
        except OSError:
            return f"the kernel has no {hunk.file}"
        if _position(lines, hunk.old) is None:
            where, found = _closest(lines, hunk)
            shown = "\n".join(f"    {line}" for line in _differences(hunk.old, found))
            heading = f" in {hunk.heading}" if hunk.heading else ""
            return f"hunk {number} of {hunk.file}{heading}; at line {where} the kernel has\n{shown}"
    return "each hunk has a place, but not in this order"


def _position(lines: list[str], wanted: list[str]) -> int | None:
    for index in range(len(lines) - len(wanted) + 1):
        if lines[index : index + len(wanted)] == wanted:
            return index
    return None


def _closest(lines: list[str], hunk: Hunk) -> tuple[int, list[str]]:
    """The part of a file that is most like what the hunk expects: its first line (from 1) and text."""
    size = len(hunk.old)
    matcher = difflib.SequenceMatcher(None, b="\n".join(hunk.old), autojunk=False)
    best, where = -1.0, 0
    words = set(" ".join(hunk.old).split())
    ranked = sorted(
        range(max(1, len(lines) - size + 1)),
        key=lambda index: len(words & set(" ".join(lines[index : index + size]).split())),
        reverse=True,
    )
    for index in ranked[:40]:
        matcher.set_seq1("\n".join(lines[index : index + size]))
        ratio = matcher.ratio()
        if ratio > best:
            best, where = ratio, index
    return where + 1, lines[where : where + size]


def _differences(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    """What differs: ``-`` the patch expects it, ``+`` the kernel has it."""
    rows = [row for row in difflib.ndiff(list(expected), list(found)) if row[:1] in "-+ "]
    changed = [index for index, row in enumerate(rows) if row[:1] in "-+"]
    if not changed:
        return rows[:CONTEXT_LINES]
    return [row.rstrip() for row in rows[max(0, changed[0] - 1) : changed[-1] + 2]][:12]
