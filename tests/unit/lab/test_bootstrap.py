# SPDX-License-Identifier: MIT
"""The bootstrap script: clear words on machines that lack something, and nothing to do the second time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


def bootstrap(fakes: Path, venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # the interpreter of this run stands in for the system's: the script only needs its version and its venv module
    system = Path(sys.base_prefix) / "bin"
    environment = {"PATH": f"{fakes}:{system}:/usr/bin:/bin", "HOME": str(venv.parent), "NPULAB_VENV": str(venv)}
    return subprocess.run(
        [str(ROOT / "npulab"), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def installed(venv: Path, python: str) -> None:
    """A virtual environment that counts as complete and whose Python only says what it was asked to do."""
    (venv / "bin").mkdir(parents=True)
    program(venv / "bin", "python", 'echo "python $*"')
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True
    )
    pyproject = ROOT / "pyproject.toml"
    data = pyproject.read_bytes() + version.stdout.rstrip("\n").encode() + str(pyproject).encode()
    (venv / "npulab.stamp").write_text(hashlib.sha256(data).hexdigest() + "\n")


def test_second_run_only_runs(fakes: Path, tmp_path: Path) -> None:
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    installed(tmp_path / "venv", python if os.access(python, os.X_OK) else "python3")
    done = bootstrap(fakes, tmp_path / "venv", "demo", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "python -m lab demo --json\n", "")


def test_no_arguments_ask_for_help(fakes: Path, tmp_path: Path) -> None:
    installed(tmp_path / "venv", str(Path(sys.base_prefix) / "bin" / "python3"))
    assert bootstrap(fakes, tmp_path / "venv").stdout == "python -m lab --help\n"


def test_other_architectures_are_refused(fakes: Path, tmp_path: Path) -> None:
    program(fakes, "uname", "echo riscv64")
    done = bootstrap(fakes, tmp_path / "venv", "demo")
    assert done.returncode == 8
    assert done.stderr.splitlines() == [
        "npulab: this host is riscv64",
        "    what to do: use an x86-64 or arm64 machine with Debian or Ubuntu",
    ]


def test_old_python_is_refused(fakes: Path, tmp_path: Path) -> None:
    program(fakes, "python3", 'case "$*" in *version_info*) exit 1;; *) echo 3.9.2;; esac')
    done = bootstrap(fakes, tmp_path / "venv", "demo")
    assert done.returncode == 8
    assert "python3 is 3.9.2" in done.stderr
    assert "install Python 3.11 or later" in done.stderr


def test_python_without_venv_names_the_package(fakes: Path, tmp_path: Path) -> None:
    program(fakes, "python3", 'case "$*" in *ensurepip*) exit 1;; *) echo x;; esac')
    done = bootstrap(fakes, tmp_path / "venv", "demo")
    assert done.returncode == 8
    assert "apt-get install python3-venv" in done.stderr


def test_failing_installation_leaves_no_stamp(fakes: Path, tmp_path: Path) -> None:
    program(fakes, "python3", 'case "$*" in *"-m venv"*) echo "no room" >&2; exit 1;; *) echo x;; esac')
    done = bootstrap(fakes, tmp_path / "venv", "demo")
    assert done.returncode == 8
    assert "installing the kit" in done.stderr
    assert not (tmp_path / "venv" / "npulab.stamp").exists()


def test_missing_packages_without_root_are_named(fakes: Path, tmp_path: Path) -> None:
    program(fakes, "dpkg-query", "exit 1")
    program(fakes, "id", "echo 1000")
    program(fakes, "sudo", 'echo "sudo $*" >&2; exit 1')
    done = bootstrap(fakes, tmp_path / "venv", "--install-deps", "demo")
    assert done.returncode == 8
    assert "apt-get update failed" in done.stderr
    assert "sudo apt-get update -q" in done.stderr
