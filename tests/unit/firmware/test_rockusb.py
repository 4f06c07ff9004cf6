# SPDX-License-Identifier: MIT
"""The rockusb client against the stand-in: what is read is true, every fault is noticed, no board is mistaken."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import boards, cli
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.rockusb import loaderfile, protocol
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.rockusb.protocol import Op
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine, Options
from lab.firmware.standin.inprocess import EngineBus
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, create, reader
from lab.firmware.transports.rockusb import RockusbTransport


def transport(engine: Engine, board: boards.Board, *others: Engine) -> RockusbTransport:
    bus = EngineBus([engine, *others])
    return RockusbTransport(board, Rockusb(bus, engine.port))


@given(
    op=st.integers(0, 255),
    tag=st.integers(0, 2**32 - 1),
    address=st.integers(0, 2**32 - 1),
    count=st.integers(0, 65535),
    length=st.integers(0, 2**32 - 1),
)
def test_command_block_round_trip(op: int, tag: int, address: int, count: int, length: int) -> None:
    raw = protocol.encode(op, tag, address=address, count=count, length=length, to_host=True)
    assert len(raw) == 31 and raw[:4] == b"USBC"
    request = protocol.decode(raw)
    assert (request.op, request.tag, request.address, request.count, request.length) == (
        op,
        tag,
        address,
        count,
        length,
    )


def test_known_bytes() -> None:
    raw = protocol.encode(Op.READ_LBA, 0x12345678, address=0x40, count=8, length=4096, to_host=True)
    assert raw.hex() == "555342437856341200100000" + "80000a" + "1400" + "00000040" + "00" + "0008" + "00" * 7
    assert protocol.crc16(b"123456789") == 0x29B1, "the check value of CRC-16/CCITT-FALSE"


@given(st.binary(max_size=9000))
def test_download_pieces_end(data: bytes) -> None:
    pieces = protocol.download_pieces(data)
    assert b"".join(pieces)[: len(data)] == data
    assert len(pieces[-1]) < protocol.DOWNLOAD_PIECE and all(len(p) == protocol.DOWNLOAD_PIECE for p in pieces[:-1])


@pytest.mark.parametrize("personality", ["usbplug", "loader", "uboot"])
def test_reads_what_is_on_the_medium(drill: Path, board: boards.Board, personality: str) -> None:
    device = transport(Engine(drill, personality), board)
    names = [info.name for info in device.storages()]
    assert names == (["emmc"] if personality == "uboot" else ["spi", "emmc"])
    for name in names:
        medium = device.open(name)
        image = (drill / f"{name}.img").read_bytes()
        assert medium.info.size == len(image)
        limit = medium.info.readable or medium.info.size
        assert medium.read(0, limit) == image[:limit]
        assert medium.read(1000, 77) == image[1000:1077]


def test_window_is_found_and_kept(tmp_path: Path, board: boards.Board) -> None:
    make_board(tmp_path, board, sizes={"spi": 1 << 20, "emmc": 48 << 20, "sd": 0})
    with (tmp_path / "emmc.img").open("r+b") as image:
        image.seek(31 << 20)
        image.write(os.urandom(4 << 20))
    for personality, window in (("usbplug", 32 << 20), ("loader", 32 << 20), ("uboot", None)):
        device = transport(Engine(tmp_path, personality), board)
        medium = device.open("emmc")
        assert medium.info.readable == window, personality
        if window:
            with pytest.raises(KitError) as caught:
                medium.read((32 << 20) - 512, 1024)
            assert caught.value.code == ExitCode.REFUSED
            plan = regions.make(board, device, ["emmc"])
            assert any("rootfs" in text and "32 MiB" in text for text in plan.missing)


def test_medium_full_of_cc_is_not_taken_for_a_window(tmp_path: Path, board: boards.Board) -> None:
    make_board(tmp_path, board, sizes={"spi": 0, "emmc": 48 << 20, "sd": 0})
    with (tmp_path / "emmc.img").open("r+b") as image:
        image.seek((48 << 20) - 4096)
        image.write(b"\xcc" * 4096)
    device = transport(Engine(tmp_path, "uboot"), board)
    medium = device.open("emmc")
    assert medium.read(33 << 20, 512) == bytes(512)


def test_lying_switch_is_caught(drill: Path, board: boards.Board) -> None:
    device = transport(Engine(drill, "loader", Options(lying_switch=True)), board)
    assert [info.name for info in device.storages()] == ["emmc"]
    with pytest.raises(KitError) as caught:
        device.open("spi")
    assert caught.value.code == ExitCode.NO_DEVICE


def test_maskrom_needs_a_loader(drill: Path, board: boards.Board, tmp_path: Path) -> None:
    engine = Engine(drill, "maskrom")
    with pytest.raises(KitError) as caught:
        transport(engine, board)
    assert caught.value.code == ExitCode.NO_DEVICE and "--usb-loader FILE" in caught.value.hint
    path = tmp_path / "loader.bin"
    path.write_bytes(loaderfile.build(os.urandom(5000), os.urandom(4096 * 3 - 2)))
    loader = loaderfile.parse(path, {}, hashlib.sha256(path.read_bytes()).hexdigest())
    device = Rockusb(EngineBus([engine]))
    assert not device.ready()
    device.download(loader)
    assert engine.mode == "usbplug" and device.found.maskrom, "usbplug still looks like mask ROM"
    assert len(RockusbTransport(board, device).storages()) == 2


def test_two_boards_need_a_name(drill: Path, tmp_path: Path, board: boards.Board) -> None:
    make_board(tmp_path / "twin", board, serial="0002", sizes={"spi": 1 << 20, "emmc": 1 << 20, "sd": 0})
    first, second = Engine(drill, "loader"), Engine(tmp_path / "twin", "loader", Options(port="1-2"))
    with pytest.raises(KitError) as caught:
        Rockusb(EngineBus([first, second]))
    assert caught.value.code == ExitCode.NO_DEVICE and "rockusb:1-2" in caught.value.hint
    assert Rockusb(EngineBus([first, second]), "1-2").found.path == "1-2"


def test_another_board_in_its_place_is_refused(drill: Path, tmp_path: Path, board: boards.Board) -> None:
    make_board(tmp_path / "twin", board, serial="0002", sizes={"spi": 1 << 20, "emmc": 40 << 20, "sd": 0})
    first, second = Engine(drill, "loader"), Engine(tmp_path / "twin", "loader")
    bus = EngineBus([first])
    device = RockusbTransport(board, Rockusb(bus))
    medium = device.open("spi")
    bus.engines = [second]
    first.connected = False
    with pytest.raises(KitError) as caught:
        medium.read(0, 4096)
    assert caught.value.code == ExitCode.REFUSED and "another board" in caught.value.message


READ_FAULTS = [kind for kind in faults.KINDS if kind not in ("drop", "power")]


@pytest.mark.parametrize("kind", READ_FAULTS)
@pytest.mark.parametrize("times", [1, 0])
def test_every_read_fault_is_noticed(tmp_path: Path, board: boards.Board, kind: str, times: int, meter: object) -> None:
    """A backup over a faulty link either is right and verified, or fails with the link's code, or is not verified."""
    make_board(tmp_path / "board", board, sizes={"spi": 1 << 20, "emmc": 0, "sd": 0})
    engine = Engine(tmp_path / "board", "loader")
    device = transport(engine, board)
    plan = regions.make(board, device, ["spi"])
    engine.options.faults = [faults.Fault(kind, "read", 9, times)]
    store = Store(tmp_path / "store")
    try:
        made = create.create(store, board, device, plan, meter)  # type: ignore[arg-type]
    except KitError as error:
        assert error.code in (ExitCode.LINK, ExitCode.REFUSED)
        assert times == 0 or kind in ("hang", "fail")
        assert store.entries() == []
        return
    assert any("fault" in line for line in engine.log)
    reader.extract(store, made.manifest, "spi", tmp_path / "out.img")
    same = (tmp_path / "out.img").read_bytes() == (tmp_path / "board" / "spi.img").read_bytes()
    assert same or not made.manifest.verified, "never a wrong copy that calls itself verified"
    assert made.manifest.verified == (kind != "flip")


