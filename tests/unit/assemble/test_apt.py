# SPDX-License-Identifier: MIT
"""The private apt: what it reads from apt, what it keeps, and one clear line for each way that a download fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab.assemble.apt import Apt, File, explain, parse_uris
from lab.assemble.mirror import Mirror
from lab.cache import Cache, file_digest
from lab.errors import ExitCode, KitError
from lab.output import Output

HASH = "703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3"

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this host has no apt")


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(b"")
    return Apt(Cache(tmp_path / "cache"), Mirror("http://127.0.0.1:9/debian", keyring), tmp_path / "apt.log")


def test_uris() -> None:
    text = (
        "Reading package lists...\n"
        f"'http://m/pool/z/zlib1g_1.3%7e1-1_arm64.deb' zlib1g_1%3a1.3~1-1_arm64.deb 85116 SHA256:{HASH}\n"
        f"'http://m/pool/x_1_all.deb' x_1_all.deb 12 MD5Sum:{HASH[:32]}\n"
    )
    (file,) = parse_uris(text)
    assert (file.package, file.version, file.size, file.sha256) == ("zlib1g", "1:1.3~1-1", 85116, HASH)


@pytest.mark.parametrize(
    ("tail", "expect"),
    [
        ("Err:1 http://m trixie InRelease\n  Could not resolve 'm'", "cannot be reached"),
        ("E: Failed to fetch http://m/x.deb  404  Not Found", "cannot be reached or lacks a file"),
        ("E: Write error - write (28: No space left on device)", "the disk is full"),
        ("W: GPG error: NO_PUBKEY 6ED0E7B82643E131", "do not sign"),
    ],
)
def test_failures_are_named(tail: str, expect: str, tmp_path: Path) -> None:
    error = explain(
        KitError(ExitCode.INFRASTRUCTURE, "apt-get ended with 100", tail=tail),
        "downloading x",
        Mirror("http://m", tmp_path),
    )
    assert expect in error.message and error.message.startswith("downloading x")
    assert error.hint


def test_other_failures_stay_as_they_are(tmp_path: Path) -> None:
    original = KitError(ExitCode.INFRASTRUCTURE, "apt-get ended with 1", tail="E: something else")
    assert explain(original, "x", Mirror("http://m", tmp_path)) is original


def test_a_name_may_name_its_suite(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [File(f"http://m/{name}_1_arm64.deb", f"{name}_1_arm64.deb", 1, HASH) for name in ("b", "a")]
    monkeypatch.setattr(apt, "_resolved", lambda request, architecture, out: files)
    found = apt.locate(["a/trixie-backports", "b"], "arm64", Output(quiet=True))
    assert [file.package for file in found] == ["a", "b"]


@needs_apt
def test_no_network_is_one_line_and_leaves_no_lists(apt: Apt) -> None:
    with pytest.raises(KitError) as caught:
        apt.locate(["hello"], "arm64", Output(quiet=True))
    assert "http://127.0.0.1:9/debian cannot be reached" in caught.value.message
    assert not (apt.root / "updated").exists()
    assert not list(apt.root.glob("resolved/*"))


@needs_apt
def test_configuration_keeps_away_from_the_machine(apt: Apt) -> None:
    with pytest.raises(KitError):
        apt.locate(["hello"], "arm64", Output(quiet=True))
    text = (apt.root / "apt.conf").read_text()
    for place in ("Dir::State ", "Dir::State::status ", "Dir::Cache ", "Dir::Etc::SourceList ", "Dir::Etc::Parts "):
        (line,) = (line for line in text.splitlines() if line.startswith(place))
        assert str(apt.root) in line
    assert "Post-Invoke" not in text
    assert "trixie-backports main" in (apt.root / "sources.list").read_text()


@needs_apt
def test_update_is_not_begun_on_a_full_disk(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.assemble.apt.LISTS_SPACE", 1 << 60)
    with pytest.raises(KitError, match=r"reading Debian's package lists needs .* are free") as caught:
        apt.locate(["hello"], "arm64", Output(quiet=True))
    assert "NPULAB_CACHE" in caught.value.hint and not apt.log.exists()


def test_wrong_contents_never_enter_the_cache(apt: Apt, tmp_path: Path) -> None:
    half = tmp_path / "x_1_all.deb"
    half.write_bytes(b"half of it")
    with pytest.raises(KitError) as caught:
        apt._keep(File("http://m/x_1_all.deb", half.name, 100, HASH), half)
    assert caught.value.code == ExitCode.MISMATCH
    assert not half.exists(), "a wrong download is not resumed"
    assert apt.cache.lookup("download", HASH) is None


def test_what_is_cached_needs_no_apt(apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "x_1_all.deb"
    whole.write_bytes(b"all of it")
    file = File("http://m/x_1_all.deb", whole.name, 9, file_digest(whole))
    apt._keep(file, whole)
    monkeypatch.setenv("PATH", "/nonexistent")
    (path,) = apt.fetch([file], "x", Output(quiet=True))
    assert path.read_bytes() == b"all of it"


def test_too_little_space_is_said_before_the_download(apt: Apt) -> None:
    huge = File("http://m/x_1_all.deb", "x_1_all.deb", 1 << 60, HASH)
    with pytest.raises(KitError, match="do not fit") as caught:
        apt.fetch([huge], "x", Output(quiet=True))
    assert caught.value.code == ExitCode.INFRASTRUCTURE
