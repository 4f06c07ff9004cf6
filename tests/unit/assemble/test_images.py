# SPDX-License-Identifier: MIT
"""Images: ext4 without root, the initramfs, keys, and what the root file system's recipe does to a tree."""

from __future__ import annotations

import base64
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.assemble import initramfs, rootfs, ssh
from lab.assemble.ext4 import make_image
from lab.cache import Cache
from lab.errors import KitError

UUID = "6e70756c-6162-4000-8000-0000000000ff"


def _debugfs(image: Path, request: str) -> str:
    program = shutil.which("debugfs") or "/sbin/debugfs"
    return subprocess.run([program, "-R", request, image], capture_output=True, text=True, check=True).stdout


def _image(tree: Path, image: Path) -> Path:
    make_image(tree, image, label="test", spare=1 << 20, uuid=UUID, epoch=1_600_000_000, log=image.with_suffix(".log"))
    return image


def test_ext4_belongs_to_root_and_keeps_contents(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder/file").write_text("content\n")
    (tree / "secret").write_text("x")
    (tree / "secret").chmod(0o600)
    (tree / "link").symlink_to("folder/file")
    image = _image(tree, tmp_path / "a.ext4")
    assert _debugfs(image, "cat /folder/file") == "content\n"
    status = _debugfs(image, "stat /secret")
    assert "Mode:  0600" in status and "User:     0   Group:     0" in status
    assert 'Fast link dest: "folder/file"' in _debugfs(image, "stat /link")


def _members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[position + 110 : position + 110 + length - 1].decode()
        start = position + -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        position = start + -(-size // 4) * 4


MODULES: list[dict[str, Any]] = [
    {"name": "rocket", "file": "modules/rocket.ko", "aliases": ["of:N*T*Cx"], "depends": ["gpu_sched", "drm"]},
    {"name": "gpu_sched", "file": "modules/gpu-sched.ko", "aliases": [], "depends": ["drm"]},
    {"name": "drm", "file": "modules/drm.ko", "aliases": [], "depends": ["built_in"]},
]


def test_load_order_and_dependency_table() -> None:
    assert initramfs.load_order(MODULES) == ["drm", "gpu_sched", "rocket"]
    files = {module["name"]: f"kernel/{module['name']}.ko" for module in MODULES}
    table = dict(line.split(":") for line in initramfs.dependency_table(MODULES, files).splitlines())
    assert table["kernel/rocket.ko"].split() == ["kernel/gpu_sched.ko", "kernel/drm.ko"]
    assert table["kernel/drm.ko"] == ""


def test_initramfs(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    for module in MODULES:
        (tmp_path / Path(module["file"]).name).write_bytes(module["name"].encode() * 3)
    images = []
    for name in ("a.img", "b.img"):
        initramfs.write(tmp_path / name, busybox, "7.3.4-x", MODULES, tmp_path)
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1], "equal contents give equal archives"
    members = _members(images[0])
    mode, script = members["init"]
    assert stat.S_ISREG(mode) and mode & 0o111 and b"/lib/modules/7.3.4-x/" in script and b"RELEASE" not in script
    assert members["lib/modules/order"][1].split() == [b"kernel/drm.ko", b"kernel/gpu-sched.ko", b"kernel/rocket.ko"]
    assert members["lib/modules/7.3.4-x/kernel/gpu-sched.ko"][1] == b"gpu_sched" * 3
    assert members["lib/modules/7.3.4-x/modules.alias"][1] == b"alias of:N*T*Cx rocket\n"
    names = list(members)
    for name in names:
        parent = str(Path(name).parent)
        assert parent == "." or names.index(parent) < names.index(name), "the kernel makes no folders itself"


def test_keys(tmp_path: Path) -> None:
    entry = ssh.keys(Cache(tmp_path), tmp_path / "log")
    assert stat.S_IMODE((entry / ssh.LOGIN_KEY).stat().st_mode) == 0o600
    public = base64.b64decode((entry / f"{ssh.HOST_KEY}.pub").read_text().split()[1])
    converted = (entry / ssh.DROPBEAR_KEY).read_bytes()
    assert converted[:19] == struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 64)
    assert len(converted) == 19 + 64
    assert converted[-32:] == public[-32:], "the second half of the pair is the public key"
    assert ssh.keys(Cache(tmp_path), tmp_path / "log") == entry


def test_other_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="not an OpenSSH"):
        ssh.to_dropbear("-----BEGIN X-----\n" + base64.b64encode(b"something else entirely").decode())


def test_applets(tmp_path: Path) -> None:
    binary = tmp_path / "busybox"
    binary.write_bytes(b"\x7fELF\xc0\x00[[\x00xx \x20[\x00[[\x00ash\x00cat\x00\x00rest")
    assert rootfs.applets(binary) == ["[", "[[", "ash", "cat"]
    binary.write_bytes(b"\x7fELF")
    with pytest.raises(KitError, match="no table"):
        rootfs.applets(binary)


def test_prune_leaves_the_rest(tmp_path: Path) -> None:
    gone = ("usr/share/doc/x/copyright", "usr/lib/python3.13/test/a.py", "usr/lib/libx.a")
    gone += ("usr/lib/python3/dist-packages/numpy/linalg/tests/t.py",)
    kept = ("usr/bin/x", "usr/lib/python3.13/os.py", "usr/lib/python3/dist-packages/numpy/testing/u.py")
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    rootfs.prune(tmp_path)
    assert not [name for name in gone if (tmp_path / name).exists()]
    assert not [name for name in kept if not (tmp_path / name).exists()]


def test_missing_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copyfile(shutil.which("ls") or "/bin/ls", tmp_path / "usr/bin/ls")
    with pytest.raises(KitError, match=r"usr/bin/ls needs \S+\.so"):
        rootfs._check_libraries(tmp_path)


def test_extension_modules_without_their_library_go(tmp_path: Path) -> None:
    module = tmp_path / "usr/lib/python3.13/lib-dynload/_ssl.so"
    module.parent.mkdir(parents=True)
    shutil.copyfile(shutil.which("ls") or "/bin/ls", module)
    rootfs._check_libraries(tmp_path)
    assert not module.exists()
