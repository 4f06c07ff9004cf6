# SPDX-License-Identifier: MIT
"""Every fault that the stand-in knows at every operation: what comes of it, and that it is never a wrong "verified".

The table is made of the stand-in's own list of faults and of `OPERATIONS`; a pair that was not met counts as a loss.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.flash import session
from lab.firmware.flash.session import Session
from lab.firmware.rockusb.client import ENUMERATION_SECONDS, RETRIES, Rockusb, Timeouts
from lab.firmware.rockusb.link import LinkTimeout
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.inprocess import EngineBus, EngineLink
from lab.firmware.store import Store, check, create, reader
from lab.firmware.store.manifest import Manifest
from lab.firmware.sweep import FlashLab, Quiet, Sweep
from lab.firmware.transports.rockusb import RockusbTransport
from lab.output import Meter

CODES = (ExitCode.LINK, ExitCode.MISMATCH, ExitCode.REFUSED, ExitCode.NO_DEVICE)
"""What a fault of the device may end with; anything else blames somebody else."""

LIMIT_SECONDS = (1 + RETRIES) * (3 * Timeouts().data + ENUMERATION_SECONDS)
"""The longest that one request may keep its caller waiting, by the client's own timeouts."""

UNSEEN = {
    ("flip", "read"): "second read",
    ("drop", "write"): "read-back",
    ("drop", "erase"): "read-back",
    **{(kind, "reset"): "next boot" for kind in ("drop", "disconnect", "move", "power")},
}
"""What a single request cannot notice, and what does; backup and flash, which are made of these, must notice."""


class WaitingBus(EngineBus):
    """Counts the seconds that a caller would have waited on a real bus."""

    waited = 0.0

    def open(self, path: str) -> EngineLink:
        bus, plain = self, super().open(path)

        class Waiting(EngineLink):
            def send(self, data: bytes, timeout: float) -> None:
                try:
                    super().send(data, timeout)
                except LinkTimeout:
                    bus.waited += timeout
                    raise

            def receive(self, length: int, timeout: float) -> bytes:
                try:
                    return super().receive(length, timeout)
                except LinkTimeout:
                    bus.waited += timeout
                    raise

        return Waiting(plain.engine)

    def wait(self, seconds: float) -> None:
        self.waited += seconds


class Unnoticed(Exception):
    """An operation ended well with a wrong outcome."""


@dataclass
class Scene:
    """One case: a fresh device, and what an operation leaves. ``reference`` is what the healthy board shows."""

    lab: FlashLab
    engine: Engine
    bus: WaitingBus
    root: Path
    reference: dict[str, object]
    run: Session | None = None

    def reach(self) -> RockusbTransport:
        """A transport to the device."""
        return RockusbTransport(self.lab.board, Rockusb(self.bus))


def _truth(good: bool, what: str) -> None:
    if not good:
        raise Unnoticed(what)


def _identify(scene: Scene, transport: RockusbTransport) -> None:
    found = scene.reach().identify()
    known = dict(scene.reference["identity"])  # type: ignore[call-overload]
    _truth(all(known.get(key) == value for key, value in found.items()), f"identity {found}")


def _storages(scene: Scene, transport: RockusbTransport) -> None:
    found = {info.name: info.size for info in scene.reach().storages()}
    known = dict(scene.reference["storages"])  # type: ignore[call-overload]
    _truth(all(known.get(key) == value for key, value in found.items()), f"media {found}")


def _read(scene: Scene, transport: RockusbTransport) -> None:
    _truth(transport.open("spi").read(0, 1 << 16) == scene.lab.old[: 1 << 16], "content")


def _write(scene: Scene, transport: RockusbTransport) -> None:
    transport.open("spi", write=True).write(0, bytes(1 << 14))
    _truth(scene.lab.image.read_bytes()[: 1 << 14] == bytes(1 << 14), "content")


def _erase(scene: Scene, transport: RockusbTransport) -> None:
    transport.open("spi", write=True).erase(1 << 15, 1 << 14)
    _truth(scene.lab.image.read_bytes()[1 << 15 : 3 << 14] == b"\xff" * (1 << 14), "content")


def _reset(scene: Scene, transport: RockusbTransport) -> None:
    transport.reset()
    _truth("reset 0" in scene.engine.log, "no restart")


def _create(scene: Scene, transport: RockusbTransport) -> None:
    store = Store(scene.root)
    transport = scene.reach()
    try:
        plan = regions.make(scene.lab.board, transport)
        made = create.create(store, scene.lab.board, transport, plan, Quiet()).manifest
    except KitError:
        _truth(not store.entries(), "a backup in spite of an error")
        raise
    _same_content(scene, store, made)


def _same_content(scene: Scene, store: Store, made: Manifest) -> None:
    if not made.verified:
        raise KitError(ExitCode.MISMATCH, "not verified")
    check.check_store(store, made, Quiet())
    reader.extract(store, made, "spi", scene.root / "out.img")
    _truth((scene.root / "out.img").read_bytes() == scene.lab.old, "a wrong backup is verified")


def _verify(scene: Scene, transport: RockusbTransport) -> None:
    lab = scene.lab
    checked = check.check_device(lab.store, lab.store.load("latest"), transport, Quiet())
    if not checked.verified:
        raise KitError(ExitCode.MISMATCH, "the board differs")


