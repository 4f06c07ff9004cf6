# SPDX-License-Identifier: MIT
"""Work beside a medium: in order, bounded, and over when its user is; flash runs that use it, whatever goes wrong."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import ahead as module
from lab.firmware.ahead import DEPTH, WORKERS, ahead, beside, keep_memory
from lab.firmware.flash import bmap, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.flash.sources import ImageSource
from lab.firmware.medium import Transport
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, create
from lab.firmware.store.chunks import Chunks
from lab.firmware.store.reader import RegionReader, StorageReader
from lab.firmware.transports.block import DrillTransport, FileMedium

BackUp = Callable[..., create.Result]


def used() -> tuple[int, int]:
    """Threads and open files of this process."""
    return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a thread or an open file behind."""
    before = used()
    yield
    assert used() == before


def test_results_come_in_order_and_not_far_ahead() -> None:
    taken: list[int] = []
    takers: set[int] = set()

    def things() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            takers.add(threading.get_ident())
            yield number

    def work(number: int) -> int:
        time.sleep(random.random() / 1000)
        return number * 2

    with closing(ahead(work, things())) as results:
        for position, result in enumerate(results):
            assert result == position * 2
            assert len(taken) <= position + DEPTH + 1
    assert taken == list(range(100)) and takers == {threading.get_ident()}, "a medium is read by one thread"


@pytest.mark.parametrize("where", ["work", "things", "user"])
@pytest.mark.parametrize("kind", [KitError, KeyboardInterrupt])
def test_an_error_ends_everything(where: str, kind: type[BaseException]) -> None:
    error = KitError(ExitCode.LINK, "gone") if kind is KitError else kind()
    worked: list[int] = []
    closed = False

    def things() -> Iterator[int]:
        nonlocal closed
        try:
            for number in range(1000):
                if where == "things" and number == 20:
                    raise error
                yield number
        finally:
            closed = True

    def work(number: int) -> int:
        if where == "work" and number == 20:
            raise error
        worked.append(number)
        return number

    seen = 0
    with pytest.raises(kind), closing(things()) as given, closing(ahead(work, given)) as results:
        for number in results:
            seen = number
            if where == "user" and number == 20:
                raise error
    assert (closed and seen in (19, 20)) or (where == "things" and seen <= 19)
    count = len(worked)
    time.sleep(0.02)
    assert len(worked) == count <= 20 + DEPTH + WORKERS + 1, "no thread works any more"


def test_beside_gives_its_result_its_error_or_up() -> None:
    with beside(lambda over: 7) as future:
        assert future.result() == 7
    with beside(lambda over: 1 / 0) as other, pytest.raises(ZeroDivisionError):
        other.result()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), beside(lambda over: over.wait(30)):
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 10


def test_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_memory.cache_clear()
    keep_memory()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: object())
    keep_memory.cache_clear()
    keep_memory()


def test_a_checked_chunk_that_is_damaged_is_still_noticed(tmp_path: Path) -> None:
    """Without its hash a chunk has the checksum of its frame: it comes back right, or not at all."""
    chunks, draw = Chunks(tmp_path), random.Random(1)
    data = draw.randbytes(1000) * 2
    name, partial = chunks.prepare(data)
    assert partial is not None
    chunks.commit([(name, partial)])
    whole = chunks.path(name).read_bytes()
    assert chunks.read(name, len(data), checked=True) == data
    refused = 0
    for at in range(len(whole)):
        chunks.path(name).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        try:
            assert chunks.read(name, len(data), checked=True) == data
        except KitError as error:
            assert error.code is ExitCode.MISMATCH
            refused += 1
    assert refused > len(whole) * 0.99
    for length in (len(data) - 1, len(data) + 1):
        chunks.path(name).write_bytes(whole)
        with pytest.raises(KitError, match="chunk"):
            chunks.read(name, length, checked=True)


