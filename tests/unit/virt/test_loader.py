# SPDX-License-Identifier: MIT
"""The boot loader that is played: what it starts from a real ext4 file system on an eMMC image, and what it says."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lab.assemble.emmc import GUID, ROOT_START
from lab.errors import ExitCode, KitError
from lab.firmware import gpt
from lab.firmware.flash import bootcount
from lab.firmware.flash.extlinux import Config, Label, render
from lab.virt import chips, disk
from lab.virt.loader import Loader

pytestmark = pytest.mark.skipif(not shutil.which("mke2fs"), reason="needs e2fsprogs")

KERNEL = b"MZ" + bytes(54) + b"ARM\x64" + bytes(64)
TREE = b"\xd0\x0d\xfe\xed" + struct.pack(">I", 40) + bytes(32)
OLD = Label("old", "/boot/old/Image", "root=/dev/mmcblk0p1 old", fdt="/boot/old/x.dtb")
NEW = Label("new", "/boot/new/Image", "root=/dev/mmcblk0p1 new", fdt="../new/x.dtb")
SIZE = 32 << 20


class Chip:
    """An eMMC whose first partition holds a tree of files."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree, self.path = root, root / "tree", root / "emmc.img"
        self.said: list[str] = []
        for name in ("old", "new"):
            self.write(f"boot/{name}/Image", KERNEL + name.encode())
            self.write(f"boot/{name}/x.dtb", TREE + name.encode())
        self.conf(Config((OLD, NEW), default="new", fallback="old"))

    def write(self, name: str, data: bytes) -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def conf(self, config: Config) -> None:
        self.write("boot/extlinux/extlinux.conf", render(config).encode())

    def make(self, *, partitions: int = 1, marked: int = 0) -> None:
        part = self.root / "part.ext4"
        part.unlink(missing_ok=True)
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(self.tree), str(part), "4096"]
        subprocess.run(command, check=True, capture_output=True)
        user = SIZE - 2 * chips.EMMC_BOOT_SIZE
        places = [(f"p{n}", ROOT_START + n * (1 << 20), 1 << 20) for n in range(partitions - 1)]
        places.append(("root", ROOT_START + (3 << 20), 4 << 20))
        head, tail = gpt.build(user, places, GUID)
        head = bytearray(head)
        if marked:
            entries = bytearray(head[1024 : 1024 + 128 * 128])
            struct.pack_into("<Q", entries, (marked - 1) * 128 + 48, gpt.BOOTABLE)
            head[1024 : 1024 + 128 * 128] = entries
            head[512:1024] = _header(bytes(head[512:1024]), bytes(entries))
        with self.path.open("wb") as image:
            image.truncate(SIZE)
            image.seek(2 * chips.EMMC_BOOT_SIZE)
            image.write(head)
            image.seek(2 * chips.EMMC_BOOT_SIZE + user - len(tail))
            image.write(tail)
            image.seek(2 * chips.EMMC_BOOT_SIZE + places[-1][1])
            image.write(part.read_bytes())

    def loader(self, kind: str = "stock") -> Loader:
        return Loader(self.path, kind, "rockchip/board.dtb", self.said.append)


def _header(header: bytes, entries: bytes) -> bytes:
    """A GPT header with the checksums of other entries."""
    import zlib

    raw = bytearray(header)
    struct.pack_into("<I", raw, 88, zlib.crc32(entries))
    struct.pack_into("<I", raw, 16, 0)
    struct.pack_into("<I", raw, 16, zlib.crc32(bytes(raw[:92])))
    return bytes(raw)


@pytest.fixture
def chip(tmp_path: Path) -> Chip:
    return Chip(tmp_path)


def test_the_default_with_its_files(chip: Chip) -> None:
    chip.make()
    boot = chip.loader().choose()
    assert boot.label == "new" and boot.kernel.endswith(b"new") and boot.append.endswith(" new")
    assert boot.fdt is not None and boot.fdt.endswith(b"new") and boot.initrd is None


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("boot/new/Image", b"garbage" * 100, "Bad Linux ARM64 Image magic!"),
        ("boot/new/Image", b"", "Bad Linux ARM64 Image magic!"),
        ("boot/new/x.dtb", b"garbage", "Did not find a cmdline Flattened Device Tree"),
        ("boot/new/x.dtb", TREE[:20], "Did not find a cmdline Flattened Device Tree"),
        ("boot/new/Image", None, "Skipping new for failure retrieving kernel"),
        ("boot/new/x.dtb", None, "Skipping new for failure retrieving FDT"),
    ],
)
def test_what_cannot_be_started_is_passed_over(chip: Chip, name: str, content: bytes | None, word: str) -> None:
    """The stock loader itself leads back to the old entry, in the same start."""
    if content is None:
        (chip.tree / name).unlink()
    else:
        chip.write(name, content)
    chip.make()
    assert chip.loader().choose().label == "old"
    assert any(word in said for said in chip.said)


