# SPDX-License-Identifier: MIT
"""A run as a KCIDB report (Linux kernel CI's common database), version 5.3 of its I/O schema.

Field names, patterns and the meaning of the statuses: https://docs.kernelci.org/kcidb, package kcidb-io 141. Only what
says something about a kernel is in it: the tests that ran on a board.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lab.errors import ExitCode, KitError
from lab.firmware.identity import device_key

VERSION = {"major": 5, "minor": 3}
EXCERPT = 16_384
"""Characters of a log that a report may carry."""
STATUS = {"passed": "PASS", "flaky": "PASS", "failed": "FAIL", "xfailed": "FAIL", "error": "MISS", "skipped": "SKIP"}
"""MISS is the database's word for a failure of the laboratory: nothing is known about the code."""
SUITES = ("board",)
_ORIGIN = re.compile(r"[a-z0-9_]+")

Document = dict[str, Any]


def _clean(text: str) -> str:
    return text.replace("\0", "\\0").encode(errors="replace").decode()


def test_path(test: Mapping[str, Any]) -> str:
    """A test's place in the tree of tests: dots between parts, nothing but letters, digits, ``-`` and ``_``."""
    path, _, name = test["id"].partition("::")
    parts = [part for part in path.removeprefix("tests/").removesuffix(".py").split("/") if part]
    function, _, parameters = name.partition("[")
    parts += [function.replace("::", "."), parameters.removesuffix("]")]
    words = [re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") for whole in parts for part in whole.split(".")]
    return ".".join(["npu", *(word for word in words if word)])


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode(errors="replace")).hexdigest()[:24]


def _checkout(run: Mapping[str, Any], origin: str) -> Document:
    kernel, artifacts = run["kernel"], run["artifacts"]
    comment = f"Linux {kernel['release']}"
    found: Document = {"origin": origin, "valid": True}
    if artifacts:
        built = artifacts["kernel"]
        patches = "".join(f"{patch['sha256']}\n" for patch in built["patches"])
        source = built["source"]
        found["patchset_hash"] = hashlib.sha256(patches.encode()).hexdigest() if patches else ""
        found["git_commit_name"] = f"v{built['version']}"
        found["misc"] = {"source": dict(source), "patches": [patch["name"] for patch in built["patches"]]}
        comment += f", source: {source.get('name') or source['kind']} {source.get('version', '')}".rstrip()
        key = _digest(built["version"], patches, repr(sorted(source.items())))
    else:
        key = _digest(kernel["release"], kernel["version"])
    return {"id": f"{origin}:{key}", "comment": _clean(comment), "start_time": run["started"], **found}


def _build(run: Mapping[str, Any], origin: str, checkout: str) -> Document:
    kernel, artifacts = run["kernel"], run["artifacts"]
    found: Document = {
        "id": f"{origin}:{_digest(kernel['release'], kernel['version'], artifacts['key'] if artifacts else '')}",
        "origin": origin,
        "checkout_id": checkout,
        "architecture": "arm64",
        "status": "PASS",
        "comment": _clean(f"{kernel['release']} {kernel['version']}"),
    }
    if artifacts:
        built = artifacts["kernel"]
        found["compiler"] = _clean(built["compiler"])
        found["config_name"] = built["flavour"]
        found["misc"] = {
            "artifacts": artifacts["key"],
            "config_sha256": built["config_sha256"],
            "files": {name: entry["sha256"] for name, entry in artifacts["files"].items()},
        }
    return found


def _environment(board: Mapping[str, Any]) -> Document:
    virtual = " (virtual board: QEMU and a model of the NPU)" if board["virtual"] else ""
    # a name of the board that tells nothing else: serial numbers and addresses are its owner's
    misc = {"device": device_key(board["identity"]), "place": board.get("place", "")}
    if board["backup"]:
        misc["backup_id"] = board["backup"]["id"]
    known = [word for word in board["compatible"] if re.fullmatch(r"[^ \0]+(,[^ \0]+)*", word)]
    return {"comment": _clean(board["model"] + virtual), "compatible": known, "misc": misc}


