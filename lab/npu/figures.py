# SPDX-License-Identifier: MIT
"""The figures of planner, host side and model: how each is measured, and what it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable

from lab.errors import ExitCode, KitError
from lab.figures import Figure
from lab.npu.layers import geometric_mean, network_costs
from lab.npu.networks import CNN, MATMUL, NETWORKS
from lab.output import Output
from lab.process import end
from lab.virt.supervisor import python_environment

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_ROUNDS, _QUICK_ROUNDS = 9, 4
_TIMEOUT = 900.0
MATMUL_GOAL, CONV_GOAL = 0.25, 0.1
BYTES_CNN, BYTES_MATMUL = 1.25, 1.6
COPY_GOAL, COMMAND_GOAL, MEMORY_GOAL = 0.5, 100.0, 1.0


def measure_npu(out: Output, *, quick: bool) -> list[Figure]:
    """The planner's bytes and the host's costs."""
    with out.stage("plans"):
        figures = plans()
    with out.stage("packing, commands, memory"):
        rows = _speed("host", quick)
    for name, (value, note) in rows.items():
        if name.endswith("of memcpy"):
            figures.append(Figure(name, value, "x", COPY_GOAL, "npulab bench npu", at_least=True, note=note))
        elif name.startswith("command"):
            figures.append(Figure(name, value, "us", COMMAND_GOAL, "npulab bench npu", note=note))
        else:
            figures.append(Figure(name, value, "x", MEMORY_GOAL, "npulab bench npu", note=note))
    return figures


def measure_model(out: Output, *, quick: bool) -> list[Figure]:
    """The model's throughput, of a float32 BLAS matmul of the same multiply-accumulates."""
    with out.stage("model against BLAS"):
        rows = _speed("model", quick)
    return [
        Figure(
            f"{name}, of BLAS with 1 thread",
            value,
            "x",
            CONV_GOAL if "conv" in name else MATMUL_GOAL,
            "npulab bench model",
            at_least=True,
            note=note,
        )
        for name, (value, note) in rows.items()
    ]


def plans() -> list[Figure]:
    """Geometric means of DMA bytes by the lower bound, of every network and of both kinds together.

    The long prefill does not fit the CBUF: it stands against what that allows.
    """
    costs = network_costs(tuple(NETWORKS))
    long = MATMUL[-1]
    command = "npulab npu bench"

    def mean(names: Iterable[str]) -> float:
        return geometric_mean(row.ratio for name in names for row in costs[name])

    least = geometric_mean(row.dma_bytes / row.least_bytes for row in costs[long])
    note = f"by the lower bound {mean([long]):.2f}, of which the CBUF allows {mean([long]) / least:.2f}"
    alone = [
        Figure(
            f"DMA bytes by lower bound, {name}", mean([name]), "x", BYTES_CNN if name in CNN else BYTES_MATMUL, command
        )
        for name in costs
        if name != long
    ]
    return [
        Figure("DMA bytes by lower bound, CNN layers", mean(CNN), "x", BYTES_CNN, command),
        Figure("DMA bytes by lower bound, prefill matmuls", mean(MATMUL), "x", BYTES_MATMUL, command),
        *alone,
        Figure(f"DMA bytes by what the CBUF allows, {long}", least, "x", BYTES_CNN, command, note=note),
    ]


def _speed(area: str, quick: bool) -> dict[str, tuple[float, str]]:
    """Run ``lab.npu.speed`` with one BLAS thread; value and note by name."""
    command = [sys.executable, "-m", "lab.npu.speed", area, str(_QUICK_ROUNDS if quick else _ROUNDS)]
    environment = {**os.environ, **python_environment(), **dict.fromkeys(_BLAS_THREADS, "1")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise KitError(
            ExitCode.FAILED, f"measuring did not end within {_TIMEOUT:.0f} s", "is the machine busy?"
        ) from None
    finally:
        end(process, grace=5.0)
    if process.returncode:
        raise KitError(
            ExitCode.FAILED, f"measuring ended with {process.returncode}", tail=errors.decode(errors="replace")[-2000:]
        )
    return {row["name"]: (float(row["value"]), str(row["note"])) for row in json.loads(printed)}