@pytest.mark.parametrize(
    ("links", "starts"),
    [
        ({"Image": "Image-7.3.4"}, True),  # as OE-core's kernel package makes it
        ({"Image": "/boot/new/Image-7.3.4"}, True),
        ({"Image": "../old/../new/Image-7.3.4"}, True),
        ({"Image": "/boot/" + "../boot/" * 12 + "new/Image-7.3.4"}, True),  # in a block of its own
        ({"Image": "a", **{name: chr(ord(name) + 1) for name in "abcde"}, "f": "Image-7.3.4"}, True),
        ({"Image": "a", **{name: chr(ord(name) + 1) for name in "abcdef"}, "g": "Image-7.3.4"}, False),
        ({"Image": "Image"}, False),
        ({"Image": "nowhere"}, False),
    ],
)
def test_symbolic_links_are_followed(chip: Chip, links: dict[str, str], starts: bool) -> None:
    folder = chip.tree / "boot/new"
    (folder / "Image").rename(folder / "Image-7.3.4")
    for name, target in links.items():
        (folder / name).symlink_to(target)
    chip.make()
    assert chip.loader().choose().label == ("new" if starts else "old")


def test_starts_are_counted_and_the_fallback_taken(chip: Chip) -> None:
    chip.write("boot/failures", bootcount.Count(0).encode())
    chip.make()
    loader = chip.loader("bootcount")
    assert [loader.choose().label for _ in range(3)] == ["new", "old", "old"]
    partition = disk.boot_partitions(chip.path)[0]
    assert partition.read("/boot/failures") == b"\xbd\x01\x03\x01"
    assert chip.loader("stock").choose().label == "new", "a loader that does not count"
    assert partition.overwrite("/boot/failures", bootcount.Count(3, available=False).encode())
    assert [loader.choose().label for _ in range(2)] == ["new", "new"], "not while no trial is on"


def test_a_missing_count_is_made(chip: Chip) -> None:
    chip.make()
    chip.loader("bootcount").choose()
    partition = disk.boot_partitions(chip.path)[0]
    assert bootcount.parse(partition.read("/boot/failures") or b"").proven
    check = ["e2fsck", "-fn", f"{chip.path}?offset={partition.start}"]
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0


def test_a_label_chosen_at_the_prompt(chip: Chip) -> None:
    chip.make()
    assert chip.loader().choose("old").label == "old"
    assert chip.loader().choose("no-such").label == "new"


def test_initrd_include_and_compressed_kernel(chip: Chip) -> None:
    chip.write("boot/new/Image.gz", gzip.compress(KERNEL + b"packed"))
    chip.write("boot/new/initrd", b"ramdisk")
    chip.write(
        "boot/extlinux/more.conf",
        render(Config((Label("z", "/boot/new/Image.gz", initrd="/boot/new/initrd"),))).encode(),
    )
    chip.write("boot/extlinux/extlinux.conf", b"default z\ninclude more.conf\n")
    chip.make()
    boot = chip.loader().choose()
    assert boot.kernel.endswith(b"packed") and boot.initrd == b"ramdisk" and boot.fdt is None and boot.append == ""


def test_fdtdir_is_searched_by_the_boards_name(chip: Chip) -> None:
    chip.write("boot/dtbs/rockchip/board.dtb", TREE + b"dir")
    chip.conf(Config((Label("a", "/boot/old/Image", fdtdir="/boot/dtbs/"), Label("b", "/boot/old/Image", fdtdir="/x"))))
    chip.make()
    boot = chip.loader().choose()
    assert boot.fdt is not None and boot.fdt.endswith(b"dir")
    assert chip.loader().choose("b").fdt is None, "then it is the loader's own tree"


