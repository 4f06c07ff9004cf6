# SPDX-License-Identifier: MIT
"""What BitBake needs of this host, looked at before anything is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lab.assemble.requirements import check_space
from lab.cache import file_digest
from lab.errors import ExitCode, KitError
from lab.kas.request import Request

GB = 1_000_000_000
SPACE = {"host-toolchain": 5 * GB, "kernel": 25 * GB, "rescue": 40 * GB, "bringup": 60 * GB, "gpu": 30 * GB}
"""Bytes that a first build takes: host-toolchain was measured (2.5 GB, and room for another kernel), those with
OE-core's own toolchain are estimates from the number of recipes; ``gpu`` comes on top."""

TOOLS = {
    "chrpath": "chrpath",
    "cpio": "cpio",
    "diffstat": "diffstat",
    "file": "file",
    "gawk": "gawk",
    "g++": "g++",
    "git": "git",
    "lz4": "lz4",
    "make": "make",
    "patch": "patch",
    "perl": "perl",
    "pzstd": "zstd",
    "rpcgen": "rpcsvc-proto",
    "wget": "wget",
    "xz": "xz-utils",
    "zstd": "zstd",
}
"""Programs of OE-core's HOSTTOOLS that a Debian without extras lacks, and their packages."""
HOST_TOOLCHAIN = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "bc": "bc",
    "bison": "bison",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "dtc": "device-tree-compiler",
    "flex": "flex",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
    "rsync": "rsync",
    "xxd": "xxd",
}
"""What the option host-toolchain takes from this machine instead of building it."""
LOCALE = "en_US.utf8"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def find_kas() -> Path:
    """The program kas: beside this interpreter, else on the path."""
    beside = Path(sys.executable).with_name("kas")
    found = str(beside) if beside.is_file() else shutil.which("kas")
    if not found:
        raise KitError(ExitCode.INFRASTRUCTURE, "kas is not installed", "pip install 'kas>=5,<6' (or pipx install kas)")
    return Path(found)


def check(request: Request, build: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Everything that can be known before the start; where kas is. KitError says what is missing and what to do."""
    kas = find_kas()
    check_user(os.geteuid())
    check_locale()
    check_tools(request)
    if "loader" in request.options:
        check_blob(environment)
    first = not (build / "tmp").is_dir()
    check_space(build, needed_space(request) if first else 2 * GB, f"kas build of {request.target}")
    return kas


def check_user(uid: int) -> None:
    """BitBake does not work as root."""
    if uid == 0:
        message = "BitBake refuses to run as root"
        raise KitError(ExitCode.REFUSED, message, "run this as a normal user, or the same files with kas-container")


def check_locale() -> None:
    """kas sets en_US.UTF-8 for BitBake, which ends without it (bitbake lib/bb/utils.py, check_system_locale)."""
    try:
        answer = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    names = {name.lower().replace("-", "") for name in answer.stdout.split()}
    if LOCALE.lower() not in names:
        hint = "apt-get install locales, add en_US.UTF-8 UTF-8 to /etc/locale.gen, and run locale-gen"
        message = "this machine has no locale en_US.UTF-8, which BitBake needs"
        raise KitError(ExitCode.INFRASTRUCTURE, message, hint)


def check_tools(request: Request) -> None:
    """The programs that OE-core calls, and with the option host-toolchain those that it would else build."""
    wanted = {**TOOLS, **(HOST_TOOLCHAIN if "host-toolchain" in request.options else {})}
    if "icecc" in request.options:
        wanted["icecc"] = "icecc"
    missing = {program: package for program, package in wanted.items() if shutil.which(program) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        message = f"programs that BitBake needs are missing: {', '.join(sorted(missing))}"
        raise KitError(ExitCode.INFRASTRUCTURE, message, f"apt-get install {packages}")


def check_blob(environment: Mapping[str, str]) -> None:
    """The DDR blob of the option loader: named, there, and the one that its hash says."""
    path, wanted = environment.get("NPULAB_DDR_BLOB", ""), environment.get("NPULAB_DDR_SHA256", "")
    if not path or not wanted:
        name = "NPULAB_DDR_SHA256" if path else "NPULAB_DDR_BLOB"
        hint = "export NPULAB_DDR_BLOB=/path/to/ddr.bin NPULAB_DDR_SHA256=its SHA-256; this kit ships and fetches none"
        raise KitError(ExitCode.REFUSED, f"boot firmware needs a DDR blob of yours: {name} is not set", hint)
    if not _SHA256.fullmatch(wanted):
        message = f"NPULAB_DDR_SHA256 is no SHA-256: {wanted}"
        raise KitError(ExitCode.USAGE, message, "64 hexadecimal digits, as sha256sum prints them")
    if not Path(path).is_file():
        raise KitError(ExitCode.USAGE, f"NPULAB_DDR_BLOB: there is no file {path}", "give an absolute path")
    found = file_digest(Path(path))
    if found != wanted.lower():
        message = f"{path} has the SHA-256 {found}, NPULAB_DDR_SHA256 says {wanted.lower()}"
        raise KitError(ExitCode.MISMATCH, message, "it is not the file that you meant: nothing was built")


def needed_space(request: Request) -> int:
    """Bytes for a first build."""
    name = "host-toolchain" if "host-toolchain" in request.options else request.image
    return SPACE[name] + (SPACE["gpu"] if "gpu" in request.options else 0)
