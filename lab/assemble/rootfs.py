# SPDX-License-Identifier: MIT
"""The root file system: Debian trixie arm64 with python3, numpy, busybox and an SSH server, as an ext4 image.

Packages are unpacked, never run: no maintainer script, no foreign code, no root. What scripts would have done and this
system needs (merged /usr, alternatives of BLAS and LAPACK, accounts) is done here. Documentation, locales, tests and
headers are left out, and every Python module is compiled, since the virtual processor is slow. ``rknpu_userspace`` is
not in this image but in the kit layer (`lab.assemble.kit`), so that an edit of it does not touch this one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from lab.assemble import ssh
from lab.assemble.apt import TARGET, Apt
from lab.assemble.artifacts import describe
from lab.assemble.ext4 import make_image
from lab.assemble.hostpython import HostPython, host_python, version_in
from lab.assemble.mirror import SUITE
from lab.cache import Cache, digest, file_digest, tree_digest
from lab.cancel import check_cancelled
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.process import require, run

IMAGE = "rootfs.ext4"
LIBRARY = "usr/lib/aarch64-linux-gnu"
OVERLAY = Path(__file__).with_name("overlay")
SPARE = 96 << 20
UUID = "6e70756c-6162-4000-8000-000000000001"

PACKAGES = ("base-files", "busybox-static", "dropbear-bin", "openssh-sftp-server", "python3", "python3-numpy")

# needed only by maintainer scripts, by log-in through PAM, or by a part that is pruned below
_LEFT_OUT = """
    adduser awk base-passwd debconf dpkg gawk init-system-helpers libacl1 libattr1 libaudit-common libaudit1
    libbsd0 libcap-ng0 libcap2 libcbor0.10 libcom-err2 libdb5.3t64 libdebconfclient0 libedit2 libfido2-1
    libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libmd0 libpam-modules
    libpam-modules-bin libpam0g libpcre2-8-0 libselinux1 libsemanage-common libsemanage2 libsepol2 libssl3t64
    libsystemd0 libudev1 login.defs mawk media-types netbase openssh-client openssl-provider-legacy passwd
    python3-numpy-dev tar tzdata
"""
LEFT_OUT = frozenset(_LEFT_OUT.split())

PRUNED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/initramfs-tools",
    "usr/share/applications",
    "usr/share/pixmaps",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/include",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/lib/aarch64-linux-gnu/audit",
    "usr/lib/python3.*/test",
    "usr/lib/python3.*/idlelib",
    "usr/lib/python3.*/ensurepip",
    "usr/lib/python3.*/pydoc_data",
    "usr/lib/python3.*/turtledemo",
    "usr/lib/python3.*/config-3.*",
    "usr/lib/python3/dist-packages/numpy/**/tests",
    "usr/lib/python3/dist-packages/numpy/**/include",
    "usr/lib/python3/dist-packages/numpy/f2py",
    "usr/lib/python3/dist-packages/numpy/distutils",
    "**/*.a",
    "**/*.pyi",
)

ACCOUNTS = {
    "etc/passwd": "root::0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n",
    "etc/hosts": "127.0.0.1 localhost npulab\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hostname": "npulab\n",
}

DIRECTORIES = ("proc", "sys", "dev", "run", "tmp", "root", "opt/npulab", "mnt", "var/log", "lib/modules")

APPLETS_ELSEWHERE = ("init", "linuxrc", "dpkg", "dpkg-deb", "rpm", "rpm2cpio", "ssl_client", "busybox")
"""Applets that get no link: another program has the name, or it has no use here."""


class Plan:
    """What the image is made of; known, with its key, before anything is downloaded."""

    def __init__(self, apt: Apt, cache: Cache, out: Output, log: Path) -> None:
        self.apt, self.cache, self.out, self.log = apt, cache, out, log
        self.packages = [file for file in apt.resolve(PACKAGES, TARGET, out) if file.package not in LEFT_OUT]
        self.python = version_in(self.packages)
        self.keys = ssh.keys(cache, log)
        recipe = [file_digest(Path(__file__)), tree_digest(OVERLAY), file_digest(Path(__file__).with_name("ext4.py"))]
        login = (self.keys / f"{ssh.LOGIN_KEY}.pub").read_text()
        self.key = digest(recipe, [file.sha256 for file in self.packages], login)


def build(plan: Plan, jobs: int) -> Path:
    """The image's cache entry: ``rootfs.ext4`` and ``component.json``."""

    def make(entry: Path) -> None:
        compiler = host_python(plan.python, plan.apt, plan.cache, plan.out, plan.log)
        debs = plan.apt.fetch(plan.packages, "root file system", plan.out)
        steps = len(debs) + 20.0
        with plan.out.stage("root file system") as meter:
            tree = entry / "tree"
            _skeleton(tree)
            for index, deb in enumerate(debs):
                meter.update(index, steps, deb.name.split("_")[0])
                run([require("dpkg-deb", "dpkg"), "-x", deb, tree], stage=f"unpacking {deb.name}", log=plan.log)
            epoch = max(int(path.lstat().st_mtime) for path in tree.rglob("*"))
            finish(tree, plan.keys, epoch)
            meter.update(len(debs) + 2, steps, "compiling Python modules")
            _compile(tree, compiler, jobs, plan.log)
            meter.update(len(debs) + 18, steps, "writing the image")
            image = entry / IMAGE
            make_image(tree, image, label="npuroot", spare=SPARE, uuid=UUID, epoch=epoch, log=plan.log)
            shutil.rmtree(tree)
        component = {
            "image": IMAGE,
            "suite": SUITE,
            "python": plan.python,
            "packages": [{"name": p.package, "version": p.version, "sha256": p.sha256} for p in plan.packages],
            "files": {IMAGE: describe(image)},
        }
        (entry / "component.json").write_text(json.dumps(component, indent=1))

    return plan.cache.entry("rootfs", plan.key, make)


