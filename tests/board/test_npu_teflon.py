# SPDX-License-Identifier: MIT
"""Another client of the same driver: Mesa's rocket driver behind its Teflon delegate runs models on the NPU.

The register commands are Mesa's, the tensors TensorFlow Lite's, the reference TensorFlow Lite's processor kernels:
nothing of the kit takes part but the board. A board that brings Mesa's delegate and a TensorFlow Lite runtime of its
own is tested with these; any other gets them copied for the test (`lab.assemble.teflon`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from on_board import PLACE, Board
from tflite_models import CASES, Case

from lab.assemble import teflon
from lab.cache import Cache
from lab.output import Output

pytestmark = [pytest.mark.lg_feature(["npu", "ssh"]), pytest.mark.timeout(900)]
"""The first test of a cold cache downloads the delegate and the runtime (16 MB)."""

OWN_DELEGATE = "/usr/lib/teflon/libteflon.so"
"""Where Debian and OpenEmbedded install Mesa's."""
SECONDS = 300.0

Rows = dict[str, dict[str, Any]]


def _delegate(board: Board) -> tuple[str, str]:
    """Path of the delegate on the board, and the variables that its processes need."""
    if board.exists(OWN_DELEGATE) and board.run("python3 -c 'import ai_edge_litert.interpreter'")[1] == 0:
        return OWN_DELEGATE, ""
    version = board.output("python3 -c 'import sys; print(*sys.version_info[:2], sep=chr(46))'")
    board.put(teflon.archive(version, Cache(), Output()), f"{PLACE}/teflon.tar.gz")
    board.output(f"cd {PLACE} && tar -xzf teflon.tar.gz && rm teflon.tar.gz")
    place = f"{PLACE}/{teflon.FOLDER}"
    return f"{place}/lib/libteflon.so", f"LD_LIBRARY_PATH={place}/lib PYTHONPATH={place}/python"


@pytest.fixture(scope="module")
def rows(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """All models in one process: starting the runtime takes longer than any of them."""
    delegate, variables = _delegate(board)
    models = tmp_path_factory.mktemp("models")
    for case in CASES:
        (models / f"{case.name}.tflite").write_bytes(case.build())
    board.put(models, f"{PLACE}/models")
    board.push_scripts()
    lines, code = board.run(f"{variables} python3 {PLACE}/teflon.py {delegate} {PLACE}/models 2>&1", SECONDS)
    assert code == 0 and lines, f"teflon.py ended with {code}:\n" + "\n".join(lines)
    return {row["name"]: row for row in json.loads(lines[-1])}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_model_agrees_with_the_processor(
    rows: Rows, case: Case, numerics: Callable[..., None], measure: Callable[..., None]
) -> None:
    row = rows[case.name]
    numerics(f"Teflon {case.name}", "uint8", row["max_error"], None, row["different"], row["elements"])
    measure("Teflon, one invocation", row["seconds"], "s", model=case.name, tasks=row["tasks"])
    assert row["delegated"], "the delegate took nothing of the model"
    assert row["tasks"] >= max(case.convolutions, case.tasks), "the NPU did not run what was delegated"
    assert row["spread"] > 5, "a result that hardly varies proves nothing"
    assert row["again"], "the second run of the same data gave another result"
    assert row["max_error_inside"] <= 1, row
    if not case.interior:
        assert row["max_error"] <= 1, row
        assert row["off_by_one"] <= case.off_by_one, row
