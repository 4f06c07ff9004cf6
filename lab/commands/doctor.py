# SPDX-License-Identifier: MIT
"""``npulab doctor``: what this host has, what is missing, and what to do for each."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.cache import cache_root
from lab.host import Check, adapters, kvm, network
from lab.output import Output
from lab.virt.results import results_root

PACKAGE_LIST = Path(__file__).parents[1] / "debian-packages.txt"
BUILD_SPACE_GIB = 5
"""Free space that a cold build needs (measured: 2.8 GiB of cache after demo and test, 1.2 of them Linux's source, and
0.4 GiB more for a kernel for real boards)."""
SHARED_MEMORY_GIB = 2
"""Room for one virtual board's RAM."""


def debian_packages() -> list[str]:
    """The packages that the host side needs."""
    lines = PACKAGE_LIST.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def missing_packages() -> list[str]:
    """Those of ``debian_packages`` that dpkg does not have installed."""
    wanted = debian_packages()
    if shutil.which("dpkg-query") is None:
        return wanted
    answer = subprocess.run(
        ["dpkg-query", "-W", "-f", "${binary:Package} ${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    installed = {row[0].split(":")[0] for row in rows if len(row) == 2 and row[1] == "installed"}
    # we run in a virtual environment already, wherever its Python came from
    return [package for package in wanted if package not in installed and package != "python3-venv"]


def _packages() -> Check:
    missing = missing_packages()
    return Check(
        "Debian packages",
        not missing,
        f"{len(debian_packages()) - len(missing)} of {len(debian_packages())} installed",
        "./npulab --install-deps doctor   (missing: " + " ".join(missing) + ")" if missing else "",
    )


def _host() -> Check:
    machine = platform.machine()
    good = machine in ("x86_64", "aarch64")
    return Check("host", good, f"{machine}, Python {platform.python_version()}", "" if good else "use x86-64 or arm64")


def _free_gib(path: Path) -> float:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30


def _cache_space() -> Check:
    root, free = cache_root(), _free_gib(cache_root())
    built = (root / "qemu").is_dir()
    good = built or free >= BUILD_SPACE_GIB
    todo = "" if good else f"a first build needs {BUILD_SPACE_GIB} GiB: free some, or set NPULAB_CACHE"
    return Check("cache", good, f"{root}, {free:.0f} GiB free", todo)


def _cache_writable() -> Check:
    path = cache_root()
    while not path.exists():
        path = path.parent
    good = os.access(path, os.W_OK)
    return Check("cache writable", good, str(path), "" if good else f"set NPULAB_CACHE; {path} cannot be written")


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    free = _free_gib(path) if path.is_dir() else 0.0
    good = free >= SHARED_MEMORY_GIB
    todo = "" if good else "a virtual board's RAM then lies in a file under TMPDIR: slower"
    return Check("shared memory", good, f"{free:.1f} GiB free in {path}", todo)


def _serial_modules() -> Check:
    # labgrid carries its own fork of pyserial under the same name; whichever is installed last wins
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout.lower()
    clash = "pyserial==" in listing and "pyserial-labgrid==" in listing
    todo = "pip uninstall pyserial, then pip install --force-reinstall pyserial-labgrid" if clash else ""
    return Check("serial module", not clash, "two packages own it" if clash else "one package owns it", todo)


RESULTS_SPACE_GIB = 1
"""Logs of many runs; one test run takes some ten MiB."""
LAB_PROGRAMS = {"ser2net": "consoles of a farm", "uhubctl": "power by USB hub", "ssh": "boards and farms"}


def _results_space() -> Check:
    place = results_root()
    free = _free_gib(place)
    todo = "" if free >= RESULTS_SPACE_GIB else "remove old runs there, or set NPULAB_RESULTS"
    return Check("results", not todo, f"{place}, {free:.0f} GiB free", todo)


def _half_made() -> Check:
    """What an interrupted build leaves is never used; a lot of it is wasted space."""
    found = list(cache_root().glob("*/*.partial")) if cache_root().is_dir() else []
    todo = f"no build running? rm -r {' '.join(str(path) for path in found[:3])}" if found else ""
    return Check("cache entries", not found, f"{len(found)} half-made" if found else "all whole", todo, needed=False)


def _lab_programs() -> Check:
    missing = {name: use for name, use in LAB_PROGRAMS.items() if shutil.which(name) is None}
    words = ", ".join(f"{name} ({use})" for name, use in missing.items())
    todo = f"for real boards: apt-get install {' '.join(missing).replace('ssh', 'openssh-client')}" if missing else ""
    return Check("lab programs", not missing, f"missing: {words}" if missing else "all there", todo, needed=False)


CHECKS: tuple[Callable[[], Check], ...] = (
    _host,
    _packages,
    _cache_writable,
    _cache_space,
    _shared_memory,
    _serial_modules,
    _results_space,
    _half_made,
    network.loopback,
    network.leases,
    kvm.check,
    _lab_programs,
)


def laboratory() -> list[Check]:
    """What real boards and farms need; advice on a host that has neither."""
    host = adapters.Host.this()
    rows = [*adapters.serial_adapters(host), *adapters.usb_boards(host), adapters.udev_rules(host)]
    return [*rows, adapters.modem_manager(host), *network.coordinator()]


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Run every check; the document has ``checks`` rows and is not ok when a needed one fails."""
    checks = [*(check() for check in CHECKS), *laboratory()]
    rows = [[check.name, check.state, check.found, check.todo] for check in checks]
    out.table("This host", ["check", "state", "found", "what to do"], rows)
    return {"ok": all(check.ok for check in checks if check.needed), "checks": [asdict(check) for check in checks]}
