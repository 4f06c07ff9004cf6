# SPDX-License-Identifier: MIT
"""``npulab build virt``: bad input ends in one clear line and the right exit code, before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lab.assemble import requirements
from lab.cli import main
from lab.errors import ExitCode, KitError

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this host has no apt")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "words",
    [
        ["build"],
        ["build", "no-such-board"],
        ["build", "virt", "--kernel", "slow"],
        ["build", "virt", "--jobs", "0"],
        ["build", "virt", "--jobs", "many"],
        ["build", "virt", "--kernel", "distro", "--source", "apt"],
        ["build", "virt", "--kernel", "distro", "--rocket-module"],
        ["build", "virt", "--debian-mirror", "not-an-address"],
    ],
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.USAGE
    assert "Traceback" not in capsys.readouterr().err


@needs_apt
@pytest.mark.parametrize("source", ["/no/such/tree", "/no/such/linux.tar.xz", "https://host.example/linux.tar.xz"])
def test_bad_kernel_source(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keyring = tmp_path / "key"
    keyring.write_bytes(b"")
    assert main(["build", "virt", "--source", source, "--debian-mirror", "http://127.0.0.1:9/debian"]) in (
        ExitCode.USAGE,
        ExitCode.INFRASTRUCTURE,  # a host without Debian's keys stops there
    )
    assert "Traceback" not in capsys.readouterr().err


@needs_apt
def test_no_network_as_json(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["build", "virt", "--json", "--quiet", "--debian-mirror", "http://127.0.0.1:9/debian"])
    document = json.loads(capsys.readouterr().out)
    assert code == ExitCode.INFRASTRUCTURE and document["ok"] is False
    assert document["error"]["code"] == ExitCode.INFRASTRUCTURE and document["error"]["hint"]
    assert not list(own_cache.glob("artifacts/*"))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "missing_packages", lambda: ["ccache", "flex", "bison"])
    with pytest.raises(KitError, match="flex bison") as caught:
        requirements.check_packages()
    assert "--install-deps" in caught.value.hint and "ccache" not in caught.value.message
    monkeypatch.setattr(requirements, "missing_packages", lambda: ["ccache"])
    requirements.check_packages()


def test_full_disk_is_said_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="are free") as caught:
        requirements.check_space(tmp_path, 1 << 60, "a first build")
    assert caught.value.code == ExitCode.INFRASTRUCTURE and "NPULAB_CACHE" in caught.value.hint
    requirements.check_space(tmp_path / "new", 1, "a first build")


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["build", "virt"]) == ExitCode.INFRASTRUCTURE
    assert "Traceback" not in capsys.readouterr().err