@pytest.mark.parametrize(
    ("conf", "word"),
    [
        (b"", "nothing"),
        (b"menu title x\nlabel a\nlinux /k\n", "Enter choice"),
        (b"label\n", "no value"),
        (b"#" * 70000, "large"),
    ],
)
def test_a_board_that_stays_in_its_loader(chip: Chip, conf: bytes, word: str) -> None:
    chip.write("boot/extlinux/extlinux.conf", conf)
    chip.make()
    with pytest.raises(KitError) as caught:
        chip.loader().choose()
    assert caught.value.code is ExitCode.FAILED
    assert word in " ".join([*chip.said, caught.value.message])


def test_which_partition(chip: Chip) -> None:
    chip.make(partitions=2)
    with pytest.raises(KitError):
        chip.loader().choose()  # unmarked: the first only, and that is empty
    chip.make(partitions=2, marked=2)
    assert chip.loader().choose().label == "new"
    with chip.path.open("r+b") as image:
        image.seek(2 * chips.EMMC_BOOT_SIZE)
        image.write(bytes(34 * 512))
    chip.make(partitions=1)
    with chip.path.open("r+b") as image:
        image.seek(2 * chips.EMMC_BOOT_SIZE + 512)
        image.write(bytes(512))
    assert chip.loader().choose().label == "new", "the table's copy serves"
    chip.path.write_bytes(bytes(SIZE))
    with pytest.raises(KitError, match="no partition table"):
        chip.loader().choose()


FAKE_QEMU = """#!{python}
import json, socket, sys
reason = open({plan!r}).read().split()
left = reason[1:]
open({plan!r}, "w").write(" ".join(left))
open({log!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")
path = sys.argv[sys.argv.index("-qmp") + 1].split(":")[1].split(",")[0]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
connection, _ = server.accept()
connection.sendall(b'{{"QMP": {{}}}}\\n')
connection.recv(1000)
connection.sendall(b'{{"return": {{}}}}\\n')
event = {{"event": "SHUTDOWN", "data": {{"guest": True, "reason": reason[0]}}}}
connection.sendall(json.dumps(event).encode() + b"\\n")
connection.close()
server.close()
sys.exit(3 if reason[0] == "crash" else 0)
"""


def play(chip: Chip, runtime: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the player to its end."""
    spec = {"argv": argv, "loader": "stock", "emmc": str(chip.path), "fdtfile": "x", "dtb": "/own.dtb", "rescue": []}
    spec["serial"] = "12345678"
    logs = {name: str(runtime / f"{name}.log") for name in ("console_log", "machine_log")}
    (runtime / "loader.json").write_text(json.dumps({**spec, **logs, "runtime": str(runtime)}))
    command = [sys.executable, "-m", "lab.virt.loader", str(runtime / "loader.json")]
    return subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)


@pytest.mark.parametrize(("last", "code"), [("guest-shutdown", 0), ("crash", 3)])
def test_every_reset_reads_the_medium_again(chip: Chip, tmp_path: Path, last: str, code: int) -> None:
    chip.make()
    plan, log, fake = tmp_path / "plan", tmp_path / "log", tmp_path / "qemu"
    plan.write_text(f"guest-reset host-qmp-quit {last}")
    fake.write_text(FAKE_QEMU.format(python=sys.executable, plan=str(plan), log=str(log)))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "label").write_text("old")
    argv = [str(fake), "-S", "@BOOT@", "-qmp", f"unix:{tmp_path}/loader.sock,server=on"]
    assert play(chip, tmp_path, argv).returncode == code
    starts = [json.loads(line) for line in log.read_text().splitlines()]
    assert ["-S" in argv for argv in starts] == [True, False, False]
    appends = [argv[argv.index("-append") + 1].split()[-1] for argv in starts]
    assert appends == ["old", "new", "new"], "the choice at the prompt is for one start"
    assert "power or reset: guest-reset" in (tmp_path / "console_log.log").read_text()


def test_an_emmc_that_starts_nothing_ends_the_board(chip: Chip, tmp_path: Path) -> None:
    chip.path.write_bytes(bytes(SIZE))
    done = play(chip, tmp_path, ["false", "@BOOT@"])
    assert done.returncode == 1 and "no partition table" in done.stderr and "Traceback" not in done.stderr
