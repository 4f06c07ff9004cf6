# SPDX-License-Identifier: MIT
"""Every cell of the table of operations: what is possible against numpy, what is not against its refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rknpu_userspace.device import Device
from rknpu_userspace.ops.table import BY_NAME, DTYPES, TABLE, main, markdown, reason
from rknpu_userspace.trials import TRIALS, Sizes, trial

ABLE = [(row.name, dtype) for row in TABLE for dtype in row.cells]
WITH_FORMAT = ("matmul", "conv2d", "depthwise", "conv1d", "conv_transpose2d", "image", "sum", "mean")
"""Calls that take ``format=``: only they can be asked for int4, which has no dtype of its own."""
UNABLE = [
    (row.name, dtype)
    for row in TABLE
    for dtype in DTYPES
    if dtype not in row.cells and (dtype != "int4" or row.name in WITH_FORMAT)
]
DOCUMENT = Path(__file__).parents[3] / "docs" / "library.md"

channels = st.sampled_from((1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65)) | st.integers(1, 80)
sizes = st.builds(
    Sizes,
    n=st.integers(1, 2),
    h=st.integers(1, 13),
    w=st.integers(1, 13),
    c=channels,
    oc=channels,
    k=st.sampled_from((1, 2, 3, 5)),
    s=st.integers(1, 3),
)


def test_every_row_has_a_trial() -> None:
    assert set(TRIALS) == set(BY_NAME)


@pytest.mark.parametrize(("name", "dtype"), ABLE)
def test_possible(npu: Device, name: str, dtype: str) -> None:
    @settings(max_examples=8, deadline=None)
    @given(size=sizes, seed=st.integers(0, 2**32 - 1))
    def prove(size: Sizes, seed: int) -> None:
        chosen = trial(name, dtype, size, np.random.default_rng(seed))
        verdict = chosen.judge(chosen.call(npu))
        assert verdict.ok, verdict
        if BY_NAME[name].cells[dtype].exact == "exact":
            assert verdict.exact, verdict

    prove()


@pytest.mark.parametrize(("name", "dtype"), [pair for pair in ABLE if pair[1] in ("int8", "float16")])
def test_larger_than_the_cbuf(npu: Device, name: str, dtype: str) -> None:
    """384 KiB hold none of these operands."""
    size = Sizes(h=61, w=127, c=64 if name == "matmul" else 53, oc=33)
    chosen = trial(name, dtype, size, np.random.default_rng(5))
    verdict = chosen.judge(chosen.call(npu))
    assert verdict.ok, verdict


@pytest.mark.parametrize(("name", "dtype"), UNABLE)
def test_not_possible(npu: Device, name: str, dtype: str) -> None:
    """A clear error, and a reason in the table."""
    assert reason(BY_NAME[name], dtype)
    rng = np.random.default_rng(0)
    x = rng.integers(1, 4, (1, 4, 4, 4)).astype("f4" if dtype == "tfloat32" else "u2" if dtype == "bfloat16" else "i1")
    x = x if dtype in ("tfloat32", "bfloat16", "int4") else x.astype(dtype)
    form = dtype if dtype in ("int4", "tfloat32", "bfloat16") else None
    w = x.reshape(4, 4, 4, 1)[:, :1, :1].repeat(4, axis=3) if name != "depthwise" else x.reshape(4, 4, 4, 1)
    with pytest.raises((TypeError, ValueError)) as caught:
        if name in ("conv2d", "conv_transpose2d", "depthwise"):
            groups = {"groups": 4} if name == "depthwise" else {}
            getattr(npu, "conv2d" if groups else name)(x, w, format=form, **groups)
        elif name == "image":
            npu.conv2d(x, w, format=form, image="float16")
        elif name == "conv1d":
            npu.conv1d(x[0], w[:, 0], format=form)
        elif name == "matmul":
            npu.matmul(x, x, format=form)
        elif name in ("sum", "mean"):
            getattr(npu, name)(x, format=form)
        elif name in ("add", "sub", "mul", "max", "min", "div"):
            npu.elementwise(name, x, x)
        elif name in ("max_pool2d", "min_pool2d", "avg_pool2d"):
            getattr(npu, name)(x, 2)
        elif name in ("softmax", "rms_norm", "layer_norm", "global_avg_pool2d"):
            getattr(npu, name)(x)
        elif name == "prelu":
            npu.prelu(x, np.ones(4))
        else:
            npu.activate(name, x)
    assert len(str(caught.value)) > 20


def test_the_command_prints_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == markdown().strip()
    assert markdown() in DOCUMENT.read_text(encoding="utf-8"), "run: python3 -m rknpu_userspace ops"
    assert main(["extra"]) == 2
