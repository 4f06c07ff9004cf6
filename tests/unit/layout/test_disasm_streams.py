# SPDX-License-Identifier: MIT
"""Where command streams come from: dumps of buffers, text, JSON; tiles, chains and the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.cli import main as npulab
from rknpu_userspace import regcmd
from rknpu_userspace.isa import BY_NAME, write
from rknpu_userspace.isa.disasm import disassemble, listing, main
from rknpu_userspace.isa.streams import Stream, document, parse
from rknpu_userspace.ops.tables import TABLES
from rknpu_userspace.plan import Problem, make_plan
from rknpu_userspace.plan.tasks import Places, Post
from rknpu_userspace.plan.tasks import tasks as plan_tasks

SMALL = Problem("int8", "int8", 8, 8, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1)
TALL = Problem("int8", "int8", 200, 200, 32, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1)


def encoded(problem: Problem = SMALL) -> list[np.ndarray]:
    plan = make_plan(problem)
    places = Places(0x100000, tuple(0x8000 * (n + 1) for n in range(len(plan.chunks))), 0x3000, 0x800000)
    return [regcmd.encode(task) for task in plan_tasks(plan, Post(), places)]


def linked(parts: list[np.ndarray], base: int, gap: int = 2) -> np.ndarray:
    """Tasks in one buffer, ``gap`` words of padding after each, every trailer leading to the next."""
    out, at = [], base
    for index, part in enumerate(parts):
        words = part.copy()
        at += 8 * (len(words) + gap)
        if index + 1 < len(parts):
            words[-4] = write(BY_NAME["PC_BASE_ADDRESS"], at)
            words[-3] = write(BY_NAME["PC_REGISTER_AMOUNTS"], (len(parts[index + 1]) + 1) // 2 - 1)
        out += [words, np.zeros(gap, np.uint64)]
    return np.concatenate(out)


WORDS = np.concatenate(encoded())


def hexdump(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        pairs = " ".join(f"{byte:02x}" for byte in line[:8]) + "  " + " ".join(f"{byte:02x}" for byte in line[8:])
        lines.append(f"{at:08x}  {pairs}  |{text}|")
    return "\n".join(lines)


def xxd(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        lines.append(f"{at:08x}: " + " ".join(line[i : i + 2].hex() for i in range(0, 16, 2)) + f"  {text}")
    return "\n".join(lines)


def as_words(form: str) -> str:
    numbers = WORDS.tolist()
    if form == "halves":
        return "\n".join(f"{word & 0xFFFFFFFF:08x} {word >> 32:08x}" for word in numbers)
    if form == "commented":
        return "\n".join(f"{8 * n:#x}: 0x{word:016X},  # word {n}" for n, word in enumerate(numbers))
    if form == "hexdump":
        return hexdump(WORDS.astype("<u8").tobytes())
    if form == "xxd":
        return xxd(WORDS.astype("<u8").tobytes())
    if form == "list":
        return json.dumps(numbers)
    return json.dumps(document([Stream("a", WORDS, 0x4000)]))


@pytest.mark.parametrize("form", ["halves", "commented", "hexdump", "xxd", "list", "document"])
def test_text_forms(form: str) -> None:
    if form in ("hexdump", "xxd"):
        assert len(WORDS) % 2 == 0
    (stream,) = parse(as_words(form).encode(), "dump")
    assert np.array_equal(stream.words, WORDS)
    assert stream.base == (0x4000 if form == "document" else None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "dump: empty"),
        (b" \n", "dump: empty"),
        (b"\xff" * 7, "7 bytes are not a whole number"),
        (b"hello", "neither command words"),
        (b"{", "not JSON"),
        (b"[]", "no list of words"),
        (b'["x"]', "invalid literal"),
        (b"[18446744073709551616]", "64 bits"),
        (b'{"streams": []}', "expected a list"),
        (b'{"streams": [{"words": [1], "base": -1}]}', "base -1 is not an address"),
        (b"[" * 10000, "not JSON"),
    ],
)
def test_what_is_no_stream(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(data, "dump")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_parsing_never_fails_otherwise(data: bytes) -> None:
    try:
        streams = parse(data, "dump")
    except ValueError:
        return
    for stream in streams:
        assert list(disassemble(stream.words))


def test_a_dump_of_a_whole_buffer() -> None:
    """Weights before, two tasks with padding, and what an earlier user of the memory left behind them."""
    rng = np.random.default_rng(4)
    noise = rng.integers(1 << 40, 1 << 62, 64, dtype=np.uint64)
    pad = np.zeros(6, np.uint64)
    dump = np.concatenate([noise, pad, WORDS, pad, WORDS, pad, noise])
    found = listing(Stream("dump", dump))
    assert [task.first for task in found.tasks] == [70, 76 + len(WORDS)]
    assert all(task.problems == [] for task in found.tasks)


def test_tiles_of_one_operation() -> None:
    parts = encoded(TALL)
    assert len(parts) > 1
    found = listing(Stream("tall", np.concatenate([*parts, WORDS])))
    count = len(parts)
    assert [task.tile for task in found.tasks] == [(n + 1, count) for n in range(count)] + [None]
    assert f", tile 2/{count}" in found.tasks[1].summary
    assert "tile" not in found.tasks[-1].summary


def test_tiles_of_a_depthwise_operation() -> None:
    """Cut by channels: neither weights nor features in common."""
    cut = Problem("int8", "int8", 56, 56, 128, 128, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, depthwise=True)
    parts = encoded(cut)
    assert len(parts) > 1
    found = listing(Stream("depthwise", np.concatenate([*parts, WORDS])))
    assert [task.tile for task in found.tasks] == [(n + 1, len(parts)) for n in range(len(parts))] + [None]


def test_a_chain_shows_where_it_lies() -> None:
    found = listing(Stream("chain", linked([*encoded(), *encoded(), *encoded()], 0x20000)))
    assert found.base == 0x20000
    assert found.chains == [(0, 1, 2)]
    text = "\n".join(disassemble(found.stream.words))
    assert "at 0x00020000" in text
    assert "TASK_NUMBER 3 runs them in one go" in text
    assert found.link_text(found.tasks[0]).endswith("task 1")


def test_links_that_lead_astray() -> None:
    words = linked([*encoded(), *encoded()], 0x20000)
    trailer = len(WORDS) - 4
    short, elsewhere = words.copy(), words.copy()
    short[trailer + 1] = write(BY_NAME["PC_REGISTER_AMOUNTS"], 10)
    elsewhere[trailer] = write(BY_NAME["PC_BASE_ADDRESS"], 0x9000)
    found = listing(Stream("short", short, 0x20000))
    assert "too few, the task has 130" in found.link_text(found.tasks[0])
    found = listing(Stream("elsewhere", elsewhere, 0x20000))
    assert "outside of this dump" in found.link_text(found.tasks[0])
    assert not found.chains


def test_tables_take_a_line() -> None:
    words = np.concatenate([np.array(TABLES["sigmoid"].flow().prologue, np.uint64), WORDS])
    text = list(disassemble(words))
    assert sum("513 entries of the look-up table" in line for line in text) == 2
    assert not any("DPU_LUT_ACCESS_DATA " in line for line in text)


def test_cost_is_said() -> None:
    text = "\n".join(disassemble(WORDS))
    assert "589824 MACs" in text
    assert "weight 9216" in text


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "regcmd.bin"
    path.write_bytes(WORDS.astype("<u8").tobytes())
    assert npulab(["npu", "disasm", str(path), "--brief", "--base", "0x1000"]) == 0
    text = capsys.readouterr().out
    assert "task 0: conv 3x3 s1 int8 8x8x32 -> 8x8x32 int8" in text
    assert "at 0x00001000" in text
    assert npulab(["npu", "disasm", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (task,) = document["streams"][0]["tasks"]
    assert document["ok"]
    assert task["problems"] == []
    assert task["registers"]["CNA_DATA_SIZE0"]["fields"] == {"DATAIN_HEIGHT": 8, "DATAIN_WIDTH": 8}
    assert task["cost"]["macs"] == 589824
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert main(["-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["streams"][0]["tasks"][0]["summary"] == task["summary"]


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert npulab(["npu", "disasm", str(tmp_path / "none")]) == 2
    assert "can not be read: No such file" in capsys.readouterr().err
    bad = tmp_path / "bad.bin"
    bad.write_bytes(b"\xff" * 9)
    assert npulab(["npu", "disasm", str(bad)]) == 1
    assert "9 bytes are not a whole number" in capsys.readouterr().err
    assert npulab(["npu", "disasm", str(bad), "--base", "-4"]) == 2
    assert "not an address below 2^32" in capsys.readouterr().err


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "regcmd.bin"
    path.write_bytes(WORDS.astype("<u8").tobytes() * 200)
    command = [sys.executable, "-m", "rknpu_userspace", "disasm", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"task 0")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
    process.stderr.close()


def test_the_commands_of_a_program() -> None:
    import rknpu_userspace
    from rknpu_userspace import Conv2d
    from rknpu_userspace.isa.streams import of_program

    w = np.ones((32, 3, 3, 32), np.int8)
    with (
        rknpu_userspace.open("model", cores=2) as npu,
        npu.compile(Conv2d(w, (1, 150, 150, 32), padding=1)) as program,
    ):
        rows = program.commands()
        assert len(rows) == program.tasks
        text = json.dumps(of_program(program))
        found = [listing(stream) for stream in parse(text.encode(), "program")]
    assert len(found) == program.jobs
    tasks = [task for one in found for task in one.tasks]
    assert len(tasks) == program.tasks
    assert all(task.problems == [] for task in tasks)
    assert all(one.base is not None for one in found)
    assert any("tile 1/" in task.summary for task in tasks)


def test_the_commands_of_a_graph_and_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rknpu_userspace.graph import Graph
    from rknpu_userspace.graph.file import save

    graph = Graph()
    x = graph.input("x", (1, 8, 8, 16), scale=0.02, zero_point=3)
    weights = np.ones((32, 3, 3, 16), np.int8)
    graph.output(graph.conv2d(x, weights, w_scale=0.01, scale=0.05, zero_point=0, padding=1))
    path = tmp_path / "program.npz"
    save(graph, path)
    assert npulab(["npu", "disasm", str(path), "--brief"]) == 0
    assert "conv 3x3 s1 int8 8x8x16 -> 8x8x32 int8" in capsys.readouterr().out
    for name in ("none.npz", "none.tflite"):
        assert npulab(["npu", "disasm", str(tmp_path / name)]) == 2
        assert "can not be read" in capsys.readouterr().err
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK nonsense")
    assert npulab(["npu", "disasm", str(bad)]) == 1
    assert str(bad) in capsys.readouterr().err
