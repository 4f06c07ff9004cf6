# SPDX-License-Identifier: MIT
"""What changed between two runs: tests, numerics, speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.errors import ExitCode, KitError
from lab.report.series import measurements, numerics

GOOD = ("passed", "flaky", "xfailed", "skipped")
KINDS = {
    "new failure": "failed, and did not before",
    "still failing": "failed in both",
    "unknown": "the laboratory was in trouble in the new run",
    "fixed": "failed before, and does not any more",
    "no longer run": "ran before, and now is skipped or gone",
    "newly run": "ran for the first time",
    "other": "ended otherwise, but not worse",
}
SPEED_TOLERANCE = 0.25
"""Share that a speed may lose on a real board. Times on a virtual board are the host's and are not judged unless a
tolerance is given."""
ULP_TOLERANCE = 0.1
"""Share that a greatest error in units in the last place may grow by."""


@dataclass(frozen=True)
class Change:
    """A test whose outcome differs, or that still fails."""

    kind: str
    test: str
    before: str
    after: str
    message: str
    repeat: str


@dataclass(frozen=True)
class Drift:
    """Error statistics of one result in both runs."""

    name: str
    before: str
    after: str
    worse: bool


@dataclass(frozen=True)
class Speed:
    """A measured value in both runs; ``ratio`` is new to old; ``verdict`` better, worse or same."""

    name: str
    unit: str
    before: float
    after: float
    ratio: float
    verdict: str
    regression: bool


@dataclass(frozen=True)
class Comparison:
    """Everything that differs. ``subjects`` has rows (what, before, after)."""

    old: str
    new: str
    subjects: tuple[tuple[str, str, str], ...]
    changes: tuple[Change, ...]
    drifts: tuple[Drift, ...]
    speeds: tuple[Speed, ...]
    tests: int

    @property
    def regressions(self) -> int:
        """What is worse: new failures, numerics that drifted, speed that was lost."""
        failures = sum(change.kind == "new failure" for change in self.changes)
        return failures + sum(d.worse for d in self.drifts) + sum(s.regression for s in self.speeds)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        found = asdict(self)
        found["subjects"] = [{"what": a, "before": b, "after": c} for a, b, c in self.subjects]
        return {**found, "regressions": self.regressions}


def compare(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float | None = None) -> Comparison:
    """Compare two results documents. ``tolerance`` is the share of speed that may be lost."""
    for run in (old, new):
        if not run["tests"]:
            raise KitError(ExitCode.USAGE, f"run {run['id']} has no tests", "there is nothing to compare; run it again")
    names = {row["name"] for row in old["suites"]}, {row["name"] for row in new["suites"]}
    return Comparison(
        old["id"],
        new["id"],
        tuple(_subjects(old, new)),
        tuple(sorted(_changes(old, new, names[0] & names[1]), key=lambda c: (list(KINDS).index(c.kind), c.test))),
        tuple(_drifts(old, new)),
        tuple(_speeds(old, new, tolerance)),
        len({test["id"] for test in (*old["tests"], *new["tests"])}),
    )


def _subjects(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was tested, where it differs (the run's time always)."""
    yield "run", f"{old['id']}, {old['started']}", f"{new['id']}, {new['started']}"
    paths = {
        "board": ("board", "model"),
        "kernel": ("kernel", "release"),
        "kernel's version": ("kernel", "version"),
        "command line": ("kernel", "cmdline"),
        "driver's srcversion": ("kernel", "srcversion"),
        "place": ("board", "place"),
        "artifacts": ("artifacts", "key"),
        "kit": ("kit", "commit"),
    }
    for what, (part, key) in paths.items():
        before, after = ((run[part] or {}).get(key, "") for run in (old, new))
        if before != after:
            yield what, str(before) or "-", str(after) or "-"


def _kind(before: str | None, after: str | None) -> str | None:
    """What the change of an outcome means; None when it means nothing."""
    if after == "failed":
        return "still failing" if before == "failed" else "new failure"
    if after == "error":
        return "unknown"
    if before == "failed":
        return "fixed" if after in ("passed", "flaky") else "no longer run"
    if after in (None, "skipped"):
        return "no longer run" if before in ("passed", "flaky", "xfailed") else None
    if before in (None, "skipped", "error"):
        return "newly run"
    return "other" if before != after else None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], both: set[str]) -> Iterator[Change]:
    """Tests of suites that both runs have; failures of the new run in any suite."""
    before = {test["id"]: test for test in old["tests"]}
    after = {test["id"]: test for test in new["tests"]}
    for test in [*after, *(name for name in before if name not in after)]:
        row = after.get(test) or before[test]
        was, now = (runs[test]["outcome"] if test in runs else None for runs in (before, after))
        kind = _kind(was, now)
        if kind is None or (row["suite"] not in both and now not in ("failed", "error")):
            continue
        message = after[test]["message"] if test in after else ""
        yield Change(kind, test, was or "absent", now or "absent", message, row["repeat"])


def _key(row: Mapping[str, Any], *names: str) -> str:
    words = [str(row[name]) for name in names]
    return " ".join([*words, *(f"{key}={value}" for key, value in sorted(row["labels"].items()))])


def _drifts(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Drift]:
    before = {_key(row, "op", "dtype"): row for row in numerics(old["tests"])}
    for row in numerics(new["tests"]):
        key = _key(row, "op", "dtype")
        was = before.get(key)
        if was is None or all(was[name] == row[name] for name in ("max_abs", "max_ulp", "mismatches", "elements")):
            continue
        ulp = (was["max_ulp"] or 0.0) * (1 + ULP_TOLERANCE) + 1e-9 < (row["max_ulp"] or 0.0)
        more = row["mismatches"] * was["elements"] > was["mismatches"] * row["elements"]
        yield Drift(key, _statistics(was), _statistics(row), ulp or more)


def _statistics(row: Mapping[str, Any]) -> str:
    parts = [f"{row['mismatches']} of {row['elements']} differ"]
    parts += [f"max {row['max_ulp']:.4g} ulp"] if row["max_ulp"] is not None else []
    parts += [f"max abs {row['max_abs']:.4g}"] if row["max_abs"] is not None else []
    return ", ".join(parts)


def direction(unit: str) -> int:
    """1 when more is better, -1 when less is, 0 when the unit does not say."""
    if unit.endswith(("/s", "/W")) or unit in ("x", "%"):
        return 1
    return -1 if unit in ("s", "ms", "us", "ns", "KiB", "MiB", "GiB", "bytes", "°C", "mW", "W") else 0


def _speeds(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float | None) -> Iterator[Speed]:
    virtual = any((run["board"] or {}).get("virtual") for run in (old, new))
    allowed = SPEED_TOLERANCE if tolerance is None else tolerance
    before = {_key(row, "name", "unit"): row for row in measurements(old["tests"])}
    for row in measurements(new["tests"]):
        was = before.get(_key(row, "name", "unit"))
        if was is None or not was["value"]:
            continue
        ratio = row["value"] / was["value"]
        way = direction(row["unit"])
        gain = ratio if way >= 0 else (1 / ratio if ratio > 0 else 1.0)
        verdict = "same" if not way or abs(gain - 1) <= allowed else "better" if gain > 1 else "worse"
        judged = not virtual or tolerance is not None
        name = _key(row, "name")
        yield Speed(
            name, row["unit"], was["value"], row["value"], round(ratio, 4), verdict, judged and verdict == "worse"
        )
