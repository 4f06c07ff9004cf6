# SPDX-License-Identifier: MIT
"""The examples for farms: each is taken by the program that it is for, as far as this host has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from labgrid.remote.config import ResourceConfig

from lab import boards
from lab.cli import main
from lab.commands.farm import PLACES_SCHEMA
from lab.errors import ExitCode, KitError
from lab.farm import kernelci
from lab.farm.runner import Record
from lab.labgrid import environments

EXAMPLES = Path(environments.__file__).parent / "examples"
UNITS = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".service", ".timer"))


def test_labgrid_takes_the_exporter_and_the_places_fit() -> None:
    exported = ResourceConfig(str(EXAMPLES / "exporter.yaml"), {}).data
    places = yaml.safe_load((EXAMPLES / "places.yaml").read_text())
    jsonschema.validate(places, PLACES_SCHEMA)
    for name, place in places.items():
        board = boards.load(place["tags"]["board"])
        exporter, group, _ = place["match"].split("/")
        assert exporter == "desk" and group in exported and name == group
        assert exported[group]["USBSerialPort"]["speed"] == board.console.baud
        assert (environments.FOLDER / environments.file_name(board, "place")).is_file()


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / name).read_text()
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze on this host")
    for unit in UNITS:
        # the programs of the example are not here
        lines = (EXAMPLES / unit).read_text().splitlines()
        lines = ["ExecStart=/bin/true" if line.startswith("ExecStart=") else line for line in lines]
        (tmp_path / unit).write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [tool, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if name in line and "Unknown" in line]
    assert done.returncode == 0 and not complaints, done.stderr
    assert "0.0.0.0" not in text and "[::]" not in text, "labgrid has no passwords"


def test_udev_takes_the_rules() -> None:
    tool = shutil.which("udevadm")
    if tool is None:
        pytest.skip("no udevadm on this host")
    done = subprocess.run(
        [tool, "verify", str(EXAMPLES / "70-npulab.rules")], capture_output=True, text=True, check=False
    )
    if "unknown" in done.stderr.lower() and done.returncode:
        pytest.skip("this udevadm cannot verify")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["github.yml", "gitlab-ci.yml"])
def test_ci_files_use_commands_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((EXAMPLES / name).read_text())
    assert document
    commands = [line.strip(" ->") for line in (EXAMPLES / name).read_text().splitlines() if "./npulab" in line]
    assert len(commands) >= 4
    for command in commands:
        words = command.partition("./npulab ")[2].split()
        nouns = [word for word in words if not word.startswith("-")][:2]
        with pytest.raises(SystemExit):
            main([*nouns[: 2 if nouns[0] == "farm" else 1], "--help"])
        help_text = capsys.readouterr().out
        for option in [word for word in words[: words.index("--") if "--" in words else None] if word[:2] == "--"]:
            assert option in help_text + "--install-deps", f"{command}: {option}"


# KernelCI's jobs
def test_the_example_job_is_one() -> None:
    job = kernelci.load(EXAMPLES / "kernelci-job.json")
    assert kernelci.filters_of(job, {}) == {"board": "orangepi-5"}
    assert kernelci.filters_of(job, {"name": "virt-1"}) == {"name": "virt-1"}
    assert [kernelci.command(test)[0] for test in job.tests] == ["pytest", "pytest"]


def job_file(tmp_path: Path, **changes: object) -> Path:
    document = json.loads((EXAMPLES / "kernelci-job.json").read_text())
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**document, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tests": []}, "tests"),
        ({"environment": {}}, "platform"),
        ({"environment": {"platform": "x", "arch": "x86_64"}}, "x86_64"),
        ({"tests": [{"id": "a", "type": "boot", "pre-commands": ["reboot"]}]}, "pre-commands"),
        ({"tests": [{"id": "a", "type": "boot", "timeout_s": 0}]}, "timeout_s"),
    ],
)
def test_a_job_that_is_none(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(KitError, match=words) as caught:
        kernelci.load(job_file(tmp_path, **changes))
    assert caught.value.code is ExitCode.USAGE


def test_files_that_are_no_jobs(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"tests":')
    with pytest.raises(KitError, match="not JSON"):
        kernelci.load(tmp_path / "broken.json")
    with pytest.raises(KitError, match="no job file"):
        kernelci.load(tmp_path / "none.json")


def test_unknown_platform_asks_for_a_place(tmp_path: Path) -> None:
    job = kernelci.load(job_file(tmp_path, environment={"platform": "toaster"}))
    with pytest.raises(KitError, match="toaster") as caught:
        kernelci.filters_of(job, {})
    assert "--place" in caught.value.hint


def test_artifacts_are_fetched_and_checked(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(b"kernel")
    good = "d6ba2ebc5d8d0cdfffb6a3b3bea42ba5b7dc7c9ab5d0e9c3bbd3ed5b3f0f0000"
    address = (tmp_path / "Image").as_uri()
    job = kernelci.load(job_file(tmp_path, artifacts={"kernel": address}))
    found = kernelci.fetch(job, tmp_path / "artifacts")
    assert found["kernel"].read_bytes() == b"kernel"
    wrong = kernelci.load(job_file(tmp_path, artifacts={"kernel": address}, integrity={"sha256": {"kernel": good}}))
    with pytest.raises(KitError, match="SHA-256") as caught:
        kernelci.fetch(wrong, tmp_path / "again")
    assert caught.value.code is ExitCode.MISMATCH and list((tmp_path / "again").iterdir()) == []
    for bad in ("ftp://host/Image", "file:///no/such/Image"):
        with pytest.raises(KitError, match="artifact kernel"):
            kernelci.fetch(kernelci.load(job_file(tmp_path, artifacts={"kernel": bad})), tmp_path / "bad")


def test_words_for_kcidb() -> None:
    def record(code: int, **values: object) -> Record:
        made = Record("o", "c", [], "r", code=code)
        for key, value in values.items():
            setattr(made, key, value)
        return made

    assert kernelci.status(record(0, tests={"tests": 2, "skipped": 0})) == "PASS"
    assert kernelci.status(record(0, tests={"tests": 2, "skipped": 2})) == "SKIP"
    assert kernelci.status(record(1, tests={"tests": 2, "failures": 1})) == "FAIL"
    assert kernelci.status(record(1, trouble="no prompt")) == "ERROR"
