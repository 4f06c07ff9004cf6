# SPDX-License-Identifier: MIT
"""Pull-lab jobs of KernelCI: a JSON document says what to boot and what to test; a place of the farm runs it.

The form is that of KernelCI's ``pull_labs`` runtime (kernelci-core config/runtime/base/pull_labs.jinja2): ``artifacts``
(addresses of kernel, dtb, ramdisk, modules), ``tests`` (id, type, timeout_s, depends, subset), ``environment``
(platform, arch), ``integrity.sha256``, ``callback``. Nothing is sent to
the callback: the result is a file, and sending it takes a token that is the lab's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from lab import boards
from lab.errors import ExitCode, KitError
from lab.farm.runner import Job, Record, Runner
from lab.output import Output
from lab.virt.results import new_results_dir

SUITES = {
    "boot": ("tests/board/test_boot.py",),
    "npu": ("tests/board",),
    "npu-probe": ("tests/board/test_npu_probe.py",),
    "npu-ops": ("tests/board/test_npu_ops.py",),
    "npu-uapi": ("tests/board/test_npu_uapi.py",),
    "npu-recovery": ("tests/board/test_npu_recovery.py",),
    "pytest": ("tests/board",),
}
"""What each test type runs."""
BOOTED = ("kernel", "dtb", "ramdisk")
"""Artifacts that a virtual board boots; modules of the job's kernel belong into its ramdisk."""
DOWNLOAD_SECONDS = 300.0
LARGEST = 2 << 30
_NAME = {"type": "string", "minLength": 1, "maxLength": 200}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["artifacts", "tests", "environment"],
    "properties": {
        "artifacts": {"type": "object", "additionalProperties": {"type": "string"}},
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "type"],
                "properties": {
                    "id": _NAME,
                    "type": _NAME,
                    "timeout_s": {"type": "number", "exclusiveMinimum": 0},
                    "depends": {"type": "array", "items": _NAME},
                    "subset": {"type": ["array", "string"], "items": _NAME},
                    "pre-commands": {"type": "array"},
                    "post-commands": {"type": "array"},
                },
            },
        },
        "environment": {
            "type": "object",
            "required": ["platform"],
            "properties": {"platform": _NAME, "arch": _NAME},
        },
        "integrity": {"type": "object"},
        "callback": {"type": "object"},
    },
}


@dataclass(frozen=True)
class Test:
    """One test of a job."""

    id: str
    type: str
    timeout: float
    depends: tuple[str, ...]
    subset: tuple[str, ...]


@dataclass(frozen=True)
class PullJob:
    """A job. ``sha256`` has the hashes that the job states, by artifact."""

    platform: str
    artifacts: Mapping[str, str]
    tests: tuple[Test, ...]
    sha256: Mapping[str, str]


def load(path: Path) -> PullJob:
    """A job from its file; KitError (usage) says what is wrong with it."""
    try:
        raw = json.loads(path.read_text())
        jsonschema.validate(raw, SCHEMA)
    except FileNotFoundError:
        raise KitError(ExitCode.USAGE, f"there is no job file {path}", "name one that is there") from None
    except ValueError as error:
        raise KitError(ExitCode.USAGE, f"{path}: not JSON: {error}", "fetch the job again") from error
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "top level"
        hint = "KernelCI's pull_labs runtime makes such jobs"
        raise KitError(ExitCode.USAGE, f"{path}: {where}: {error.message}", hint) from error
    arch = raw["environment"].get("arch", "arm64")
    if arch != "arm64":
        raise KitError(ExitCode.USAGE, f"{path}: the job is for {arch}", "an RK3588 is arm64")
    return PullJob(
        raw["environment"]["platform"],
        raw["artifacts"],
        tuple(_test(path, entry) for entry in raw["tests"]),
        {k: v for k, v in raw.get("integrity", {}).get("sha256", {}).items() if not k.startswith("_")},
    )


def _test(path: Path, raw: Mapping[str, Any]) -> Test:
    for key in ("pre-commands", "post-commands"):
        if raw.get(key):
            raise KitError(ExitCode.USAGE, f"{path}: test {raw['id']}: {key} are not supported", "leave them out")
    subset = raw.get("subset", ())
    words = (subset,) if isinstance(subset, str) else tuple(subset)
    return Test(raw["id"], raw["type"], float(raw.get("timeout_s", 600)), tuple(raw.get("depends", ())), words)


def filters_of(job: PullJob, tags: Mapping[str, str]) -> dict[str, str]:
    """Which place: the tags that the user gave, else the place with the job's board.

    A platform is a board by its own name, or by its device tree's name, as KernelCI calls platforms.
    """
    if tags:
        return dict(tags)
    for name in boards.names():
        board = boards.load(name)
        if job.platform in (name, Path(board.dtb).stem) and not (board.virtual and job.platform != name):
            return {"board": name}
    raise KitError(
        ExitCode.USAGE,
        f"no board is called {job.platform}",
        f"say which place with --place or --tag; boards: {', '.join(boards.names())}",
    )


