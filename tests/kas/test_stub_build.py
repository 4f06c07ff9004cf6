# SPDX-License-Identifier: MIT
"""The real kas on these files, against small stand-ins of the repositories: what it asks BitBake to do, and how."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MACHINES, REPOSITORY

STUBS = {
    "https://git.openembedded.org/bitbake": ("2.18", {"bin/bitbake": '#!/bin/sh\necho "$@" > "$BUILDDIR/asked"\n'}),
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


@pytest.fixture
def kas(tmp_path: Path, programs: Path) -> Kas:
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
    for path in [*REPOSITORY.glob("kas/**/*.yml"), REPOSITORY / "kas/Kconfig"]:
        if not path.name.endswith(".lock.yml"):
            target = project / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
    (project / "recipes/conf").mkdir(parents=True)
    (project / "recipes/conf/layer.conf").write_text("")
    git(tmp_path, "init", "-q", "-b", "main", str(project))
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "project")
    (tmp_path / "work").mkdir()
    return Kas(programs / "kas", tmp_path)


def asked(kas: Kas) -> str:
    return (kas.top / "build/asked").read_text().strip()


@pytest.mark.parametrize("machine", MACHINES)
def test_build_asks_for_the_image_of_the_machine(kas: Kas, machine: str) -> None:
    kas.run("build", f"kas/{machine}.yml")
    assert asked(kas) == "-c build npu-bringup-image"
    local, layers = kas.configuration("local.conf"), kas.configuration("bblayers.conf")
    assert f'MACHINE ??= "{machine}"' in local
    assert 'DISTRO ??= "nodistro"' in local
    assert ("meta-rockchip" in layers) == (machine != "rk3588-virt")
    assert "project/recipes" in layers
    assert "openembedded-core/meta" in layers


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("kernel-6.18", 'PREFERRED_VERSION_linux-rocket = "6.18%"'),
        ("kernel-debug", 'NPULAB_KERNEL_DEBUG = "1"'),
        ("without-fixes", 'NPULAB_FIXES = "0"'),
        ("rocket-builtin", 'NPULAB_ROCKET = "builtin"'),
        ("gpu", 'NPULAB_GPU = "1"'),
        ("loader", 'NPULAB_LOADER = "1"'),
        ("offline", 'BB_NO_NETWORK = "1"'),
        ("mirrors", 'BB_SIGNATURE_HANDLER = "OEEquivHash"'),
        ("icecc", 'INHERIT += "icecc"'),
        ("testimage", 'IMAGE_CLASSES += "testimage"'),
        ("host-toolchain", "require conf/include/npulab-host-toolchain.inc"),
    ],
)
def test_option_reaches_the_configuration(kas: Kas, option: str, line: str) -> None:
    kas.run("build", f"kas/orangepi-5.yml:kas/opt/{option}.yml")
    assert line in kas.configuration("local.conf")


@pytest.mark.parametrize(("option", "target"), [("rescue", "npu-rescue-initramfs"), ("kernel-only", "virtual/kernel")])
def test_option_changes_the_target(kas: Kas, option: str, target: str) -> None:
    kas.run("build", f"kas/rk3588-virt.yml:kas/opt/{option}.yml")
    assert asked(kas) == f"-c build {target}"


def test_later_kernel_choice_wins(kas: Kas) -> None:
    kas.run("build", "kas/orangepi-5.yml:kas/opt/kernel-6.18.yml:kas/opt/kernel-7.3.yml")
    text = kas.configuration("local.conf")
    assert '"7.3%"' in text
    assert '"6.18%"' not in text


def test_lock_pins_what_is_fetched(kas: Kas) -> None:
    kas.run("lock", "kas/rk3588-virt.yml")
    text = (kas.top / "project/kas/rk3588-virt.lock.yml").read_text()
    assert text.count("commit:") == 2
    dumped = kas.run("dump", "--resolve-refs", "kas/rk3588-virt.yml")
    assert dumped.count("commit:") >= 2


def test_missing_commit_is_told(kas: Kas) -> None:
    lock = kas.top / "project/kas/orangepi-5.lock.yml"
    lock.write_text(f'header:\n  version: 14\noverrides:\n  repos:\n    meta-arm:\n      commit: "{"0" * 40}"\n')
    assert "0" * 40 in kas.run("build", "kas/orangepi-5.yml", ok=False)
