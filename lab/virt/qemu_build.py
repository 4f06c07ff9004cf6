# SPDX-License-Identifier: MIT
"""Builds the virtual board's QEMU: the sources in ``lab/virt/qemu`` on top of a QEMU 10.0.x source tree.

Where the source comes from is the caller's business; the tree given here is only read. A work directory keeps the
merged tree and the build between runs, and only what changed is synchronised and compiled again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.cache import digest, tree_digest
from lab.cancel import check_cancelled
from lab.errors import ExitCode, KitError, from_os_error
from lab.process import require, run

SOURCES = Path(__file__).parent / "qemu"
"""Our part: ``hw``, ``include`` and ``configs`` mirror QEMU's tree, ``patches`` are the hooks in its own files."""

OVERLAY_FOLDERS = ("hw", "include", "configs")
BASE = "10.0"
BINARY = "qemu-system-aarch64"
CONFIGURED = "configured.json"

CONFIGURE = (
    "--target-list=aarch64-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-aarch64=rk3588",
    "--enable-system",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-usb-redir",
    "--enable-fdt=system",
    "--disable-debug-info",
    "--disable-docs",
    "--disable-download",
    "--disable-install-blobs",
    "--disable-pixman",
    "--disable-tools",
)
"""One machine, no display, no tools: about a thousand compilations instead of two."""

Progress = Callable[[float, float | None, str], None]
"""Called with (done, total or None, what is being done); ``lab.output.Meter.update`` fits."""

_NINJA_LINE = re.compile(r"^\[(\d+)/(\d+)\] (.*)")


def work_key(source_key: str) -> str:
    """Key of the work directory for a QEMU source: a build is continued in it as long as these are the same."""
    return digest("qemu-work", source_key, CONFIGURE)


def result_key(source_key: str) -> str:
    """Key of the binary: QEMU's source, our sources and how they are configured."""
    return digest("qemu", source_key, CONFIGURE, tree_digest(SOURCES))


def build_qemu(source_tree: Path, out: Path, jobs: int, progress: Progress) -> Path:
    """Build in the work directory ``out``; returns the stripped ``out/qemu-system-aarch64``.

    ``source_tree``: an unpacked QEMU 10.0.x, not written to. ``jobs``: compilers at a time. Can be interrupted at any
    point and continued. Raises KitError for a wrong source, a missing tool or a failed step, with the log's last lines.
    """
    log = out / "build.log"
    try:
        out.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        _check_version(source_tree)
        ninja = require("ninja", "ninja-build")
        require("patch", "patch")
        require("gcc", "gcc")
        progress(0, None, "merging sources")
        tree = _merge(source_tree, out, log)
        _fetch_wheels(tree, log)
        build = _configure(tree, out, log, progress)
        _compile(ninja, build, jobs, log, progress)
        return _strip(build / BINARY, out / BINARY, log)
    except OSError as error:
        raise from_os_error(error, "building QEMU") from error


def _check_version(source_tree: Path) -> None:
    version = source_tree / "VERSION"
    found = version.read_text().strip() if version.is_file() else ""
    if not found:
        raise KitError(ExitCode.USAGE, f"{source_tree} is no QEMU source tree: it has no VERSION", "check the path")
    if not found.startswith(f"{BASE}."):
        raise KitError(
            ExitCode.USAGE,
            f"{source_tree} is QEMU {found}; the virtual board is written for {BASE}.x",
            f"give a QEMU {BASE}.x source",
        )


# -- the merged tree ----------------------------------------------------------------------------------------------


def _merge(source_tree: Path, out: Path, log: Path) -> Path:
    """``out/tree``: the source with our files and hooks in it. Only files that differ are written."""
    tree, record = out / "tree", out / "overlay.json"
    if not record.is_file():
        shutil.rmtree(tree, ignore_errors=True)
        shutil.rmtree(out / "build", ignore_errors=True)
        shutil.copytree(source_tree, tree, symlinks=True, copy_function=_link_or_copy)
        _write(record, b"[]")
    wanted = {**_patched_files(source_tree, log), **_overlay_files()}
    before = set(json.loads(record.read_text()))
    _write(record, json.dumps(sorted(before | set(wanted))).encode())  # also true if we are stopped on the way
    for name in sorted(before - set(wanted)):
        (tree / name).unlink(missing_ok=True)
        if (source_tree / name).is_file():
            shutil.copyfile(source_tree / name, tree / name)
    for name, content in wanted.items():
        target = tree / name
        if not target.is_file() or target.read_bytes() != content:
            _write(target, content)
    _write(record, json.dumps(sorted(wanted)).encode())
    return tree


def _overlay_files() -> dict[str, bytes]:
    files = (path for folder in OVERLAY_FOLDERS for path in sorted((SOURCES / folder).rglob("*")))
    return {str(path.relative_to(SOURCES)): path.read_bytes() for path in files if path.is_file()}


