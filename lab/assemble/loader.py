# SPDX-License-Identifier: MIT
"""Programs of Debian packages for this host's processor, run from where they were unpacked.

They may need a newer C library than the host's; each runs through the loader and libraries unpacked beside it, so
nothing is installed.
"""

from __future__ import annotations

from pathlib import Path

from lab.errors import ExitCode, KitError

_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
_TUPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


def check_architecture(architecture: str) -> None:
    """KitError when the kit cannot build on a host of that Debian architecture."""
    if architecture not in _LOADERS:
        raise KitError(ExitCode.INFRASTRUCTURE, f"this host is {architecture}", "use an x86-64 or arm64 machine")


def command(root: Path, architecture: str, program: Path) -> list[str | Path]:
    """How to run ``program``, with the loader and libraries below ``root``."""
    check_architecture(architecture)
    library = root / "usr/lib" / _TUPLES[architecture]
    name = _LOADERS[architecture]
    candidates = [*root.glob(f"usr/lib*/{name}"), library / name]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise KitError(ExitCode.INFRASTRUCTURE, f"{root}: the C library brings no {name}", "try --update")
    return [found, "--library-path", library, program]


def wrap(program: Path, real: Path, root: Path, architecture: str) -> None:
    """Replace ``program`` by a script that runs ``real`` with the loader and libraries below ``root``."""
    words = " ".join(f"'{word}'" for word in command(root, architecture, real))
    program.unlink()
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
