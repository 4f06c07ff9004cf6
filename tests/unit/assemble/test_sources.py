# SPDX-License-Identifier: MIT
"""Kernel and QEMU sources: trees and tarballs that a user names, patch series, keys that see an edit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from lab.assemble import sources
from lab.assemble.apt import Apt
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.output import Output

NO_APT = cast(Apt, None)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "linux"
    (root / "arch/arm64").mkdir(parents=True)
    (root / "Kconfig").write_text("mainmenu\n")
    (root / "Makefile").write_text("# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n")
    (root / "driver.c").write_text("int one;\n")
    return root


def _linux(spec: Path | str, tmp_path: Path) -> sources.Source:
    return sources.linux(spec, Cache(tmp_path / "cache"), NO_APT, Output(quiet=True), tmp_path / "log")


def _content(source: sources.Source, tmp_path: Path) -> str:
    with sources.linux_tree(source, Cache(tmp_path / "cache"), Output(quiet=True), tmp_path / "log") as found:
        return (found / "driver.c").read_text()


def test_version(tree: Path) -> None:
    assert sources.version_of(tree) == "7.3.4"
    assert sources.base_of("7.3.4") == "7.3"


@pytest.mark.parametrize("text", [None, "all:\n"])
def test_version_of_something_else(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "Makefile").write_text(text)
    with pytest.raises(KitError) as caught:
        sources.version_of(tmp_path)
    assert caught.value.code == ExitCode.USAGE


def test_users_tree_is_copied_and_not_touched(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert _content(_linux(tree, tmp_path), tmp_path) == "int one;\n"
    (tree / "driver.c").write_text("int two;\n")
    assert _content(_linux(tree, tmp_path), tmp_path) == "int two;\n", "the copy follows an edit"
    assert set(tree.rglob("*")) == set(before)


def test_an_edit_changes_the_key(tree: Path, tmp_path: Path) -> None:
    before = _linux(tree, tmp_path).key
    (tree / ".git").mkdir()
    (tree / ".git/index").write_text("x")
    assert _linux(tree, tmp_path).key == before
    os.utime(tree / "driver.c", ns=(1, 1))
    assert _linux(tree, tmp_path).key != before


def test_tarball_is_unpacked_once(tree: Path, tmp_path: Path) -> None:
    tarball = tmp_path / "linux-7.3.4.tar.gz"
    subprocess.run(["tar", "-czf", tarball, "-C", tree.parent, tree.name], check=True)
    source = _linux(f"{tarball}", tmp_path)
    assert source.origin["kind"] == "tarball"
    assert _content(source, tmp_path) == "int one;\n"
    tarball.unlink()
    assert _content(source, tmp_path) == "int one;\n"


def test_tree_built_in_place_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / ".config").write_text("CONFIG_X=y\n")
    with pytest.raises(KitError, match="built in place") as caught:
        _content(_linux(tree, tmp_path), tmp_path)
    assert "mrproper" in caught.value.hint


def test_wrong_trees_and_tarballs(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(KitError, match="no Linux source tree") as caught:
        _linux(tmp_path / "empty", tmp_path)
    assert caught.value.code == ExitCode.USAGE
    tarball = tmp_path / "other.tar"
    subprocess.run(["tar", "-cf", tarball, "-C", tmp_path, "empty"], check=True)
    with pytest.raises(KitError, match="holds no Linux source"):
        _content(_linux(str(tarball), tmp_path), tmp_path)
    with pytest.raises(KitError, match="no QEMU source tree"):
        sources.qemu(tree, Cache(tmp_path / "cache"), NO_APT, Output(quiet=True), tmp_path / "log")


def test_cut_off_tarball_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    tarball = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "-czf", tarball, "-C", tree.parent, tree.name], check=True)
    tarball.write_bytes(tarball.read_bytes()[:60])
    with pytest.raises(KitError, match="unpacking Linux"):
        _content(_linux(str(tarball), tmp_path), tmp_path)
    assert not list((tmp_path / "cache/linux-source").glob("*"))


BOARD = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Some Body <some@body.example>
Date: Sat, 21 Nov 2026 05:00:00 +0000
Subject: [PATCH] driver: {name}

Signed-off-by: Some Body <some@body.example>
---
Upstream-Status: Pending
Kit-Group: {group}
Kit-Applies: 7.3 - 7.3
Kit-Probe: driver.c: int {name};
Kit-Reason: test

diff --git a/driver.c b/driver.c
--- a/driver.c
+++ b/driver.c
@@ -1 +1,2 @@
 int one;
+int {name};
"""


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kernel-patches/7.3"
    folder.mkdir(parents=True)
    (folder / "0001-fix.patch").write_text(BOARD.format(name="fixed", group="fix"))
    (folder / "series").write_text("0001-fix.patch\n")
    monkeypatch.setattr(sources.patches, "FOLDER", folder.parent)
    for function in (sources.patches.selected, sources.patches.apply, sources.patches.folder_for):
        defaults = tuple(folder.parent if isinstance(value, Path) else value for value in function.__defaults__ or ())
        monkeypatch.setattr(function, "__defaults__", defaults)
    return folder


def test_patched_source_shares_what_no_patch_touches(tree: Path, tmp_path: Path, series: Path) -> None:
    tarball = tmp_path / "linux-7.3.4.tar.gz"
    subprocess.run(["tar", "-czf", tarball, "-C", tree.parent, tree.name], check=True)
    cache, out, log = Cache(tmp_path / "cache"), Output(quiet=True), tmp_path / "log"
    source = _linux(str(tarball), tmp_path)
    with sources.linux_tree(source, cache, out, log, sources.patches.WITH_FIXES) as fixed:
        assert (fixed / "driver.c").read_text() == "int one;\nint fixed;\n"
    with sources.linux_tree(source, cache, out, log) as stock:
        assert (stock / "driver.c").read_text() == "int one;\n", "the stock tree is not written to"
        assert (stock / "Kconfig").samefile(fixed / "Kconfig")


def test_patches_of_every_base_count_where_the_base_is_not_known(tree: Path, tmp_path: Path, series: Path) -> None:
    source = _linux(tree, tmp_path)
    before = sources.patches_digest(source, ("fix",))
    older = series.parent / "6.18"
    older.mkdir()
    text = BOARD.format(name="older", group="fix").replace("7.3 - 7.3", "6.18 - 6.18")
    (older / "0001-older.patch").write_text(text)
    (older / "series").write_text("0001-older.patch\n")
    assert sources.patches_digest(source, ("fix",)) != before
    known = replace(source, base="7.3")
    digest = sources.patches_digest(known, ("fix",))
    (older / "0001-older.patch").write_text(text.replace("int older;", "int oldest;"))
    assert sources.patches_digest(known, ("fix",)) == digest