def test_a_backup_is_read_by_several_threads(
    store: Store, board: boards.Board, drill: Path, back_up: BackUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its own piece, also when another thread has just remembered the one that it read last."""
    made, content = back_up(drill).manifest, (drill / "emmc.img").read_bytes()
    both = threading.Barrier(WORKERS)
    last: list[tuple[int, bytes]] = [(-1, b"")]

    def remember(reader: RegionReader, pair: tuple[int, bytes]) -> None:
        last[0] = pair
        if pair[0] >= 0:
            both.wait(30)

    monkeypatch.setattr(RegionReader, "_last", property(lambda reader: last[0], remember), raising=False)
    reader = StorageReader.of(store, made, "emmc", checked=True)
    places = [at for at in range(16 << 20, 40 << 20, 1 << 20) if any(content[at : at + 700])][:WORKERS]
    assert len(places) == WORKERS
    with closing(ahead(lambda at: reader.read(at, 700), places)) as found:
        assert list(found) == [content[at : at + 700] for at in places]


SIZES = {"spi": 1 << 20, "emmc": 40 << 20, "sd": 0, "emmc.boot0": 0, "emmc.boot1": 0}


@pytest.fixture
def board_files(tmp_path: Path, board: boards.Board) -> Path:
    root = tmp_path / "board"
    make_board(root, board, sizes=SIZES)
    return root


def planned(store: Store, board: boards.Board, transport: Transport, wish: Wish, meter: object) -> Session:
    made = Session(store, session.prepare(store, board, transport, wish, meter, "npulab backup create"))  # type: ignore[arg-type]
    made.save()
    return made


def changed_image(root: Path, path: Path, size: int, seed: int) -> None:
    """The first ``size`` bytes of the eMMC with patches of odd sizes at odd places, some across pieces of a MiB."""
    draw = random.Random(seed)
    data = bytearray((root / "emmc.img").read_bytes()[:size])
    for at in (17 << 20, 18 << 20, 21 << 20):
        start = at - draw.randrange(1, 5000)
        length = draw.randrange(1, 3 << 20)
        data[start : start + length] = draw.randbytes(length)
    path.write_bytes(data[:size])


@pytest.mark.parametrize("size", [16 << 20 | 1, (22 << 20) + 511, (24 << 20) - 4097, 40 << 20])
def test_every_byte_of_an_odd_image_is_written_and_comes_back(
    store: Store, board: boards.Board, board_files: Path, tmp_path: Path, meter: object, back_up: BackUp, size: int
) -> None:
    back_up(board_files)
    old, path, transport = (board_files / "emmc.img").read_bytes(), tmp_path / "new.img", DrillTransport(board_files)
    changed_image(board_files, path, size, size)
    padded = path.read_bytes() + bytes(-size % 512)
    new = padded[:0x8000] + old[0x8000 : 16 << 20] + padded[16 << 20 :] + old[len(padded) :]
    run = planned(store, board, transport, Wish("emmc", path), meter)
    run.run(transport, meter)  # type: ignore[arg-type]
    assert (board_files / "emmc.img").read_bytes() == new
    run.rollback(transport, meter)  # type: ignore[arg-type]
    assert (board_files / "emmc.img").read_bytes() == old


@pytest.mark.parametrize("at", [0x9000, (24 << 20) - 1])
def test_an_image_that_changed_is_noticed_before_anything_is_written(
    store: Store, board: boards.Board, board_files: Path, tmp_path: Path, meter: object, back_up: BackUp, at: int
) -> None:
    """Also where it is not written (the loader's place)."""
    back_up(board_files)
    old, path, transport = (board_files / "emmc.img").read_bytes(), tmp_path / "new.img", DrillTransport(board_files)
    changed_image(board_files, path, 24 << 20, 1)
    run = planned(store, board, transport, Wish("emmc", path), meter)
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes([path.read_bytes()[at] ^ 1]))
    with pytest.raises(KitError, match="changed since the plan") as caught:
        run.run(transport, meter)  # type: ignore[arg-type]
    assert caught.value.code is ExitCode.REFUSED
    assert (board_files / "emmc.img").read_bytes() == old and run.journal.states() == ["planned"]


class Failing:
    """Reads of an image that fail from the n-th on, when it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        plain = ImageSource.read

        def read(source: ImageSource, offset: int, length: int) -> bytes:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise OSError(errno.EIO, "Input/output error")
            return plain(source, offset, length)

        monkeypatch.setattr(ImageSource, "read", read)


@pytest.mark.parametrize(("reads", "state"), [(9, "planned"), (30, "writing"), (45, "written")])
def test_an_error_beside_the_medium_is_one_error_and_the_run_goes_on(
    store: Store,
    board: boards.Board,
    board_files: Path,
    tmp_path: Path,
    meter: object,
    back_up: BackUp,
    monkeypatch: pytest.MonkeyPatch,
    reads: int,
    state: str,
) -> None:
    """Some 25 pieces are compared, 7 or so written, all read back."""
    back_up(board_files)
    path, transport = tmp_path / "new.img", DrillTransport(board_files)
    changed_image(board_files, path, 40 << 20, 2)
    run = planned(store, board, transport, Wish("emmc", path), meter)
    failing = Failing(monkeypatch)
    failing.left = reads
    with pytest.raises(KitError) as caught:
        run.run(transport, meter)  # type: ignore[arg-type]
    assert "Input/output error" in caught.value.message and "rollback" in caught.value.hint
    assert run.journal.state == state
    failing.left = None
    Session.load(store, run.plan.id).run(transport, meter)  # type: ignore[arg-type]
    assert (board_files / "emmc.img").read_bytes()[16 << 20 :] == path.read_bytes()[16 << 20 :]


@pytest.mark.parametrize("phase", ["compare", "write", "read back"])
def test_an_interrupt_in_each_phase(
    store: Store, board: boards.Board, board_files: Path, tmp_path: Path, meter: object, back_up: BackUp, phase: str
) -> None:
    back_up(board_files)
    old, path, transport = (board_files / "emmc.img").read_bytes(), tmp_path / "new.img", DrillTransport(board_files)
    changed_image(board_files, path, 40 << 20, 3)

    class Stop:
        left = 3

        def update(self, done: float, total: float | None = None, text: str = "") -> None:
            self.left -= text.startswith(phase)
            if not self.left:
                raise KeyboardInterrupt

    run = planned(store, board, transport, Wish("emmc", path), meter)
    with pytest.raises(KitError) as caught:
        run.run(transport, Stop())
    assert caught.value.code is ExitCode.ABORTED and run.plan.id in caught.value.hint
    assert run.journal.state == {"compare": "planned", "write": "writing", "read back": "written"}[phase]
    if phase == "compare":
        assert (board_files / "emmc.img").read_bytes() == old
    Session.load(store, run.plan.id).run(transport, meter)  # type: ignore[arg-type]
    assert (board_files / "emmc.img").read_bytes()[16 << 20 :] == path.read_bytes()[16 << 20 :]


def test_payload_is_on_the_medium_before_what_boots_and_ranges_do_not_wait(
    store: Store, board: boards.Board, board_files: Path, tmp_path: Path, meter: object, back_up: BackUp
) -> None:
    """Many ranges of a block map, and the partition table: a flush before each critical item, not for each range."""
    back_up(board_files)
    path = tmp_path / "new.img"
    with path.open("wb") as stream:
        stream.truncate(40 << 20)
        for at in [0, *range(17 << 20, 30 << 20, 256 << 10)]:
            stream.seek(at)
            stream.write(random.Random(at).randbytes(4096))
    (tmp_path / "new.img.bmap").write_bytes(bmap.make(path))
    log: list[str] = []

    class Watched(DrillTransport):
        def open(self, storage: str, *, write: bool = False) -> FileMedium:
            medium = super().open(storage, write=write)
            assert isinstance(medium, FileMedium)
            plain, flush = medium.write, medium.flush

            def note(offset: int, data: bytes) -> None:
                log.append("payload" if offset >= 16 << 20 else "critical")
                plain(offset, data)

            def settle() -> None:
                log.extend(["flush"] if write else [])
                flush()

            medium.write, medium.flush = note, settle  # type: ignore[method-assign]
            return medium

    transport = Watched(board_files)
    run = planned(store, board, transport, Wish("emmc", path), meter)
    run.run(transport, meter)  # type: ignore[arg-type]
    assert log.count("payload") >= 50 and log.count("flush") <= 4
    last, first = max(i for i, what in enumerate(log) if what == "payload"), log.index("critical")
    assert last < first and "flush" in log[last:first]
    assert "flush" in log[max(i for i, what in enumerate(log) if what == "critical") :]
