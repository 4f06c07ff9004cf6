# SPDX-License-Identifier: MIT
"""Tarballs that a user names: a local file, or an https address with the SHA-256 of its contents."""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lab.cache import Cache, file_digest
from lab.cancel import check_cancelled
from lab.errors import ExitCode, KitError
from lab.output import Output

BLOCK = 1 << 18
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""

ARCHIVE = re.compile(r"\.tar(\.(xz|gz|bz2|zst))?$|\.tgz$")


@dataclass(frozen=True)
class Tarball:
    """A tarball by content: ``where`` is a path or an address."""

    where: str
    sha256: str


def parse(text: str) -> Tarball:
    """A tarball from ``PATH[#sha256=HEX]`` or ``https://...#sha256=HEX``; KitError (usage) when it is neither."""
    where, _, rest = text.partition("#")
    expected = rest.removeprefix("sha256=").lower()
    if rest and not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise KitError(ExitCode.USAGE, f"{text}: the part after # is no hash", "write #sha256= and 64 hex digits")
    if not ARCHIVE.search(where):
        raise KitError(ExitCode.USAGE, f"{where}: neither a source tree nor a tarball", "give a directory or a .tar.xz")
    if where.startswith("https://"):
        if not expected:
            raise KitError(ExitCode.USAGE, f"{where}: a download needs its hash", "append #sha256= and 64 hex digits")
        return Tarball(where, expected)
    path = Path(where)
    if not path.is_file():
        raise KitError(ExitCode.USAGE, f"{where}: there is no such file", "check the path")
    found = file_digest(path)
    if expected and found != expected:
        raise KitError(ExitCode.MISMATCH, f"{where}: its hash is {found}", "download it again, or correct #sha256=")
    return Tarball(str(path.absolute()), found)


def fetch(tarball: Tarball, cache: Cache, out: Output) -> Path:
    """The tarball as a local file with the right contents; a download goes on where an earlier one stopped."""
    if not tarball.where.startswith("https://"):
        return Path(tarball.where)
    name = tarball.where.rsplit("/", 1)[-1]

    def make(entry: Path) -> None:
        with cache.workdir("download", tarball.sha256) as work:
            partial = work / name
            _download(tarball.where, partial, out)
            found = file_digest(partial)
            if found != tarball.sha256:
                partial.unlink()
                raise KitError(
                    ExitCode.MISMATCH,
                    f"{tarball.where}: its hash is {found}",
                    "correct #sha256=, or run it again: the wrong download was removed",
                )
            shutil.move(partial, entry / name)

    return cache.entry("download", tarball.sha256, make) / name


def _download(address: str, partial: Path, out: Output) -> None:
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with out.stage(f"download {partial.name}") as meter, urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            resumed = answer.status == 206
            done = have if resumed else 0
            length = answer.headers.get("Content-Length")
            total = done + int(length) if length else None
            with partial.open("ab" if resumed else "wb") as sink:
                while block := answer.read(BLOCK):
                    check_cancelled()
                    sink.write(block)
                    done += len(block)
                    meter.update(done, total)
        if total is not None and done < total:
            raise ConnectionError(f"it stopped after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch; the hash decides
            return
        raise KitError(
            ExitCode.INFRASTRUCTURE, f"{address}: {error.code} {error.reason}", "check the address"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"{address}: cannot be reached or broke off ({reason})",
            "check the network and run it again: it goes on where it stopped",
        ) from error
