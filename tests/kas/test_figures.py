# SPDX-License-Identifier: MIT
"""``npulab bench kas``: what is measured, and that what could not be has no value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import cli
from lab.assemble.sources import REPOSITORY
from lab.errors import ExitCode, KitError
from lab.figures import Figure
from lab.kas import drive, figures
from lab.kas.progress import Progress
from lab.kas.request import PARTS
from lab.output import Output

RECIPE = "linux-rocket-7.3.4-r0"
OUT = Output(quiet=True, as_json=True)


def outcome(seconds: float, parse: float, ran: Sequence[tuple[str, str]]) -> drive.Outcome:
    progress = Progress(parse_seconds=parse, ran=list(ran))
    return drive.Outcome(progress, seconds, drive.Places(Path("w"), Path("b"), Path("l")))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[drive.Outcome | KitError]:
    """What the builds give, one after the other; the tests' row is taken as measured."""
    given: list[drive.Outcome | KitError] = []

    def build(self: object) -> drive.Outcome:
        result = given.pop(0)
        if isinstance(result, KitError):
            raise result
        return result

    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path))
    monkeypatch.setenv("NPULAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(figures, "_tests", lambda _: Figure("tests", 12.0, "s", 30.0, "pytest"))
    monkeypatch.setattr(figures._Bench, "_build", build)
    return given


def test_three_builds_give_three_rows(builds: list[drive.Outcome | KitError]) -> None:
    whole = [(RECIPE, "do_configure"), (RECIPE, "do_compile")]
    builds += [outcome(800, 100, [*whole, ("m4-native-1", "do_x")]), outcome(70, 40, []), outcome(400, 40, whole)]
    _, cold, again, changed = figures.measure(OUT, quick=False)
    assert (cold.value, again.value, changed.value) == (800, 30, 0)
    assert cold.ok
    assert again.ok
    assert changed.ok
    assert "no task ran" in again.note
    assert f"{RECIPE}: do_configure do_compile" in changed.note


def test_other_recipes_miss_the_goal(builds: list[drive.Outcome | KitError]) -> None:
    whole = [(RECIPE, "do_configure"), ("busybox-1.37", "do_compile")]
    builds += [outcome(1000, 100, whole), outcome(170, 40, []), outcome(400, 40, whole)]
    rows = figures.measure(OUT, quick=False)
    assert [row.ok for row in rows] == [True, False, False, False]
    assert rows[3].value == 1


def test_change_that_reaches_nothing_is_no_figure(builds: list[drive.Outcome | KitError]) -> None:
    builds += [outcome(800, 100, []), outcome(70, 40, []), outcome(60, 40, [])]
    with pytest.raises(KitError) as caught:
        figures.measure(OUT, quick=False)
    assert caught.value.code is ExitCode.FAILED


def test_what_cannot_be_measured_says_so(
    builds: list[drive.Outcome | KitError], capsys: pytest.CaptureFixture[str]
) -> None:
    builds += [outcome(800, 100, []), KitError(ExitCode.INFRASTRUCTURE, "no network", "connect it")]
    assert cli.main(["bench", "kas", "--json"]) == ExitCode.INFRASTRUCTURE
    document = capsys.readouterr().out
    assert '"missing": "no network; connect it"' in document
    assert document.count('"value": null') == 2
    assert '"value": 800' in document


def test_the_changed_line_is_there_and_stands_alone() -> None:
    text = (REPOSITORY / figures.FRAGMENT).read_text()
    assert text.splitlines().count(figures.CHANGE[0]) == 1


def test_a_copy_holds_all_that_recipes_name() -> None:
    named = set()
    for path in [*REPOSITORY.glob("recipes/**/*.[bci]*"), *REPOSITORY.glob("kas/**/*.yml")]:
        if path.is_file():
            text = path.read_text()
            named.update(re.findall(r"\$\{NPULAB_REPOSITORY\}/([\w./-]+)", text))
            named.update(re.findall(r'getVar\("NPULAB_REPOSITORY"\), "([\w./-]+)"', text))
    assert {"kernel-patches", "dts", "lab/virt/qemu", "LICENSES/MIT.txt"} <= named
    for name in named:
        assert (REPOSITORY / name).exists()
        assert any(name == part or name.startswith(f"{part}/") for part in PARTS), name
