# SPDX-License-Identifier: MIT
"""Command words: the worked int8 matmul task register by register, completeness, order, ranges."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace import regcmd
from rknpu_userspace.isa import BY_NAME, BY_OFFSET, REGISTERS, Block, unpack
from rknpu_userspace.plan import Problem, make_plan
from rknpu_userspace.plan.tasks import Places, Post, tasks
from rknpu_userspace.quant import derive
from rknpu_userspace.task import Pool, TaskConfig

PLACES = Places(0x100000, (0x200000,), 0x300000, 0x400000)


def only_task(problem: Problem, post: Post | None = None) -> TaskConfig:
    (task,) = tasks(make_plan(problem), post or Post(), PLACES)
    return task


def registers(task: TaskConfig) -> dict[int, int]:
    """Offset to value of the body's last write of each register."""
    words = list(unpack(regcmd.encode(task)))[: -regcmd.TRAILER_WORDS]
    return {word.offset: word.value for word in words}


WORKED = {
    0x100C: 0,
    0x1010: 5 << 4,
    0x1014: 0x9,
    0x1020: 0x00010004,
    0x1024: 0x001F0020,
    0x1028: 1,
    0x102C: 4,
    0x1030: 0x400,
    0x1034: 0x20,
    0x1038: 0x01010020,
    0x1040: 0xA2,
    0x1044: 1,
    0x104C: 0xB,
    0x1050: 0x10000,
    0x1054: 0x10000,
    0x1058: 0x10000,
    0x105C: 0x10000,
    0x1070: 0x100000,
    0x1078: 0xF000F,
    0x107C: 4,
    0x1080: 0,
    0x1084: 0x00010004,
    0x1088: 0x20,
    0x1110: 0x200000,
    0x3010: 0,
    0x3014: 0x00030000,
    0x3018: 0x1F,
    0x301C: 0,
    0x400C: 0x1E4,
    0x4010: 0x80000000,
    0x4020: 0x400000,
    0x4024: 0x40,
    0x4030: 0,
    0x4034: 3,
    0x403C: 0x001F001F,
    0x4040: 0x53,
    0x4050: 0x7FE,
    0x4058: 0x1F,
    0x405C: 0x00030000,
    0x4060: 0x53,
    0x4070: 0x383,
    0x4078: 1,
    0x4084: 1,
    0x40C0: 0x200,
    0x4004: 0xE,
    0x5004: 0xE,
    0x500C: 0,
    0x5010: 3,
    0x5014: 0x1F,
    0x5034: 1,
    0x5044: 0x7810,
    0x5068: 0x01010101,
}
"""M = 4, K = 32, N = 32, native layouts, W = 1 and H = M, as working clients of the mainline driver write it."""


def test_worked_task() -> None:
    task = only_task(Problem("int8", "int32", 4, 1, 32, 32))
    # The bank split is a choice; the worked task has two data banks.
    assert task.conv is not None
    actual = registers(replace(task, conv=replace(task.conv, data_banks=2, weight_banks=10)))
    for offset, value in actual.items():
        assert value == WORKED.get(offset, 0), f"{BY_OFFSET[offset].name}: {value:#x}"
    assert set(WORKED) <= set(actual)


def test_trailer() -> None:
    words = regcmd.encode(only_task(Problem("int8", "int32", 4, 1, 32, 32)))
    assert len(words) == 130
    assert [int(word) for word in words[-4:]] == [
        0,
        0x0101_0000_0000_0014,
        0x0041_0000_0000_0000,
        0x0081_0000_001D_0008,
    ]


def test_order_of_mesa() -> None:
    offsets = [word.offset for word in unpack(regcmd.encode(only_task(Problem("int8", "int8", 4, 4, 32, 32), REQUANT)))]
    head = [0x1040, 0x1104, 0x1100, 0x100C, 0x4004, 0x5004, 0x100C, 0x1010, 0x1014, 0x1020]
    assert offsets[: len(head)] == head
    body = offsets[len(head) : -4]
    assert body[: body.index(0x1100)] == sorted(body[: body.index(0x1100)])
    rest = body[body.index(0x1100) :]
    assert rest[:3] == [0x1100, 0x1104, 0x1110]
    assert rest == sorted(rest)


REQUANT = Post(requant=derive(0.01, 3))


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_every_register_is_written(form: str) -> None:
    """All registers of the blocks in use but status, enables, clock gates and reset defaults that nobody writes."""
    task = only_task(Problem(form, "float32", 9, 9, 40, 40, 3, 3))
    written = registers(task)
    untouched = {"CNA_CLK_GATE", "CORE_MAC_GATING", "CNA_S_POINTER", "CORE_S_POINTER"}
    for register in REGISTERS:
        if register.block not in (Block.CNA, Block.CORE, Block.DPU, Block.DPU_RDMA):
            continue
        if register.name.endswith(("S_STATUS", "OPERATION_ENABLE")) or register.name in untouched:
            continue
        assert register.offset in written, register.name


