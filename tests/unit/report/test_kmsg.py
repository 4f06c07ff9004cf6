# SPDX-License-Identifier: MIT
"""The kernel log's pieces, from a board that is a list of records."""

from __future__ import annotations

import re

import pytest
from fake_board import FakeBoard
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import ExitCode, KitError
from lab.report.kmsg import Journal, KernelLog, parse, unescape


def test_records_of_the_kernels_own_format() -> None:
    lines = ["4,142,103670081,-,caller=T1;a; b\\x09c", " KEY=value", "12,143,1,c;user", "cat: nonsense", "6,x,1,-;no"]
    first, second = parse(lines)
    assert (first.sequence, first.seconds, first.level, first.text, first.user) == (
        142,
        103.670081,
        4,
        "a; b\tc",
        False,
    )
    assert second.user
    assert unescape("\\xc3\\xa4\\xff") == "ä\ufffd"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_the_kernel_escapes_comes_back(text: str) -> None:
    """linux kernel/printk/printk.c, msg_add_ext_text: what is not printable ASCII, and the backslash."""
    escaped = "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in text.encode())
    assert unescape(escaped) == text
    (found,) = parse([f"6,1,2,-;{escaped}"])
    assert found.text == text


@given(st.lists(st.text(max_size=30)))
def test_no_line_is_too_odd_to_be_read(lines: list[str]) -> None:
    assert len(parse(lines)) <= len(lines)


def test_each_message_belongs_to_one_piece() -> None:
    board = FakeBoard()
    board.say("boot")
    journal = Journal(board)
    assert [record.text for record in journal.cut("start").records] == ["boot"]
    board.say("first")
    assert [record.text for record in journal.cut("one").records] == ["first"]
    assert journal.cut("two").records == ()
    board.say("second")
    assert [record.text for record in journal.cut("three").records] == ["second"]


def test_what_was_overwritten_is_counted() -> None:
    board = FakeBoard(size=20)
    journal = Journal(board)
    journal.cut("start")
    for number in range(50):
        board.say(f"line {number}")
    piece = journal.cut("end")
    kernel = [record.text for record in piece.records if not record.user]
    assert kernel == [f"line {number}" for number in range(50 - len(kernel), 50)]
    # the line after the last marker is lost, too
    assert piece.lost == 50 - len(kernel) + 1


def test_a_restart_is_seen_and_its_log_read_from_the_beginning() -> None:
    board = FakeBoard()
    for number in range(30):
        board.say(str(number))
    log = KernelLog(journal := Journal(board), "x")
    journal.cut("start")
    board.restart()
    log.refresh()
    assert [record.text for record in log.records] == ["Booting Linux"]
    assert "restarted" in log.problems()[0]
    log.announce_restart()
    assert log.problems() == []


@pytest.mark.parametrize(
    "text",
    ["WARNING: CPU: 0 PID: 1 at drivers/accel/rocket", "BUG: KASAN: slab-use-after-free", "rocket: NPU job timed out"],
)
def test_bad_messages_fail_unless_announced(text: str) -> None:
    board = FakeBoard()
    journal = Journal(board)
    journal.cut("start")
    log = KernelLog(journal, "x")
    board.say(text)
    board.taint = 1 << 9
    log.refresh()
    assert log.problems() == [text, "the kernel is newly tainted: bit 9 (warning)"]
    log.announce(re.escape(text))
    assert log.problems() == []


def test_what_programs_write_is_no_kernel_message() -> None:
    board = FakeBoard()
    journal = Journal(board)
    journal.cut("start")
    log = KernelLog(journal, "x")
    board.say("BUG: says a test script", user=True)
    assert log.lines() == []
    assert log.problems() == []


def test_a_silent_board_is_infrastructure() -> None:
    board = FakeBoard()
    board.dead = True
    with pytest.raises(KitError) as caught:
        Journal(board).cut("start")
    assert caught.value.code is ExitCode.INFRASTRUCTURE
    assert "refused" in caught.value.tail


def test_titles_cannot_break_the_command() -> None:
    board = FakeBoard()
    journal = Journal(board)
    journal.cut("tests/x.py::test['; reboot; echo $(id) `x` \\ \n <4>]")
    assert "reboot" in board.records[0][1]
    assert not set("'$`\\\n<>;") & set(board.records[0][1])
