# SPDX-License-Identifier: MIT
"""The manifest of a backup: what it holds, of which board, and whether a second read of the medium agreed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from lab.errors import ExitCode, KitError
from lab.firmware.lint import Finding

FORMAT = 1
NAME = "manifest.json"
NOT_BACKED_UP = (
    "OTP and eFuse contents",
    "the RPMB partition and its write counter",
    "secure-boot fuses",
    "permanent write protection of the eMMC",
)


@dataclass(frozen=True)
class RegionRecord:
    """A saved region. ``index`` is the file that lists its chunks; ``unstable`` the offsets of differing reads."""

    storage: str
    name: str
    start: int
    length: int
    critical: bool
    index: str
    index_sha256: str
    zeros: int
    unstable: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """``emmc/loader``."""
        return f"{self.storage}/{self.name}"


@dataclass(frozen=True)
class Manifest:
    """See manifest.schema.json."""

    id: str
    board: str
    created: str
    kit: str
    transport: str
    device: str
    identity: dict[str, str]
    consistency: str
    complete: bool
    missing: tuple[str, ...]
    verified: bool
    verification: dict[str, Any] | None
    media: tuple[dict[str, Any], ...]
    regions: tuple[RegionRecord, ...]
    findings: tuple[Finding, ...]
    context: dict[str, str] = field(default_factory=dict)
    not_backed_up: tuple[str, ...] = NOT_BACKED_UP
    format: int = FORMAT

    def medium(self, storage: str) -> dict[str, Any]:
        """The record of a medium."""
        return next(entry for entry in self.media if entry["name"] == storage)

    def storages(self) -> list[str]:
        """The media it has regions of."""
        return list(dict.fromkeys(region.storage for region in self.regions))

    def covers(self, storage: str, start: int, end: int) -> bool:
        """Whether the backup holds every byte of ``start..end`` of a medium, all of it stable."""
        at = start
        for region in sorted(self.regions, key=lambda r: r.start):
            if region.storage == storage and not region.unstable and region.start <= at < region.start + region.length:
                at = region.start + region.length
        return at >= end

    def finish(self, **changes: Any) -> Manifest:
        """A copy with some fields changed."""
        return replace(self, **changes)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name("manifest.schema.json").read_text())
    return document


def _seal(document: dict[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def dump(manifest: Manifest) -> bytes:
    """The file, with its seal."""
    document = json.loads(json.dumps(asdict(manifest)))
    document["seal"] = _seal(document)
    jsonschema.validate(document, schema())
    return (json.dumps(document, indent=1) + "\n").encode()


def load(path: Path) -> Manifest:
    """A manifest whose seal holds; KitError otherwise. A newer format is told apart from damage."""
    hint = "make a new backup while the board still works"
    try:
        document = json.loads(path.read_bytes())
        version = document["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(ExitCode.MISMATCH, f"{path}: damaged manifest ({error})", hint) from error
    if isinstance(version, int) and version > FORMAT:
        raise KitError(
            ExitCode.FAILED,
            f"{path}: made by a newer kit (format {version}, this one knows {FORMAT})",
            "use that kit; nothing of this backup is touched",
        )
    try:
        jsonschema.validate(document, schema())
    except jsonschema.ValidationError as error:
        raise KitError(ExitCode.MISMATCH, f"{path}: damaged manifest ({error.message[:120]})", hint) from error
    if document.pop("seal") != _seal(document):
        raise KitError(ExitCode.MISMATCH, f"{path}: damaged manifest (its seal does not hold)", hint)
    document["regions"] = tuple(
        RegionRecord(**{**entry, "unstable": tuple(entry["unstable"])}) for entry in document["regions"]
    )
    document["findings"] = tuple(Finding(**entry) for entry in document["findings"])
    for key in ("missing", "media", "not_backed_up"):
        document[key] = tuple(document[key])
    return Manifest(**document)