def test_float16_words() -> None:
    wide = registers(only_task(Problem("float16", "float32", 4, 1, 32, 32)))
    assert (wide[0x100C], wide[0x3010], wide[0x4010], wide[0x4050]) == (0x120, 0x200, 0xA8000002, 0x36E)
    assert wide[0x40C0] == 4 * wide[0x4024]
    narrow = registers(only_task(Problem("float16", "float16", 4, 1, 32, 32)))
    assert (narrow[0x4010], narrow[0x4050], narrow[0x4084], narrow[0x5044]) == (0x48000002, 0x126, 0x10001, 0x7818)
    assert narrow[0x40C0] == 2 * narrow[0x4024]


def test_requantised_words() -> None:
    post = Post(bias=True, relu=True, requant=derive(0.0042, -17), zero_point=3, pad_value=-5)
    words = registers(only_task(Problem("int8", "int8", 8, 8, 64, 64, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1), post))
    scale = derive(0.0042)
    assert (words[0x3010], words[0x4010], words[0x4050]) == (1, 0, 0x124)
    assert (words[0x4080], words[0x4084], words[0x4088]) == (0xFFFFFFEF, scale.scale, scale.shift)
    assert words[0x4054] == 0xFFFD
    assert words[0x4040] == 0x20110
    assert (words[0x501C], words[0x5020]) == (2, 0x300000)
    assert words[0x1068] == 0x11
    assert words[0x1014] == 0x12
    assert words[0x1184] == 0xFBFBFBFB


def test_row_major_matmul() -> None:
    """GROUP_LINE_OFF, a line per row, no surface gap; written row by row."""
    words = registers(only_task(Problem("int8", "int32", 100, 1, 64, 96, rows_in=True, rows_out=True)))
    assert words[0x100C] == 0x20000000
    assert (words[0x107C], words[0x1080]) == (4, 0)
    assert (words[0x4024], words[0x4038]) == (16, 23 << 16 | 23)


def test_negative_surface_stride() -> None:
    """A cube lower than the four lines of a fetch: the gap is negative."""
    words = registers(only_task(Problem("int8", "int32", 1, 5, 32, 32)))
    assert BY_NAME["CNA_DMA_CON2"].decode(words[0x1080])["SURF_STRIDE"] == -15


def test_field_out_of_range_is_named() -> None:
    task = only_task(Problem("int8", "int32", 4, 1, 32, 32))
    assert task.conv is not None
    with pytest.raises(ValueError, match="FEATURE_GRAINS"):
        regcmd.encode(replace(task, conv=replace(task.conv, grains=1024)))
    with pytest.raises(ValueError, match="DST_SURF_STRIDE"):
        assert task.dpu is not None
        regcmd.encode(replace(task, dpu=replace(task.dpu, surface_stride=8)))


def test_word_count() -> None:
    conv = only_task(Problem("int8", "int32", 4, 1, 32, 32))
    pool = TaskConfig(pool=Pool(1, 2, 2, 8, 8, 8, 4, 4, 2, 2, 2, 2, 0, 128, 1024, 4096, 256))
    for task in (conv, replace(conv, conv=None), replace(conv, rdma=None), pool):
        assert regcmd.word_count(task) == len(regcmd.encode(task))
    assert [task.enable for task in (conv, replace(conv, conv=None), pool)] == [0x1D, 0x18, 0x60]
    assert regcmd.encode(conv, prologue=(1, 2)).tolist()[:2] == [1, 2]
    assert regcmd.encode(conv).dtype == np.uint64


def plain_words(table: Any, source: Any) -> list[int] | str:
    """The table walked field by field; the message of the first field that does not fit."""
    words = []
    for line in table.lines:
        value = attrgetter(line.whole)(source) & 0xFFFFFFFF if line.whole else 0
        try:
            for part in line.parts:
                value |= part.field.encode(attrgetter(part.source)(source) + part.add)
        except ValueError as error:
            return str(error)
        words.append(line.word | value << 16)
    return words


NUMBERS = st.sampled_from(
    (-(1 << 31), -17, -1, 0, 1, 2, 15, 16, 255, 1 << 11, (1 << 13) - 1, 1 << 16, (1 << 32) - 1, 1 << 33)
)


@settings(max_examples=300, deadline=None)
@given(table=st.sampled_from(("_CNA", "_PREAMBLE", "_DPU", "_RDMA_SIZES", "_RDMA", "_PPU")), choice=st.data())
def test_compiled_tables(table: str, choice: st.DataObject) -> None:
    """The straight-line code gives the words, and the errors, of the table walked field by field."""
    conv = only_task(Problem("int8", "int8", 8, 8, 64, 64, 3, 3), Post(bias=True))
    pool = Pool(1, 2, 2, 8, 8, 8, 4, 4, 2, 2, 2, 2, 0, 128, 1024, 4096, 256)
    source: Any = {"_CNA": conv.conv, "_PREAMBLE": conv.conv, "_RDMA": conv.rdma, "_PPU": pool}.get(table, conv.dpu)
    for _ in range(choice.draw(st.integers(0, 2))):
        owner = choice.draw(st.sampled_from(("", "bs", "bn", "ew", "lut"))) if source is conv.dpu else ""
        target = getattr(source, owner) if owner else source
        name = choice.draw(st.sampled_from([field.name for field in fields(target) if field.type == "int"]))
        changed = replace(target, **{name: choice.draw(NUMBERS)})
        source = replace(source, **{owner: changed}) if owner else changed
    compiled = getattr(regcmd, table)
    expected = plain_words(compiled, source)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            compiled.encode(source)
    else:
        assert compiled.encode(source) == expected
