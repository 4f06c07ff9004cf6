# SPDX-License-Identifier: MIT
"""Activations on the model: the DPU's stages bit for bit, the look-up table within the stated errors."""

from __future__ import annotations

import numpy as np
import pytest

from rknpu_userspace.device import Device
from rknpu_userspace.ops.activation import KINDS, MAX_ERROR, TABLES, Activation, reference


@pytest.mark.parametrize("kind", sorted(MAX_ERROR))
def test_table_error(npu: Device, kind: str) -> None:
    x = np.linspace(-16, 0 if kind == "exp" else 16, 30011).astype(np.float16)
    with npu.compile(Activation(kind, x.shape)) as program:
        y = program(x)
    assert y.dtype == np.float16
    assert np.abs(y - reference(kind, x)).max() <= MAX_ERROR[kind]


@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky_relu"])
def test_exact(npu: Device, kind: str) -> None:
    x = np.random.default_rng(1).normal(size=(5, 7, 33)).astype(np.float16) * 5
    slope = float(np.float16(0.1))
    with npu.compile(Activation(kind, x.shape, slope=slope), cores=2) as program:
        assert np.array_equal(program(x), reference(kind, x, slope).astype(np.float16))


@pytest.mark.parametrize("name", sorted(TABLES))
def test_no_entry_decodes_to_zero(name: str) -> None:
    """Entry + 1 is never 0: the hardware would give 4 for it."""
    for upper in (False, True):
        entries = TABLES[name].entries(upper)
        assert len(entries) == 513
        assert entries.min() >= 0
        assert entries.max() <= 32767


def test_program_runs_again_and_reports(npu: Device) -> None:
    x = np.linspace(-3, 3, 100).astype(np.float16)
    with npu.compile(Activation("silu", x.shape), cores=1) as program:
        first = program(x)
        assert np.array_equal(program(x), first)
        assert program.last.tasks == 2


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=f"not one of {', '.join(KINDS)}"):
        Activation("swoosh", (3,))
    with pytest.raises(ValueError, match="empty tensor"):
        Activation("relu", (0, 3))
    with pytest.raises(ValueError, match="not a finite float16"):
        Activation("leaky_relu", (3,), slope=float("inf"))
