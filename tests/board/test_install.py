# SPDX-License-Identifier: MIT
"""A board's kernel as its user installs it: Debian's own dpkg on the board, an extlinux entry beside the one that
boots today, a boot of that entry, and no trace of it after its removal.

The kernel is the virtual board's, in the form for an Orange Pi 5; with NPULAB_BOARD_KERNEL set it is the one for real
boards, which takes a build of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from building import progress

from lab.assemble import board as board_kernel
from lab.assemble import kernel, mirror
from lab.assemble.apt import TARGET, Apt
from lab.assemble.virt import BuildOptions, assemble
from lab.cache import Cache, digest, file_digest
from lab.output import Output
from lab.process import run
from lab.virt.board import BoardConfig
from lab.virt.select import board_config
from lab.virt.session import BoardSession

pytestmark = [pytest.mark.lg_feature("virtual"), pytest.mark.timeout(3600)]
"""The first test of a cold cache builds a kernel."""

BOARD = "orangepi-5"
PACKAGE = f"linux-npulab-{BOARD}"
BOARD_KERNEL = "NPULAB_BOARD_KERNEL"
PLACE = "/tmp/install"
DPKG = "PATH=/usr/bin:/usr/sbin /usr/bin/dpkg"
"""By its path, and Debian's tar before busybox': the shell would take its own applets."""
CONF = "/boot/extlinux/extlinux.conf"
EXISTING = """default l0
menu title U-Boot menu

label l0
\tlinux /boot/vmlinuz-6.12
\tinitrd /boot/initrd.img-6.12
\tappend root=/dev/vda ro quiet
"""


@dataclass(frozen=True)
class Entry:
    """What the loader reads from extlinux.conf for one label."""

    linux: str
    fdt: str
    append: str


def entries(text: str) -> dict[str, Entry]:
    """Labels of an extlinux.conf; a kernel without a device tree of its own has an empty ``fdt``."""
    found = {}
    for part in re.split(r"^label ", text, flags=re.MULTILINE)[1:]:
        label, _, body = part.partition("\n")
        words = dict(line.split(None, 1) for line in body.splitlines() if len(line.split(None, 1)) == 2)
        found[label] = Entry(words["linux"], words.get("fdt", ""), words["append"])
    return found


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> board_kernel.BoardSet:
    """The Orange Pi 5's kernel set."""
    jobs = os.cpu_count() or 1
    options: kernel.KernelOptions = kernel.KernelOptions(rocket_module=False, jobs=jobs)
    if os.environ.get(BOARD_KERNEL):
        options = board_kernel.BoardKernelOptions(rocket_module=False, jobs=jobs)
    with progress(request) as out:
        return board_kernel.assemble(BOARD, options, None, out)


@pytest.fixture(scope="module")
def package(built: board_kernel.BoardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    return board_kernel.package(built, folder, folder / "log")


@pytest.fixture(scope="module")
def config() -> BoardConfig:
    return board_config(assemble(BuildOptions(), Output()), board_kernel.dtb_name(BOARD))


def debian_dpkg(cache: Cache, out: Output, log: Path) -> Path:
    """dpkg for arm64 and what it needs, unpacked: the virtual board's small root file system has none."""
    apt = Apt(cache, mirror.find(None), log)
    files = [file for file in apt.resolve(["dpkg"], TARGET, out) if file.package not in ("libc6", "libgcc-s1")]

    def make(entry: Path) -> None:
        for deb in apt.fetch(files, "dpkg", out):
            run(["dpkg-deb", "-x", deb, entry], stage=f"unpacking {deb.name}", log=log)

    return cache.entry("dpkg", digest([file.sha256 for file in files]), make)


@pytest.fixture(scope="module")
def debian(config: BoardConfig, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardSession]:
    """A virtual board with Debian's dpkg, the package, and the configuration of a loader."""
    folder = tmp_path_factory.mktemp("install")
    system = debian_dpkg(Cache(), Output(), folder / "log")
    conf = folder / "extlinux.conf"
    conf.write_text(EXISTING)
    disk = folder / "disk.tar"
    with tarfile.open(disk, "w") as archive:
        archive.add(package, f"{PLACE[1:]}/kernel.deb")
        archive.add(conf, CONF[1:])
        for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/share/dpkg"):
            if (system / name).is_dir():
                archive.add(system / name, name)
    with BoardSession(replace(config, disks=(*config.disks, disk)), folder / "results") as session:
        session.to("shell")
        say(session, "mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates && touch /var/lib/dpkg/status")
        # tar leaves what is there, links of the merged /usr among it
        say(session, f"tar -xf /dev/vdc -C / && {DPKG} --version")
        yield session


def say(session: BoardSession, command: str) -> str:
    """What a command that has to succeed prints."""
    lines, code = session.run(command, 300.0)
    assert code == 0, f"`{command}` ended with {code}:\n" + "\n".join(lines)
    return "\n".join(lines)


def conf_of(session: BoardSession) -> str:
    return say(session, f"cat {CONF}").rstrip("\n") + "\n"


def test_package_adds_an_entry_and_its_removal_takes_it_away(
    debian: BoardSession, built: board_kernel.BoardSet, config: BoardConfig, tmp_path: Path
) -> None:
    release = built.manifest["kernel"]["release"]
    before = say(debian, "find /boot /usr/lib/modules -type f 2>/dev/null | sort; true")
    # ldconfig and start-stop-daemon belong to packages that a full Debian has
    say(debian, f"{DPKG} --force-bad-path -i {PLACE}/kernel.deb")
    after = conf_of(debian)
    assert after.startswith(EXISTING), "what was there stays in front, the default with it"
    found = entries(after)
    assert list(found) == ["l0", f"npulab-{release}"]
    entry = found[f"npulab-{release}"]
    assert entry.append.startswith("root=/dev/vda ")
    for path, local in ((entry.linux, built.kernel), (entry.fdt, built.dtb)):
        assert say(debian, f"sha256sum {shlex.quote(path)}").split()[0] == file_digest(local)
    assert f"Package: {PACKAGE}" in say(debian, f"{DPKG} -s {PACKAGE}")
    say(debian, f"{DPKG} --force-bad-path -r {PACKAGE}")
    assert conf_of(debian) == EXISTING
    assert say(debian, "find /boot /usr/lib/modules -type f 2>/dev/null | sort; true") == before

    # the loader's part: kernel, device tree and command line of the entry
    chosen = replace(config, kernel=built.kernel, dtb=built.dtb, initrd=None, cmdline=f"{entry.append} panic=-1")
    with BoardSession(chosen, tmp_path / "results") as session:
        session.to("shell")
        assert say(session, "uname -r") == release
        cores = re.findall(r"Rockchip NPU core (\d) version: 1179210309", say(session, "dmesg"))
        assert sorted(cores) == ["0", "1", "2"]
