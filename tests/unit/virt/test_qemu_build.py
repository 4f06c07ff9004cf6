# SPDX-License-Identifier: MIT
"""Merging our sources into a QEMU tree and building it step by step, with a toy QEMU that configures in no time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.errors import ExitCode, KitError
from lab.virt import qemu_build
from lab.virt.qemu_build import BINARY, build_qemu

CONFIGURE = """#!/bin/sh
echo run >> ../configures
test ! -e ../refuse || { echo "no such option"; exit 1; }
cat > build.ninja <<END
rule make
  command = cat \\$in > \\$out && chmod +x \\$out
build qemu-system-aarch64: make ../tree/hw/rk3588/machine.c ../tree/hw/meson.build
END
"""
PATCH = """SPDX-License-Identifier: GPL-2.0-or-later
Subject: hw: hook

---
--- a/hw/meson.build
+++ b/hw/meson.build
@@ -1,2 +1,3 @@
 # one
+# rk3588
 # two
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A toy QEMU 10.0.9."""
    files = {
        "VERSION": "10.0.9\n",
        "configure": CONFIGURE,
        "pythondeps.toml": '[meson]\nmeson = { accepted = ">=1.5.0", installed = "1.5.0" }\n',
        "python/wheels/meson-1.5.0-py3-none-any.whl": "",
        "hw/meson.build": "# one\n# two\n",
        "hw/replaced.c": "original\n",
    }
    root = tmp_path / "source"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "configure").chmod(0o755)
    return root


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy of our own sources: a machine that only lists itself."""
    root = tmp_path / "ours"
    for folder in ("hw/rk3588", "patches"):
        (root / folder).mkdir(parents=True)
    (root / "hw/rk3588/machine.c").write_text("#!/bin/sh\necho rk3588\n")
    (root / "patches/0001.patch").write_text(PATCH)
    monkeypatch.setattr(qemu_build, "SOURCES", root)
    # the toy's binary is a script, which strip would refuse
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path('/usr/bin')}:{Path('/bin')}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/strip").write_text("#!/bin/sh\n")
    (tmp_path / "bin/strip").chmod(0o755)
    return root


def build(source: Path, out: Path) -> tuple[Path, list[tuple[float, float | None, str]]]:
    seen: list[tuple[float, float | None, str]] = []
    return build_qemu(source, out, 2, lambda done, total, text: seen.append((done, total, text))), seen


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_builds_and_leaves_the_source_alone(source: Path, ours: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    binary, seen = build(source, tmp_path / "out")
    assert binary == tmp_path / "out" / BINARY
    assert subprocess.run([binary], capture_output=True, text=True, check=True).stdout == "rk3588\n"
    assert binary.read_text().endswith("# one\n# rk3588\n# two\n"), "the hook is in"
    assert (1, 1, BINARY) in seen
    assert snapshot(source) == before
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_second_run_touches_nothing(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = snapshot(out / "tree")
    _, seen = build(source, out)
    assert snapshot(out / "tree") == before
    assert not [done for done, total, _ in seen if total], "nothing was compiled"
    assert (out / "configures").read_text() == "run\n"


def test_an_edit_changes_one_file(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = snapshot(out / "tree")
    (ours / "hw/rk3588/machine.c").write_text("#!/bin/sh\necho rk3588 again\n")
    binary, _ = build(source, out)
    after = snapshot(out / "tree")
    assert [name for name in after if after[name] != before.get(name)] == ["hw/rk3588/machine.c"]
    assert "again" in binary.read_text()
    assert (out / "configures").read_text() == "run\n"


def test_files_that_we_drop_go_and_originals_return(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (ours / "hw/replaced.c").write_text("ours\n")
    (ours / "hw/rk3588/extra.c").write_text("extra\n")
    build(source, out)
    assert (out / "tree/hw/replaced.c").read_text() == "ours\n"
    assert (source / "hw/replaced.c").read_text() == "original\n"
    for name in ("hw/replaced.c", "hw/rk3588/extra.c", "patches/0001.patch"):
        (ours / name).unlink()
    build(source, out)
    assert (out / "tree/hw/replaced.c").read_text() == "original\n"
    assert (out / "tree/hw/meson.build").read_text() == "# one\n# two\n"
    assert not (out / "tree/hw/rk3588/extra.c").exists()


def test_a_failed_configure_is_told_and_tried_again(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "refuse").touch()
    with pytest.raises(KitError, match="configuring QEMU") as caught:
        build(source, out)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert "no such option" in caught.value.tail
    (out / "refuse").unlink()
    assert build(source, out)[0].is_file()
    assert (out / "configures").read_text() == "run\nrun\n"


def test_an_unfinished_copy_is_begun_again(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "tree/hw").mkdir(parents=True)
    (out / "tree/hw/meson.build").write_text("half")
    binary, _ = build(source, out)
    assert binary.is_file()
    assert (out / "tree/VERSION").is_file()


def test_a_failed_compilation_keeps_the_last_binary(source: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    binary, _ = build(source, out)
    text = binary.read_text()
    (ours / "hw/rk3588/machine.c").unlink()
    with pytest.raises(KitError, match="compiling QEMU"):
        build(source, out)
    assert binary.read_text() == text


def test_a_binary_without_the_machine_is_refused(source: Path, ours: Path, tmp_path: Path) -> None:
    (ours / "hw/rk3588/machine.c").write_text("#!/bin/sh\necho virt\n")
    with pytest.raises(KitError, match="has no machine rk3588"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out" / BINARY).exists()


def test_a_hook_that_does_not_fit_is_named(source: Path, ours: Path, tmp_path: Path) -> None:
    (source / "hw/meson.build").write_text("# something else\n")
    with pytest.raises(KitError, match=r"applying 0001\.patch to QEMU") as caught:
        build(source, tmp_path / "out")
    assert "unmodified QEMU 10.0.x" in caught.value.hint


@pytest.mark.parametrize(("version", "message"), [("11.1.3\n", "is QEMU 11.1.3"), ("", "is no QEMU source tree")])
def test_another_source_is_refused(source: Path, ours: Path, tmp_path: Path, version: str, message: str) -> None:
    (source / "VERSION").write_text(version)
    with pytest.raises(KitError, match=message) as caught:
        build(source, tmp_path / "out")
    assert caught.value.code == ExitCode.USAGE


def test_keys_follow_our_sources(ours: Path) -> None:
    result, work = qemu_build.result_key("source"), qemu_build.work_key("source")
    (ours / "hw/rk3588/machine.c").write_text("changed")
    assert qemu_build.result_key("source") != result
    assert qemu_build.work_key("source") == work, "the build goes on in the same directory"
    assert qemu_build.work_key("another") != work
