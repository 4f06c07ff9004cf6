# SPDX-License-Identifier: MIT
"""A stand-in as a USB device at the end of a redirection connection, without any I/O: bytes in, bytes out.

What an engine does not know of is here: chapter 9's control requests, transfers that wait because the device has
nothing to say yet, whole packets, and plugging in and out as the engine leaves the bus and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lab.errors import KitError
from lab.firmware.rockusb.protocol import PACKET
from lab.firmware.standin.engine import Engine, Gone, Silence, Stall
from lab.firmware.standin.usbredir import Bulk, Cap, Control, Kind, Message, Parser, RedirError, Status

IN = 0x80
GET_STATUS, CLEAR_FEATURE, GET_DESCRIPTOR = 0, 1, 6
NOT_STANDARD = 0x60
"""Bits of a request type: a class's or a vendor's own request."""
TO_ENDPOINT = 0x02
ENDPOINT_HALT = 0
DEVICE_DESCRIPTOR, CONFIGURATION_DESCRIPTOR = 1, 2
LAST_WORDS_SECONDS = 1.0
"""How long a device that restarts stays on the bus for its last status to be fetched."""


@dataclass
class _Waiting:
    """A transfer that has no answer yet; ``data`` has come from the device so far.

    ``lost``: the device took it and will never answer.
    """

    number: int
    asked: Control | Bulk
    data: bytearray = field(default_factory=bytearray)
    lost: bool = False


class RedirectedDevice:
    """One connection. ``engine`` is what is plugged in; None for an empty port."""

    def __init__(self, engine: Engine | None, say: Callable[[str], None] = lambda text: None) -> None:
        self.engine, self._say = engine, say
        self._parser = Parser()
        self._waiting: list[_Waiting] = []
        self._plugged: tuple[Engine, int] | None = None
        self._configuration = 0
        self._leaves_at: float | None = None
        self._ack_due = False
        self._out: list[bytes] = []

    def start(self) -> bytes:
        """What is sent first."""
        return self._parser.hello()

    def received(self, data: bytes, now: float) -> bytes:
        """What to answer; RedirError ends the connection. ``now`` is any clock's time in seconds."""
        for message in self._parser.feed(data):
            self._take(message)
        return self.poll(now)

    def poll(self, now: float) -> bytes:
        """What is to be sent because time has passed, or the engine was switched by somebody else."""
        self._retry()
        self._follow(now)
        out = b"".join(self._out)
        self._out.clear()
        return out

    # ---- on the bus and off it

    @property
    def configured(self) -> bool:
        """Whether the guest has enumerated the device in its present life: the last step is its configuration."""
        return self._plugged is not None and not self._has_left() and self._configuration != 0

    def _follow(self, now: float) -> None:
        """Tell the guest when the device has left, and when there is one."""
        if self._parser.peer is None:
            return
        engine = self.engine
        if self._plugged is not None and self._has_left():
            gone, _ = self._plugged
            last_words = engine is gone and gone.connected and gone.answering
            if last_words and self._leaves_at is None:
                self._leaves_at = now + LAST_WORDS_SECONDS
            if not last_words or now >= (self._leaves_at or now):
                self._unplug()
        if self._plugged is None and engine is not None and engine.connected and not self._ack_due:
            self._plug(engine)

    def _has_left(self) -> bool:
        assert self._plugged is not None
        engine, generation = self._plugged
        return engine is not self.engine or not engine.connected or engine.generation != generation

    def _unplug(self) -> None:
        for item in self._waiting:
            self._finish(item, Status.CANCELLED)
        self._waiting.clear()
        self._out.append(self._parser.encode(Kind.DEVICE_DISCONNECT))
        self._plugged, self._leaves_at = None, None
        self._ack_due = self._parser.both(Cap.DEVICE_DISCONNECT_ACK)

    def _plug(self, engine: Engine) -> None:
        self._plugged, self._configuration = (engine, engine.generation), 0
        self._out += [*self._shape(engine), self._parser.device_connect(engine.descriptor())]

    def _shape(self, engine: Engine) -> list[bytes]:
        """Interface and endpoints, as the configuration descriptor has them."""
        raw, at = engine.configuration(), 0
        interfaces, endpoints = [], {}
        while at < len(raw):
            if raw[at + 1] == 4:
                interfaces.append((raw[at + 2], raw[at + 5], raw[at + 6], raw[at + 7]))
            elif raw[at + 1] == 5:
                endpoints[raw[at + 2]] = int.from_bytes(raw[at + 4 : at + 6], "little")
            at += raw[at]
        return [self._parser.interface_info(interfaces), self._parser.ep_info(endpoints)]

    # ---- messages

    def _take(self, message: Message) -> None:
        parser = self._parser
        if message.kind == Kind.HELLO:
            self._say(f"connected to {parser.peer_version}")
        elif message.kind == Kind.DEVICE_DISCONNECT_ACK:
            self._ack_due = False
        elif message.kind == Kind.FILTER_REJECT:
            raise RedirError("the guest does not want this device")
        elif message.kind == Kind.FILTER_FILTER:
            return  # what a guest would take; there is but one device, and it may refuse it itself
        elif message.kind == Kind.CANCEL_DATA_PACKET:
            self._cancel(message.id)
        elif self._plugged is None:
            self._refuse(message)
        elif message.kind == Kind.CONTROL_PACKET:
            control = parser.control(message)
            _check_data(control.endpoint, control.length, control.data)
            self._begin(_Waiting(message.id, control))
        elif message.kind == Kind.BULK_PACKET:
            bulk = parser.bulk(message)
            _check_data(bulk.endpoint, bulk.length, bulk.data)
            self._begin(_Waiting(message.id, bulk))
        else:
            self._manage(message)

    def _refuse(self, message: Message) -> None:
        """A transfer that the guest began before it saw that the device is gone."""
        if message.kind == Kind.CONTROL_PACKET:
            self._out.append(self._parser.control_done(message.id, self._parser.control(message), Status.IO_ERROR))
        elif message.kind == Kind.BULK_PACKET:
            endpoint = self._parser.bulk(message).endpoint
            self._out.append(self._parser.bulk_done(message.id, endpoint, Status.IO_ERROR))

    def _manage(self, message: Message) -> None:
        """Configuration, alternate setting, reset."""
        assert self._plugged is not None
        engine, body, encode = self._plugged[0], message.body, self._parser.encode
        if message.kind == Kind.RESET:
            self._reset(engine)
        elif message.kind in (Kind.SET_CONFIGURATION, Kind.GET_CONFIGURATION):
            good = message.kind == Kind.GET_CONFIGURATION or body[0] in (0, engine.configuration()[5])
            if good and body:
                self._configuration = body[0]
                self._out += self._shape(engine)
            status = bytes([Status.SUCCESS if good else Status.STALL, self._configuration])
            self._out.append(encode(Kind.CONFIGURATION_STATUS, message.id, status))
        elif message.kind in (Kind.SET_ALT_SETTING, Kind.GET_ALT_SETTING):
            good = not any(body)
            status = bytes([Status.SUCCESS if good else Status.STALL, body[0], 0])
            self._out.append(encode(Kind.ALT_SETTING_STATUS, message.id, status))
        else:
            raise RedirError(f"a message of type {message.kind}, which only the device's side sends")

    def _reset(self, engine: Engine) -> None:
        """The port's reset: the device forgets what it was doing."""
        self._configuration = 0
        try:
            engine.clear_halt()
        except (Silence, Gone):
            self._say("reset does not wake it")

    # ---- transfers

    def _begin(self, item: _Waiting) -> None:
        busy = isinstance(item.asked, Bulk) and any(
            isinstance(other.asked, Bulk) and other.asked.endpoint == item.asked.endpoint for other in self._waiting
        )
        if busy or not self._try(item):
            self._waiting.append(item)

    def _cancel(self, number: int) -> None:
        for item in [item for item in self._waiting if item.number == number]:
            self._waiting.remove(item)
            self._finish(item, Status.CANCELLED)

    def _retry(self) -> None:
        """The device may have something to say by now; transfers to an endpoint stay in order."""
        stuck: set[int] = set()
        for item in list(self._waiting):
            if item.asked.endpoint in stuck or item.lost or not self._try(item):
                stuck.add(item.asked.endpoint)
            else:
                self._waiting.remove(item)

    def _try(self, item: _Waiting) -> bool:
        """Whether the transfer has ended."""
        assert self._plugged is not None
        engine = self._plugged[0]
        try:
            if isinstance(item.asked, Control):
                data = self._control(engine, item.asked)
                self._finish(item, Status.SUCCESS, data, 0 if item.asked.endpoint & IN else item.asked.length)
            elif item.asked.endpoint & IN:
                return self._bulk_in(engine, item)
            else:
                engine.bulk_out(item.asked.data)
                self._finish(item, Status.SUCCESS, sent=item.asked.length)
        except Stall:
            self._finish(item, Status.STALL)
        except Gone:
            self._finish(item, Status.IO_ERROR)
        except Silence:
            item.lost = isinstance(item.asked, Control) or not item.asked.endpoint & IN
            return False
        except KitError as error:
            self._say(error.message)
            self._finish(item, Status.IO_ERROR)
        return True

    def _finish(self, item: _Waiting, status: Status, data: bytes = b"", sent: int = 0) -> None:
        if isinstance(item.asked, Control):
            self._out.append(self._parser.control_done(item.number, item.asked, status, data, sent))
        else:
            self._out.append(self._parser.bulk_done(item.number, item.asked.endpoint, status, data, sent))

    def _bulk_in(self, engine: Engine, item: _Waiting) -> bool:
        """Packets until the transfer is full or one is short; a packet that does not fit is a babble."""
        wanted = item.asked.length
        while len(item.data) < wanted:
            room = wanted - len(item.data)
            piece = engine.bulk_in(-(-room // PACKET) * PACKET)
            if len(piece) > room:
                self._finish(item, Status.BABBLE)
                return True
            item.data += piece
            if not piece or len(piece) % PACKET:
                break
        self._finish(item, Status.SUCCESS, bytes(item.data))
        return True

    def _control(self, engine: Engine, asked: Control) -> bytes:
        """A control request's data; Stall for what the device does not know."""
        kind, request = asked.request_type, asked.request
        if kind & NOT_STANDARD:
            return engine.control(kind, request, asked.value, asked.index, asked.data)
        if engine.hung:
            raise Silence
        if request == GET_DESCRIPTOR and kind == IN:
            descriptors = {DEVICE_DESCRIPTOR: engine.descriptor, CONFIGURATION_DESCRIPTOR: engine.configuration}
            make = descriptors.get(asked.value >> 8)
            if make is None or asked.value & 0xFF:
                raise Stall
            return make()[: asked.length]
        if request == GET_STATUS and kind & IN:
            halted = kind & ~IN == TO_ENDPOINT and engine.halted and bool(asked.index & 0x0F)
            return bytes([halted, 0])[: asked.length]
        if request == CLEAR_FEATURE and kind == TO_ENDPOINT and asked.value == ENDPOINT_HALT:
            engine.clear_halt()
            return b""
        raise Stall


def _check_data(endpoint: int, length: int, data: bytes) -> None:
    """RedirError when a guest's transfer does not bring the data that it announces."""
    expected = 0 if endpoint & IN else length
    if len(data) != expected:
        raise RedirError(f"a transfer on endpoint {endpoint:#04x} with {len(data)} bytes of data, not {expected}")
