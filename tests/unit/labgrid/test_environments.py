# SPDX-License-Identifier: MIT
"""The environment files that the kit ships: in step with the boards' files, and labgrid takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from labgrid import Environment

from lab import boards
from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.labgrid import envcheck, environments
from lab.labgrid.environments import FOLDER, Desk

BOARDS = boards.names()
PATHS = sorted(FOLDER.glob("*.yaml"))


def test_files_are_what_the_boards_say() -> None:
    made = environments.everything()
    assert {path.name for path in PATHS} == set(made), "npulab board env --all makes them"
    stale = [name for name, text in made.items() if (FOLDER / name).read_text() != text]
    assert stale == [], "npulab board env --all makes them anew"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_labgrid_takes_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LG_PLACE", "some-place")
    environment = Environment(str(path))
    virtual = path.stem.endswith("-virtual") or path.stem.startswith("virt")
    board = "virt" if virtual else path.stem.removesuffix("-place")
    assert environment.get_features() == set(boards.load(board).features)
    if path.stem.endswith("-place"):
        resources = environment.config.get_targets()["main"]["resources"]
        assert resources == {"RemotePlace": {"name": "some-place"}}  # its resources need a coordinator
        return
    target = environment.get_target()
    try:
        strategy = target.get_strategy()
        assert strategy.ssh is not None and strategy.shell is not None
        assert target.get_driver("KernelLogDriver", activate=False) is not None
    finally:
        environment.cleanup()


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_has_every_way(name: str) -> None:
    board = boards.load(name)
    ways = environments.transports(board)
    assert "place" in ways and "virtual" in ways
    assert ("local" in ways) is not board.virtual
    with pytest.raises(KitError, match="cannot be reached by pigeon"):
        environments.text(board, "pigeon")


def test_local_environment_with_a_users_own_devices() -> None:
    desk = Desk(serial="/dev/serial/by-path/a:b c", address="board.lan", user="me")
    document = yaml.safe_load(environments.text(boards.load("orangepi-5"), "local", desk))
    resources = document["targets"]["main"]["resources"]
    assert resources["RawSerialPort"] == {"port": "/dev/serial/by-path/a:b c", "speed": 1500000}
    assert resources["NetworkService"] == {"address": "board.lan", "username": "me"}


def test_command_writes_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    assert main(["board", "env", "orangepi-5", "--serial", "/dev/ttyUSB7", "--output", str(target)]) == 0
    assert "/dev/ttyUSB7" in target.read_text()
    assert main(["board", "env", "virt", "--transport", "local"]) == 2
    assert "cannot be reached by local" in capfd.readouterr().err
    assert main(["board", "env", "orangepi-5", "--output", str(target)]) == 2, "an edited file is not overwritten"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("targets: {main: {drivers: {KitQEMUDrivr: {}}}}", "there is no KitQEMUDrivr", "KitQEMUDriver"),
        ("targets: {main: {drivers: {KitQEMUDriver: {memroy: 2G}}}}", "no option memroy", "memory"),
        ("targets: {main: {drivers: [{cls: ShellDriver, promt: '#'}]}}", "no option promt", "prompt"),
        ("targets: {main: {resource: {}}}", "resource is no section", "resources"),
        ("target: {main: {}}", "no targets", ""),
        ("targets: {main: {drivers: [", "expected", ""),
        ("targets: {main: {resources: {RemotePlace: {name: !template $NO_SUCH}}}}", "NO_SUCH", ""),
    ],
)
def test_a_typo_is_named(text: str, words: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(f"imports: [lab.labgrid]\n{text}\n")
    with pytest.raises(KitError) as caught:
        envcheck.check(path)
    assert caught.value.code is ExitCode.INFRASTRUCTURE
    assert words in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_shipped_files_have_no_typo(path: Path) -> None:
    envcheck.check(path)
