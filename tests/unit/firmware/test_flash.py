# SPDX-License-Identifier: MIT
"""Flashing: refused without a backup, reversible at every step, never silent about a write that did not happen."""

from __future__ import annotations

import hashlib
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import gpt
from lab.firmware.flash import bmap, engine, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.medium import Transport
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine, Options
from lab.firmware.standin.inprocess import EngineBus
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, create, disk
from lab.firmware.transports.block import BlockTransport, DrillTransport, FileMedium
from lab.firmware.transports.rockusb import RockusbTransport

BackUp = Callable[..., create.Result]


@pytest.fixture
def image(drill: Path, tmp_path: Path) -> Path:
    """A new system for the eMMC: table and boot partition changed, root file system partly."""
    path = tmp_path / "new.img"
    data = bytearray((drill / "emmc.img").read_bytes())
    data[0x1000:0x1100] = os.urandom(256)
    data[20 << 20 : 22 << 20] = os.urandom(2 << 20)
    data[30 << 20 : 30 << 20] = b""
    path.write_bytes(data)
    return path


def expected(drill: Path, image: Path) -> bytes:
    """The image everywhere but in the loader's region."""
    old, new = (drill / "emmc.img").read_bytes(), image.read_bytes()
    return new[:0x8000] + old[0x8000 : 16 << 20] + new[16 << 20 :]


def planned(store: Store, board: boards.Board, transport: Transport, wish: Wish, meter: object) -> Session:
    made = Session(store, session.prepare(store, board, transport, wish, meter, "npulab backup create"))  # type: ignore[arg-type]
    made.save()
    return made


def test_refused_without_backup(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    before = (drill / "emmc.img").read_bytes()
    with pytest.raises(KitError, match="no verified backup") as caught:
        planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)
    assert caught.value.code == ExitCode.REFUSED and "npulab backup create" in caught.value.hint
    back_up(drill, second_read=False)
    with pytest.raises(KitError, match="not verified by a second read"):
        planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)
    assert (drill / "emmc.img").read_bytes() == before
    assert not list(store.runs.glob("*"))


def test_backup_of_another_board_does_not_count(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp, tmp_path: Path
) -> None:
    make_board(tmp_path / "twin", board, serial="0002", sizes={"spi": 1 << 20, "emmc": 40 << 20, "sd": 0})
    twin = back_up(tmp_path / "twin").manifest
    for wanted in (None, twin.id):
        with pytest.raises(KitError) as caught:
            planned(store, board, DrillTransport(drill), Wish("emmc", image, backup=wanted, trust_identity=True), meter)
        assert caught.value.code == ExitCode.REFUSED


