# SPDX-License-Identifier: MIT
"""Mesa's Teflon delegate and a TensorFlow Lite runtime for a board, as one archive that is copied to it for a test.

Another client of the same kernel driver than the kit's own library: Mesa's rocket driver makes the register commands.
The delegate is Debian's ``mesa-teflon-delegate`` of trixie-backports (trixie's own 25.0 knows no rocket; Mesa has it
since 25.3), the runtime the LiteRT wheel. Neither is part of an image: only the test that asks for the archive pays
for it, once; it is found again by its contents. It runs on any arm64 system with glibc 2.38 and numpy.

In the archive: ``teflon/lib`` with the delegate and the libraries that Debian says it needs, ``teflon/python`` with
the parts of the runtime that its interpreter needs.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

from lab.assemble import mirror
from lab.assemble.apt import TARGET, Apt, File
from lab.assemble.mirror import BACKPORTS
from lab.assemble.tarball import pack
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require, run

PACKAGE = "mesa-teflon-delegate"
DELEGATE = "usr/lib/teflon/libteflon.so"
LIBRARY = "usr/lib/aarch64-linux-gnu"
RUNTIME = "ai-edge-litert==2.3.0"
RUNTIME_PACKAGE = "ai_edge_litert"
RUNTIME_FILES = (
    "__init__.py",
    "interpreter.py",
    "metrics_interface.py",
    "metrics_portable.py",
    "_pywrap_litert_interpreter_wrapper.so",
    "libpywrap_litert_common.so",
)
"""What ``ai_edge_litert.interpreter`` imports; the rest of the wheel (GPU, converter, vendors' tools) is 60 % of it."""
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34))
LEFT_OUT = ("libc6", "libgcc-s1", "libdrm-common")
"""A board has its own C library, and no file of libdrm-common is read for an NPU."""
ARCHIVE = "teflon.tar.gz"
FOLDER = "teflon"


def archive(python: str, cache: Cache, out: Output) -> Path:
    """The archive for a board whose Python is ``python`` (such as ``3.13``), with ``component.json`` beside it.

    Raises KitError (infrastructure) when the mirror or the wheel cannot be had.
    """
    log = cache.root / "log" / "build-teflon.log"
    apt = Apt(cache, mirror.find(None), log)
    packages = [
        file
        for file in apt.resolve([f"{PACKAGE}/{BACKPORTS}"], TARGET, out)
        if file.package not in LEFT_OUT and not file.package.startswith("gcc-")
    ]
    key = digest(file_digest(Path(__file__)), [file.sha256 for file in packages], python)

    def make(entry: Path) -> None:
        wheel = _wheel(python, entry / "wheel", out, log)
        tree = entry / FOLDER
        _delegate(tree / "lib", packages, apt, entry / "unpacked", out, log)
        _runtime(tree / "python", wheel)
        pack(tree, entry / ARCHIVE, FOLDER)
        component = {
            "python": python,
            "packages": [{"name": p.package, "version": p.version, "sha256": p.sha256} for p in packages],
            "runtime": {"name": wheel.name, "sha256": file_digest(wheel)},
        }
        (entry / "component.json").write_text(json.dumps(component, indent=1))
        for name in ("wheel", "unpacked", FOLDER):
            shutil.rmtree(entry / name)

    return cache.entry("teflon", key, make) / ARCHIVE


def _wheel(python: str, folder: Path, out: Output, log: Path) -> Path:
    """The runtime's wheel for the board, through pip as it is configured here."""
    command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    with out.stage("download the TensorFlow Lite runtime"):
        run(
            [*command, "-d", folder, RUNTIME],
            stage=f"downloading {RUNTIME} for Python {python}",
            log=log,
            timeout=300.0,
            hint="check the network and pip's configuration; there may be no wheel for the board's Python",
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _delegate(target: Path, packages: list[File], apt: Apt, work: Path, out: Output, log: Path) -> None:
    for deb in apt.fetch(packages, "Mesa's Teflon delegate", out):
        run([require("dpkg-deb", "dpkg"), "-x", deb, work], stage=f"unpacking {deb.name}", log=log)
    target.mkdir(parents=True)
    if not (work / DELEGATE).is_file():
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"Debian's {PACKAGE} has no {DELEGATE}",
            "the package was changed; adapt lab/assemble/teflon.py",
        )
    shutil.copyfile(work / DELEGATE, target / Path(DELEGATE).name)
    for library in sorted((work / LIBRARY).glob("*.so.*")):
        # under the name that programs ask for: libdrm.so.2, not libdrm.so.2.124.0
        if library.is_symlink():
            shutil.copyfile(library, target / library.name)


def _runtime(target: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as source:
        for name in RUNTIME_FILES:
            path = str(PurePosixPath(RUNTIME_PACKAGE, name))
            if path not in source.namelist():
                raise KitError(
                    ExitCode.INFRASTRUCTURE,
                    f"{wheel.name} has no {path}",
                    "adapt lab/assemble/teflon.py to the runtime",
                )
            source.extract(path, target)
