# SPDX-License-Identifier: MIT
"""The distribution's rkdeveloptool and our client on one stand-in: equal images, and the tool's known traps."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import boards
from lab.cache import Cache
from lab.errors import KitError
from lab.firmware.rockusb import loaderfile
from lab.firmware.rockusb.client import Rockusb, Timeouts
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine, Options
from lab.firmware.standin.media import make_board
from lab.firmware.standin.server import Server
from lab.firmware.standin.shim import rkdeveloptool
from lab.firmware.standin.socketbus import SocketBus
from lab.firmware.transports.rockusb import RockusbTransport

pytestmark = pytest.mark.skipif(
    not shutil.which("rkdeveloptool") or not shutil.which("gcc"), reason="needs the packages rkdeveloptool and gcc"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


class Lab:
    """A served stand-in and the tool pointed at it."""

    def __init__(self, root: Path, cache: Cache) -> None:
        self.root, self.cache, self.socket = root, cache, root / "socket"
        self.board = boards.load("rock-5-itx-plus")
        make_board(root / "board", self.board, sizes={"spi": 1 << 20, "emmc": 48 << 20, "sd": 0})
        self.engine = Engine(root / "board", "loader", Options())
        self.image = root / "board" / "emmc.img"

    def tool(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return rkdeveloptool(self.socket, *arguments, cwd=self.root, timeout=timeout, cache=self.cache)

    def ours(self) -> RockusbTransport:
        return RockusbTransport(self.board, Rockusb(SocketBus(self.socket), timeouts=Timeouts(0.5, 0.5)))


@pytest.fixture
def lab(tmp_path: Path, cache: Cache) -> Iterator[Lab]:
    made = Lab(tmp_path, cache)
    with Server(made.socket, [made.engine]):
        yield made


def test_the_tool_sees_a_board(lab: Lab) -> None:
    listed = lab.tool("ld")
    assert "Vid=0x2207,Pid=0x350b" in listed.stdout and "Loader" in listed.stdout
    assert lab.tool("td").returncode == 0
    assert "45 4D 4D 43" in lab.tool("rid").stdout


def test_equal_images(lab: Lab) -> None:
    sectors = 32 * 2048
    assert lab.tool("rl", "0", str(sectors), "tool.img").returncode == 0
    ours = lab.ours().open("emmc").read(0, sectors * 512)
    assert ours == (lab.root / "tool.img").read_bytes() == lab.image.read_bytes()[: sectors * 512]


def test_written_by_one_read_by_the_other(lab: Lab) -> None:
    data = os.urandom(300 * 512)
    (lab.root / "in.img").write_bytes(data)
    assert lab.tool("wl", "40000", "in.img").returncode == 0
    medium = lab.ours().open("emmc", write=True)
    assert medium.read(40000 * 512, len(data)) == data
    medium.write(50000 * 512, data)
    assert lab.tool("rl", "50000", "300", "out.img").returncode == 0
    assert (lab.root / "out.img").read_bytes() == data


def test_download_from_maskrom(lab: Lab) -> None:
    lab.engine.initial = lab.engine.mode = "maskrom"
    path = lab.root / "loader.bin"
    path.write_bytes(loaderfile.build(os.urandom(6000), os.urandom(9000)))
    assert "Maskrom" in lab.tool("ld").stdout
    made = lab.tool("db", str(path))
    assert made.returncode == 0, made.stdout + made.stderr
    assert lab.engine.mode == "usbplug"
    lab.engine.power_on()
    client = Rockusb(SocketBus(lab.socket))
    client.download(loaderfile.parse(path, {}, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert client.ready() and lab.engine.log.count("download 472 9002 good") == 2


def test_the_tool_returns_the_window_as_content_and_we_do_not(lab: Lab) -> None:
    with lab.image.open("r+b") as image:
        image.seek(32 << 20)
        image.write(os.urandom(1 << 20))
    assert lab.tool("rl", "65536", "256", "past.img").returncode == 0
    assert set((lab.root / "past.img").read_bytes()) == {0xCC}
    with pytest.raises(KitError, match="truthful"):
        lab.ours().open("emmc").read(32 << 20, 512)


def test_the_tool_hangs_on_a_silent_device_and_we_do_not(lab: Lab) -> None:
    lab.engine.options.faults = [faults.Fault("hang", "read", 0, 0)]
    with pytest.raises(subprocess.TimeoutExpired):
        lab.tool("rl", "0", "128", "x.img", timeout=2)
    lab.engine.power_on()
    lab.engine.options.faults = []
    medium = lab.ours().open("spi")
    lab.engine.options.faults = [faults.Fault("hang", "read", 0, 0)]
    with pytest.raises(KitError, match="1-1: the board does not answer"):
        medium.read(0, 4096)


def test_sparse_magic_in_raw_data(lab: Lab) -> None:
    """The tool takes such a slice for an Android sparse image and erases far beyond it; we do not look inside."""
    slice_ = bytes.fromhex("3aff26ed") + os.urandom(64 * 512 - 4)
    before = lab.image.read_bytes()
    lab.ours().open("emmc", write=True).write(20000 * 512, slice_)
    after = lab.image.read_bytes()
    assert after[20000 * 512 : 20064 * 512] == slice_
    assert after[: 20000 * 512] == before[: 20000 * 512] and after[20064 * 512 :] == before[20064 * 512 :]


def test_two_boards_stop_the_tool_and_we_choose(tmp_path: Path, cache: Cache) -> None:
    first = Lab(tmp_path, cache)
    make_board(tmp_path / "twin", first.board, serial="0002", sizes={"spi": 1 << 20, "emmc": 1 << 20, "sd": 0})
    twin = Engine(tmp_path / "twin", "loader", Options(port="1-2"))
    with Server(first.socket, [first.engine, twin]):
        refused = first.tool("rl", "0", "1", "x.img")
        assert refused.returncode != 0
        chosen = Rockusb(SocketBus(first.socket), "1-2")
        assert RockusbTransport(first.board, chosen).identify() != {}
        with pytest.raises(KitError, match="2 boards"):
            Rockusb(SocketBus(first.socket))
