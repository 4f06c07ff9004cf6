# SPDX-License-Identifier: MIT
"""The content cache: results of long work, found again by what went into them.

An entry is a directory ``<root>/<kind>/<key>``. It is made under another name and renamed when complete, so an entry
that exists is whole. One lock per entry keeps two runs from making the same thing twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from lab.errors import from_os_error


def cache_root() -> Path:
    """``$NPULAB_CACHE`` or ``npulab`` in the user's cache directory."""
    chosen = os.environ.get("NPULAB_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("npulab")


def digest(*parts: Any) -> str:
    """A short key (20 hex digits of SHA-256) over JSON-representable parts."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(root: Path, pattern: str = "**/*") -> str:
    """Key over names and contents of the files below ``root`` (caches of Python left out)."""
    files = sorted(p for p in root.glob(pattern) if p.is_file() and "__pycache__" not in p.parts)
    return digest([(str(p.relative_to(root)), file_digest(p)) for p in files])


class Cache:
    """Entries below one root."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def path(self, kind: str, key: str) -> Path:
        """Where the entry is or would be."""
        return self.root / kind / key

    def lookup(self, kind: str, key: str) -> Path | None:
        """The entry, if it exists."""
        path = self.path(kind, key)
        return path if path.is_dir() else None

    @contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Hold the entry's lock; waits for another run that makes the same thing."""
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            stream = (locks / f"{kind}-{key}").open("w")
        except OSError as error:
            raise from_os_error(error, "opening the cache") from error
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The entry, made by ``make(directory)`` if it is not there yet.

        ``make`` gets an empty directory beside the final place; on any error or interrupt it is removed.
        """
        found = self.lookup(kind, key)
        if found is not None:
            return found
        with self.lock(kind, key):
            found = self.lookup(kind, key)
            if found is not None:
                return found
            final = self.path(kind, key)
            partial = final.with_name(f"{key}.partial")
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                make(partial)
                partial.rename(final)
            except OSError as error:
                raise from_os_error(error, f"making {kind}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return final

    @contextmanager
    def workdir(self, kind: str, key: str) -> Iterator[Path]:
        """A directory that stays between runs (a build tree), locked while it is used."""
        with self.lock(f"work-{kind}", key):
            path = self.root / "work" / kind / key
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise from_os_error(error, f"making the work directory of {kind}") from error
            yield path
