# SPDX-License-Identifier: MIT
"""The command line's contract: exit codes, one clear line, one JSON document."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest

from lab import cli
from lab.errors import ExitCode, KitError, from_os_error


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("lab.commands.probe")
    module.configure = lambda parser: parser.add_argument("--flag")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab.commands.probe", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", "a command for this test")
    return module


def outcome(module: types.ModuleType, behaviour: Any) -> None:
    def run(args: Any, out: Any) -> dict[str, Any]:
        if isinstance(behaviour, BaseException):
            raise behaviour
        return dict(behaviour)

    module.run = run  # type: ignore[attr-defined]


def test_success_prints_one_document(command: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(command, {"rows": [1]})
    assert cli.main(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "rows": [1]}


def test_a_document_that_is_not_ok_fails(command: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(command, {"ok": False})
    assert cli.main(["probe", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"ok": False}


@pytest.mark.parametrize("code", [c for c in ExitCode if c])
def test_errors_return_their_code(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str], code: ExitCode
) -> None:
    outcome(command, KitError(code, "what was wrong", "what to do", tail="last\nlines"))
    assert cli.main(["probe", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "npulab: what was wrong",
        "    | last",
        "    | lines",
        "    what to do: what to do",
    ]
    assert json.loads(printed.out) == {
        "ok": False,
        "error": {"code": int(code), "message": "what was wrong", "hint": "what to do"},
    }


def test_interrupt_is_exit_7(command: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(command, KeyboardInterrupt())
    assert cli.main(["probe"]) == 7
    assert "stopped" in capsys.readouterr().err


def test_operating_system_errors_are_clear(command: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome(command, OSError(28, "No space left on device", "/some/file"))
    assert cli.main(["probe"]) == 8
    assert "the disk is full (/some/file)" in capsys.readouterr().err
    assert from_os_error(PermissionError(13, "Permission denied", "/x"), "doing").message == "doing: no permission (/x)"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["probe", "--nonsense"], ["probe", "--flag"]])
def test_usage_errors_are_exit_2(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    outcome(command, {})
    assert cli.main(argv) == 2
    assert "--help" in capsys.readouterr().err


def test_every_command_loads_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for noun in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([noun, "--help"])
        assert caught.value.code == 0
        assert noun in capsys.readouterr().out
