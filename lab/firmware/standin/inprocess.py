# SPDX-License-Identifier: MIT
"""The stand-in without USB: the client talks to the engine by function calls."""

from __future__ import annotations

from collections.abc import Sequence

from lab.firmware.rockusb import PRODUCTS, VENDOR
from lab.firmware.rockusb.link import Found, LinkGone, LinkStall, LinkTimeout
from lab.firmware.standin.engine import Engine, Gone, Silence, Stall


class EngineLink:
    """An opened engine; a device that came back is another one, as on a bus."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._generation = engine, engine.generation
        self.found = found(engine)

    def _check(self) -> None:
        if self.engine.generation != self._generation or not self.engine.connected:
            raise LinkGone("the device left the bus")

    def send(self, data: bytes, timeout: float) -> None:
        self._check()
        try:
            self.engine.bulk_out(data)
        except Stall:
            raise LinkStall("bulk out stalled") from None
        except Silence:
            raise LinkTimeout(f"no answer within {timeout:g} s") from None
        except Gone:
            raise LinkGone("the device left the bus") from None

    def receive(self, length: int, timeout: float) -> bytes:
        if not self.engine.answering:
            self._check()
        try:
            return self.engine.bulk_in(length)
        except Stall:
            raise LinkStall("bulk in stalled") from None
        except Silence:
            raise LinkTimeout(f"no answer within {timeout:g} s") from None
        except Gone:
            raise LinkGone("the device left the bus") from None

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        self._check()
        try:
            self.engine.control(0x40, request, value, index, data)
        except Stall:
            raise LinkStall("the request is refused") from None
        except Silence:
            raise LinkTimeout(f"no answer within {timeout:g} s") from None
        except Gone:
            raise LinkGone("the device left the bus") from None

    def clear(self) -> None:
        self._check()
        try:
            self.engine.clear_halt()
        except (Silence, Gone):
            raise LinkGone("the device does not answer") from None

    def close(self) -> None:
        return


def found(engine: Engine) -> Found:
    """What the bus shows of an engine."""
    return Found(engine.port, VENDOR, next(iter(PRODUCTS)), engine.bcd_usb)


class EngineBus:
    """A bus with stand-ins on it."""

    name = "stand-in"

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = list(engines)

    def devices(self) -> list[Found]:
        return [found(engine) for engine in self.engines if engine.connected]

    def open(self, path: str) -> EngineLink:
        for engine in self.engines:
            if engine.port == path and engine.connected:
                return EngineLink(engine)
        raise LinkGone(f"no device at {path}")

    def way(self, path: str) -> str:
        return f"rockusb:{path}"

    def wait(self, seconds: float) -> None:
        return

    def close(self) -> None:
        return
