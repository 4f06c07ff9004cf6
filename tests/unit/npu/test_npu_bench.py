# SPDX-License-Identifier: MIT
"""``npulab npu bench``: networks that are what they claim, goals of the planner, bounds that hold, the picture."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import pytest

from lab.cli import main
from lab.npu import figures, speed
from lab.npu.layers import cost, geometric_mean, network_costs
from lab.npu.networks import CNN, MATMUL, NETWORKS
from rknpu_userspace.plan import Problem, make_plan
from rknpu_userspace.plan.bound import least_bytes


@pytest.mark.parametrize(
    ("name", "layers", "mmacs"),
    [
        ("mobilenet-v1", 28, 568.7),
        ("mobilenet-v2", 53, 300.8),
        ("resnet-50", 54, 4089.2),
        ("qwen-prefill-128", 7, 5989.5),
        ("qwen-decode", 8, 280.2),
    ],
)
def test_networks_have_their_published_size(name: str, layers: int, mmacs: float) -> None:
    found = list(NETWORKS[name]())
    assert len(found) == layers
    assert sum(layer.problem.macs for layer in found) / 1e6 == pytest.approx(mmacs, abs=0.05)


def test_layers_of_the_cnns_fit_each_other() -> None:
    """Each plain layer takes what the one before gives; shortcuts and the pooling in between aside."""
    for name in ("mobilenet-v1", "mobilenet-v2"):
        layers = list(NETWORKS[name]())[:-1]
        for before, layer in itertools.pairwise(layers):
            sides = (before.problem.out_height, before.problem.out_width, before.problem.out_channels)
            assert sides == (layer.problem.height, layer.problem.width, layer.problem.channels), layer.name


def test_goals_of_the_planner() -> None:
    """1.25 x the lower bound for the layers of the CNNs, 1.6 x for the matmuls of the prefills."""
    costs = network_costs((*CNN, *MATMUL))
    assert geometric_mean(row.ratio for name in CNN for row in costs[name]) <= 1.25
    assert geometric_mean(row.ratio for name in MATMUL for row in costs[name]) <= 1.6
    for rows in costs.values():
        assert geometric_mean(row.dma_bytes / row.least_bytes for row in rows) <= 1.25
        for row in rows:
            assert row.dma_bytes >= row.least_bytes >= row.bound_bytes
            assert 0 < row.utilisation <= 1


def test_no_plan_beats_the_least() -> None:
    for rows in (1, 60, 200, 512, 900):
        for inner, outputs in ((300, 4000), (1536, 256), (1536, 1536), (5000, 700), (9000, 64)):
            for form in ("int8", "float16"):
                problem = Problem.matmul(form, form, rows, inner, outputs)
                plan = make_plan(problem)
                least = least_bytes(problem)
                assert problem.bound_bytes(1) <= least <= plan.dma_bytes, (form, rows, inner, outputs)


def test_least_by_hand() -> None:
    """300 x 1536 features in tiles beside a kernel group of 48 KiB: two, between which a turn keeps what fits."""
    problem = Problem.matmul("int8", "int8", 300, 1536, 20000)
    features, weights, cbuf, group = 300 * 1536, 1536 * 20000, 384 * 1024, 32 * 1536
    kept = 2 * cbuf - features - group
    assert least_bytes(problem) == features + 2 * weights - kept + 300 * 20000


def test_cores_share_the_work() -> None:
    layer = next(layer for layer in NETWORKS["resnet-50"]() if layer.name == "4.2 3x3")
    one, three = cost("resnet-50", layer), cost("resnet-50", layer, 3)
    assert three.cycles < 0.5 * one.cycles
    assert three.macs == one.macs


def test_figures_of_the_plans() -> None:
    """One row per network but the long prefill, which stands against what the CBUF allows; both goals."""
    rows = figures.plans()
    assert len(rows) == len(NETWORKS) + 2
    assert [row.name for row in rows if not row.ok] == []


def test_speeds_are_measured() -> None:
    """Every ratio of the host's costs; how good they are is for `npulab bench npu` on a quiet machine."""
    rows = {row.name: row.value for row in speed.host(1)}
    assert len(rows) == 6
    assert min(rows.values()) > 0
    assert rows["extra host memory, of the operands"] <= figures.MEMORY_GOAL


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "layers.png"
    code = main(["npu", "bench", "--json", "--network", "mobilenet-v1", "--plot", str(picture)])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["ok"]
    assert [row["network"] for row in document["networks"]] == ["mobilenet-v1"]
    assert len(document["layers"]) == 28
    assert document["networks"][0]["tasks"] == sum(row["tasks"] for row in document["layers"])
    assert png_size(picture)[0] >= 1000
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]


def test_tables_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/npu.md shows is what the command prints today."""
    page = (Path(__file__).parents[3] / "docs" / "npu.md").read_text()
    section = page.split("## What layers cost", 1)[1].split("### Figures", 1)[0]
    shown = [line for line in section.splitlines() if line.startswith("│")]
    assert main(["npu", "bench"]) == 0
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert len(shown) == len(NETWORKS) + 7
    assert [line for line in shown if line not in printed] == []


def test_picture_in_a_place_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "none" / "layers.png"
    assert main(["npu", "bench", "--network", "qwen-decode", "--plot", str(picture)]) == 1
    assert "can not be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "alexnet"], "there is no network 'alexnet'"),
        (["--network", "mobilenet-v1", "--plot", "x.pdf"], "--plot writes PNG, not x.pdf"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["npu", "bench", *arguments]) == 2
    assert message in capsys.readouterr().err
