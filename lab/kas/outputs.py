# SPDX-License-Identifier: MIT
"""What BitBake, yocto-check-layer and patchreview print, as facts. Wording: BitBake 2.18, OE-core wrynose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_PARSED = re.compile(
    r"Parsing of (\d+) \.bb files complete \((\d+) cached, (\d+) parsed\)\. "
    r"(\d+) targets, (\d+) skipped, (\d+) masked, (\d+) errors"
)
_SUMMARY = re.compile(
    r"Tasks Summary: Attempted (\d+) tasks of which (\d+) didn't need to be rerun and (.*?)\.?$", re.M
)
_ERROR = re.compile(r"(?:^|- )(?:ERROR|FATAL|CRITICAL)\s*(?::|-)\s*(.*)", re.M)
_EDGE = re.compile(r'^"([^"]+)" (?:->|\[)', re.M)
_RAN = re.compile(r"^INFO: Ran (\d+) tests? in ([\d.]+)s", re.M)
_VERDICT = re.compile(r"^INFO: (\S+) \.\.\. (PASS|FAIL.*|SKIPPED.*)$", re.M)
_FINDING = re.compile(r"^(?:INFO|ERROR): (?:FAIL|ERROR): (\S+)", re.M)
_COUNT = re.compile(r"^(Total patches found|Patches .*?): (\d+|N/A)", re.M)

GPU_ONLY = re.compile(r"^(llvm|clang|libclc|spirv-llvm-translator)(-|$)")
"""Recipes that an image without GPU drivers must not wait for: hours of compiling."""

FOREIGN = re.compile(r"^(linux-yocto|rockchip-rkbin|rk\d+-rkbin)(-|$)")
"""Other kernels and the vendor's firmware, which a BSP layer below may bring in: never part of this layer's images."""


def parsed(text: str) -> dict[str, int]:
    """The last parse's figures: recipe files, targets, skipped recipes, errors; empty when there was none."""
    found = _PARSED.findall(text)
    if not found:
        return {}
    files, cached, _, targets, skipped, masked, errors = (int(word) for word in found[-1])
    return {
        "recipe_files": files,
        "cached": cached,
        "targets": targets,
        "skipped": skipped,
        "masked": masked,
        "errors": errors,
    }


def tasks(text: str) -> dict[str, Any]:
    """The run's summary: tasks attempted, of which not rerun, and whether all succeeded; empty without a summary."""
    found = _SUMMARY.findall(text)
    if not found:
        return {}
    attempted, kept, how = found[-1]
    return {"tasks": int(attempted), "not_rerun": int(kept), "all_succeeded": "all succeeded" in how}


def errors(text: str) -> list[str]:
    """Lines that report an error, of kas and of BitBake, without what repeats another."""
    lines = [line.strip() for line in _ERROR.findall(text)]
    return list(dict.fromkeys(line for line in lines if line))


def graph(recipes: str, edges: str) -> dict[str, Any]:
    """``pn-buildlist`` and ``task-depends.dot`` of ``bitbake -g``: recipes, tasks, those of LLVM, and foreign ones."""
    names = sorted({line.strip() for line in recipes.splitlines() if line.strip()})
    nodes = set(_EDGE.findall(edges))
    return {
        "recipes": len(names),
        "tasks": len(nodes),
        "llvm": [name for name in names if GPU_ONLY.match(name)],
        "foreign": [name for name in names if FOREIGN.match(name)],
    }


def layer_check(text: str) -> dict[str, Any]:
    """yocto-check-layer's results: verdict of each layer, tests that ran, names of those that failed."""
    ran = _RAN.findall(text)
    return {
        "verdicts": dict(_VERDICT.findall(text)),
        "tests": sum(int(number) for number, _ in ran),
        "failed": sorted(set(_FINDING.findall(text))),
    }


def patch_review(text: str) -> dict[str, int]:
    """patchreview's table: patches in all, and how many lack something."""
    return {name: int(number) for name, number in _COUNT.findall(text) if number.isdigit()}


def faulty_patches(counts: dict[str, int]) -> list[str]:
    """What patchreview found wrong; patches that are pending are not wrong."""
    wrong: Iterable[tuple[str, int]] = (
        (name, number) for name, number in counts.items() if "missing" in name or "malformed" in name
    )
    return [f"{name}: {number}" for name, number in wrong if number]
