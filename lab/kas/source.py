# SPDX-License-Identifier: MIT
"""The kernel's source for BitBake: what the recipe names, Debian's package, or a tarball of the user's."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.assemble import fetch
from lab.assemble.apt import TARGET, Apt
from lab.assemble.sources import LINUX_BASE, REPOSITORY
from lab.cache import Cache, file_digest
from lab.errors import ExitCode, KitError
from lab.kas.request import Request
from lab.kernel import parts
from lab.output import Output
from lab.process import require, run

URI, FOLDER, SHA256 = "NPULAB_LINUX_URI", "NPULAB_LINUX_SRCDIR", "NPULAB_LINUX_SHA256"
"""Variables that the kernel recipes take (``recipes/recipes-kernel/linux/linux-rocket.inc``)."""


def find(
    request: Request,
    spec: str | None,
    cache: Cache,
    apt: Apt | None,
    out: Output,
    environment: Mapping[str, str] = os.environ,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Variables for BitBake, and the manifest's origin of the source.

    Without ``spec`` the recipe's own address is taken, but with this machine's compiler (host-toolchain) Debian's
    package: then nothing but Debian's mirror is needed.
    """
    if spec is None and environment.get(URI):
        return {}, {"kind": "tarball", "name": environment[URI]}
    if spec == "apt" or (spec is None and "host-toolchain" in request.options and apt is not None):
        return _debian(request, cache, apt, out)
    if spec is None:
        return {}, {"kind": "tarball", "name": upstream(request.kernel)}
    if Path(spec).expanduser().is_dir():
        message = f"--source {spec}: BitBake takes a tarball, not a tree"
        raise KitError(ExitCode.USAGE, message, "git archive --prefix=linux/ HEAD | xz > linux.tar.xz, or leave --with")
    tarball = fetch.parse(spec)
    origin = {"kind": "tarball", "name": tarball.where, "sha256": tarball.sha256}
    path = fetch.fetch(tarball, cache, out)
    return {URI: f"file://{path}", FOLDER: _top(path), SHA256: tarball.sha256}, origin


def upstream(series: str) -> str:
    """The address that a recipe names."""
    text = (REPOSITORY / f"recipes/recipes-kernel/linux/linux-rocket_{series}.bb").read_text()
    found = re.search(r'^LINUX_VERSION = "(.*)"', text, re.MULTILINE)
    version = found[1] if found else series
    return f"https://cdn.kernel.org/pub/linux/kernel/v{version.split('.')[0]}.x/linux-{version}.tar.xz"


def _debian(request: Request, cache: Cache, apt: Apt | None, out: Output) -> tuple[dict[str, str], dict[str, Any]]:
    if request.kernel != LINUX_BASE or apt is None:
        message = f"Linux {request.kernel}: this kit's apt has {LINUX_BASE} only"
        raise KitError(ExitCode.USAGE, message, parts.THREE_WAYS)
    (package,) = apt.locate([f"linux-source-{LINUX_BASE}"], TARGET, out)
    origin = {"kind": "debian", "name": package.package, "version": package.version, "sha256": package.sha256}
    name = f"{package.package}.tar.xz"

    def make(entry: Path) -> None:
        (deb,) = apt.fetch([package], "Linux source", out)
        require("dpkg-deb", "dpkg")
        script = f"set -o pipefail; dpkg-deb --fsys-tarfile '{deb}' | tar -xO ./usr/src/{name} > '{entry / name}'"
        run(["bash", "-c", script], stage="unpacking Linux's tarball", log=cache.root / "log" / "kas-source.log")

    path = cache.entry("linux-tarball", package.sha256[:20], make) / name
    return {URI: f"file://{path}", FOLDER: package.package, SHA256: file_digest(path)}, origin


def _top(path: Path) -> str:
    """The folder that a tarball holds."""
    with subprocess.Popen(["tar", "-tf", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as lister:
        assert lister.stdout is not None
        first = lister.stdout.readline().decode(errors="replace").strip()
        lister.kill()
    folder = first.removeprefix("./").split("/")[0]
    if not folder:
        raise KitError(ExitCode.USAGE, f"{path} is no tarball that can be read", parts.THREE_WAYS)
    return folder
