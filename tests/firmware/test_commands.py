# SPDX-License-Identifier: MIT
"""The commands a user types, from a board of files to flash, break, roll back and restore."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import boards, cli
from lab.errors import ExitCode
from lab.firmware.standin.media import make_board


class User:
    """Runs commands and reads their JSON."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root, self.capture, self.board = root, capture, root / "board"
        sizes = {"spi": 1 << 20, "emmc": 40 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536}
        make_board(self.board, boards.load("rock-5-itx-plus"), sizes=sizes)
        self.via = f"file:{self.board}"

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        self.capture.readouterr()
        noun, verb, *rest = words
        store = ["--store", str(self.root / "store")] if noun != "board" or verb == "probe" else []
        found = cli.main([noun, "--json", "--quiet", verb, *store, *rest])
        captured = self.capture.readouterr()
        assert found == code, captured.err
        assert "Traceback" not in captured.err
        document: dict[str, Any] = json.loads(captured.out)
        assert document["ok"] == (code == 0)
        return document

    def at(self, *words: str, via: str | None = None, code: int = 0) -> dict[str, Any]:
        noun, verb, *rest = words
        return self.run(noun, verb, "--board", "rock-5-itx-plus", "--via", via or self.via, *rest, code=code)


@pytest.fixture
def user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> User:
    return User(tmp_path, capsys)


def test_the_whole_way(user: User) -> None:
    emmc = user.board / "emmc.img"
    old = emmc.read_bytes()
    image = user.root / "new.img"
    image.write_bytes(old[: 20 << 20] + os.urandom(1 << 20) + old[21 << 20 :])
    wish = ("--storage", "emmc", "--image", str(image))

    assert "backup create" in user.at("board", "probe")["next"]
    refused = user.at("flash", "plan", *wish, code=int(ExitCode.REFUSED))
    assert "npulab backup create" in refused["error"]["hint"]
    assert user.at("backup", "plan")["missing"] == []
    made = user.at("backup", "create")
    assert made["verified"] and made["complete"]
    assert user.at("board", "probe")["verified"] == made["backup"]
    run = user.at("flash", "plan", *wish)["run"]
    user.run("flash", "run", run, "--via", user.via, code=int(ExitCode.REFUSED))
    user.run("flash", "run", run, "--via", user.via, "--dry-run")
    assert emmc.read_bytes() == old, "nothing is written without confirmation"
    assert user.run("flash", "run", run, "--via", user.via, "--yes")["state"] == "verified"
    assert emmc.read_bytes() == image.read_bytes()
    assert user.run("flash", "commit", run)["state"] == "committed"
    assert user.run("flash", "rollback", run, "--via", user.via, "--yes")["state"] == "rolled-back"
    assert emmc.read_bytes() == old

    emmc.write_bytes(os.urandom(4096) + old[4096:])
    user.run("backup", "verify", "latest", "--via", user.via, code=int(ExitCode.MISMATCH))
    user.run("backup", "restore", "latest", "--via", user.via, code=int(ExitCode.REFUSED))
    assert user.run("backup", "restore", "latest", "--via", user.via, "--yes")["written"] <= 1 << 20
    assert emmc.read_bytes() == old
    user.run("backup", "verify", "latest", "--via", user.via)


def test_store_commands(user: User) -> None:
    ids = [user.at("backup", "create")["backup"] for _ in range(3)]
    assert [row["backup"] for row in user.run("backup", "list")["backups"]] == ids
    assert user.run("backup", "show", ids[0])["backup"]["id"] == ids[0]
    files = user.run("backup", "restore", "latest", "--to", str(user.root / "out"))["files"]
    assert {Path(name).read_bytes() for name in files} == {p.read_bytes() for p in user.board.glob("*.img")}
    commands = user.run("backup", "show", ids[0], "--plain-restore")["commands"]
    subprocess.run(["sh", "-c", "\n".join(commands)], cwd=user.root, check=True, timeout=60)
    assert (user.root / "spi.img").read_bytes() == (user.board / "spi.img").read_bytes()
    assert user.run("backup", "prune", "--keep", "1", "--dry-run")["would_remove"] == ids[:2]
    user.run("backup", "prune", "--keep", "1", code=int(ExitCode.REFUSED))
    assert user.run("backup", "prune", "--keep", "1", "--yes")["removed"] == ids[:2]
    assert [row["backup"] for row in user.run("backup", "list")["backups"]] == ids[2:]


def test_dry_run_makes_no_store(user: User) -> None:
    user.at("backup", "create", "--dry-run")
    user.at("backup", "plan")
    user.run("backup", "list")
    assert not (user.root / "store").exists()


def test_stand_in_with_the_same_commands(user: User) -> None:
    standin = f"standin:{user.board}"
    assert user.at("board", "probe", via=f"{standin},maskrom")["mode"] == "maskrom"
    assert [m["name"] for m in user.at("board", "probe", via=standin)["media"]] == ["spi", "emmc"]
    made = user.at("backup", "create", "--storage", "spi", via=standin)
    assert made["verified"]
    user.at("backup", "create", via=f"{standin},maskrom", code=int(ExitCode.NO_DEVICE))


@pytest.mark.parametrize(
    ("via", "code"),
    [
        ("carrier-pigeon:x", ExitCode.USAGE),
        ("file:", ExitCode.USAGE),
        ("file:/nowhere", ExitCode.NO_DEVICE),
        ("block:/nowhere,sd", ExitCode.NO_DEVICE),
        ("block:/dev/null,sd", ExitCode.USAGE),
        ("block:/dev/null", ExitCode.USAGE),
        ("ssh:-oProxyCommand=x", ExitCode.USAGE),
        ("rockusb+unix:/nowhere", ExitCode.NO_DEVICE),
        ("standin:/nowhere", ExitCode.NO_DEVICE),
    ],
)
def test_bad_ways(user: User, via: str, code: ExitCode) -> None:
    user.at("backup", "plan", via=via, code=int(code))


def test_bad_words(user: User) -> None:
    user.run("backup", "show", "none-such", code=int(ExitCode.USAGE))
    user.run("flash", "show", "latest", code=int(ExitCode.USAGE))
    user.run("flash", "show", "../../etc", code=int(ExitCode.USAGE))
    user.run("backup", "restore", "latest", code=int(ExitCode.USAGE))
    user.run("backup", "prune", "--keep", "0", code=int(ExitCode.USAGE))
