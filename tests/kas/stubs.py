# SPDX-License-Identifier: MIT
"""Small stand-ins of the layers' repositories, and the real kas on them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from conftest import REPOSITORY

BITBAKE = """#!/bin/sh
echo "$@" > "$BUILDDIR/asked"
[ ! -x "$BUILDDIR/stand-in" ] || exec "$BUILDDIR/stand-in"
"""
"""Writes down what it is asked; a test may put a program of its own into the build directory."""
STUBS = {
    "https://git.openembedded.org/bitbake": ("2.18", {"bin/bitbake": BITBAKE}),
    "https://git.openembedded.org/openembedded-core": (
        "wrynose",
        {
            "oe-init-build-env": 'mkdir -p "$1"\nexport BUILDDIR="$(readlink -f "$1")"\n'
            'export PATH="$(readlink -f ../bitbake)/bin:$PATH"\ncd "$BUILDDIR"\n',
            "meta/conf/layer.conf": "",
        },
    ),
    "https://git.yoctoproject.org/meta-arm": (
        "wrynose",
        {"meta-arm/conf/layer.conf": "", "meta-arm-toolchain/conf/layer.conf": ""},
    ),
    "https://git.yoctoproject.org/meta-rockchip": ("wrynose", {"conf/layer.conf": ""}),
}
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")


@dataclass(frozen=True)
class Kas:
    """kas with a map from the repositories' addresses to the stand-ins."""

    program: Path
    top: Path

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Its output; the project is a copy of the files, so that the locks of real commits are out of the way."""
        environment = {
            "PATH": f"{self.program.parent}:{os.environ['PATH']}",
            "HOME": str(self.top),
            "LANG": "C.UTF-8",
            "GITCONFIG_FILE": str(self.top / "gitconfig"),
            "KAS_WORK_DIR": str(self.top / "work"),
            "KAS_BUILD_DIR": str(self.top / "build"),
        }
        answer = subprocess.run(
            [str(self.program), *arguments],
            cwd=self.top / "project",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (answer.returncode == 0) == ok, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def configuration(self, name: str) -> str:
        """A file that kas generated."""
        return (self.top / "build/conf" / name).read_text()


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True, capture_output=True)


def make(tmp_path: Path, programs: Path) -> Kas:
    """The stand-ins and a project of copies below ``tmp_path``."""
    lines = ["[safe]", "\tdirectory = *"]
    for number, (url, (branch, files)) in enumerate(STUBS.items()):
        folder = tmp_path / f"stub{number}"
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        git(tmp_path, "init", "-q", "-b", branch, str(folder))
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "stand-in")
        lines += [f'[url "{folder}"]', f"\tinsteadOf = {url}"]
    (tmp_path / "gitconfig").write_text("\n".join(lines) + "\n")
    project = tmp_path / "project"
    machines = REPOSITORY.glob("recipes/conf/machine/*.conf")
    for path in [*REPOSITORY.glob("kas/**/*.yml"), REPOSITORY / "kas/Kconfig", *machines]:
        if not path.name.endswith(".lock.yml"):
            target = project / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
    (project / "recipes/conf/layer.conf").write_text("")
    git(tmp_path, "init", "-q", "-b", "main", str(project))
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "project")
    (tmp_path / "work").mkdir()
    return Kas(programs / "kas", tmp_path)
