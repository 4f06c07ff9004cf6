# SPDX-License-Identifier: MIT
"""The disassembler: what tasks compute, which rules they break, register groups, and that it survives anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace import regcmd
from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.isa.disasm import disassemble, main, read, tasks
from rknpu_userspace.plan import Problem, make_plan
from rknpu_userspace.plan.tasks import Places, Post
from rknpu_userspace.plan.tasks import tasks as plan_tasks
from rknpu_userspace.quant import derive
from rknpu_userspace.task import Pool, TaskConfig

PROBLEM = Problem("int8", "int8", 57, 57, 32, 64, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1)
POST = Post(bias=True, relu=True, requant=derive(0.001))


def stream(problem: Problem = PROBLEM, post: Post = POST) -> np.ndarray:
    plan = make_plan(problem)
    places = Places(0x1000, (0x2000,) * len(plan.chunks), 0x3000, 0x4000)
    return np.concatenate([regcmd.encode(task) for task in plan_tasks(plan, post, places)])


def poke(words: np.ndarray, register: str, **fields: int) -> np.ndarray:
    """Change fields of every write to a register."""
    entry = BY_NAME[register]
    out = words.copy()
    for index, word in enumerate(words.tolist()):
        if word & 0xFFFF == entry.offset and word >> 48 == entry.block.target:
            value = word >> 16 & 0xFFFFFFFF
            for name, number in fields.items():
                value = value & ~entry.field(name).mask | entry.field(name).encode(number)
            out[index] = write(entry, value)
    return out


def test_summary_of_a_convolution() -> None:
    (task,) = tasks(stream())
    assert task.summary == "conv 3x3 s2 int8 57x57x32 -> 29x29x64 int8, bias, ReLU, requant 16777/2^24"
    assert task.problems == []


def test_summaries_of_others() -> None:
    wide = make_plan(Problem("float16", "float32", 9, 9, 40, 40, 3, 3, 1, 2, 2, 1))
    assert [t.summary for t in tasks(stream(wide.problem, Post()))] == ["conv 3x3 s1x2 d2x1 fp16 9x9x40 -> 5x4x48 fp32"]
    pool = TaskConfig(pool=Pool(1, 2, 2, 8, 8, 8, 4, 4, 2, 2, 2, 2, 0, 128, 1024, 4096, 256))
    (task,) = tasks(regcmd.encode(pool))
    assert task.summary == "max pool 2x2 s2x2 fp16 8x8x8 -> 4x4x8"


def test_lines() -> None:
    text = list(disassemble(stream()))
    assert text[0].startswith("task 0: conv")
    assert any("CNA_CONV_CON3" in line and "CONV_X_STRIDE=2 CONV_Y_STRIDE=2" in line for line in text)
    assert text[-1].endswith("enable 0x1d: CNA, CORE, DPU, DPU_RDMA")
    assert len(list(disassemble(stream(), zeros=True))) > len(text)


@pytest.mark.parametrize(
    ("register", "fields", "message"),
    [
        ("CNA_CBUF_CON0", {"DATA_BANK": 3}, "is not 12"),
        ("CNA_CBUF_CON0", {"DATA_BANK": 1, "WEIGHT_BANK": 11}, "the features take 4 CBUF banks, DATA_BANK is 1"),
        ("CNA_CONV_CON3", {"CONV_X_STRIDE": 0}, "CONV_X_STRIDE is zero"),
        ("CNA_WEIGHT_SIZE1", {"WEIGHT_BYTES_PER_KERNEL": 5}, "is not the 288 of the kernel size"),
        ("CNA_CBUF_CON1", {"DATA_ENTRIES": 5}, "DATA_ENTRIES 5 for a line of 1824 bytes, which takes 29"),
        ("CORE_DATAOUT_SIZE_0", {"DATAOUT_WIDTH": 5}, "CORE puts out 6x29, CNA 29x29"),
        ("DPU_BS_CFG", {"BS_ALU_ALGO": 7}, "not modelled: DPU BS_ALU_ALGO 7"),
        ("DPU_RDMA_RDMA_FEATURE_MODE_CFG", {"MRDMA_DISABLE": 0}, "nothing consumes it"),
    ],
)
def test_broken_rules(register: str, fields: dict[str, int], message: str) -> None:
    (task,) = tasks(poke(stream(), register, **fields))
    assert any(message in problem for problem in task.problems)


def test_inherited_registers_come_from_two_tasks_before() -> None:
    first = stream()
    second = poke(first, "CNA_CONV_CON3", CONV_X_STRIDE=3)
    delta = np.concatenate([first[4:6], first[-4:]])
    inherited = list(tasks(np.concatenate([first, second, delta, delta])))
    assert [task.summary.split(" int8")[0] for task in inherited] == [
        "conv 3x3 s2",
        "conv 3x3 s2x3",
        "conv 3x3 s2",
        "conv 3x3 s2x3",
    ]
    assert inherited[2].problems == []
    assert any("registers come from the task two before" in remark for remark in inherited[2].remarks)
    (alone,) = tasks(delta)
    assert any("taken from an earlier job" in problem for problem in alone.problems)


def test_strange_words() -> None:
    words = stream()
    words[10] = 0x0201_0000_0001_9999
    words[11] = 0x1001_0000_0001_1020
    words[12] = write(BY_NAME["CNA_CONV_CON2"], 1 << 31)
    (task,) = tasks(words[:-1])
    text = "\n".join(task.problems)
    assert "offset 0x9999 is not a register" in text
    assert "does not own CNA_DATA_SIZE0" in text
    assert "CNA_CONV_CON2: bits 0x80000000 belong to no field" in text
    assert "no enable word" in text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60))
def test_never_fails(words: list[int]) -> None:
    """Random words, and random words between the ones of a real task."""
    noise = np.array(words, np.uint64)
    for part in (noise, np.concatenate([noise, stream()]), np.concatenate([stream()[:-1], noise, stream()[-1:]])):
        assert all(isinstance(line, str) for line in disassemble(part))


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = stream()
    binary, text = tmp_path / "stream.bin", tmp_path / "stream.txt"
    binary.write_bytes(words.astype("<u8").tobytes())
    text.write_text("\n".join(f"{word:#018x}" for word in words.tolist()))
    assert np.array_equal(read(binary), words)
    assert np.array_equal(read(text), words)
    assert main([str(binary)]) == 0
    assert "conv 3x3 s2" in capsys.readouterr().out
    binary.write_bytes(b"\xff" * 7)
    assert main([str(binary)]) == 1
    assert "7 bytes are not a whole number" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 1