def _skeleton(tree: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")


def finish(tree: Path, keys: Path, epoch: int) -> None:
    """Turn the unpacked packages into a system: prune, link, accounts, keys, our own files; check the libraries."""
    prune(tree)
    for name in DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for library in ("blas/libblas.so.3", "lapack/liblapack.so.3"):
        _link(tree / LIBRARY / Path(library).name, library)
    for name, text in ACCOUNTS.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).unlink(missing_ok=True)
        (tree / name).write_text(text)
    shutil.copytree(OVERLAY, tree, dirs_exist_ok=True)
    (tree / "etc/npulab-epoch").write_text(f"{epoch}\n")
    _link(tree / "etc/resolv.conf", "/run/resolv.conf")
    _link(tree / "usr/lib/python3/dist-packages/rknpu_userspace", "/opt/npulab/rknpu_userspace")
    _link(tree / "usr/bin/python", "python3")
    for applet in applets(tree / "usr/bin/busybox"):
        for folder in ("bin", "sbin"):
            if applet not in APPLETS_ELSEWHERE and not (tree / "usr" / folder / applet).exists():
                _link(tree / "usr" / folder / applet, "/usr/bin/busybox")
    home = tree / "root/.ssh"
    home.mkdir(mode=0o700)
    (tree / "root").chmod(0o700)
    shutil.copyfile(keys / f"{ssh.LOGIN_KEY}.pub", home / "authorized_keys")
    (home / "authorized_keys").chmod(0o600)
    host_key = tree / "etc/dropbear/ed25519"
    host_key.parent.mkdir(exist_ok=True)
    shutil.copyfile(keys / ssh.DROPBEAR_KEY, host_key)
    host_key.chmod(0o600)
    _check_libraries(tree)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def prune(tree: Path) -> None:
    """Remove what the virtual board does not need."""
    for pattern in PRUNED:
        for path in sorted(tree.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def applets(busybox: Path) -> list[str]:
    """The applet names of a busybox binary: the NUL-separated table that starts with ``[`` and ``[[``."""
    data = busybox.read_bytes()
    start = data.find(b"[\0[[\0")
    if start < 0:
        raise KitError(ExitCode.INFRASTRUCTURE, f"{busybox.name}: no table of applets", "try --update")
    names = []
    for name in data[start:].split(b"\0"):
        if not name:
            break
        names.append(name.decode())
    return names


def _elf_files(tree: Path) -> Iterator[tuple[Path, set[str]]]:
    for path in tree.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as stream:
            if stream.read(4) != b"\x7fELF":
                continue
            stream.seek(0)
            try:
                dynamic = ELFFile(stream).get_section_by_name(".dynamic")
            except ELFError:
                continue
            if isinstance(dynamic, DynamicSection):
                yield (
                    path,
                    {str(getattr(tag, "needed", "")) for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"},
                )


def _check_libraries(tree: Path) -> None:
    """Every library that a program needs is there; extension modules of Python whose library was left out go too."""
    folders = [tree / "usr/lib", tree / LIBRARY, tree / LIBRARY / "blas", tree / LIBRARY / "lapack"]
    have = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    for path, needed in list(_elf_files(tree)):
        check_cancelled()
        missing = sorted(needed - have)
        if not missing:
            continue
        if "lib-dynload" in path.parts:
            path.unlink()
            continue
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"root file system: {path.relative_to(tree)} needs {missing[0]}, which no package brings",
            "a package was split or renamed in Debian; report it",
        )


def _compile(tree: Path, compiler: HostPython, jobs: int, log: Path) -> None:
    for folder in (f"usr/lib/python{compiler.version}", "usr/lib/python3/dist-packages"):
        compiler.compile(tree / folder, f"/{folder}", jobs, log)
