# SPDX-License-Identifier: MIT
"""The backup store: what it saves comes back, what is damaged is found, nothing half-made counts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.medium import StorageInfo
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, check, create, disk, manifest, reader
from lab.firmware.sweep import Cutter, PowerCut
from lab.firmware.transports.block import BlockTransport, DrillTransport, FileMedium

BackUp = Callable[..., create.Result]


def same(left: Path, right: Path) -> bool:
    return left.read_bytes() == right.read_bytes()


def test_backup_is_complete_verified_and_private(store: Store, drill: Path, back_up: BackUp) -> None:
    made = back_up(drill)
    backup = store.load("latest")
    assert backup == made.manifest
    assert backup.verified and backup.complete and backup.consistency == "offline"
    assert {"spi/loader", "emmc/loader", "emmc/p1-boot", "emmc/p2-rootfs", "emmc.boot0/whole"} <= {
        r.label for r in backup.regions
    }
    assert backup.medium("emmc")["idblock"] == "idblock"
    for info in DrillTransport(drill).storages():
        assert backup.covers(info.name, 0, info.size)
    files = [p for p in store.root.rglob("*") if p.is_file()]
    assert files and all(p.stat().st_mode & 0o777 == 0o600 for p in files)
    assert all(p.stat().st_mode & 0o777 == 0o700 for p in store.root.rglob("*") if p.is_dir())
    stored = sum(p.stat().st_size for p in store.chunks.root.rglob("*.zst"))
    assert stored < 9 << 20, "zero runs take no room"


def test_drill_restores_every_medium(store: Store, drill: Path, back_up: BackUp, tmp_path: Path) -> None:
    backup = back_up(drill).manifest
    for info in DrillTransport(drill).storages():
        target = tmp_path / f"{info.name}.img"
        reader.extract(store, backup, info.name, target)
        assert same(target, drill / f"{info.name}.img")
        assert target.stat().st_blocks * 512 <= (drill / f"{info.name}.img").stat().st_blocks * 512 + (3 << 20)


def test_plain_commands_restore(store: Store, drill: Path, back_up: BackUp, tmp_path: Path) -> None:
    backup = back_up(drill).manifest
    script = "\n".join(reader.plain_restore(store, backup))
    work = tmp_path / "plain"
    work.mkdir()
    subprocess.run(["sh", "-c", script], cwd=work, check=True, timeout=60)
    for info in DrillTransport(drill).storages():
        assert same(work / f"{info.name}.img", drill / f"{info.name}.img")


def test_second_backup_shares_chunks(drill: Path, back_up: BackUp) -> None:
    first = back_up(drill)
    with (drill / "emmc.img").open("r+b") as image:
        image.seek(20 << 20)
        image.write(b"changed")
    second = back_up(drill)
    assert second.manifest.device == first.manifest.device
    assert second.added < 0.2 * first.added


def test_other_board_is_another_device(drill: Path, tmp_path: Path, board: boards.Board, back_up: BackUp) -> None:
    make_board(tmp_path / "twin", board, serial="0002", sizes={"spi": 1 << 20, "emmc": 40 << 20, "sd": 0})
    assert back_up(drill).manifest.device != back_up(tmp_path / "twin").manifest.device


class Unsteady(DrillTransport):
    """Flips a bit whenever it is read after a re-open."""

    def open(self, storage: str, *, write: bool = False) -> FileMedium:
        medium = super().open(storage, write=write)
        assert isinstance(medium, FileMedium)
        plain, reopen = medium.read, medium.reopen
        state = {"again": False}

        def read(offset: int, length: int) -> bytes:
            data = plain(offset, length)
            if state["again"] and storage == "spi" and offset <= 0x9000 < offset + length:
                data = bytearray(data)  # type: ignore[assignment]
                data[0x9000 - offset] ^= 4  # type: ignore[index]
            return bytes(data)

        def reopen_then_lie() -> None:
            reopen()
            state["again"] = True

        medium.read, medium.reopen = read, reopen_then_lie  # type: ignore[method-assign]
        return medium


def test_unstable_medium_is_never_verified(drill: Path, back_up: BackUp) -> None:
    backup = back_up(Unsteady(drill)).manifest
    assert not backup.verified
    region = next(r for r in backup.regions if r.label == "spi/loader")
    assert len(region.unstable) == 1
    assert not backup.covers("spi", 0, 1 << 20)


def test_one_read_is_not_verified_and_a_later_check_makes_it_so(
    store: Store, drill: Path, back_up: BackUp, meter: object
) -> None:
    backup = back_up(drill, second_read=False).manifest
    assert not backup.verified and backup.verification is None
    checked = check.check_device(store, backup, DrillTransport(drill), meter)  # type: ignore[arg-type]
    assert checked.verified
    store.rewrite(checked)
    assert store.load(backup.id).verified


def test_check_against_changed_device(store: Store, drill: Path, back_up: BackUp, meter: object) -> None:
    backup = back_up(drill).manifest
    with (drill / "emmc.img").open("r+b") as image:
        image.seek((8 << 20) + 5)
        image.write(b"x")
    checked = check.check_device(store, backup, DrillTransport(drill), meter)  # type: ignore[arg-type]
    assert not checked.verified
    assert [r.label for r in checked.regions if r.unstable] == ["emmc/loader"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "other"])
def test_damaged_chunk_is_found(store: Store, drill: Path, back_up: BackUp, meter: object, damage: str) -> None:
    backup = back_up(drill).manifest
    chunks = [path for _, path in store.chunks.names()]
    victim = chunks[len(chunks) // 2]
    raw = bytearray(victim.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        victim.write_bytes(raw)
    elif damage == "truncate":
        victim.write_bytes(raw[: len(raw) // 2])
    elif damage == "other":
        victim.write_bytes(chunks[0].read_bytes())
    else:
        victim.unlink()
    with pytest.raises(KitError) as caught:
        check.check_store(store, backup, meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.MISMATCH
    assert victim.name[:16] in caught.value.message


def test_damaged_index_and_manifest(store: Store, drill: Path, back_up: BackUp, meter: object) -> None:
    backup = back_up(drill).manifest
    path = store.directory(backup) / backup.regions[0].index
    path.write_bytes(path.read_bytes().replace(b"1048576", b"1048575", 1))
    with pytest.raises(KitError) as caught:
        check.check_store(store, backup, meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.MISMATCH
    document = store.directory(backup) / manifest.NAME
    document.write_bytes(document.read_bytes().replace(b'"verified": true', b'"verified": false', 1))
    with pytest.raises(KitError, match="seal"):
        store.load(backup.id)
    document.write_text("{}")
    with pytest.raises(KitError, match="damaged"):
        store.load(backup.id)


def test_manifest_from_the_future_is_left_alone(store: Store, drill: Path, back_up: BackUp) -> None:
    back_up(drill)
    newer = back_up(drill).manifest
    path = store.directory(newer) / manifest.NAME
    document = json.loads(path.read_text())
    document["format"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(KitError, match="newer kit"):
        store.load(newer.id)
    before = sorted(store.chunks.names())
    with store.lock():
        store.prune(1)
    assert sorted(store.chunks.names()) == before, "its chunks are unknown, so none may go"
    assert path.exists()


def test_prune_keeps_the_newest_verified(store: Store, drill: Path, back_up: BackUp, meter: object) -> None:
    oldest = back_up(drill).manifest
    with (drill / "emmc.img").open("r+b") as image:
        image.seek((16 << 20) + 4096)
        image.write(os.urandom(1 << 20))
    good = back_up(drill).manifest
    doubtful = [back_up(drill, second_read=False).manifest for _ in range(2)]
    with store.lock():
        removed, freed = store.prune(1)
    assert set(removed) == {oldest.id, doubtful[0].id}
    assert freed > 0
    assert {entry.id for entry in store.entries()} == {good.id, doubtful[1].id}
    check.check_store(store, good, meter)  # type: ignore[arg-type]


def test_store_is_used_by_one_run(store: Store) -> None:
    with store.lock(), pytest.raises(KitError, match="another run"), Store(store.root).lock():
        pass


def test_full_disk_is_one_clear_error_and_resumes(
    store: Store, drill: Path, back_up: BackUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def full(kind: str, path: Path) -> None:
        nonlocal count
        count += kind == "write"
        if kind == "write" and count > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(disk, "observer", full)
    with pytest.raises(KitError) as caught:
        back_up(drill)
    assert caught.value.code == ExitCode.INFRASTRUCTURE and "full" in caught.value.message
    assert store.entries() == []
    monkeypatch.setattr(disk, "observer", None)
    assert back_up(drill).manifest.verified


def as_nobody(action: Callable[[], None]) -> int:
    """Exit code of ``action`` in a process without root's rights; 99 for anything but a KitError."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            action()
            code = 0
        except KitError as error:
            code = int(error.code)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_read_only_store_can_be_read_and_nothing_else(board: boards.Board, meter: object) -> None:
    """A user who may only read: verify and restore work, a new backup and prune end with one clear error."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        make_board(root / "board", board, sizes=TINY)
        store, transport = Store(root / "store"), DrillTransport(root / "board")
        plan = regions.make(board, transport, ["spi"])
        made = create.create(store, board, transport, plan, meter).manifest  # type: ignore[arg-type]
        (root / "out").mkdir(mode=0o777)
        (root / "out").chmod(0o777)
        for path in (root, *root.rglob("*")):
            if path != root / "out":
                path.chmod(0o555 if path.is_dir() else 0o444)

        def read() -> None:
            again = Store(store.root)
            assert check.check_store(again, again.load("latest"), meter) > 0  # type: ignore[arg-type]
            reader.extract(again, made, "spi", root / "out/spi.img")

        def write() -> None:
            create.create(Store(store.root), board, transport, plan, meter)  # type: ignore[arg-type]

        def prune() -> None:
            with Store(store.root).lock():
                pass

        try:
            assert as_nobody(read) == 0
            assert (root / "out/spi.img").read_bytes() == (root / "board/spi.img").read_bytes()
            assert as_nobody(write) == as_nobody(prune) == int(ExitCode.INFRASTRUCTURE)
            assert len(store.entries()) == 1 and store.entries()[0].manifest == made
        finally:
            for path in (root, *root.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)


def test_vendor_window_is_not_content(store: Store, tmp_path: Path, board: boards.Board, back_up: BackUp) -> None:
    root = tmp_path / "board"
    make_board(root, board, sizes={"spi": 1 << 20, "emmc": 48 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536})
    with (root / "emmc.img").open("r+b") as image:
        image.seek((32 << 20) - 8192)
        image.write(os.urandom(8192) + b"\xcc" * (16 << 20))
    backup = back_up(root).manifest
    assert not backup.verified
    assert any(f.fatal and "0xCC" in f.text for f in backup.findings)


TINY = {"spi": 1 << 20, "emmc": 0, "sd": 0}


def test_power_cut_at_every_step(
    tmp_path: Path, board: boards.Board, meter: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each cut the store holds nothing half-made, and the next run completes and verifies."""
    monkeypatch.setattr(create, "BATCH", 1 << 18)
    monkeypatch.setattr(create, "CHUNK", 1 << 16)
    monkeypatch.setattr(create.spans, "__defaults__", (1 << 16,))
    monkeypatch.setattr(create, "WORKERS", 1)
    root = tmp_path / "board"
    make_board(root, board, sizes=TINY)
    steps = 0
    for cut in range(1000):
        store = Store(tmp_path / f"store{cut}")
        transport = DrillTransport(root)
        plan = regions.make(board, transport, ["spi"])
        cutter = Cutter(cut)
        monkeypatch.setattr(disk, "observer", cutter)
        try:
            create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
            break
        except PowerCut:
            steps += 1
        finally:
            monkeypatch.setattr(disk, "observer", None)
        cutter.lose()
        for entry in store.entries():
            assert entry.manifest is not None and entry.manifest.verified, "a listed backup is a whole one"
        made = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
        assert made.manifest.verified
        check.check_store(store, made.manifest, meter)  # type: ignore[arg-type]
        reader.extract(store, made.manifest, "spi", tmp_path / "spi.img")
        assert same(tmp_path / "spi.img", root / "spi.img")
    assert steps > 40