def _log(test: Mapping[str, Any]) -> str:
    lines = [f"[{record['seconds']:12.6f}] {record['text']}" for record in test["kernel_log"]]
    text = _clean("\n".join([test["message"], *lines]).strip())
    return text if len(text) <= EXCERPT else text[-EXCERPT:]


def _tests(run: Mapping[str, Any], origin: str, build: str) -> Iterator[Document]:
    environment = _environment(run["board"]) if run["board"] else {}
    for test in run["tests"]:
        if test["suite"] not in SUITES:
            continue
        name = f"{origin}:{_digest(run['id'], run['started'], test['id'])}"
        row: Document = {
            "id": name,
            "origin": origin,
            "build_id": build,
            "path": test_path(test),
            "comment": _clean(test["id"]),
            "status": STATUS[test["outcome"]],
            "start_time": test["started"],
            "duration": test["seconds"],
            "environment": environment,
            "misc": {"outcome": test["outcome"], "repeat": test["repeat"], "numerics": test["numerics"]},
        }
        if test["outcome"] != "passed" and (excerpt := _log(test)):
            row["log_excerpt"] = excerpt
        yield row
        for number, value in enumerate(test["measurements"]):
            yield {
                **{key: row[key] for key in ("origin", "build_id", "start_time", "environment")},
                "id": f"{name}.{number}",
                "path": f"{row['path']}.{re.sub(r'[^A-Za-z0-9_-]+', '-', value['name']).strip('-') or 'value'}",
                "comment": _clean(" ".join([value["name"], *(f"{k}={v}" for k, v in value["labels"].items())])),
                "status": "DONE",
                "number": {"value": value["value"], "unit": _clean(value["unit"])},
            }


def _issues(run: Mapping[str, Any], origin: str) -> tuple[list[Document], list[Document]]:
    """Expectations that were met: known issues, and where they were seen."""
    issues: dict[str, Document] = {}
    incidents = []
    for test in run["tests"]:
        expectation = test.get("expectation")
        if not expectation or test["outcome"] != "xfailed" or test["suite"] not in SUITES:
            continue
        key = f"{origin}:{_digest(expectation['reason'], expectation['evidence'])}"
        issue: Document = {"id": key, "version": 1, "origin": origin, "comment": _clean(expectation["reason"])}
        issue["culprit"] = {"code": True, "tool": False, "harness": False}
        if re.fullmatch(r"https?://[!-~]+", expectation["evidence"]):
            issue["report_url"] = expectation["evidence"]
        issues[key] = issue
        seen = _digest(run["id"], run["started"], test["id"])
        incidents.append(
            {
                "id": f"{origin}:{seen}",
                "origin": origin,
                "issue_id": key,
                "issue_version": 1,
                "test_id": f"{origin}:{seen}",
                "present": True,
            }
        )
    return list(issues.values()), incidents


def render(run: Mapping[str, Any], origin: str = "npulab") -> Document:
    """The report; KitError (usage) when the run tested no kernel."""
    if not _ORIGIN.fullmatch(origin):
        raise KitError(ExitCode.USAGE, f"{origin} cannot be an origin", "lower case letters, digits and _")
    if not run["kernel"] or not any(test["suite"] in SUITES for test in run["tests"]):
        raise KitError(ExitCode.USAGE, f"run {run['id']} tested no kernel", "run the board suite: npulab test board")
    checkout = _checkout(run, origin)
    build = _build(run, origin, checkout["id"])
    issues, incidents = _issues(run, origin)
    found: Document = {"version": VERSION, "checkouts": [checkout], "builds": [build]}
    found["tests"] = list(_tests(run, origin, build["id"]))
    return found | ({"issues": issues, "incidents": incidents} if issues else {})