@pytest.mark.parametrize("kind", ["disconnect", "move", "hang"])
def test_a_device_that_came_back_is_on_the_same_storage(drill: Path, board: boards.Board, kind: str) -> None:
    """After re-enumeration the loader is on its default storage again: the repeated read must not go there."""
    engine = Engine(drill, "loader")
    device = transport(engine, board)
    medium = device.open("spi")
    engine.options.faults = [faults.Fault(kind, "read", 1)]
    try:
        assert medium.read(0, 1 << 18) == (drill / "spi.img").read_bytes()[: 1 << 18]
    except KitError as error:
        assert error.code == ExitCode.LINK and kind == "hang"


def test_restart_reaches_maskrom(drill: Path) -> None:
    engine = Engine(drill, "loader")
    device = Rockusb(EngineBus([engine]))
    device.reset(3)
    assert engine.mode == "maskrom"


def test_uboot_quirks_do_not_hang(drill: Path) -> None:
    device = Rockusb(EngineBus([Engine(drill, "uboot")]))
    assert device.sectors() is None and device.capability() is None and device.storage() is None
    assert device.flash_id() == "EMMC"
    assert len(device.read(64, 1)) == 512


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("change", "expect"),
    [
        (lambda good: good, None),
        (lambda good: b"ELF!" + good[4:], "header"),
        (lambda good: good[:-9] + b"\0" + good[-8:], "checksum"),
        (lambda good: good[:200], "checksum"),
        (lambda good: b"", "header"),
        (lambda good: loaderfile.build(b"a" * 99, b"b" * 99, rc4=True), "RC4"),
        (lambda good: loaderfile.build(b"a" * 99, b"b" * 99, chip=b"3399"), "3399"),
    ],
)
def test_loader_files(tmp_path: Path, change: Callable[[bytes], bytes], expect: str | None) -> None:
    good = loaderfile.build(os.urandom(99), os.urandom(5000), os.urandom(700))
    path = tmp_path / "loader.bin"
    digest = write(path, change(good))
    if expect is None:
        assert loaderfile.parse(path, {digest: "known"}).chip == "rk3588"
        return
    with pytest.raises(KitError, match=expect) as caught:
        loaderfile.parse(path, {}, digest)
    assert caught.value.code == ExitCode.REFUSED


