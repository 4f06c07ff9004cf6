# SPDX-License-Identifier: MIT
"""``info`` and ``probe`` of a virtual board: what its tools print is shown here."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli import main as npulab
from rknpu_userspace.__main__ import main as tools


class Shell:
    """A board whose Python is this one; its device is the model."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.broken = False

    def run(self, command: str, timeout: float) -> tuple[str, int]:
        self.commands.append(command)
        if self.broken:
            return "bash: python3: not found\n", 127
        words = shlex.split(command.removesuffix(" 2>/dev/null"))
        assert words[:3] == ["python3", "-m", "rknpu_userspace"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = tools([*words[3:], "--device", "model"])
        return printed.getvalue(), code


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    board = Shell()

    @contextlib.contextmanager
    def remote(device: str, out: object) -> Iterator[Shell]:
        assert device in ("virt", "virt:mine")
        yield board

    monkeypatch.setattr("lab.npu.run.remote", remote)
    return board


def test_info(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert npulab(["npu", "info", "--device", "virt", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert npulab(["npu", "info", "--device", "model", "--json"]) == 0
    assert there == json.loads(capsys.readouterr().out)
    assert shell.commands == ["python3 -m rknpu_userspace info --json 2>/dev/null"]


def test_probe(shell: Shell, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = tmp_path / "board.json"
    options = ["--device", "virt:mine", "--only", "bn-order", "--out", str(found)]
    assert npulab(["npu", "probe", *options]) == 0
    assert "bn_order is mul_alu" in capsys.readouterr().out
    assert json.loads(found.read_text())["quirks"] == {"bn_order": "mul_alu"}
    assert "--only bn-order" in shell.commands[0]


def test_what_can_not_be(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert npulab(["npu", "probe", "--device", "virt", "--quirks", "x.json"]) == 2
    assert "virt up --quirks FILE" in capsys.readouterr().err
    shell.broken = True
    assert npulab(["npu", "info", "--device", "virt"]) == 8
    assert "info on the virtual board ended with 127 and no document" in capsys.readouterr().err