def fetch(job: PullJob, folder: Path) -> dict[str, Path]:
    """The artifacts to boot, as files, with the hashes that the job states."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in BOOTED:
        if name in job.artifacts:
            found[name] = _fetch(name, job.artifacts[name], folder / name, job.sha256.get(name))
    return found


def _fetch(name: str, address: str, target: Path, sha256: str | None) -> Path:
    partial = target.with_name(f"{target.name}.partial")
    scheme = urllib.parse.urlsplit(address).scheme
    if scheme not in ("http", "https", "file", ""):
        raise KitError(ExitCode.USAGE, f"artifact {name}: {address} cannot be fetched", "http, https or a file")
    try:
        if scheme in ("http", "https"):
            with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as source, partial.open("wb") as sink:
                if int(source.headers.get("Content-Length") or 0) > LARGEST:
                    raise KitError(ExitCode.INFRASTRUCTURE, f"artifact {name}: {address} is too large", "")
                shutil.copyfileobj(source, sink, 1 << 20)
        else:
            shutil.copyfile(urllib.parse.unquote(urllib.parse.urlsplit(address).path), partial)
    except (urllib.error.URLError, OSError) as error:
        partial.unlink(missing_ok=True)
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise KitError(ExitCode.INFRASTRUCTURE, f"artifact {name}: {address}: {why}", "fetch the job again") from error
    with partial.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 and actual != sha256.lower():
        partial.unlink()
        raise KitError(ExitCode.MISMATCH, f"artifact {name}: SHA-256 is {actual}, not {sha256}", "fetch it again")
    partial.rename(target)
    return target


def command(test: Test) -> list[str]:
    """The pytest command of a test."""
    words = ["pytest", *SUITES[test.type]]
    return [*words, "-k", " or ".join(test.subset)] if test.subset else words


def status(record: Record) -> str:
    """KCIDB's word for how a test ended."""
    if record.trouble:
        return "ERROR"
    if record.code == 0:
        done = record.tests.get("tests", 1) - record.tests.get("skipped", 0)
        return "PASS" if done else "SKIP"
    return "FAIL"


def run(args: argparse.Namespace, address: str, out: Output) -> dict[str, Any]:
    """``npulab farm run --kernelci-job``: every test on a place, one after the other."""
    from lab.commands.farm import board_variables, tags_of

    job = load(args.kernelci_job)
    tags = tags_of(args.tag) | ({"name": args.place} if args.place else {})
    filters = filters_of(job, tags)
    results = args.results.absolute() if args.results else new_results_dir("kernelci")
    variables = board_variables(args, filters, out)
    files = fetch(job, results / "artifacts")
    names = {"kernel": "NPULAB_KERNEL_IMAGE", "dtb": "NPULAB_DTB", "ramdisk": "NPULAB_INITRD"}
    variables |= {names[name]: str(path) for name, path in files.items()}
    rows: list[dict[str, Any]] = []
    for test in job.tests:
        rows.append(_run_test(test, rows, args, address, filters, variables, results, out))
        (results / "kernelci.json").write_text(json.dumps({"platform": job.platform, "tests": rows}, indent=2))
    out.table("job", ["test", "type", "status", "why"], [[r["id"], r["type"], r["status"], r["why"]] for r in rows])
    out.say(f"results: {results}")
    if any(row["status"] == "ERROR" for row in rows):
        first = next(row for row in rows if row["status"] == "ERROR")
        raise KitError(ExitCode.INFRASTRUCTURE, f"test {first['id']}: {first['why']}", f"see {results}")
    return {"ok": all(row["status"] in ("PASS", "SKIP") for row in rows), "tests": rows, "results": str(results)}


def _run_test(
    test: Test,
    before: Sequence[Mapping[str, Any]],
    args: argparse.Namespace,
    address: str,
    filters: Mapping[str, str],
    variables: Mapping[str, str],
    results: Path,
    out: Output,
) -> dict[str, Any]:
    row = {"id": test.id, "type": test.type, "status": "SKIP", "why": "", "results": ""}
    passed = {entry["id"] for entry in before if entry["status"] == "PASS"}
    missing = [name for name in test.depends if name not in passed]
    if missing:
        return row | {"why": f"depends on {', '.join(missing)}"}
    if test.type not in SUITES:
        return row | {"why": f"no test of type {test.type}; known: {', '.join(SUITES)}"}
    folder = results / test.id.replace("/", "_")
    job = Job(
        address,
        filters,
        command(test),
        args.env,
        wait=args.wait,
        timeout=test.timeout,
        priority=args.priority,
        results=folder,
        variables=variables,
    )
    runner = Runner(job, out)
    why = ""
    try:
        record = runner.run()
    except KitError as error:
        record, why = runner.record, error.message
        record.trouble = record.trouble or error.message
    return row | {"status": status(record), "why": why, "results": str(folder), "junit": record.junit}
