# SPDX-License-Identifier: MIT
"""The model process over a real unix socket, with a RAM file and page tables in it, some above 4 GiB."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streams import INT8, Conv, pack_cube, pack_weights, reference_conv, unpack_cube

from rknpu_userspace.model import link

LOW_BASE, LOW_SIZE = 0x40000000, 16 << 20
HIGH_BASE, HIGH_SIZE = 0x1_2000_0000, 16 << 20
PAGE = 4096


def v2_entry(address: int, flags: int) -> int:
    """A version 2 table entry: bits 35:32 of the address in [11:8], bits 39:36 in [7:4]."""
    return (address & 0xFFFFF000) | (address >> 32 & 0xF) << 8 | (address >> 36 & 0xF) << 4 | flags


class Guest:
    """RAM of a guest with an IOMMU domain: scattered pages, tables in the region above 4 GiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(LOW_SIZE + HIGH_SIZE)
        self.ram = np.memmap(path, np.uint8, "r+")
        self.regions = [(LOW_BASE, 0, LOW_SIZE), (HIGH_BASE, LOW_SIZE, HIGH_SIZE)]
        order = np.random.default_rng(5).permutation((LOW_SIZE + HIGH_SIZE - 16 * PAGE) // PAGE)
        self._free = [int(page) * PAGE + 16 * PAGE for page in order]
        self.directory = self.physical(self.take(high=True))
        self._tables: dict[int, int] = {}
        self._next = 0

    def physical(self, offset: int) -> int:
        return LOW_BASE + offset if offset < LOW_SIZE else HIGH_BASE + offset - LOW_SIZE

    def _offset(self, physical: int) -> int:
        return physical - LOW_BASE if physical < LOW_BASE + LOW_SIZE else physical - HIGH_BASE + LOW_SIZE

    def take(self, high: bool) -> int:
        """Offset of a free page above or below 4 GiB."""
        page = next(p for p in self._free if (p >= LOW_SIZE) == high)
        self._free.remove(page)
        return page

    def _store(self, physical: int, index: int, value: int) -> None:
        at = self._offset(physical) + 4 * index
        self.ram[at : at + 4] = np.frombuffer(struct.pack("<I", value), np.uint8)

    @property
    def dte_addr(self) -> int:
        return v2_entry(self.directory, 1)

    def map_page(self, iova: int, writable: bool = True) -> int:
        directory_index, page_index = iova >> 22, iova >> 12 & 1023
        if directory_index not in self._tables:
            self._tables[directory_index] = self.physical(self.take(high=True))
            self._store(self.directory, directory_index, v2_entry(self._tables[directory_index], 1))
        offset = self._free.pop()
        flags = 7 if writable else 3
        self._store(self._tables[directory_index], page_index, v2_entry(self.physical(offset), flags))
        return offset

    def alloc(self, size: int, writable: bool = True) -> tuple[int, list[int]]:
        """IOVA and the RAM offset of each page; the page after the buffer stays unmapped."""
        iova = self._next
        count = -(-size // PAGE)
        self._next += (count + 1) * PAGE
        return iova, [self.map_page(iova + i * PAGE, writable) for i in range(count)]

    def put(self, data: np.ndarray, writable: bool = False) -> int:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        iova, pages = self.alloc(raw.size, writable)
        for index, offset in enumerate(pages):
            part = raw[index * PAGE : (index + 1) * PAGE]
            self.ram[offset : offset + part.size] = part
        return iova

    def get(self, pages: list[int], size: int) -> np.ndarray:
        return np.concatenate([np.array(self.ram[p : p + PAGE]) for p in pages])[:size]


class Client:
    """QEMU's side of the link."""

    def __init__(self, path: Path, core: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.core = core
        self.sequence = 0

    def send(self, kind: int, payload: bytes = b"", magic: int = link.MAGIC, length: int | None = None) -> int:
        self.sequence += 1
        size = len(payload) if length is None else length
        self.socket.sendall(struct.pack("<IHHII", magic, kind, size, self.core, self.sequence) + payload)
        return self.sequence

    def receive(self) -> tuple[int, int, bytes]:
        head = self._exactly(16)
        _, kind, length, _, sequence = struct.unpack("<IHHII", head)
        return kind, sequence, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionError("closed by the model")
            data += part
        return data

    def hello(self, regions: list[tuple[int, int, int]]) -> None:
        body = struct.pack("<II", 1, len(regions)) + b"".join(struct.pack("<QQQ", *r) for r in regions)
        sequence = self.send(1, body)
        assert self.receive() == (0x81, sequence, struct.pack("<I", 1))

    def write(self, offset: int, value: int) -> None:
        self.send(3, struct.pack("<II", offset, value))

    def read(self, offset: int) -> int:
        self.send(4, struct.pack("<I", offset))
        kind, _, payload = self.receive()
        assert kind == 0x84
        return int(struct.unpack("<I", payload)[0])

    def start(self, regcmd: int, words: int, dte: int, flags: int = 5, task_con: int = 0x7001) -> int:
        self.write(0x1004, 0xE | self.core << 28)
        self.write(0x3004, 0xE | self.core << 28)
        second = (dte, flags) if self.core == 0 else (0, 0)
        return self.send(5, struct.pack("<8I", regcmd, (words + 1) // 2 * 2, task_con, 0, dte, flags, *second))

    def done(self) -> dict[str, int]:
        kind, sequence, payload = self.receive()
        assert kind == 0x85
        names = ("outcome", "irq", "status", "bank", "address", "fault_flags", "ns")
        return dict(zip(names, struct.unpack("<6IQ", payload), strict=True), sequence=sequence)


class Server:
    """The process and its files."""

    def __init__(self, path: Path, *extra: str) -> None:
        self.dir = path
        self.socket = path / "npu.sock"
        self.guest = Guest(path / "ram")
        self.stats = path / "stats.jsonl"
        self.log = path / "model.log"
        arguments = ["--socket", self.socket, "--ram", path / "ram", "--stats", self.stats, "--log", self.log, *extra]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rknpu_userspace.model.server", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def client(self, core: int = 0) -> Client:
        client = Client(self.socket, core)
        client.hello(self.guest.regions)
        return client

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return code


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    try:
        yield running
    finally:
        running.stop()


class GuestConv:
    """A convolution whose buffers are in the guest."""

    def __init__(self, guest: Guest, conv: Conv, seed: int = 1, writable: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.conv, self.guest = conv, guest
        self.x = rng.integers(-128, 128, (conv.height, conv.width, conv.channels))
        self.w = rng.integers(-128, 128, (conv.kernels, *conv.kernel, conv.channels))
        conv.feature = guest.put(pack_cube(self.x, conv.fmt))
        conv.weights = guest.put(pack_weights(self.w, conv.fmt))
        conv.dst, self.pages = guest.alloc(conv.out_bytes(), writable)
        words = conv.task().words()
        self.words = len(words)
        self.regcmd = guest.put(words)

    def output(self) -> np.ndarray:
        oh, ow = self.conv.out_size
        data = self.guest.get(self.pages, self.conv.out_bytes())
        return unpack_cube(data, oh, ow, self.conv.kernels, self.conv.out)

    def expected(self) -> np.ndarray:
        return reference_conv(self.x, self.w, self.conv.stride, self.conv.pad)


def test_jobs_through_page_tables_above_4_gib(server: Server) -> None:
    job = GuestConv(server.guest, Conv(INT8, 40, 23, 64, 64, (3, 3), (1, 2), (1, 1, 1, 1)))
    assert server.guest.directory >= 1 << 32
    client = server.client()
    for _ in range(3):
        sequence = client.start(job.regcmd, job.words, server.guest.dte_addr)
        done = client.done()
        assert (done["outcome"], done["sequence"]) == (0, sequence)
        assert done["irq"] & 0x300 in (0x100, 0x200)
        assert done["ns"] > 0
        assert np.array_equal(job.output(), job.expected())
    lines = [json.loads(line) for line in server.stats.read_text(encoding="utf-8").splitlines()]
    assert [line["job"] for line in lines] == [1, 2, 3]
    assert all(line["outcome"] == "done" and line["core"] == 0 for line in lines)
    assert lines[0]["macs"] == 40 * 12 * 64 * 64 * 9
    assert set(lines[0]["dma_bytes"]) == {"pc", "feature", "weight", "wdma"}
    assert lines[0]["dma_bytes"]["feature"] == 40 * 23 * 64


def test_three_cores_at_once(server: Server) -> None:
    jobs = [GuestConv(server.guest, Conv(INT8, 64, 1, 64, 64), seed) for seed in range(3)]
    clients = [server.client(core) for core in range(3)]
    for job, client in zip(jobs, clients, strict=True):
        client.start(job.regcmd, job.words, server.guest.dte_addr)
    for job, client in zip(jobs, clients, strict=True):
        assert client.done()["outcome"] == 0
        assert np.array_equal(job.output(), job.expected())


def test_fault_names_address_direction_and_bank(server: Server) -> None:
    job = GuestConv(server.guest, Conv(INT8, 64, 1, 64, 64))
    read_only = GuestConv(server.guest, Conv(INT8, 64, 1, 64, 64), writable=False)
    client = server.client()
    client.start(job.regcmd + (1 << 24), job.words, server.guest.dte_addr)
    done = client.done()
    assert (done["outcome"], done["bank"], done["address"], done["fault_flags"]) == (2, 0, job.regcmd + (1 << 24), 0)
    client.send(2)
    assert client.receive()[0] == 0x82
    client.start(read_only.regcmd, read_only.words, server.guest.dte_addr)
    done = client.done()
    assert (done["outcome"], done["bank"], done["address"], done["fault_flags"]) == (2, 1, read_only.conv.dst, 1)
    assert "fault: IOMMU fault: write" in server.log_text()
    client.start(job.regcmd, job.words, server.guest.dte_addr)
    assert client.done()["outcome"] == 1, "a core that has faulted needs a reset"


def test_pass_through_and_stalled_banks(server: Server) -> None:
    guest = server.guest
    job = GuestConv(guest, Conv(INT8, 4, 1, 16, 32))
    offsets = [guest.take(high=False) for _ in range(4)]
    conv = Conv(INT8, 4, 1, 16, 32, feature=guest.physical(offsets[0]), weights=guest.physical(offsets[1]))
    conv.dst = guest.physical(offsets[2])
    for offset, data in zip(offsets, (pack_cube(job.x, INT8), pack_weights(job.w, INT8)), strict=False):
        guest.ram[offset : offset + data.size] = data
    words = conv.task().words()
    guest.ram[offsets[3] : offsets[3] + 8 * len(words)] = words.view(np.uint8)
    client = server.client()
    client.start(guest.physical(offsets[3]), len(words), 0, flags=4)
    assert client.done()["outcome"] == 0
    output = unpack_cube(guest.get([offsets[2]], conv.out_bytes()), 4, 1, 32, "int32")
    assert np.array_equal(output, job.expected())
    client.start(0x100000, len(words), 0, flags=4)
    done = client.done()
    assert (done["outcome"], done["irq"]) == (1, 1 << 12), "not RAM: a DMA read error"
    client.send(2)
    client.receive()
    client.start(job.regcmd, job.words, guest.dte_addr, flags=7)
    assert client.done()["outcome"] == 1
    assert "stalled" in server.log_text()


def test_reset_abandons_the_job(server: Server) -> None:
    """A long job, then RESET: the answer comes at once, DONE never, and nothing is written afterwards."""
    guest = server.guest
    job = GuestConv(guest, Conv(INT8, 1000, 1, 304, 4096))
    fill = np.array([0x5A], np.uint8)
    client = server.client()
    client.write(0x1010, 0x50)
    client.start(job.regcmd, job.words, guest.dte_addr)
    client.send(2)
    started = time.monotonic()
    kind, _, _ = client.receive()
    assert kind == 0x82
    assert time.monotonic() - started < 5
    for page in job.pages:
        guest.ram[page : page + PAGE] = fill
    assert client.read(0x1010) == 0
    time.sleep(1.0)
    assert (guest.get(job.pages, job.conv.out_bytes()) == fill).all()
    small = GuestConv(guest, Conv(INT8, 4, 1, 16, 32))
    sequence = client.start(small.regcmd, small.words, guest.dte_addr)
    done = client.done()
    assert (done["outcome"], done["sequence"]) == (0, sequence)
    assert np.array_equal(small.output(), small.expected())


def test_registers_have_two_groups(server: Server) -> None:
    client = server.client(1)
    client.write(0x1004, 0x0)
    client.write(0x1010, 0x50)
    client.write(0x1004, 0x1)
    assert client.read(0x1010) == 0
    client.write(0x1010, 0x60)
    assert client.read(0x1004) & 1 == 1
    client.write(0x1004, 0x0)
    assert client.read(0x1010) == 0x50
    assert client.read(0x8000) == 0xFFF
    assert client.read(0x1ABC) == 0
    assert "unknown register 0x1abc" in server.log_text()


@pytest.mark.parametrize(
    ("what", "send"),
    [
        ("bad magic", lambda c: c.send(1, b"", magic=0x12345678)),
        ("unknown frame type 9", lambda c: c.send(9)),
        ("before HELLO", lambda c: c.send(2)),
        ("frame type 5 with 3 bytes", lambda c: c.send(5, b"abc")),
        ("HELLO with 4 bytes", lambda c: c.send(1, b"abcd")),
        ("HELLO version 7", lambda c: c.send(1, struct.pack("<II", 7, 0))),
        ("not page aligned", lambda c: c.send(1, struct.pack("<IIQQQ", 1, 1, 0, 0, 1 << 40))),
        ("middle of a frame", lambda c: (c.send(1, b"x", length=8), c.socket.shutdown(socket.SHUT_WR))),
    ],
)
def test_bad_frames_close_that_connection_only(server: Server, what: str, send: object) -> None:
    good = server.client(2)
    bad = Client(server.socket)
    assert callable(send)
    send(bad)
    with pytest.raises(ConnectionError):
        bad.receive()
    assert what in server.log_text()
    assert good.read(0x1004) == 0


def test_wrong_core_on_a_connection(server: Server) -> None:
    client = server.client(0)
    client.core = 1
    client.send(2)
    with pytest.raises(ConnectionError):
        client.receive()
    assert "frame for core 1 on the connection of core 0" in server.log_text()


def test_leaves_nothing_behind(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.client()
    assert server.stop() == 0
    assert not server.socket.exists()


def test_exits_with_stdin(tmp_path: Path) -> None:
    server = Server(tmp_path, "--exit-with-stdin")
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(20) == 0
    assert not server.socket.exists()
    server.stop()


def test_killed_process_leaves_a_socket_that_the_next_replaces(tmp_path: Path) -> None:
    first = Server(tmp_path)
    os.kill(first.process.pid, signal.SIGKILL)
    first.stop()
    assert first.socket.exists()
    second = Server(tmp_path)
    second.client()
    again = subprocess.run(
        [sys.executable, "-m", "rknpu_userspace.model.server", "--socket", str(second.socket), "--ram", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "another process listens there" in again.stderr
    assert again.stdout == ""
    assert second.stop() == 0


@pytest.mark.parametrize("missing", ["ram", "quirks"])
def test_unusable_files_are_one_line(tmp_path: Path, missing: str) -> None:
    (tmp_path / "ram").write_bytes(bytes(4096))
    (tmp_path / "quirks").write_text('{"tie_rounding": "sometimes"}', encoding="utf-8")
    ram = tmp_path / ("nothing" if missing == "ram" else "ram")
    arguments = ["--socket", str(tmp_path / "s"), "--ram", str(ram)]
    if missing == "quirks":
        arguments += ["--quirks", str(tmp_path / "quirks")]
    run = subprocess.run(
        [sys.executable, "-m", "rknpu_userspace.model.server", *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "s").exists()