def _restore(scene: Scene, transport: RockusbTransport) -> None:
    lab = scene.lab
    plan = session.restore_plan(lab.store, lab.board, transport, lab.store.load("latest"), [])
    session.restore(lab.store, plan, transport, Quiet())
    _truth(lab.image.read_bytes() == lab.old, "content")


def _flash(scene: Scene, transport: RockusbTransport) -> None:
    assert scene.run is not None
    scene.run.run(transport, Quiet())
    _truth(scene.lab.image.read_bytes() == scene.lab.new, "content")


def _rollback(scene: Scene, transport: RockusbTransport) -> None:
    assert scene.run is not None
    scene.run.rollback(transport, Quiet())
    _truth(scene.lab.image.read_bytes() == scene.lab.old, "content")


@dataclass(frozen=True)
class Operation:
    """``struck``: the device's requests that a fault is tried at, each with how many of them pass first."""

    act: Callable[[Scene, RockusbTransport], None]
    struck: dict[str, int]


OPERATIONS: dict[str, Operation] = {
    "identify": Operation(_identify, {"query": 2}),
    "storages": Operation(_storages, {"query": 4, "read": 0}),
    "read": Operation(_read, {"read": 1}),
    "write": Operation(_write, {"write": 0}),
    "erase": Operation(_erase, {"erase": 0}),
    "reset": Operation(_reset, {"reset": 0}),
    "backup create": Operation(_create, {"query": 5, "read": 2}),
    "backup verify": Operation(_verify, {"query": 0, "read": 2}),
    "backup restore": Operation(_restore, {"read": 2, "write": 2}),
    "flash run": Operation(_flash, {"read": 2, "write": 2}),
    "flash rollback": Operation(_rollback, {"read": 2, "write": 2}),
}

Table = dict[tuple[str, str], set[str]]


@dataclass
class Matrix(Sweep):
    """The sweep's cases, and per fault and operation the outcomes that were seen."""

    table: Table = field(default_factory=dict)
    waited: float = 0.0

    def rows(self) -> Iterator[list[str]]:
        """A row per operation, a column per fault."""
        for name in OPERATIONS:
            yield [name, *(", ".join(sorted(self.table.get((kind, name), {"-"}))) for kind in faults.KINDS)]


def fault_matrix(root: Path, board: Board, size: int, meter: Meter) -> Matrix:
    """Each fault of the stand-in at each operation, once and for ever."""
    result, lab = Matrix(), FlashLab(root, board, size)
    healthy = lab.reach(Engine(lab.root, "loader"))
    reference: dict[str, object] = {
        "identity": healthy.identify(),
        "storages": {info.name: info.size for info in healthy.storages()},
    }
    cases = [
        (kind, name, struck, times)
        for kind in faults.KINDS
        for name, operation in OPERATIONS.items()
        for struck in operation.struck
        for times in (1, 0)
    ]
    for number, (kind, name, struck, times) in enumerate(cases):
        engine = Engine(lab.root, "loader")
        bus = WaitingBus([engine])
        scene = Scene(lab, engine, bus, root / "case", reference)
        what = f"{name}: {kind} at {struck}, {'once' if times else 'always'}"
        outcome = _case(scene, name, faults.Fault(kind, struck, OPERATIONS[name].struck[struck], times))
        result.table.setdefault((kind, name), set()).add(outcome.removeprefix("WRONG: "))
        result.waited = max(result.waited, bus.waited)
        met = any(line.startswith(f"fault {kind}") for line in engine.log)
        in_time = bus.waited <= LIMIT_SECONDS
        why = outcome if outcome.startswith("WRONG") else "not met" if not met else f"waited {bus.waited:.0f} s"
        result.judge(not outcome.startswith("WRONG") and met and in_time, f"{what}: {why}")
        meter.update(number + 1, len(cases), f"{result.lost} losses")
    for kind in faults.KINDS:
        for name in OPERATIONS:
            result.judge((kind, name) in result.table, f"{name}: {kind} was not tried")
    return result


def _case(scene: Scene, name: str, fault: faults.Fault) -> str:
    """The outcome's name; ``WRONG: ...`` when it must not be."""
    lab, operation = scene.lab, OPERATIONS[name]
    lab.image.write_bytes(lab.old)
    if name.startswith("flash"):
        scene.run = lab.planned(scene.reach())
        if name == "flash rollback":
            scene.run.run(scene.reach(), Quiet())
    if name == "backup restore":
        lab.image.write_bytes(lab.new)
    transport = scene.reach()
    transport.storages()
    scene.engine.options.faults = [fault]
    try:
        operation.act(scene, transport)
        outcome = "right"
    except KitError as error:
        outcome = error.code.name.lower().replace("_", " ")
        if error.code not in CODES:
            outcome = f"WRONG: {outcome} ({error.message})"
    except Unnoticed as error:
        outcome = UNSEEN.get((fault.kind, name), f"WRONG: unnoticed {error}")
    finally:
        scene.engine.options.faults = []
        shutil.rmtree(scene.root, ignore_errors=True)
    if name.startswith("flash") and not outcome.startswith("WRONG") and not _comes_back(scene):
        outcome = "WRONG: the old content does not come back"
    scene.engine.close()
    return outcome


def _comes_back(scene: Scene) -> bool:
    """After whatever happened a roll-back on the healthy board gives the old content."""
    assert scene.run is not None
    scene.engine.power_on()
    again = Session.load(scene.lab.store, scene.run.plan.id)
    if again.journal.state != "planned":
        again.rollback(scene.reach(), Quiet())
    return scene.lab.image.read_bytes() == scene.lab.old
