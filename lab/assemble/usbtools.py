# SPDX-License-Identifier: MIT
"""What a virtual board needs to be the host of a board in USB download mode: an archive that is unpacked on it.

In it: Debian's ``rkdeveloptool``, ``lsusb``, udev and the Python packages that the kit's USB transport and its store
import, and labgrid as it is installed here (it is pure Python). None of it is part of an image: only who asks for the
archive pays for it, once; it is found again by its contents.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

from lab.assemble import mirror
from lab.assemble.apt import TARGET, Apt
from lab.assemble.hostpython import host_python
from lab.assemble.rootfs import LIBRARY, prune
from lab.assemble.tarball import pack
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require, run

TOOLS = ("rkdeveloptool", "usbutils", "udev")
_LIBRARIES = """
    libacl1 libaudit1 libblkid1 libcap-ng0 libcap2 libkmod2 libmount1 libpam0g libpcre2-8-0 libseccomp2 libselinux1
    libssl3t64 libsystemd-shared libudev1 libusb-1.0-0 libyaml-0-2
"""
_PYTHON = """
    python3-attr python3-jsonschema python3-jsonschema-specifications python3-pexpect python3-platformdirs
    python3-ptyprocess python3-pyudev python3-referencing python3-rich python3-rpds-py python3-serial
    python3-typing-extensions python3-usb python3-xmodem python3-yaml python3-zstandard
"""
LEFT_OUT = ("usr/lib/udev/hwdb.*", "usr/share/bash-completion", f"{LIBRARY}/systemd/libsystemd-core-*")
PACKAGES = "usr/lib/python3/dist-packages"
LABGRID = "labgrid"
ARCHIVE = "usbtools.tar.gz"


def archive(python: str, cache: Cache, out: Output, jobs: int = 2) -> Path:
    """The archive for a root file system whose Python is ``python`` (such as ``3.13``); unpack it into ``/``.

    Raises KitError (infrastructure) when the mirror cannot be reached or labgrid is not installed.
    """
    log = cache.root / "log" / "build-usbtools.log"
    apt = Apt(cache, mirror.find(None), log)
    files = apt.locate([*TOOLS, *_LIBRARIES.split(), *_PYTHON.split()], TARGET, out)
    source, version = _labgrid()
    key = digest(
        file_digest(Path(__file__)),
        [file.sha256 for file in files],
        version,
        python,
    )

    def make(entry: Path) -> None:
        compiler = host_python(python, apt, cache, out, log)
        tree = entry / "tree"
        for deb in apt.fetch(files, "the USB host's tools", out):
            run([require("dpkg-deb", "dpkg"), "-x", deb, tree], stage=f"unpacking {deb.name}", log=log)
        prune(tree)
        for path in (path for pattern in LEFT_OUT for path in tree.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(source, tree / PACKAGES / LABGRID, ignore=shutil.ignore_patterns("__pycache__"))
        with out.stage("compiling the USB host's Python packages"):
            compiler.compile(tree / PACKAGES, f"/{PACKAGES}", jobs, log)
        pack(tree, entry / ARCHIVE, ".")
        shutil.rmtree(tree)
        component = {
            "python": python,
            "packages": [{"name": p.package, "version": p.version, "sha256": p.sha256} for p in files],
            LABGRID: version,
        }
        (entry / "component.json").write_text(json.dumps(component, indent=1))

    return cache.entry("usbtools", key, make) / ARCHIVE


def _labgrid() -> tuple[Path, str]:
    """Where labgrid is installed, and its version."""
    found = importlib.util.find_spec(LABGRID)
    if found is None or found.origin is None:
        raise KitError(ExitCode.INFRASTRUCTURE, "labgrid is not installed", "pip install the kit with its `host` extra")
    return Path(found.origin).parent, importlib.metadata.version(LABGRID)