def test_damaged_backup_does_not_count(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    next(store.chunks.names())[1].unlink()
    with pytest.raises(KitError) as caught:
        for storage in ("emmc", "spi"):
            planned(store, board, DrillTransport(drill), Wish(storage, image if storage == "emmc" else None), meter)
    assert caught.value.code in (ExitCode.REFUSED, ExitCode.USAGE)


def test_old_backup_does_not_count(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    made = back_up(drill).manifest
    store.rewrite(made.finish(created="2020-01-01T00:00:00.000000+00:00"))
    with pytest.raises(KitError, match="days old"):
        planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)


def test_flash_and_roll_back(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    old, new = (drill / "emmc.img").read_bytes(), expected(drill, image)
    transport = DrillTransport(drill)
    run = planned(store, board, transport, Wish("emmc", image), meter)
    assert run.plan.notes and "left alone" in run.plan.notes[0]
    assert [i.critical for i in run.plan.items] == sorted(i.critical for i in run.plan.items), "critical regions last"
    report = run.run(transport, meter)  # type: ignore[arg-type]
    assert (drill / "emmc.img").read_bytes() == new
    assert report.written <= 4 << 20, "only changed chunks are written"
    assert Session.load(store, "latest").journal.state == "verified"
    run.commit()
    assert run.journal.states() == ["planned", "writing", "written", "verified", "committed"]
    run.rollback(transport, meter)  # type: ignore[arg-type]
    assert (drill / "emmc.img").read_bytes() == old


def test_plan_shows_changes_by_region(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    transport = DrillTransport(drill)
    plan = session.prepare(store, board, transport, Wish("emmc", image), meter, "")  # type: ignore[arg-type]
    rows = {r["region"]: r for r in session.changes(store, plan, {i.name: i for i in transport.storages()})}
    assert rows["emmc/partition-table"]["changed"] and rows["emmc/p1-boot"]["changed"]
    assert not rows["emmc/p2-rootfs"]["changed"]
    assert "emmc/loader" not in rows


def test_changes_since_the_backup_are_not_lost(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    transport = DrillTransport(drill)
    run = planned(store, board, transport, Wish("emmc", image), meter)
    with (drill / "emmc.img").open("r+b") as medium:
        medium.seek(20 << 20)
        medium.write(b"a letter nobody has saved")
    before = (drill / "emmc.img").read_bytes()
    with pytest.raises(KitError, match="changed at byte") as caught:
        run.run(transport, meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.REFUSED
    assert (drill / "emmc.img").read_bytes() == before
    run.run(transport, meter, lose_changes=True)  # type: ignore[arg-type]
    assert run.journal.state == "verified"


def test_board_swapped_between_plan_and_run(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp, tmp_path: Path
) -> None:
    back_up(drill)
    run = planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)
    make_board(tmp_path / "twin", board, serial="0002", sizes={"spi": 1 << 20, "emmc": 40 << 20, "sd": 0})
    before = (tmp_path / "twin" / "emmc.img").read_bytes()
    with pytest.raises(KitError) as caught:
        run.run(DrillTransport(tmp_path / "twin"), meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.REFUSED
    assert (tmp_path / "twin" / "emmc.img").read_bytes() == before


def test_image_changed_between_plan_and_run(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    run = planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)
    with image.open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(KitError, match="changed since the plan"):
        run.run(DrillTransport(drill), meter)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["drop", "short", "flip"])
def test_write_that_did_not_happen_is_noticed(
    store: Store, board: boards.Board, drill: Path, image: Path, meter: object, back_up: BackUp, fault: str
) -> None:
    back_up(drill)

    class Faulty(DrillTransport):
        def open(self, storage: str, *, write: bool = False) -> FileMedium:
            medium = super().open(storage, write=write)
            assert isinstance(medium, FileMedium)
            plain = medium.write

            def spoil(offset: int, data: bytes) -> None:
                if offset <= 20 << 20 < offset + len(data):
                    if fault == "drop":
                        return
                    data = data[:-512] if fault == "short" else data[:-1] + bytes([data[-1] ^ 1])
                plain(offset, data)

            medium.write = spoil  # type: ignore[method-assign]
            return medium

    run = planned(store, board, DrillTransport(drill), Wish("emmc", image), meter)
    old = (drill / "emmc.img").read_bytes()
    with pytest.raises(KitError) as caught:
        run.run(Faulty(drill), meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.MISMATCH and "rollback" in caught.value.hint
    run.rollback(DrillTransport(drill), meter)  # type: ignore[arg-type]
    assert (drill / "emmc.img").read_bytes() == old


def test_block_map_leaves_gaps_alone(
    store: Store, board: boards.Board, drill: Path, tmp_path: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    path = tmp_path / "sparse.img"
    with path.open("wb") as stream:
        stream.truncate(40 << 20)
        stream.seek(17 << 20)
        stream.write(os.urandom(1 << 20))
    (tmp_path / "sparse.img.bmap").write_bytes(bmap.make(path))
    old = bytearray((drill / "emmc.img").read_bytes())
    transport = DrillTransport(drill)
    run = planned(store, board, transport, Wish("emmc", path), meter)
    run.run(transport, meter)  # type: ignore[arg-type]
    old[17 << 20 : 18 << 20] = path.read_bytes()[17 << 20 : 18 << 20]
    assert (drill / "emmc.img").read_bytes() == old
    damaged = bytearray(path.read_bytes())
    damaged[(17 << 20) + 5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(KitError) as caught:
        planned(store, board, transport, Wish("emmc", path), meter)
    assert caught.value.code == ExitCode.MISMATCH


def test_block_map_does_not_thin_the_partition_table(
    store: Store, board: boards.Board, drill: Path, tmp_path: Path, meter: object, back_up: BackUp
) -> None:
    """Sectors of zeros among its entries are holes of the image and content of the table."""
    medium = drill / "emmc.img"
    with medium.open("r+b") as stream:
        stream.write(os.urandom(0x8000))
        stream.seek(30 << 20)
        stream.write(os.urandom(2 << 20))
    back_up(drill)
    path, size = tmp_path / "thin.img", 32 << 20
    head, tail = gpt.build(size, [("npulab-root", 16 << 20, 8 << 20)], uuid.uuid4())
    with path.open("wb") as stream:
        stream.truncate(size)
        for at, data in ((0, head), (size - len(tail), tail)):
            for offset in range(0, len(data), 512):
                if any(data[offset : offset + 512]):
                    stream.seek(at + offset)
                    stream.write(data[offset : offset + 512])
    (tmp_path / "thin.img.bmap").write_bytes(bmap.make(path))
    transport = DrillTransport(drill)
    run = planned(store, board, transport, Wish("emmc", path), meter)
    run.run(transport, meter)  # type: ignore[arg-type]
    with medium.open("rb") as stream:
        content = stream.read(size)
    assert gpt.parse(content[512:1024], lambda at, n: content[at : at + n]).partitions[0].name == "npulab-root"
    assert gpt.parse(content[-512:], lambda at, n: content[at : at + n]).lba == size // 512 - 1


def test_compressed_image_with_its_block_map(
    store: Store,
    board: boards.Board,
    drill: Path,
    tmp_path: Path,
    meter: object,
    back_up: BackUp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As BitBake leaves them: x.wic.zst beside x.wic.bmap. The plan's image is the unpacked one."""
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "cache"))
    back_up(drill)
    path, new = tmp_path / "x.wic", os.urandom(1 << 20)
    with path.open("wb") as stream:
        stream.truncate(40 << 20)
        stream.seek(17 << 20)
        stream.write(new)
    (tmp_path / "x.wic.bmap").write_bytes(bmap.make(path))
    (tmp_path / "x.wic.zst").write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    old = bytearray((drill / "emmc.img").read_bytes())
    transport = DrillTransport(drill)
    run = planned(store, board, transport, Wish("emmc", tmp_path / "x.wic.zst"), meter)
    (tmp_path / "x.wic.zst").unlink()
    run.run(transport, meter)  # type: ignore[arg-type]
    old[17 << 20 : 18 << 20] = new
    assert (drill / "emmc.img").read_bytes() == old


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("<bmap", "block map"),
        ('<bmap version="1.3"/>', "version"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><bmap/>', "block map"),
    ],
)
def test_bad_block_maps(tmp_path: Path, text: str, expect: str) -> None:
    (tmp_path / "x.bmap").write_text(text)
    with pytest.raises(KitError, match=expect):
        bmap.load(tmp_path / "x.bmap")


def test_loader_only_with_its_hash(
    store: Store, board: boards.Board, drill: Path, tmp_path: Path, meter: object, back_up: BackUp
) -> None:
    back_up(drill)
    transport = DrillTransport(drill)
    loader = tmp_path / "u-boot-rockchip-spi.bin"
    loader.write_bytes(b"\xff" * 0x8000 + b"RKNS" + os.urandom(70_001))
    digest = hashlib.sha256(loader.read_bytes()).hexdigest()
    for stated in (None, "0" * 64):
        with pytest.raises(KitError, match="SHA-256") as caught:
            planned(store, board, transport, Wish("spi", loader=loader, loader_sha256=stated), meter)
        assert caught.value.code == ExitCode.REFUSED
    run = planned(store, board, transport, Wish("spi", loader=loader, loader_sha256=digest), meter)
    run.run(transport, meter)  # type: ignore[arg-type]
    assert (drill / "spi.img").read_bytes().startswith(loader.read_bytes())
    other = tmp_path / "u-boot-rockchip.bin"
    other.write_bytes(os.urandom(9000))
    stated = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(KitError, match="ID block"):
        planned(store, board, transport, Wish("spi", loader=other, loader_sha256=stated), meter)


def test_identity_on_trust(tmp_path: Path, board: boards.Board, store: Store, meter: object, back_up: BackUp) -> None:
    """A card in a reader names itself by its path here; a backup made elsewhere needs the loud override."""
    make_board(tmp_path / "b", board, sizes={"spi": 0, "emmc": 0, "sd": 40 << 20})
    card = BlockTransport(tmp_path / "b" / "sd.img", "sd", "sd")
    backup = back_up(DrillTransport(tmp_path / "b")).manifest
    new = tmp_path / "new.img"
    new.write_bytes((tmp_path / "b" / "sd.img").read_bytes())
    with pytest.raises(KitError, match="cannot be told"):
        planned(store, board, card, Wish("sd", new, backup=backup.id), meter)
    run = planned(store, board, card, Wish("sd", new, backup=backup.id, trust_identity=True), meter)
    assert any("ON TRUST" in note for note in run.plan.notes)


@pytest.mark.parametrize("kind", ["empty", "large", "sparse", "missing"])
def test_unusable_images(
    store: Store, board: boards.Board, drill: Path, tmp_path: Path, meter: object, back_up: BackUp, kind: str
) -> None:
    back_up(drill)
    path = tmp_path / "x.img"
    if kind != "missing":
        path.write_bytes(
            {"empty": b"", "large": bytes(41 << 20), "sparse": bytes.fromhex("3aff26ed") + bytes(1 << 20)}[kind]
        )
    with pytest.raises(KitError) as caught:
        planned(store, board, DrillTransport(drill), Wish("emmc", path), meter)
    assert caught.value.code == ExitCode.USAGE


def usb(engine_: Engine, board: boards.Board) -> RockusbTransport:
    return RockusbTransport(board, Rockusb(EngineBus([engine_])))


@pytest.fixture
def nor(tmp_path: Path, board: boards.Board, store: Store, back_up: BackUp) -> tuple[Path, Path, bytes, bytes]:
    """A board with a small NOR that is saved, a loader for it, and the NOR's old and new content."""
    root = tmp_path / "norboard"
    make_board(root, board, sizes={"spi": 256 << 10, "emmc": 0, "sd": 0, "emmc.boot0": 0, "emmc.boot1": 0})
    back_up(RockusbTransport(board, Rockusb(EngineBus([Engine(root, "loader")]))))
    old = (root / "spi.img").read_bytes()
    loader = tmp_path / "loader.bin"
    loader.write_bytes(b"\xff" * 0x8000 + b"RKNS" + random.Random(7).randbytes(150_000))
    size = loader.stat().st_size
    return root, loader, old, loader.read_bytes() + b"\xff" * (-size % 4096) + old[-(-size // 4096) * 4096 :]


@pytest.mark.parametrize("after", ["resume", "rollback"])
def test_power_cut_at_every_write(
    store: Store, board: boards.Board, nor: tuple[Path, Path, bytes, bytes], meter: object, after: str
) -> None:
    """Whichever write the power fails in, the flash ends as the new or as the old content, as asked."""
    root, loader, old, new = nor
    digest = hashlib.sha256(loader.read_bytes()).hexdigest()
    cuts = 0
    for cut in range(100):
        (root / "spi.img").write_bytes(old)
        device = Engine(root, "loader", Options(faults=[faults.Fault("power", "write", cut)]))
        transport = usb(device, board)
        run = planned(store, board, transport, Wish("spi", loader=loader, loader_sha256=digest), meter)
        try:
            run.run(transport, meter)  # type: ignore[arg-type]
            break
        except KitError as error:
            assert error.code == ExitCode.LINK and "rollback" in error.hint
            cuts += 1
        assert (root / "spi.img").read_bytes() not in (old, new) or cut == 0
        device.power_on()
        transport = usb(device, board)
        again = Session.load(store, run.plan.id)
        if after == "resume":
            again.run(transport, meter)  # type: ignore[arg-type]
        else:
            again.rollback(transport, meter)  # type: ignore[arg-type]
        assert (root / "spi.img").read_bytes() == (new if after == "resume" else old)
        device.close()
    assert cuts >= 5
    assert (root / "spi.img").read_bytes() == new


@pytest.mark.parametrize("kind", sorted(set(faults.KINDS) - {"power"}))
@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("times", [1, 0])
def test_every_fault_while_flashing(
    store: Store,
    board: boards.Board,
    nor: tuple[Path, Path, bytes, bytes],
    meter: object,
    kind: str,
    operation: str,
    times: int,
) -> None:
    """Right content, or an error with the right code and a way back; never a wrong "verified"."""
    root, loader, old, new = nor
    device = Engine(root, "loader")
    transport = usb(device, board)
    digest = hashlib.sha256(loader.read_bytes()).hexdigest()
    run = planned(store, board, transport, Wish("spi", loader=loader, loader_sha256=digest), meter)
    device.options.faults = [faults.Fault(kind, operation, 2, times)]
    try:
        run.run(transport, meter)  # type: ignore[arg-type]
        assert (root / "spi.img").read_bytes() == new
        return
    except KitError as error:
        allowed = {ExitCode.LINK, ExitCode.MISMATCH, ExitCode.REFUSED}
        assert error.code in allowed and run.journal.state != "verified"
    device.options.faults = []
    device.power_on()
    if run.journal.state == "planned":
        assert (root / "spi.img").read_bytes() == old
        return
    Session.load(store, run.plan.id).rollback(usb(device, board), meter)  # type: ignore[arg-type]
    assert (root / "spi.img").read_bytes() == old


def test_journal_survives_a_torn_line(tmp_path: Path) -> None:
    journal = engine.Journal(tmp_path)
    journal.add("planned")
    journal.add("writing")
    with journal.path.open("ab") as stream:
        stream.write(b'{"state": "wri')
    assert journal.states() == ["planned", "writing"]
    assert disk.observer is None


def test_restore_writes_only_changes(
    store: Store, board: boards.Board, drill: Path, meter: object, back_up: BackUp
) -> None:
    backup = back_up(drill).manifest
    good = {i.name: (drill / f"{i.name}.img").read_bytes() for i in DrillTransport(drill).storages()}
    for name in ("emmc", "spi"):
        with (drill / f"{name}.img").open("r+b") as medium:
            medium.seek(0x8000)
            medium.write(os.urandom(8192))
    transport = DrillTransport(drill)
    plan = session.restore_plan(store, board, transport, backup, [])
    report = session.restore(store, plan, transport, meter)  # type: ignore[arg-type]
    assert report.written <= 2 << 20
    assert good == {name: (drill / f"{name}.img").read_bytes() for name in good}