def _patched_files(source_tree: Path, log: Path) -> dict[str, bytes]:
    """Contents of the files of QEMU's own that the hooks change, hooks applied."""
    patches = sorted((SOURCES / "patches").glob("*.patch"))
    names = sorted({name for path in patches for name in re.findall(r"^\+\+\+ b/(\S+)", path.read_text(), re.M)})
    with tempfile.TemporaryDirectory(prefix="npulab-qemu-") as folder:
        staging = Path(folder)
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            if (source_tree / name).is_file():
                shutil.copyfile(source_tree / name, staging / name)
        for path in patches:
            run(
                [
                    "patch",
                    "-p1",
                    "--forward",
                    "--batch",
                    "--fuzz=0",
                    "--no-backup-if-mismatch",
                    "--reject-file=-",
                    "-i",
                    path,
                ],
                stage=f"applying {path.name} to QEMU",
                log=log,
                cwd=staging,
                hint=f"the source must be an unmodified QEMU {BASE}.x",
            )
        return {name: (staging / name).read_bytes() for name in names}


def _link_or_copy(source: str, target: str) -> None:
    """Hard links save space and time; nothing in the merged tree is ever written in place."""
    check_cancelled()
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _write(target: Path, content: bytes) -> None:
    """Replace a file as a whole, so that a hard link to the source is broken and never half written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(content)
    partial.replace(target)


# -- configure and compile ----------------------------------------------------------------------------------------


def _fetch_wheels(tree: Path, log: Path) -> None:
    """QEMU's configure installs its own meson from wheels that release tarballs carry and Debian's does not."""
    wheels = tree / "python" / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    needs = tomllib.loads((tree / "pythondeps.toml").read_text())["meson"]
    missing = [
        f"{name}=={need['installed']}"
        for name, need in needs.items()
        if not any(wheels.glob(f"{name}-{need['installed']}-*.whl"))
    ]
    if missing:
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--no-deps",
                "-d",
                wheels,
                *missing,
            ],
            stage="fetching QEMU's build tools",
            log=log,
            timeout=300,
            hint="check the network and pip's configuration",
        )


def _compiler() -> tuple[str, dict[str, str]]:
    """The C compiler, and the environment that lets ccache recognise the same file in another folder."""
    if shutil.which("ccache") is None:
        return "gcc", {}
    return "ccache gcc", {"CCACHE_NOHASHDIR": "1"}


def _environment(out: Path) -> dict[str, str]:
    environment = _compiler()[1]
    return {**environment, "CCACHE_BASEDIR": str(out.resolve())} if environment else {}


def _configure(tree: Path, out: Path, log: Path, progress: Progress) -> Path:
    build = out / "build"
    stamp = build / CONFIGURED
    # QEMU makes an environment of its own: from the interpreter itself, not from the kit's environment
    python = getattr(sys, "_base_executable", sys.executable)
    command = ["../tree/configure", f"--cc={_compiler()[0]}", f"--python={python}", *CONFIGURE]
    wanted = json.dumps(command)
    with contextlib.suppress(OSError):
        if stamp.read_text() == wanted:
            return build
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    progress(0, None, "configuring")
    run(
        command,
        stage="configuring QEMU",
        log=log,
        cwd=build,
        env=_environment(out),
        hint="./npulab --install-deps installs what it needs",
    )
    _write(stamp, wanted.encode())
    return build


def _compile(ninja: str, build: Path, jobs: int, log: Path, progress: Progress) -> None:
    def on_line(line: str) -> None:
        match = _NINJA_LINE.match(line)
        if match:
            text = match[3].rsplit("/", 1)[-1].rsplit(" ", 1)[-1]
            progress(int(match[1]), int(match[2]), text)

    run(
        [ninja, "-j", str(jobs), BINARY],
        stage="compiling QEMU",
        log=log,
        cwd=build,
        env={**_environment(build.parent), "NINJA_STATUS": "[%f/%t] "},
        on_line=on_line,
    )


def _strip(built: Path, binary: Path, log: Path) -> Path:
    with _partial(binary) as partial:
        shutil.copy2(built, partial)
        if shutil.which("strip") is not None:
            run(["strip", partial], stage="stripping QEMU", log=log)
        listing = subprocess.run([partial, "-machine", "help"], capture_output=True, text=True, check=False)
        if "rk3588" not in listing.stdout:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                "the QEMU that was built has no machine rk3588",
                f"remove {binary.parent} and build again",
                tail=listing.stderr,
                log=log,
            )
        partial.replace(binary)
    return binary


@contextlib.contextmanager
def _partial(final: Path) -> Iterator[Path]:
    path = final.with_name(final.name + ".partial")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