def test_resume_reads_only_the_rest(drill: Path, store: Store, board: boards.Board, meter: object) -> None:
    class Counting(DrillTransport):
        stop_after = 12
        reads = 0

        def open(self, storage: str, *, write: bool = False) -> FileMedium:
            medium = super().open(storage, write=write)
            assert isinstance(medium, FileMedium)
            plain = medium.read

            def read(offset: int, length: int) -> bytes:
                if length >= 1 << 19:
                    type(self).reads += 1
                    if type(self).reads > type(self).stop_after:
                        raise KitError(ExitCode.LINK, "gone")
                return plain(offset, length)

            medium.read = read  # type: ignore[method-assign]
            return medium

    transport = Counting(drill)
    plan = regions.make(board, transport, ["spi"])
    Counting.stop_after = 1
    with pytest.raises(KitError) as caught:
        create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.LINK
    Counting.stop_after = 10**6
    made = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert made.resumed and made.manifest.verified


def test_resume_refuses_a_changed_medium(
    drill: Path, store: Store, board: boards.Board, meter: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved before the cut is dropped when the medium no longer matches it."""
    transport = DrillTransport(drill)
    plan = regions.make(board, transport, ["emmc"])
    monkeypatch.setattr(create, "BATCH", 1 << 20)
    cutter = Cutter(40)
    monkeypatch.setattr(disk, "observer", cutter)
    with pytest.raises(PowerCut):
        create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    monkeypatch.setattr(disk, "observer", None)
    with (drill / "emmc.img").open("r+b") as image:
        image.seek(0x8000 + 100)
        image.write(os.urandom(64))
    made = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert made.manifest.verified
    reader.extract(store, made.manifest, "emmc", drill.parent / "out.img")
    assert same(drill.parent / "out.img", drill / "emmc.img")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extents=st.lists(st.tuples(st.integers(0, 3 << 20), st.binary(min_size=1, max_size=3000)), max_size=6),
    sectors=st.integers(1, 7000),
)
def test_any_image_comes_back(
    tmp_path_factory: pytest.TempPathFactory, extents: list[tuple[int, bytes]], sectors: int
) -> None:
    root = tmp_path_factory.mktemp("image")
    path, size = root / "card.img", sectors * 512
    with path.open("wb") as image:
        image.truncate(size)
        for offset, data in extents:
            if offset + len(data) <= size:
                image.seek(offset)
                image.write(data)
    board, store = boards.load("orangepi-5"), Store(root / "store")
    transport = BlockTransport(path, "sd", "sd")
    assert transport.storages() == [StorageInfo("sd", "sd", size)]

    class Quiet:
        def update(self, done: float, total: float | None = None, text: str = "") -> None:
            assert total is None or done <= total

    made = create.create(store, board, transport, regions.make(board, transport, ["sd"]), Quiet())
    assert made.manifest.covers("sd", 0, size)
    assert not any(region.unstable for region in made.manifest.regions)
    reader.extract(store, made.manifest, "sd", root / "out.img")
    assert same(root / "out.img", path)
