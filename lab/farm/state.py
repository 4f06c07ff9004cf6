# SPDX-License-Identifier: MIT
"""What outlives a process: the local farm's description, and the leases that are held on this host.

Everything lies in one directory (``$NPULAB_FARM``, else ``npulab/farm`` below the user's XDG state directory):
``farm.json`` and ``lock`` of the local farm, ``coordinator/`` its working directory (labgrid keeps ``places.yaml``
there), ``leases/<id>.json``. A file counts as long as somebody holds its lock: a farm or a lease whose lock is free
belongs to a process that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs

from lab.errors import ExitCode, KitError, from_os_error

ADDRESS_VARIABLE = "LG_COORDINATOR"


def root() -> Path:
    """The directory; made when it is not there."""
    chosen = os.environ.get("NPULAB_FARM")
    path = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_state_path("npulab") / "farm"
    try:
        (path / "leases").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the farm's state directory") from error
    return path


def lock(path: Path, patience: float = 0.0) -> IO[str] | None:
    """Take the lock of a file, made if need be; None when somebody else keeps it. Closing the stream gives it back."""
    deadline = time.monotonic() + patience
    while True:
        stream = path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # it may have been removed between the two steps
            if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        except BlockingIOError:
            if time.monotonic() >= deadline:
                stream.close()
                return None
            time.sleep(0.02)
        stream.close()


def held(path: Path) -> bool:
    """Whether somebody holds the lock of a file."""
    try:
        with path.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def write(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file as a whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=2))
    partial.replace(path)


@dataclass(frozen=True)
class Farm:
    """The local farm that runs in the background or in some terminal."""

    coordinator: str
    guard: int
    places: tuple[str, ...]
    results: str

    def document(self) -> dict[str, Any]:
        """For ``farm.json`` and ``--json``."""
        return asdict(self)


def local_farm() -> Farm | None:
    """The local farm, if one runs."""
    place = root()
    if not held(place / "lock"):
        return None
    try:
        document = json.loads((place / "farm.json").read_text())
    except (FileNotFoundError, ValueError):
        return None  # it is just starting
    return Farm(document["coordinator"], document["guard"], tuple(document["places"]), document["results"])


def coordinator_address(chosen: str | None) -> str:
    """Which coordinator: the one that is named, ``$LG_COORDINATOR``, the local farm; KitError when there is none."""
    found = chosen or os.environ.get(ADDRESS_VARIABLE)
    if found:
        return found
    farm = local_farm()
    if farm is not None:
        return farm.coordinator
    raise KitError(
        ExitCode.INFRASTRUCTURE,
        "no coordinator is known: no farm runs on this host and LG_COORDINATOR is not set",
        "npulab farm up --detach starts one; --coordinator HOST:PORT names yours",
    )


@dataclass
class Lease:
    """A claim on a place, from the reservation on. The file is there before the coordinator hears of it."""

    coordinator: str
    owner: str
    token: str = ""
    place: str = ""
    keeper: int = 0

    def save(self, path: Path) -> None:
        """Write what is known so far. In place: the lock is on the file itself, and a torn line is taken as empty."""
        with path.open("r+") as stream:
            stream.write(json.dumps(asdict(self)) + "\n")
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())


def lease_path(identity: str) -> Path:
    """Where the lease of that job is."""
    return root() / "leases" / f"{identity}.json"


def _read_lease(path: Path) -> Lease | None:
    try:
        return Lease(**json.loads(path.read_text()))
    except (ValueError, TypeError, OSError):
        return None


@contextmanager
def _claimed(path: Path) -> Iterator[Lease | None]:
    """The lease of a dead process, locked so that two sweeps do not meet; None when it is alive or empty."""
    stream = lock(path)
    if stream is None:
        yield None
        return
    with stream:
        yield _read_lease(path)


def sweep(coordinator: str) -> list[str]:
    """Give back what processes left behind that died with a lease of this coordinator; returns the places."""
    from lab.farm.client import Client, full_address

    released = []
    for path in sorted((root() / "leases").glob("*.json")):
        if held(path):
            continue
        with _claimed(path) as lease:
            if lease is not None and full_address(lease.coordinator) != full_address(coordinator):
                continue
            if lease is not None:
                client = Client(lease.coordinator, lease.owner)
                try:
                    released += end_lease(client, lease)
                finally:
                    client.close()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return released


def end_lease(client: Any, lease: Lease) -> list[str]:
    """Cancel the reservation and release the place, also when the lease died before it knew their names."""
    tokens = {lease.token} if lease.token else set()
    # reservations first: a place that is released goes to the next reservation, which must not be ours
    tokens |= {entry.token for entry in client.reservations() if entry.owner == lease.owner}
    for token in sorted(tokens):
        client.cancel(token)
    places = [place.name for place in client.places() if place.acquired == lease.owner]
    for place in places:
        client.release(place, lease.owner)
    return places