def test_loader_needs_a_known_hash(tmp_path: Path) -> None:
    path = tmp_path / "loader.bin"
    write(path, loaderfile.build(b"a" * 50, b"b" * 50))
    for stated in (None, "0" * 64):
        with pytest.raises(KitError, match="SHA-256") as caught:
            loaderfile.parse(path, {}, stated)
        assert caught.value.code == ExitCode.REFUSED


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=600))
def test_garbage_is_not_a_loader(data: bytes) -> None:
    with pytest.raises(KitError):
        loaderfile.decode(b"LDR " + data, Path("x"), "0")


def test_no_permission_prints_the_rule(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that this user may not open: exit code 4 and the line that udev needs, from probe and from backup."""
    core = pytest.importorskip("usb.core")

    class Forbidden:
        idVendor, idProduct, bcdUSB, bus, port_numbers = 0x2207, 0x350B, 0x0201, 1, (2,)  # noqa: N815

        def get_active_configuration(self) -> None:
            raise core.USBError("Access denied", None, errno.EACCES)

        is_kernel_driver_active = detach_kernel_driver = set_configuration = get_active_configuration

    monkeypatch.setattr(core, "find", lambda **_: iter([Forbidden()]))
    for words in (["board", "probe"], ["backup", "plan"]):
        code = cli.main([*words, "--board", "rock-5-itx-plus", "--via", "rockusb"])
        assert code == int(ExitCode.NO_DEVICE)
        assert 'ATTR{idVendor}=="2207"' in capsys.readouterr().err
