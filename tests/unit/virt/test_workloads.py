# SPDX-License-Identifier: MIT
"""Joining the board's rows with the model's counts, and the picture of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import KitError
from lab.virt.roofline import bandwidth_gbytes, draw, peak_gops, point
from lab.virt.workloads import attribute, count, documents, parse_rows, read_stats

ROWS = [
    {"name": "matmul", "dtype": "int8", "ok": True, "jobs": 1, "tasks": 2},
    {"name": "conv", "dtype": "fp16", "ok": True, "jobs": 3, "tasks": 1},
]


def line(core: int, ns: int, macs: int = 1000, outcome: str = "done") -> dict[str, object]:
    return {"core": core, "ns": ns, "macs": macs, "outcome": outcome, "dma_bytes": {"feature": 10, "wdma": 5}}


def test_each_workload_gets_its_tasks_in_order() -> None:
    counts = attribute(ROWS, [line(0, 2000), line(1, 3000), line(2, 700, 5)])
    assert counts is not None
    first, second = counts
    assert (first.tasks, first.macs, first.bytes, first.cores) == (2, 2000, 30, (0, 1))
    assert first.npu_us == pytest.approx(3.0)
    assert first.busy_us == pytest.approx(5.0)
    assert (second.tasks, second.macs, second.npu_us) == (1, 5, pytest.approx(0.7))


@pytest.mark.parametrize("tasks", [0, 2, 4])
def test_totals_that_differ_attribute_nothing(tasks: int) -> None:
    assert attribute(ROWS, [line(0, 1)] * tasks) is None


def test_documents_keep_the_rows_and_add_figures() -> None:
    counts = attribute(ROWS, [line(0, 2000), line(0, 3000), line(2, 700)])
    found = documents(ROWS, counts)
    assert found[0] | {"name": "matmul", "ok": True, "npu_us": 5.0, "dma_bytes": 30, "ran_on": [0]} == found[0]
    assert "npu_us" not in documents(ROWS, None)[0]


def test_outcomes_are_counted() -> None:
    assert count([line(0, 1), line(0, 1, outcome="hang")]).outcomes == {"done": 1, "hang": 1}


def test_rows_stand_among_other_words() -> None:
    lines = ["[   12.3] random: crng init done", '{"name": "a", "ok": true}', '{"summary": 1}', "ok"]
    assert parse_rows(lines) == [{"name": "a", "ok": True}]


def test_a_broken_row_is_an_error() -> None:
    with pytest.raises(KitError, match="broken line"):
        parse_rows(['{"name": "a", "o[  3.1] usb: disconnect'])


def test_statistics_of_a_model_that_never_ran(tmp_path: Path) -> None:
    assert read_stats(tmp_path / "none.jsonl") == []


def test_roofs() -> None:
    # TRM ch. 36.1: 1024 int8 multiply-accumulates per cycle and core
    assert peak_gops("int8", 1) == pytest.approx(409.6)
    assert peak_gops("float16", 3) == pytest.approx(614.4)
    assert bandwidth_gbytes(1) == pytest.approx(3.2)


def test_point() -> None:
    assert point({"macs": 1000, "dma_bytes": 500, "npu_us": 2.0}) == (4.0, 1.0)
    assert point({"name": "no figures"}) is None


def test_picture(tmp_path: Path) -> None:
    path = tmp_path / "roofline.png"
    rows = [{"name": "a", "dtype": "int8", "macs": 10**6, "dma_bytes": 5000, "npu_us": 20.0}, {"name": "b"}]
    draw(rows, "title", path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [path]
