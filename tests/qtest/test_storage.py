# SPDX-License-Identifier: MIT
"""The flash chips: the serial flash controller with its NOR, and the eMMC's host controller, register by register."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qtest_client import QTest

SFC = 0xFE2B0000
IMR, ICLR, RCVR, ISR, FSR, SR = SFC + 0x04, SFC + 0x08, SFC + 0x10, SFC + 0x1C, SFC + 0x20, SFC + 0x24
RISR, VER, DMA_TRIGGER, DMA_ADDR = SFC + 0x28, SFC + 0x2C, SFC + 0x80, SFC + 0x84
LEN_CTRL, LEN_EXT, CMD, ADDR, DATA = SFC + 0x88, SFC + 0x8C, SFC + 0x100, SFC + 0x104, SFC + 0x108
TRAN_FINISH, BUS_ERR, DMA = 1 << 4, 1 << 5, 1 << 7
WRITE, ADDR_24 = 1 << 12, 1 << 14
READ, FAST_READ, PAGE_PROGRAM, WRITE_ENABLE, READ_STATUS, READ_ID, ERASE_64K = 0x03, 0x0B, 0x02, 0x06, 0x05, 0x9F, 0xD8
NOR_SIZE = 16 << 20
EMMC = 0xFE2E0000
BUFFER = 0x100000


@pytest.fixture
def content() -> bytes:
    """What the NOR holds, 16 MiB: random at both ends, erased between."""
    rng = random.Random(7)
    return rng.randbytes(0x10000) + b"\xff" * (NOR_SIZE - 0x20000) + rng.randbytes(0x10000)


@pytest.fixture
def board(start: Callable[..., QTest], content: bytes, tmp_path: Path) -> Iterator[QTest]:
    """A machine with that NOR, its controller as Linux sets it up."""
    image = tmp_path / "nor.img"
    image.write_bytes(content)
    machine = start(args=["-drive", f"if=mtd,index=0,format=raw,file={image}"])
    machine.writel(LEN_CTRL, 1)
    yield machine


def command(board: QTest, opcode: int, length: int = 0, address: int | None = None, flags: int = 0) -> None:
    board.writel(LEN_EXT, length)
    board.writel(CMD, opcode | flags | (ADDR_24 if address is not None else 0))
    if address is not None:
        board.writel(ADDR, address)


def fifo_read(board: QTest, length: int) -> bytes:
    data = b""
    while len(data) < length:
        words = board.readl(FSR) >> 16 & 0x1F
        assert words, "the FIFO is empty before the end"
        data += b"".join(board.readl(DATA).to_bytes(4, "little") for _ in range(words))
    return data[:length]


def program(board: QTest, address: int, data: bytes) -> None:
    command(board, WRITE_ENABLE)
    command(board, PAGE_PROGRAM, len(data), address, WRITE)
    for offset in range(0, len(data), 4):
        board.writel(DATA, int.from_bytes(data[offset : offset + 4], "little"))


def test_chip_names_itself_and_its_size(board: QTest) -> None:
    assert board.readl(VER) == 5
    command(board, READ_ID, 3)
    assert fifo_read(board, 3) == bytes.fromhex("20ba18")
    assert board.readl(RISR) & TRAN_FINISH


@pytest.mark.parametrize("length", [1, 3, 4, 5, 63, 64, 65, 200])
@pytest.mark.parametrize("address", [0, 1, 0xFFFF, NOR_SIZE - 256])
def test_fifo_reads(board: QTest, content: bytes, address: int, length: int) -> None:
    command(board, READ, length, address)
    assert fifo_read(board, length) == content[address : address + length]
    assert board.readl(FSR) >> 16 & 0x1F == 0
    assert board.readl(SR) == 0


def test_fast_read_counts_its_dummy_clocks(board: QTest, content: bytes) -> None:
    command(board, FAST_READ, 16, 0x100, flags=8 << 8)
    assert fifo_read(board, 16) == content[0x100:0x110]


@pytest.mark.parametrize("length", [64, 512, 516, 15872])
def test_dma_reads_and_interrupts(board: QTest, content: bytes, length: int) -> None:
    board.irq_intercept("/machine/soc/sfc", name="sysbus-irq")
    board.writel(IMR, 0xFF & ~DMA)
    command(board, READ, length, 0x20)
    board.writel(DMA_ADDR, BUFFER)
    assert not board.irq(0)
    board.writel(DMA_TRIGGER, 1)
    assert board.irq(0)
    assert board.readl(ISR) == DMA
    assert board.read(BUFFER, length) == content[0x20 : 0x20 + length]
    board.writel(ICLR, 0xFFFFFFFF)
    assert not board.irq(0)
    assert board.readl(RISR) == 0


def test_dma_beyond_memory_is_a_bus_error(board: QTest) -> None:
    command(board, READ, 64, 0)
    board.writel(DMA_ADDR, 0xC0000000)
    board.writel(DMA_TRIGGER, 1)
    assert board.readl(RISR) & BUS_ERR
    assert "rk-sfc: no memory for the DMA" in board.log()
    command(board, READ_ID, 3)
    assert fifo_read(board, 3) == bytes.fromhex("20ba18")


def test_erase_and_program_reach_the_file(board: QTest, content: bytes, tmp_path: Path) -> None:
    command(board, WRITE_ENABLE)
    command(board, ERASE_64K, 0, 0)
    data = bytes(range(256))
    program(board, 0x100, data)
    command(board, READ_STATUS, 1)
    assert not fifo_read(board, 1)[0] & 1  # not busy
    command(board, READ, 512, 0)
    wanted = b"\xff" * 256 + data
    assert fifo_read(board, 512) == wanted
    board.close()
    image = (tmp_path / "nor.img").read_bytes()
    assert image[:512] == wanted
    assert image[512:0x10000] == b"\xff" * (0x10000 - 512)
    assert image[0x10000:] == content[0x10000:]


def test_programming_needs_the_enable_and_only_clears_bits(board: QTest, content: bytes) -> None:
    command(board, PAGE_PROGRAM, 4, 0x20000, WRITE)
    board.writel(DATA, 0)
    command(board, READ, 4, 0x20000)
    assert fifo_read(board, 4) == b"\xff" * 4
    program(board, 0, b"\x0f\x0f\x0f\x0f")
    command(board, READ, 4, 0)
    assert fifo_read(board, 4) == bytes(byte & 0x0F for byte in content[:4])


def test_reset_drops_a_command_half_way(board: QTest) -> None:
    command(board, READ, 64, 0)
    board.readl(DATA)
    board.writel(RCVR, 1)
    assert board.readl(RCVR) == 0
    assert board.readl(FSR) >> 16 & 0x1F == 0
    board.readl(DATA)
    assert "DATA is read and there is none" in board.log()
    command(board, READ_ID, 3)
    assert fifo_read(board, 3) == bytes.fromhex("20ba18")


def test_nor_without_a_file_is_erased(machine: QTest) -> None:
    machine.writel(LEN_CTRL, 1)
    command(machine, READ, 64, NOR_SIZE // 2)
    assert fifo_read(machine, 64) == b"\xff" * 64


def test_emmc_controller_says_where_its_vendor_areas_are(machine: QTest) -> None:
    pointers = machine.readl(EMMC + 0xE8)
    assert pointers & 0xFFF == 0x500
    assert machine.readl(EMMC + (pointers >> 16)) == 0x510  # the command queue engine's version
    machine.writel(EMMC + 0x500 + 0x2C, 0x101)
    assert machine.readl(EMMC + 0x500 + 0x2C) == 0x101


def test_emmc_delay_line_locks_unless_bypassed(machine: QTest) -> None:
    control, status = EMMC + 0x800, EMMC + 0x840
    assert machine.readl(status) == 0
    machine.writel(control, 5 << 16 | 2 << 8 | 1)
    assert machine.readl(status) == 1 << 8
    machine.writel(control, 1 << 24 | 1)
    assert machine.readl(status) == 0


@pytest.mark.parametrize("size", [64 << 20, 4 << 30])
def test_emmc_card_is_there_with_a_drive_only(start: Callable[..., QTest], tmp_path: Path, size: int) -> None:
    card_present = 1 << 16
    assert not start().readl(EMMC + 0x24) & card_present
    image = tmp_path / "emmc.img"
    with image.open("wb") as file:
        file.truncate(size)
    machine = start(args=["-drive", f"if=sd,index=0,format=raw,file={image}"])
    assert machine.readl(EMMC + 0x24) & card_present
