# SPDX-License-Identifier: MIT
"""The archive with Mesa's delegate and the TensorFlow Lite runtime: its contents, and what is missing in a wheel."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from lab.assemble import teflon
from lab.assemble.tarball import pack
from lab.errors import ExitCode, KitError


def wheel(path: Path, names: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, "libLiteRtWebGpuAccelerator.so"):
            archive.writestr(f"{teflon.RUNTIME_PACKAGE}/{name}", name)
    return path


def test_only_what_the_interpreter_needs_is_taken(tmp_path: Path) -> None:
    teflon._runtime(tmp_path / "python", wheel(tmp_path / "runtime.whl", teflon.RUNTIME_FILES))
    found = sorted(path.name for path in (tmp_path / "python" / teflon.RUNTIME_PACKAGE).iterdir())
    assert found == sorted(teflon.RUNTIME_FILES)


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path / "runtime.whl", teflon.RUNTIME_FILES[:-1])
    with pytest.raises(KitError) as caught:
        teflon._runtime(tmp_path / "python", path)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert teflon.RUNTIME_FILES[-1] in caught.value.message


def test_equal_contents_give_equal_archives(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        tree = tmp_path / str(number) / teflon.FOLDER
        tree.mkdir(parents=True)
        (tree / "file").write_text("contents")
        os.utime(tree / "file", (number, number))
        path = tmp_path / f"{number}.tar.gz"
        pack(tree, path, teflon.FOLDER)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(path) as archive:
        owners = {(member.uid, member.gid, member.uname) for member in archive.getmembers()}
    assert owners == {(0, 0, "root")}
