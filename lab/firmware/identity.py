# SPDX-License-Identifier: MIT
"""Who a board is: a set of values, and the rule that says whether two sets mean the same board.

No single value is enough. The chip's OTP id is unreadable in some modes, a GPT GUID is copied with the image, an SD
card moves between boards, and a device name such as ``mmcblk0`` says nothing at all. So identity is a set of keys,
each of a class:

* board keys (``cpu-id``, ``dt-serial``, ``mac``) name the board;
* medium keys (``emmc-cid``, ``sd-cid``, ``nvme-serial`` ...) name one medium and count when that medium is concerned;
* kind keys (``compatible``, ``soc``) name a kind of board: they can only contradict, never prove.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

BOARD_KEYS = ("cpu-id", "dt-serial", "mac")
MEDIUM_KEYS = ("emmc-cid", "sd-cid", "nvme-serial", "spi-uid", "disk-serial")
KIND_KEYS = ("compatible", "soc", "spi-jedec")


class Verdict(Enum):
    """Outcome of a comparison."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Match:
    """A verdict and the sentence that explains it."""

    verdict: Verdict
    reason: str


Identity = Mapping[str, str]
"""Key to value; medium keys carry the storage after a colon: ``emmc-cid:emmc``."""


def clean(values: Mapping[str, str | None]) -> dict[str, str]:
    """Values that say something: empty, all-zero and placeholder serials are left out."""
    kept = {}
    for key, value in values.items():
        text = (value or "").strip().strip("\0").lower()
        if text and text.strip("0-:x ") and text not in {"unknown", "none", "default", "to be filled by o.e.m."}:
            kept[key] = text
    return kept


def _applies(key: str, storages: Iterable[str]) -> bool:
    base, _, storage = key.partition(":")
    return base in MEDIUM_KEYS and (not storage or storage in {name.partition(".")[0] for name in storages})


def compare(known: Identity, found: Identity, storages: Iterable[str] = ()) -> Match:
    """Whether ``found`` is the board of ``known``, as far as the media ``storages`` are concerned.

    Every shared key that counts must agree, and at least one board or medium key must be among them.
    """
    names = list(storages)
    agreed = []
    for key in sorted(set(known) & set(found)):
        base = key.partition(":")[0]
        proof = base in BOARD_KEYS or _applies(key, names)
        if not proof and base not in KIND_KEYS:
            continue
        if known[key] != found[key]:
            return Match(Verdict.OTHER, f"{key} is {found[key]}, the backup's is {known[key]}")
        if proof:
            agreed.append(key)
    if agreed:
        return Match(Verdict.SAME, "agrees in " + ", ".join(agreed))
    return Match(Verdict.UNKNOWN, "no value that names this very board can be read in this mode and in the backup")


def device_key(identity: Identity) -> str:
    """A short name for the board, the same for each of its backups: from the strongest value there is."""
    for base in (*BOARD_KEYS, *MEDIUM_KEYS):
        for key in sorted(identity):
            if key.partition(":")[0] == base:
                return hashlib.sha256(f"{key}={identity[key]}".encode()).hexdigest()[:12]
    return hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:12]
