# SPDX-License-Identifier: MIT
"""The Debian mirror is the machine's own, in either format of apt's sources, or one that the user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.assemble import mirror
from lab.errors import ExitCode, KitError

KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(mirror.ENVIRONMENT, raising=False)
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / KEYRING).parent.mkdir(parents=True)
    (tmp_path / KEYRING).write_bytes(b"key")
    return tmp_path


def test_one_line_format(machine: Path) -> None:
    (machine / "etc/apt/sources.list").write_text(
        "# deb http://commented.example/debian trixie main\n"
        "deb-src http://source.example/debian trixie main\n"
        "deb http://security.example/debian-security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/own.gpg] http://mirror.example/debian/ bookworm main # x\n"
    )
    (machine / "usr/share/keyrings/own.gpg").write_bytes(b"own")
    found = mirror.find(root=machine)
    assert found.uri == "http://mirror.example/debian"
    assert found.keyring == machine / "usr/share/keyrings/own.gpg"


def test_deb822_format(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/debian.sources").write_text(
        "Types: deb\nEnabled: no\nURIs: http://disabled.example/debian\nSuites: trixie\nComponents: main\n\n"
        "# a comment\nTypes: deb deb-src\nURIs: http://one.example/debian\n http://two.example/debian\n"
        "Suites: trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    assert mirror.find(root=machine).uri == "http://one.example/debian"


def test_a_key_inside_the_stanza_means_the_archive_keyring(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://one.example/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n"
    )
    assert mirror.find(root=machine).keyring == machine / KEYRING


def test_other_archives_are_not_taken(machine: Path) -> None:
    (machine / "etc/apt/sources.list.d/other.list").write_text(
        "deb https://vendor.example/repository stable-x main\ndeb http://host.example/ubuntu noble main universe\n"
    )
    (machine / "etc/apt/sources.list.d/ignored.save").write_text("deb http://saved.example/debian trixie main\n")
    with pytest.raises(KitError) as caught:
        mirror.find(root=machine)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert "--debian-mirror" in caught.value.hint and mirror.ENVIRONMENT in caught.value.hint
    assert "debian-archive-keyring" in caught.value.hint


def test_named_mirror(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.ENVIRONMENT, "http://environment.example/debian/")
    assert mirror.find(root=machine).uri == "http://environment.example/debian"
    assert mirror.find("file:/srv/debian", root=machine).uri == "file:/srv/debian"


@pytest.mark.parametrize("bad", ["mirror", "/srv/debian", "http:", "http://a b"])
def test_bad_address(machine: Path, bad: str) -> None:
    with pytest.raises(KitError) as caught:
        mirror.find(bad, root=machine)
    assert caught.value.code == ExitCode.USAGE


def test_missing_keyring(machine: Path) -> None:
    (machine / KEYRING).unlink()
    with pytest.raises(KitError, match="keys that sign") as caught:
        mirror.find("http://mirror.example/debian", root=machine)
    assert "debian-archive-keyring" in caught.value.hint
