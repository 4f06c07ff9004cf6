# SPDX-License-Identifier: MIT
"""Consumers in user space: does this build of Mesa's Teflon delegate contain rocket?"""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require

PACKAGE = "mesa-teflon-delegate"
LIBRARY = "libteflon.so"
MARKS = (b"ROCKET_DEBUG", b"/dev/accel")
"""Strings of Mesa's src/gallium/drivers/rocket and winsys that survive stripping."""


@dataclass(frozen=True)
class Consumer:
    """A library and whether it drives rocket; ``evidence`` lists the strings that were looked for."""

    name: str
    version: str
    rocket: bool
    evidence: str

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine(library: bytes) -> tuple[bool, str]:
    """Whether a libteflon drives rocket, from its strings."""
    found = [mark.decode() for mark in MARKS if mark in library]
    missing = [mark.decode() for mark in MARKS if mark not in library]
    has = not missing and re.search(rb"\brocket\b", library) is not None
    return has, f"strings: has {', '.join(found) or 'none'}" + (f"; lacks {', '.join(missing)}" if missing else "")


def from_file(path: Path) -> Consumer:
    """A ``libteflon.so`` or the Debian package with it."""
    if path.suffix != ".deb":
        try:
            rocket, evidence = examine(path.read_bytes())
        except OSError as error:
            raise KitError(ExitCode.USAGE, f"{path}: {error.strerror}", "check the path") from error
        return Consumer(path.name, "", rocket, evidence)
    require("dpkg-deb", "dpkg")
    show = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(path)]
    shown = subprocess.run(show, capture_output=True, text=True, check=False)
    script = 'dpkg-deb --fsys-tarfile "$0" | tar -xO --wildcards "*/libteflon.so"'
    data = subprocess.run(["bash", "-c", script, str(path)], capture_output=True, check=False).stdout
    if shown.returncode or not data:
        raise KitError(ExitCode.USAGE, f"{path}: no package with {LIBRARY} in it", f"give {PACKAGE}'s .deb")
    name, version = shown.stdout.split()
    rocket, evidence = examine(data)
    return Consumer(name, version, rocket, f"{LIBRARY}, {evidence}")


def from_debian(cache: Cache, out: Output, mirror: str | None) -> list[Consumer]:
    """The packages of the distribution and of its backports."""
    from lab.assemble import mirror as mirrors
    from lab.assemble.apt import TARGET, Apt
    from lab.assemble.mirror import BACKPORTS, SUITE

    apt = Apt(cache, mirrors.find(mirror), cache.root / "log" / "audit.log")
    found = []
    for suite in (SUITE, BACKPORTS):
        try:
            files = apt.locate([f"{PACKAGE}/{suite}"], TARGET, out)
        except KitError as error:
            out.note(f"{PACKAGE} of {suite}: {error.message}")
            continue
        (path,) = apt.fetch(files, f"{PACKAGE} of {suite}", out)
        found.append(from_file(path))
    return found
