# SPDX-License-Identifier: MIT
"""Why a kas build failed, as one line: from the decisive lines of kas's, git's and BitBake's output."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.kas.progress import Progress
from lab.kas.request import Request

SHOWN = 12
OFFLINE_HINT = "connect it, or set KAS_REPO_REF_DIR to clones of the layers (docs/kas.md)"
MIRROR_HINT = "connect it, name a mirror (--option mirrors, docs/kas.md), or put the file into DL_DIR"


def explain(progress: Progress, request: Request, log: Path, code: int) -> KitError:
    """The error for a kas that ended with ``code``."""
    lines = [*progress.kas_errors, *progress.errors]
    text = "\n".join([*lines, *progress.excerpt, *progress.last])
    for pattern, make in _CAUSES:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            answer, message, hint = make(match)
            return KitError(answer, message, hint, tail=_tail(progress), log=log)
    if code < 0 or not lines:
        message = f"kas build of {request.target} for {request.machine} ended with {code} and without an error line"
        return KitError(ExitCode.INFRASTRUCTURE, message, "read the log", tail=_tail(progress), log=log)
    message = f"kas build of {request.target} for {request.machine}: {_first(progress, lines)}"
    hint = f"the task's log: {progress.task_log}" if progress.task_log else "read the log"
    return KitError(ExitCode.FAILED, message, hint, tail=_tail(progress), log=log)


def _first(progress: Progress, lines: list[str]) -> str:
    """The line that says most."""
    told = [line for line in (*progress.errors, *lines) if line.strip() and not line.startswith("Command ")]
    return told[0] if told else lines[0].splitlines()[0]


def _tail(progress: Progress) -> str:
    lines = progress.errors or progress.kas_errors
    shown = [*"\n".join(lines).splitlines()[:SHOWN], *progress.excerpt]
    return "\n".join(line[:300] for line in shown)


_Answer = tuple[ExitCode, str, str]
_Causes = tuple[tuple[str, Callable[[re.Match[str]], _Answer]], ...]


def _repository(match: re.Match[str]) -> _Answer:
    message = f"no network: {match['host']} cannot be reached for a layer's repository"
    return ExitCode.INFRASTRUCTURE, message, OFFLINE_HINT


def _missing_repository(match: re.Match[str]) -> _Answer:
    hint = "check its url below kas/include, or the clone in KAS_REPO_REF_DIR"
    return ExitCode.INFRASTRUCTURE, f"the repository {match['url']} is not there", hint


_COMMIT_HINT = "the lock file names what the repository lacks: kas lock --update, or fetch it into KAS_REPO_REF_DIR"


def _missing_commit(match: re.Match[str]) -> _Answer:
    message = f"the repository {Path(match['folder']).name} has no commit {match['commit']}"
    return ExitCode.MISMATCH, message, _COMMIT_HINT


def _missing_ref(match: re.Match[str]) -> _Answer:
    return ExitCode.MISMATCH, match[0].strip(), _COMMIT_HINT


def _fetch(match: re.Match[str]) -> _Answer:
    return ExitCode.INFRASTRUCTURE, f"no network, or the source is gone: {match['url']}", MIRROR_HINT


def _checksum(match: re.Match[str]) -> _Answer:
    message = f"a source has another SHA-256 than it should: {match['file']}"
    return ExitCode.MISMATCH, message, "remove it from DL_DIR and fetch it again; never change the recipe to fit it"


def _fragment(match: re.Match[str]) -> _Answer:
    hint = "look at what the symbol depends on in this kernel and add it to the fragment"
    return ExitCode.FAILED, f"kernel configuration: lines of the fragments did not survive: {match['lines']}", hint


def _patch(match: re.Match[str]) -> _Answer:
    hint = "rebase the patch onto this kernel, or leave the fixes out (--option without-fixes)"
    return ExitCode.FAILED, f"the patch {Path(match['patch']).name} does not apply to the kernel's source", hint


def _machine(match: re.Match[str]) -> _Answer:
    hint = "machines are the files of recipes/conf/machine; each has a kas file of its name"
    return ExitCode.USAGE, f"BitBake knows no machine {match['machine']}", hint


def _blob(match: re.Match[str]) -> _Answer:
    hint = "export NPULAB_DDR_BLOB=/path/to/ddr.bin NPULAB_DDR_SHA256=its SHA-256"
    return ExitCode.REFUSED, match[0].strip(), hint


def _wrong_blob(match: re.Match[str]) -> _Answer:
    return ExitCode.MISMATCH, match[0].strip(), "it is not the file that you meant"


def _root(match: re.Match[str]) -> _Answer:
    return ExitCode.REFUSED, "BitBake refuses to run as root", "run this as a normal user, or with kas-container"


def _locale(match: re.Match[str]) -> _Answer:
    hint = "add en_US.UTF-8 UTF-8 to /etc/locale.gen and run locale-gen"
    return ExitCode.INFRASTRUCTURE, "this machine has no locale en_US.UTF-8, which BitBake needs", hint


def _tools(match: re.Match[str]) -> _Answer:
    names = " ".join(match["names"].split())
    return ExitCode.INFRASTRUCTURE, f"programs that BitBake needs are missing: {names}", "install their packages"


def _space(match: re.Match[str]) -> _Answer:
    hint = "free space and run it again, it goes on; or set KAS_WORK_DIR or NPULAB_CACHE to a larger file system"
    return ExitCode.INFRASTRUCTURE, "the disk is full", hint


def _busy(match: re.Match[str]) -> _Answer:
    hint = "wait for it, or give this one a directory of its own (KAS_BUILD_DIR)"
    return ExitCode.INFRASTRUCTURE, "another BitBake works in this build directory", hint


def _nothing_provides(match: re.Match[str]) -> _Answer:
    hint = "an option or a layer is missing, or it was skipped: the lines above say why"
    return ExitCode.FAILED, match[0].strip(), hint


_CAUSES: _Causes = (
    (r"(?P<folder>[^\s\"]+)\$ git rev-parse --verify --end-of-options (?P<commit>\w+)\^\{commit\}", _missing_commit),
    (r"No space left on device|disk space monitor action is|Immediately halt since the disk space", _space),
    (r"Could not resolve host: (?P<host>[^\s']+)", _repository),
    (r"Failed to connect to (?P<host>\S+)|connect to host (?P<ssh>\S+) port", _repository),
    (
        r"(?:unable to access '|)https?://(?P<host>[^/\s']+)\S*': (?:Couldn't|Could not|Failed|Recv|OpenSSL|SSL)",
        _repository,
    ),
    (r"fatal: repository '(?P<url>[^']+)' (?:not found|does not exist)", _missing_repository),
    (r"fatal: '(?P<url>[^']+)' does not appear to be a git repository", _missing_repository),
    (
        r"(?:Branch|Tag|Commit) \S+ cannot be found in repository.*|.*upload-pack: not our ref \S+"
        r"|.*reference is not a tree: \S+",
        _missing_ref,
    ),
    (r"[Ll]ines of the fragments that did not survive into \.config: (?P<lines>.*?)\. Look", _fragment),
    (r"Applying patch '(?P<patch>[^']+)' on target directory", _patch),
    (r"NPULAB_DDR_BLOB: there is no file .*|boot firmware needs a DDR blob.*", _blob),
    (r"\S+ has the SHA-256 \w+, NPULAB_DDR_SHA256 says \w+.*", _wrong_blob),
    (r"MACHINE=(?P<machine>\S+) is invalid", _machine),
    (r"Do not use Bitbake as root", _root),
    (r"make sure locale 'en_US\.UTF-8' is available|needs to support the en_US\.UTF-8 locale", _locale),
    (r"required tools \(as specified by HOSTTOOLS\) appear to be unavailable in PATH.*:\s*(?P<names>[^\n]+)", _tools),
    (r"Checksum mismatch!.*?\nFile: '(?P<file>[^']+)'|checksum mismatch.*file '(?P<other>[^']+)'", _checksum),
    (r"Network access disabled through BB_NO_NETWORK.*?url (?P<url>\S+?)[)']?$", _fetch),
    (r"Fetcher failure for URL: '(?P<url>[^']+)'|Unable to fetch URL from any source.*", _fetch),
    (r"[Bb]itbake\.lock|Timeout while waiting for a reply from the bitbake server", _busy),
    (r"Nothing (?:R?PROVIDES|provides) .*", _nothing_provides),
)
"""Pattern and what it means, the more particular first."""
