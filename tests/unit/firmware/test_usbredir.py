# SPDX-License-Identifier: MIT
"""The stand-in behind the USB redirection protocol: the protocol, a device's manners on it, and its sockets."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redir_guest import Guest, RedirBus

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import loaderfile, protocol
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.rockusb.protocol import Op
from lab.firmware.standin import faults, usbredir
from lab.firmware.standin.engine import Engine, Options
from lab.firmware.standin.usbport import UsbPorts
from lab.firmware.standin.usbredir import Bulk, Cap, Control, Kind, Message, Parser, RedirError, Status
from lab.firmware.transports.rockusb import RockusbTransport

PLUG = [Kind.INTERFACE_INFO, Kind.EP_INFO, Kind.DEVICE_CONNECT]
UNPLUG = [Kind.DEVICE_DISCONNECT]


@pytest.fixture
def engine(drill: Path) -> Engine:
    return Engine(drill, "loader")


def read_command(sector: int, count: int, tag: int = 7) -> bytes:
    return protocol.encode(Op.READ_LBA, tag, address=sector, count=count, length=count * 512, to_host=True)


# ---- the protocol

caps = st.frozensets(st.sampled_from(Cap))


def introduced(own: frozenset[Cap], other: frozenset[Cap]) -> tuple[Parser, Parser]:
    """Two parties that have said hello."""
    one, two = Parser(own), Parser(other)
    assert [m.kind for m in one.feed(two.hello())] == [m.kind for m in two.feed(one.hello())] == [Kind.HELLO]
    return one, two


@given(own=caps, other=caps, number=st.integers(0, 2**32 - 1), data=st.binary(max_size=300), cuts=st.data())
def test_any_chunks(own: frozenset[Cap], other: frozenset[Cap], number: int, data: bytes, cuts: st.DataObject) -> None:
    """Whatever the capabilities and however the bytes are cut: the messages are those that were sent."""
    one, two = introduced(own, other)
    asked = Control(0x80, 6, 0x80, 0, 0x100, 0, 64)
    sent = one.encode(Kind.RESET, number) + one.bulk_done(number, 0x81, Status.SUCCESS, data)
    sent += one.control_done(number, asked, Status.STALL, data) + one.ep_info({0x81: 512})
    found: list[Message] = []
    while sent:
        size = cuts.draw(st.integers(1, len(sent)))
        found += two.feed(sent[:size])
        sent = sent[size:]
    assert [m.kind for m in found] == [Kind.RESET, Kind.BULK_PACKET, Kind.CONTROL_PACKET, Kind.EP_INFO]
    assert [m.id for m in found] == [number, number, number, 0]
    assert two.bulk(found[1]) == Bulk(0x81, Status.SUCCESS, len(data), data)
    assert two.control(found[2]) == Control(0x80, 6, 0x80, Status.STALL, 0x100, 0, len(data), data)


@given(garbage=st.binary(min_size=20, max_size=400), hello_first=st.booleans())
def test_garbage_is_refused_or_is_messages(garbage: bytes, hello_first: bool) -> None:
    """Bytes of anybody: an error at once, or messages that keep to the protocol; never a wait for gigabytes."""
    one, two = Parser(), Parser()
    if hello_first:
        list(one.feed(two.hello()))
    try:
        for message in one.feed(garbage):
            assert message.kind in list(Kind)
    except RedirError:
        return
    assert len(one._buffer) < len(garbage) + 1, "what is kept is what came"


@given(kind=st.sampled_from([k for k in Kind if k != Kind.HELLO]), length=st.integers(0, 2**32 - 1))
def test_lengths(kind: Kind, length: int) -> None:
    """A length that the message cannot have is an error when its header is there, not when its end is."""
    one, two = introduced(usbredir.OUR_CAPS, usbredir.OUR_CAPS)
    head = usbredir.HEADER_64.pack(kind, length, 0)
    least, most = two._lengths()[kind]
    if least <= length <= most:
        assert len(list(two.feed(head))) == (length == 0)
    else:
        with pytest.raises(RedirError, match=f"type {kind.value} with {length} bytes"):
            list(two.feed(head))
    del one


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (usbredir.HEADER_32.pack(Kind.RESET, 0, 0), "before the hello"),
        (Parser().hello() + usbredir.HEADER_64.pack(Kind.HELLO, 68, 0), "second hello"),
        (usbredir.HEADER_32.pack(Kind.HELLO, 66, 0) + bytes(66), "words of four"),
        (usbredir.HEADER_32.pack(Kind.HELLO, 1 << 20, 0), "1048576 bytes"),
        (Parser().hello() + usbredir.HEADER_64.pack(102, 0, 0), "type 102"),
    ],
)
def test_what_is_not_the_protocol(data: bytes, said: str) -> None:
    with pytest.raises(RedirError, match=said):
        list(Parser().feed(data))


def test_known_bytes() -> None:
    """The layouts of the description, spelt out."""
    one, _ = introduced(usbredir.OUR_CAPS, usbredir.OUR_CAPS)
    descriptor = bytes.fromhex("1201 0002 0000 0040 0722 0b35 0001 000000 01")
    assert one.device_connect(descriptor).hex() == "01000000" + "0a000000" + "00" * 8 + "0200000007220b350001"
    done = one.bulk_done(0x11, 0x81, Status.STALL)
    assert done.hex() == "65000000" + "0a000000" + "1100000000000000" + "8104" + "0000" + "00000000" + "0000"
    old, _ = introduced(usbredir.OUR_CAPS, frozenset())
    assert old.device_connect(descriptor).hex() == "01000000" + "08000000" + "00" * 4 + "0200000007220b35"
    info = one.ep_info({0x81: 512, 0x02: 512})
    assert info[16:48].hex() == "00ff02" + "ff" * 13 + "0002" + "ff" * 14
    assert info[112:].hex() == "4000" + "0000" + "0002" + "0000" * 13 + "4000" + "0002" + "0000" * 14


# ---- a device's manners


def test_enumeration(engine: Engine) -> None:
    guest = Guest(engine)
    assert guest.kinds() == [Kind.HELLO, *PLUG]
    device = guest.control(0x80, 6, 0x0100, 0, 64)
    assert device is not None and device.data == engine.descriptor() and device.length == 18
    config = guest.control(0x80, 6, 0x0200, 0, 9)
    assert config is not None and config.data == engine.configuration()[:9]
    for value, name in ((0x0F00, "BOS"), (0x0600, "qualifier"), (0x0301, "string")):
        done = guest.control(0x80, 6, value, 0, 64)
        assert done is not None and done.status == Status.STALL, name
    guest.seen.clear()
    guest.send(guest.parser.encode(Kind.SET_CONFIGURATION, 5, b"\1"))
    assert guest.seen[-1] == Message(Kind.CONFIGURATION_STATUS, 5, b"\0\1")
    assert guest.kinds() == [*PLUG[:2], Kind.CONFIGURATION_STATUS]
    guest.send(guest.parser.encode(Kind.SET_CONFIGURATION, 6, b"\2"))
    assert guest.seen.pop() == Message(Kind.CONFIGURATION_STATUS, 6, bytes([Status.STALL, 1]))
    guest.send(guest.parser.encode(Kind.SET_ALT_SETTING, 7, b"\0\1"))
    assert guest.seen.pop().body[0] == Status.STALL


def test_an_answer_of_whole_packets_does_not_end_a_transfer(engine: Engine) -> None:
    """As on a wire: without a short packet, what comes next belongs to the transfer too."""
    guest = Guest(engine)
    guest.start_bulk(0x02, 31, read_command(0, 2))
    number = guest.start_bulk(0x81, 2048)
    done = guest.end_bulk(number)
    assert done is not None and done.length == 1024 + protocol.CSW_LENGTH


def test_a_packet_that_does_not_fit_is_a_babble(engine: Engine) -> None:
    guest = Guest(engine)
    guest.start_bulk(0x02, 31, read_command(0, 2))
    done = guest.end_bulk(guest.start_bulk(0x81, 100))
    assert done is not None and done.status == Status.BABBLE and not done.data


def test_transfers_wait_and_stay_in_order(engine: Engine) -> None:
    """Several transfers are on their way to an endpoint before the device has anything to say."""
    guest = Guest(engine)
    first, second, third = (guest.start_bulk(0x81, 512) for _ in range(3))
    assert guest.end_bulk(first) is None
    guest.start_bulk(0x02, 31, read_command(64, 2))
    image = (engine.board.root / "emmc.img").read_bytes()
    for number, data in ((first, image[32768:33280]), (second, image[33280:33792]), (third, protocol.status(7, 0))):
        done = guest.end_bulk(number)
        assert done is not None and done.data == data


def test_a_cancelled_transfer_is_answered_once(engine: Engine) -> None:
    guest = Guest(engine)
    number = guest.start_bulk(0x81, 512)
    guest.send(guest.parser.encode(Kind.CANCEL_DATA_PACKET, number))
    guest.send(guest.parser.encode(Kind.CANCEL_DATA_PACKET, number))
    done = guest.end_bulk(number)
    assert done is not None and done.status == Status.CANCELLED
    assert sum(message.id == number for message in guest.seen) == 1
    guest.start_bulk(0x02, 31, read_command(0, 1))
    data = guest.end_bulk(guest.start_bulk(0x81, 512))
    assert data is not None and len(data.data) == 512, "nothing was given to the transfer that is gone"


def test_a_device_that_left_is_told_with_its_transfers(engine: Engine) -> None:
    guest = Guest(engine)
    number = guest.start_bulk(0x81, 512)
    guest.seen.clear()
    engine.power_on()
    guest.wait(0.1)
    done = guest.end_bulk(number)
    assert done is not None and done.status == Status.CANCELLED
    assert guest.kinds() == [Kind.BULK_PACKET, *UNPLUG, *PLUG]


def test_a_guest_that_acknowledges_is_waited_for(engine: Engine) -> None:
    guest = Guest(engine, frozenset(Cap))
    guest.kinds()
    engine.power_on()
    guest.wait(0.1)
    assert guest.kinds() == UNPLUG
    number = guest.start_bulk(0x02, 31, read_command(0, 1))
    done = guest.end_bulk(number)
    assert done is not None and done.status == Status.IO_ERROR
    guest.seen.clear()
    guest.send(guest.parser.encode(Kind.DEVICE_DISCONNECT_ACK))
    assert guest.kinds() == PLUG


def test_the_status_of_a_restart_is_its_last_word(engine: Engine) -> None:
    guest = Guest(engine)
    for fetched in (True, False):
        guest.seen.clear()
        guest.start_bulk(0x02, 31, protocol.encode(Op.RESET, 9))
        assert guest.kinds() == [Kind.BULK_PACKET]
        if fetched:
            done = guest.end_bulk(guest.start_bulk(0x81, 512))
            assert done is not None and done.data == protocol.status(9, 0)
        else:
            guest.wait(5)
        assert guest.kinds()[-4:] == [*UNPLUG, *PLUG]


def test_an_empty_port_says_hello_only() -> None:
    guest = Guest(None)
    assert guest.kinds() == [Kind.HELLO]


@pytest.mark.parametrize(
    "build",
    [
        lambda p: p.encode(Kind.DEVICE_CONNECT, 0, bytes(10)),
        lambda p: p.encode(Kind.FILTER_REJECT),
        lambda p: p.encode(Kind.CONTROL_PACKET, 1, usbredir.CONTROL_PACKET.pack(0x80, 6, 0, 0, 0, 0, 0)),
        lambda p: p.encode(Kind.BULK_PACKET, 1, usbredir.BULK_PACKET_32.pack(0x02, 0, 31, 0, 0)),
        lambda p: p.encode(Kind.BULK_PACKET, 1, usbredir.BULK_PACKET_32.pack(0x81, 0, 0, 0, 0) + b"x"),
        lambda p: p.encode(Kind.BULK_PACKET, 1, usbredir.BULK_PACKET_32.pack(0x81, 0, 0, 0, 0xFFFF)),
    ],
)
def test_a_guest_that_breaks_the_protocol(engine: Engine, build: Callable[[Parser], bytes]) -> None:
    guest = Guest(engine)
    with pytest.raises(RedirError):
        guest.send(build(guest.parser))


# ---- our client through it


def test_backup_reads_are_true(engine: Engine, board: boards.Board) -> None:
    device = RockusbTransport(board, Rockusb(RedirBus(engine)))
    image = (engine.board.root / "emmc.img").read_bytes()
    assert device.open("emmc").read(0, 32 << 20) == image[: 32 << 20]
    data = os.urandom(70_000 // 512 * 512)
    device.open("emmc", write=True).write(20_000 * 512, data)
    assert (engine.board.root / "emmc.img").read_bytes()[20_000 * 512 :][: len(data)] == data


def test_download_and_the_new_device(drill: Path, tmp_path: Path) -> None:
    engine = Engine(drill, "maskrom")
    bus = RedirBus(engine)
    path = tmp_path / "loader.bin"
    path.write_bytes(loaderfile.build(os.urandom(6000), os.urandom(2 * 4096 - 2)))
    client = Rockusb(bus)
    assert not client.ready()
    bus.guest.kinds()
    client.download(loaderfile.parse(path, {}, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert client.ready() and engine.mode == "usbplug"
    kinds = bus.guest.kinds()
    assert kinds.count(Kind.DEVICE_CONNECT) <= 1


@pytest.mark.parametrize("kind", ["stall", "disconnect", "move", "tag", "short", "slow"])
def test_faults_that_pass_are_overcome(engine: Engine, board: boards.Board, kind: str) -> None:
    device = RockusbTransport(board, Rockusb(RedirBus(engine)))
    medium = device.open("emmc")
    engine.options.faults = [faults.Fault(kind, "read")]
    image = (engine.board.root / "emmc.img").read_bytes()
    assert medium.read(0, 1 << 20) == image[: 1 << 20]
    assert f"fault {kind} read" in engine.log


def test_a_device_that_hangs_is_given_up(engine: Engine, board: boards.Board) -> None:
    device = RockusbTransport(board, Rockusb(RedirBus(engine)))
    medium = device.open("emmc")
    engine.options.faults = [faults.Fault("hang", "read", times=0)]
    with pytest.raises(KitError, match="did not come back"):
        medium.read(0, 4096)


# ---- sockets


class SocketGuest:
    """A guest at a socket."""

    def __init__(self, where: str | Path | int) -> None:
        family = socket.AF_INET if isinstance(where, int) else socket.AF_UNIX
        self.stream = socket.socket(family, socket.SOCK_STREAM)
        self.stream.settimeout(5)
        self.stream.connect(("127.0.0.1", where) if isinstance(where, int) else str(where))
        self.parser = Parser(Guest(None).parser.own)
        self.stream.sendall(self.parser.hello())
        self.kinds: list[int] = []

    def until(self, *kinds: int) -> None:
        """Read on until these came, in order, at the end."""
        deadline = time.monotonic() + 5
        while self.kinds[-len(kinds) :] != list(kinds):
            assert time.monotonic() < deadline, self.kinds
            self.kinds += [m.kind for m in self.parser.feed(self.stream.recv(4096))]

    def closed(self) -> bool:
        return self.stream.recv(1) == b""


def test_ports(engine: Engine, tmp_path: Path) -> None:
    """Plugged in, unplugged with the virtual machine, taken to another port; nothing is left behind."""
    first, second = tmp_path / "first", tmp_path / "second"
    with UsbPorts([str(first), str(second)], [engine]):
        assert first.stat().st_mode & 0o777 == 0o600
        one = SocketGuest(first)
        one.until(Kind.HELLO, *PLUG)
        other = SocketGuest(second)
        other.until(Kind.HELLO)
        engine.port, engine.generation = "1-1.4", engine.generation + 1
        one.until(*UNPLUG)
        other.until(*PLUG)
        with socket.socket(socket.AF_UNIX) as third:
            third.connect(str(second))
            assert not third.recv(1), "one guest at a time"
        other.stream.close()
        again = SocketGuest(second)
        again.until(Kind.HELLO, *PLUG)
    assert again.closed()
    assert not first.exists() and not second.exists()


def test_when_a_guest_has_enumerated_it(engine: Engine, tmp_path: Path) -> None:
    """From the configuration on, and not after a restart, even before the guest heard of that."""
    with UsbPorts([str(tmp_path / "port")], [engine]) as ports:
        assert not ports.configured(engine)
        guest = SocketGuest(tmp_path / "port")
        guest.until(Kind.HELLO, *PLUG)
        assert not ports.configured(engine)
        guest.stream.sendall(guest.parser.encode(Kind.SET_CONFIGURATION, 1, b"\1"))
        guest.until(Kind.CONFIGURATION_STATUS)
        assert ports.configured(engine)
        engine.power_on()
        assert not ports.configured(engine)
        guest.until(*UNPLUG, *PLUG)


def test_a_port_survives_a_guest_that_talks_nonsense(engine: Engine, tmp_path: Path) -> None:
    said: list[str] = []
    with UsbPorts([str(tmp_path / "port")], [engine], said.append):
        bad = SocketGuest(tmp_path / "port")
        bad.stream.sendall(b"\xff" * 64)
        while bad.stream.recv(4096):
            continue
        SocketGuest(tmp_path / "port").until(Kind.HELLO, *PLUG)
    assert any("breaks the protocol" in text for text in said)


def test_a_port_of_the_loopback(engine: Engine) -> None:
    with UsbPorts(["tcp:0"], [engine]) as ports:
        SocketGuest(ports.ports[0].listener.getsockname()[1]).until(Kind.HELLO, *PLUG)


def test_a_socket_that_cannot_be(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(KitError):
        UsbPorts([str(tmp_path / "good"), str(tmp_path / "no" / "such")], [engine])
    assert not (tmp_path / "good").exists()
    with pytest.raises(ValueError):
        UsbPorts([], [engine])


def test_two_identical_boards(engine: Engine, drill: Path, tmp_path: Path) -> None:
    twin = Engine(drill, "loader", Options(port="1-2"))
    with UsbPorts([str(tmp_path / "a"), str(tmp_path / "b")], [engine, twin]):
        for name in "ab":
            SocketGuest(tmp_path / name).until(Kind.HELLO, *PLUG)


def test_the_command_serves_until_it_is_interrupted(drill: Path, tmp_path: Path) -> None:
    where = tmp_path / "port"
    command = [sys.executable, "-m", "lab", "board", "standin", str(drill), "--usbredir", str(where)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as served:
        try:
            deadline = time.monotonic() + 30
            while not where.is_socket():
                assert served.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            SocketGuest(where).until(Kind.HELLO, *PLUG)
        finally:
            served.terminate()
        _, said = served.communicate(timeout=30)
    assert served.returncode == ExitCode.ABORTED and b"Traceback" not in said
    assert not where.exists()
