# SPDX-License-Identifier: MIT
"""Ports of 127.0.0.1, and the coordinator: is one there, and is it open to the whole network?"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from lab.errors import KitError
from lab.farm import state
from lab.farm.client import DEFAULT_PORT, Client
from lab.host import Check

LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (linux include/net/tcp_states.h)."""


def loopback() -> Check:
    """Whether ports of 127.0.0.1 can be had: ssh to a virtual board and the farm need them."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen(1)
            with socket.create_connection(probe.getsockname(), timeout=2.0):
                return Check("loopback", True, "ports of 127.0.0.1 connect")
    except OSError as error:
        return Check("loopback", False, f"127.0.0.1: {error.strerror or error}", "ip link set lo up")


def _listeners(port: int, proc: Path) -> set[str]:
    """``all`` and ``loopback``: on which addresses somebody listens on a port."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].rpartition(":")
            if fields[3] == LISTEN and int(number, 16) == port:
                found.add("all" if set(address) == {"0"} else "loopback")
    return found


def coordinator(proc: Path = Path("/proc")) -> list[Check]:
    """The coordinator that jobs would use, and whether one on this host is open to everybody."""
    checks = []
    address = os.environ.get(state.ADDRESS_VARIABLE, "")
    # without a place for its state (see `leases`) there is no farm of ours
    with contextlib.suppress(KitError):
        address = address or getattr(state.local_farm(), "coordinator", "")
    if not address:
        checks.append(Check("coordinator", True, "none: npulab farm up starts one", needed=False))
    else:
        checks.append(_reachable(address))
    if "all" in _listeners(DEFAULT_PORT, proc):
        todo = "labgrid has neither passwords nor encryption: labgrid-coordinator -l 127.0.0.1:20408, reach it by ssh"
        found = f"port {DEFAULT_PORT} listens on every address"
        checks.append(Check("coordinator's address", False, found, todo, needed=False))
    return checks


def _reachable(address: str) -> Check:
    try:
        client = Client(address)
        try:
            places = client.places()
        finally:
            client.close()
    except KitError as error:
        return Check("coordinator", False, error.message, error.hint, needed=False)
    held = sum(bool(place.acquired) for place in places)
    return Check("coordinator", True, f"{address}: {len(places)} places, {held} in use", needed=False)


def leases() -> Check:
    """Leases of killed runs on this host."""
    try:
        folder = state.root() / "leases"
    except KitError as error:
        return Check("leases", False, error.message, "set NPULAB_FARM to a directory of yours", needed=False)
    stale = [path for path in folder.glob("*.json") if not state.held(path)]
    found = f"{len(stale)} left by killed runs" if stale else "none left by killed runs"
    return Check("leases", not stale, found, "npulab farm sweep" if stale else "", needed=False)
