# SPDX-License-Identifier: MIT
"""A private apt: own lists, cache and (empty) status below the kit's cache, for Debian trixie and its backports.

The machine's apt is never changed and no root is needed. What a request resolves to is remembered, so that a later run
needs neither the network nor time; ``update`` asks the mirror again. Every package is verified against the signed
index by apt, and once more by SHA-256 before it enters the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lab.assemble.artifacts import link
from lab.assemble.mirror import BACKPORTS, SUITE, Mirror
from lab.assemble.requirements import check_space
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.output import Meter, Output
from lab.process import require, run

TARGET = "arm64"

LISTS_SPACE = 300_000_000
"""Bytes for the package lists of two architectures while they are renewed (measured: 64 MB each, old and new)."""
UPDATE_SECONDS = 900.0
"""An update that takes longer hangs (seen: 4 s)."""

_NETWORK = re.compile(
    r"Could not resolve|Temporary failure|Could not connect|Network is unreachable"
    r"|Connection (?:refused|timed out|failed)|Unable to connect|Could not handshake|Failed to fetch"
)
_FULL = re.compile(r"No space left on device|not enough free space|Disk quota exceeded")
_UNSIGNED = re.compile(r"NO_PUBKEY|not signed|EXPKEYSIG|BADSIG|invalid signature|Missing key")


@dataclass(frozen=True)
class File:
    """A file of the archive: a package or a part of a source package."""

    uri: str
    name: str
    size: int
    sha256: str

    @property
    def package(self) -> str:
        """Package name, from the file name."""
        return self.name.split("_")[0]

    @property
    def version(self) -> str:
        """Version, from the file name (without the epoch of source packages)."""
        return unquote(self.name.split("_")[1]) if self.name.count("_") else ""


def explain(error: KitError, doing: str, mirror: Mirror) -> KitError:
    """The clear line for a failed apt run, from the last lines of its log."""
    if _FULL.search(error.tail):
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"{doing}: the disk is full",
            "free space, or point NPULAB_CACHE at a larger file system; finished downloads are kept",
            log=error.log,
        )
    if _UNSIGNED.search(error.tail):
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"{doing}: the keys in {mirror.keyring} do not sign Debian {SUITE}",
            "update the package debian-archive-keyring",
            tail=error.tail,
            log=error.log,
        )
    if _NETWORK.search(error.tail):
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"{doing}: the Debian mirror {mirror.uri} cannot be reached or lacks a file",
            "check the network, or --update when the mirror moved on; finished downloads are kept",
            log=error.log,
        )
    return error


def parse_uris(text: str) -> list[File]:
    """Files from the output of ``apt-get --print-uris``: ``'URI' name size SHA256:hex``."""
    files = []
    for match in re.finditer(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})\s*$", text, re.MULTILINE):
        files.append(File(match[1], match[2], int(match[3]), match[4]))
    return files


class Apt:
    """The private apt of one cache and mirror."""

    def __init__(self, cache: Cache, mirror: Mirror, log: Path, *, update: bool = False) -> None:
        require("apt-get", "apt")
        self.cache, self.mirror, self.log = cache, mirror, log
        self.root = cache.root / "apt" / mirror.key
        self._update_wanted = update

    def resolve(self, packages: Sequence[str], architecture: str, out: Output) -> list[File]:
        """The packages and all they need, for a system where nothing is installed."""
        return self._resolved(["install", "--no-install-recommends", *packages], architecture, out)

    def locate(self, packages: Sequence[str], architecture: str, out: Output) -> list[File]:
        """The packages alone, in the order given; a name may have the suite behind it, ``name/trixie-backports``."""
        found = {file.package: file for file in self._resolved(["download", *packages], architecture, out)}
        return [found[package.split("/")[0]] for package in packages]

    def locate_source(self, package: str, out: Output) -> list[File]:
        """The parts of a source package of trixie."""
        return self._resolved(["source", "--download-only", f"{package}/{SUITE}"], self.host_architecture(), out)

    def names(self, prefix: str, architecture: str, out: Output) -> list[str]:
        """Names of packages that begin with ``prefix``."""

        def ask() -> list[str]:
            command = ["apt-cache", *self._for(architecture), "pkgnames", prefix]
            answer = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
            return answer.stdout.split()

        return self._remembered(["names", prefix, architecture], ask, out)

    def fetch(self, files: Sequence[File], label: str, out: Output) -> list[Path]:
        """The files, from the cache or the mirror, verified; in the order given."""
        missing = [file for file in files if self._cached(file) is None]
        if missing:
            with self.cache.workdir("download", digest([file.sha256 for file in missing])) as work:
                self._download(missing, work, label, out)
                shutil.rmtree(work, ignore_errors=True)
        paths = [self._cached(file) for file in files]
        return [path for path in paths if path is not None]

    @staticmethod
    def host_architecture() -> str:
        """Debian's name of this machine's architecture."""
        answer = subprocess.run(
            [require("dpkg", "dpkg"), "--print-architecture"], capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    def _cached(self, file: File) -> Path | None:
        entry = self.cache.lookup("download", file.sha256)
        return entry / file.name if entry else None

    # --- resolving ---------------------------------------------------------------------------------------------

    def _resolved(self, request: list[str], architecture: str, out: Output) -> list[File]:
        def ask() -> list[dict[str, Any]]:
            return [asdict(file) for file in self._ask(request, architecture)]

        return [File(**entry) for entry in self._remembered([*request, architecture], ask, out)]

    def _remembered(self, request: list[str], ask: Callable[[], list[Any]], out: Output) -> list[Any]:
        """What ``ask`` found for the request, now or in an earlier run."""
        known = self.root / "resolved" / f"{digest(request)}.json"
        with self.cache.lock("apt", self.mirror.key):
            self._ready(out)
            if known.is_file():
                answer: list[Any] = json.loads(known.read_text())
                return answer
            answer = ask()
            known.parent.mkdir(parents=True, exist_ok=True)
            partial = known.with_suffix(".partial")
            partial.write_text(json.dumps(answer, indent=1))
            partial.rename(known)
            return answer

    def _ready(self, out: Output) -> None:
        """The package lists are there, and new when that was asked for; the caller holds the lock."""
        if self._update_wanted or not (self.root / "updated").is_file():
            self._update(out)
            self._update_wanted = False

    def _ask(self, request: list[str], architecture: str) -> list[File]:
        command = ["apt-get", "-qq", "-y", "--print-uris", *self._for(architecture), *request]
        answer = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        files = parse_uris(answer.stdout)
        if answer.returncode or not files:
            reason = next((line for line in answer.stderr.splitlines() if line.startswith("E:")), "no answer from apt")
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"Debian {SUITE} on {self.mirror.uri}: {reason.removeprefix('E: ')}",
                "try --update; if the package is gone, choose another source (--source)",
                tail="\n".join((answer.stdout + answer.stderr).splitlines()[-10:]),
            )
        return files

    def _update(self, out: Output) -> None:
        # apt does not fail on a disk that fills up during an update: its helper waits for ever
        check_space(self.cache.root, LISTS_SPACE, "reading Debian's package lists")
        self._write_configuration()
        stamp = self.root / "updated"
        stamp.unlink(missing_ok=True)
        with out.stage("Debian package lists") as meter:
            command = ["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"]
            try:
                run(
                    command,
                    stage="reading Debian's package lists",
                    log=self.log,
                    env=self._environment(),
                    on_line=lambda line: meter.update(0, None, line),
                    timeout=UPDATE_SECONDS,
                    hint="check the network, the mirror and the free space, then run it again",
                )
            except KitError as error:
                raise explain(error, "reading Debian's package lists", self.mirror) from error
        shutil.rmtree(self.root / "resolved", ignore_errors=True)
        stamp.write_text("ok\n")

    # --- downloading -------------------------------------------------------------------------------------------

    def _download(self, files: Sequence[File], work: Path, label: str, out: Output) -> None:
        (work / "archives/partial").mkdir(parents=True, exist_ok=True)
        need = sum(file.size for file in files)
        if shutil.disk_usage(work).free < need:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"{label}: {need / 1e6:.0f} MB to download do not fit into {self.cache.root}",
                "free space, or point NPULAB_CACHE at a larger file system",
            )
        with out.stage(f"download {label}") as meter:
            for architecture, names in self._by_architecture(files).items():
                self._run_download(architecture, names, files, work, meter)
        for file in files:
            self._keep(file, work / file.name)

    @staticmethod
    def _by_architecture(files: Sequence[File]) -> dict[str, list[File]]:
        groups: dict[str, list[File]] = {}
        for file in files:
            kind = file.name.removesuffix(".deb").rsplit("_", 1)[-1] if file.name.endswith(".deb") else "source"
            groups.setdefault(kind, []).append(file)
        return groups

    def _run_download(
        self, architecture: str, wanted: Sequence[File], files: Sequence[File], work: Path, meter: Meter
    ) -> None:
        total = sum(file.size for file in files)
        if architecture == "source":
            (package,) = {file.package for file in wanted}
            request = ["source", "--download-only", f"{package}/{SUITE}"]
        else:
            request = ["download", *(f"{file.package}={file.version}" for file in wanted)]
        selected = self.host_architecture() if architecture in ("source", "all") else architecture
        command = [
            "apt-get",
            "-q",
            *self._for(selected),
            *("-o", "APT::Status-Fd=1", "-o", f"Dir::Cache::archives={work}/archives/"),
            *request,
        ]
        try:
            run(
                command,
                stage="download",
                log=self.log,
                cwd=work,
                env=self._environment(),
                on_line=lambda line: meter.update(_present(work), total, ""),
            )
        except KitError as error:
            raise explain(error, f"downloading {wanted[0].package}", self.mirror) from error

    def _keep(self, file: File, path: Path) -> None:
        if not path.is_file() or file_digest(path) != file.sha256:
            path.unlink(missing_ok=True)
            raise KitError(
                ExitCode.MISMATCH,
                f"{file.name}: the download does not have the hash that Debian's index states",
                "run it again; if it stays, try --update or another mirror",
            )

        def move(entry: Path) -> None:
            link(path, entry / file.name)

        self.cache.entry("download", file.sha256, move)

    # --- configuration -----------------------------------------------------------------------------------------

    def _for(self, architecture: str) -> list[str]:
        return ["-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures::={architecture}"]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self.root / "apt.conf"), "LC_ALL": "C"}

    def _write_configuration(self) -> None:
        for name in ("lists/partial", "cache/archives/partial", "empty", "state"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "state/status").write_text("")
        keyring = f"[signed-by={self.mirror.keyring}]"
        lines = [f"{kind} {keyring} {self.mirror.uri} {suite} main" for suite in (SUITE, BACKPORTS) for kind in _KINDS]
        (self.root / "sources.list").write_text("\n".join(lines) + "\n")
        architectures = sorted({TARGET, self.host_architecture()})
        root, user = self.root, os.environ.get("USER", "")
        settings = [
            f'Dir::State "{root}/state";',
            f'Dir::State::lists "{root}/lists";',
            f'Dir::State::status "{root}/state/status";',
            f'Dir::Cache "{root}/cache";',
            f'Dir::Etc::SourceList "{root}/sources.list";',
            f'Dir::Etc::SourceParts "{root}/empty";',
            f'Dir::Etc::Parts "{root}/empty";',
            'Dir::Etc::Main "/dev/null";',
            'Dir::Etc::Preferences "/dev/null";',
            f'Dir::Etc::PreferencesParts "{root}/empty";',
            f'APT::Sandbox::User "{user if os.geteuid() else "root"}";',
            *(f'APT::Architectures:: "{architecture}";' for architecture in architectures),
            'Acquire::Languages { "none"; };',
            'Acquire::Retries "2";',
            'Acquire::ForceHash "SHA256";',
        ]
        (self.root / "apt.conf").write_text("\n".join(self._machine_settings() + settings) + "\n")

    @staticmethod
    def _machine_settings() -> list[str]:
        """The machine's proxies, certificates and time-outs; nothing that runs programs or touches its directories."""
        answer = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
        unwanted = ("Acquire::IndexTargets", "Acquire::Languages", "Acquire::Changelogs")
        lines = (line for line in answer.stdout.splitlines() if line.startswith("Acquire::"))
        return [line for line in lines if not line.startswith(unwanted)]


_KINDS = ("deb", "deb-src")


def _present(work: Path) -> int:
    """Bytes downloaded so far below a download's directory."""
    seen = 0
    for pattern in ("*", "archives/partial/*"):
        for path in work.glob(pattern):
            try:
                seen += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue
    return seen
