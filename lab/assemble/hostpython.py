# SPDX-License-Identifier: MIT
"""The target's Python version for the host's processor, to compile ``.pyc`` files with.

A ``.pyc`` belongs to one Python minor version, and the host's is another. Debian has the target's for the host's
architecture too; it is unpacked below the cache and run through its own loader and libraries, so nothing is installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.assemble import loader
from lab.assemble.apt import Apt, File
from lab.cache import Cache, digest
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.parallel import run_all
from lab.process import run

WANTED = ("libc6", "libgcc-s1", "libexpat1", "zlib1g", "libbz2-1.0", "liblzma5", "libffi8")


def version_in(packages: Sequence[File]) -> str:
    """``3.13`` when the packages bring ``python3.13-minimal``."""
    for package in packages:
        match = re.fullmatch(r"python(3\.\d+)-minimal", package.package)
        if match:
            return match[1]
    raise KitError(ExitCode.INFRASTRUCTURE, "the root file system's packages bring no Python", "try --update")


@dataclass(frozen=True)
class HostPython:
    """A Python below ``root`` for this host's architecture."""

    root: Path
    version: str
    architecture: str

    def compile(self, tree: Path, seen_as: str, jobs: int, log: Path) -> None:
        """Compile every module below ``tree``, which the target sees at ``seen_as``.

        The ``.pyc`` files are of the unchecked kind: file times do not matter.
        """
        parts = sorted(str(path) for path in tree.iterdir() if path.is_dir() or path.suffix == ".py")
        shards = [parts[start::jobs] for start in range(min(jobs, len(parts)))]
        run_all({f"{index}": partial(self._compile, tree, seen_as, shard, log) for index, shard in enumerate(shards)})

    def _compile(self, tree: Path, seen_as: str, parts: Sequence[str], log: Path) -> None:
        # not compileall's own -j: its helper processes start sys.executable, which is the loader here
        python = self.root / f"usr/bin/python{self.version}"
        command: list[str | Path] = [
            *loader.command(self.root, self.architecture, python),
            *("-m", "compileall"),
            *("-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", seen_as, *parts),
        ]
        environment = {"PYTHONHOME": str(self.root / "usr"), "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": ""}
        run(command, stage="compiling Python modules", log=log, env=environment)


def host_python(version: str, apt: Apt, cache: Cache, out: Output, log: Path) -> HostPython:
    """The Python ``version`` for this host, unpacked in the cache."""
    architecture = apt.host_architecture()
    loader.check_architecture(architecture)
    packages = [f"python{version}-minimal", f"libpython{version}-minimal", f"libpython{version}-stdlib", *WANTED]
    files = apt.locate(packages, architecture, out)

    def make(entry: Path) -> None:
        for deb in apt.fetch(files, "host Python", out):
            run(["dpkg-deb", "-x", deb, entry], stage=f"unpacking {deb.name}", log=log)

    root = cache.entry("host-python", digest([file.sha256 for file in files]), make)
    return HostPython(root, version, architecture)
