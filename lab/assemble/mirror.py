# SPDX-License-Identifier: MIT
"""Which Debian mirror to use: the one that the machine's own apt configuration names.

Read are the one-line format (sources.list(5), ``*.list``) and the deb822 format (``*.sources``). A host whose apt knows
no Debian mirror (Ubuntu) names one with ``--debian-mirror`` or ``NPULAB_DEBIAN_MIRROR``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.cache import digest
from lab.errors import ExitCode, KitError

SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"

DEBIAN_SUITES = frozenset(
    [
        "oldoldstable",
        "oldstable",
        "stable",
        "testing",
        "unstable",
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
    ]
)
KEYRINGS = (
    "usr/share/keyrings/debian-archive-keyring.gpg",
    "usr/share/keyrings/debian-archive-keyring.pgp",
)
ENVIRONMENT = "NPULAB_DEBIAN_MIRROR"


@dataclass(frozen=True)
class Entry:
    """One archive of an apt configuration."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Mirror:
    """A Debian mirror and the keyring (a file) that signs it."""

    uri: str
    keyring: Path

    @property
    def key(self) -> str:
        """Name of the private apt root that belongs to it."""
        return digest(self.uri, str(self.keyring))


def one_line_entries(text: str) -> Iterator[Entry]:
    """Entries of a file in sources.list format; lines that are not understood are passed over, as are deb-src."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            options = dict(part.split("=", 1) for part in (match[1] or "").split() if "=" in part)
            yield Entry(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))


def deb822_entries(text: str) -> Iterator[Entry]:
    """Entries of a file in deb822 format."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and name:
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Entry(uri, suite, tuple(fields.get("components", "").split()), fields.get("signed-by", ""))


def machine_entries(root: Path = Path("/")) -> list[Entry]:
    """Every archive that the machine's apt uses; unreadable files are left out as apt would."""
    etc = root / "etc/apt"
    entries: list[Entry] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            entries += one_line_entries(text)
        elif path.suffix == ".sources":
            entries += deb822_entries(text)
    return entries


def _keyring(root: Path, signed_by: str) -> Path:
    if signed_by.startswith("/") and "\n" not in signed_by:
        named = root / signed_by.split()[0].split(",")[0].lstrip("/")
        if named.is_file():
            return named
    for candidate in KEYRINGS:
        if (root / candidate).is_file():
            return root / candidate
    raise KitError(
        ExitCode.INFRASTRUCTURE,
        "the keys that sign Debian's archive are not on this machine",
        "apt-get install debian-archive-keyring",
    )


def find(chosen: str | None = None, root: Path = Path("/")) -> Mirror:
    """The mirror to use: ``chosen``, the environment's, or the machine's own.

    ``root`` is where ``etc/apt`` and the keyrings are looked for. Raises KitError without a mirror or a keyring.
    """
    named = chosen or os.environ.get(ENVIRONMENT)
    if named:
        if not re.match(r"[a-z+]+:/?/?\S+$", named):
            raise KitError(
                ExitCode.USAGE, f"{named} is not the address of a mirror", "give a URI such as http://HOST/debian"
            )
        return Mirror(named.rstrip("/"), _keyring(root, ""))
    for entry in machine_entries(root):
        if entry.suite in DEBIAN_SUITES and "main" in entry.components:
            return Mirror(entry.uri.rstrip("/"), _keyring(root, entry.signed_by))
    raise KitError(
        ExitCode.INFRASTRUCTURE,
        "this machine's apt configuration names no Debian mirror (is this Ubuntu?)",
        f"name one: --debian-mirror URI or {ENVIRONMENT}=URI, and apt-get install debian-archive-keyring",
    )
