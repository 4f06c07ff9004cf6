# SPDX-License-Identifier: MIT
"""Speed of the library's host side and of the model, as ratios measured in one run: ``python -m lab.npu.speed AREA``.

A process of its own, because the number of BLAS threads is settled when numpy is loaded: ``lab.npu.figures`` starts it
with one thread for everything. Times are CPU seconds, the least of several interleaved runs, so that what else runs on
the machine counts little. Prints one JSON list of rows.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.npu.layers import geometric_mean
from lab.npu.networks import CNN, MATMUL, NETWORKS
from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend.model import ModelContext
from rknpu_userspace.ops.convolution import ConvPart, Weights, build
from rknpu_userspace.plan import Problem, make_plan, split
from rknpu_userspace.plan.tasks import Places, Post, tasks

Array = npt.NDArray[Any]
Call = Callable[[], object]
MATMUL_SHAPE = (512, 3840, 4096)
CONV_SIZE, CONV_CHANNELS = 56, 256
FEATURES = ((112, 64), (56, 64), (56, 256), (28, 128), (28, 512), (14, 1024), (7, 2048))
"""Side and channels of what lies between ResNet-50's layers, 100 kB and more; below, the call itself takes its time."""
ROWS = ((128, 1536), (512, 1536), (128, 8960), (512, 8960))
"""Operands of Qwen2.5-1.5B's prefill matmuls."""


@dataclass(frozen=True)
class Row:
    """A measured value."""

    name: str
    value: float
    note: str = ""


def cpu_seconds(calls: Sequence[Call], rounds: int) -> list[float]:
    """The least CPU time of each call, taken in turns."""
    least = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            begin = time.process_time()
            call()
            least[index] = min(least[index], time.process_time() - begin)
    return least


def repeated(call: Call, times: int) -> Call:
    """The call several times over: the clock of CPU time is coarse."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def model(rounds: int) -> list[Row]:
    """Throughput of the model, from the command words to the result, against a float32 matmul of as many products."""
    rows, inner, columns = MATMUL_SHAPE
    side, channels = CONV_SIZE, CONV_CHANNELS
    found = []
    for form, out in (("int8", "int32"), ("float16", "float32")):
        conv = Problem(form, out, side, side, channels, channels, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, lines_in=True)
        for name, problem, size in (
            (f"matmul {rows}x{inner}x{columns}", Problem.matmul(form, out, *MATMUL_SHAPE), MATMUL_SHAPE),
            (f"conv 3x3 {channels} to {channels} at {side}x{side}", conv, (side * side, 9 * channels, channels)),
        ):
            unit = _packed_unit(problem)
            a, b = np.ones(size[:2], np.float32), np.ones(size[1:], np.float32)
            blas, npu = cpu_seconds([partial(np.matmul, a, b), unit.start], rounds)
            unit.wait(0)
            unit.close()
            note = f"BLAS {2 * np.prod(size) / blas / 1e9:.0f} GFLOP/s with one thread"
            found.append(Row(f"model, {form} {name}", blas / npu, note))
    return found


def _packed_unit(problem: Problem) -> ConvPart:
    """The problem on one core of the model, with operands of an ordinary size in place."""
    rng = np.random.default_rng(1)

    def numbers(*shape: int) -> Array:
        if problem.form == "int8":
            return rng.integers(-128, 128, shape, dtype=np.int8)
        return rng.standard_normal(shape, np.float32).astype(np.float16)

    kernels = numbers(problem.out_channels, problem.kernel_height, problem.kernel_width, problem.channels)
    parts = split(problem, 1, 1)
    (unit,) = build([ModelContext(0)], parts, Weights(kernels, None, Post()), "speed")
    unit.pack(numbers(1, problem.height, problem.width, problem.channels))
    return unit


def _against_memcpy(moves: Sequence[tuple[int, Call]], rounds: int) -> float:
    """Geometric mean of copying speed over memcpy's; each move is its bytes and the call."""
    ratios = []
    for size, move in moves:
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        times = max(1, (8 << 20) // size)
        copy = repeated(partial(np.copyto, target, source), times)
        plain, packed = cpu_seconds([copy, repeated(move, times)], rounds)
        ratios.append(plain / packed)
    return geometric_mean(ratios)


def _rows_moves(pack: bool) -> list[tuple[int, Call]]:
    moves: list[tuple[int, Call]] = []
    for rows, columns in ROWS:
        matrix, memory = np.ones((rows, columns), np.int8), np.ones(rows * columns, np.uint8)
        move = layout.pack_rows if pack else layout.unpack_rows
        moves.append((matrix.nbytes, partial(move, memory, matrix, columns)))
    return moves


def _feature_moves(pack: bool) -> list[tuple[int, Call]]:
    """int8 images are packed line by line; int32 results, which they give by default, come as cubes."""
    moves: list[tuple[int, Call]] = []
    for side, channels in FEATURES:
        image = np.ones((side, side, channels), np.int8 if pack else np.int32)
        memory = np.ones(image.nbytes, np.uint8)
        if pack:
            moves.append((image.nbytes, partial(layout.pack_lines, memory, image)))
        else:
            moves.append((image.nbytes, partial(layout.unpack_cube, memory, image.reshape(side * side, channels))))
    return moves


def host(rounds: int) -> list[Row]:
    """Packing, unpacking, command generation, extra memory."""
    return [
        Row("packing matmul operands, of memcpy", _against_memcpy(_rows_moves(True), rounds)),
        Row("unpacking matmul results, of memcpy", _against_memcpy(_rows_moves(False), rounds)),
        Row("packing features, of memcpy", _against_memcpy(_feature_moves(True), rounds)),
        Row("unpacking features, of memcpy", _against_memcpy(_feature_moves(False), rounds)),
        commands(rounds),
        extra_memory(),
    ]


def commands(rounds: int) -> Row:
    """Microseconds of CPU time per task, from the plans to the command words."""
    plans = [make_plan(layer.problem) for name in (*CNN, *MATMUL) for layer in NETWORKS[name]()]
    count = sum(len(plan.tiles) for plan in plans)

    def generate() -> None:
        for plan in plans:
            places = Places(0x100000, (0x200000,) * len(plan.chunks), 0x300000, 0x400000)
            for task in tasks(plan, Post(bias=not plan.partial), places):
                regcmd.encode(task)

    (least,) = cpu_seconds([repeated(generate, 4)], rounds)
    return Row("command generation per task", least / 4 / count * 1e6, f"{count} tasks of {len(plans)} layers")


def extra_memory() -> Row:
    """Most that compiling, packing and unpacking allocate outside of the buffers, by the bytes of the operands."""
    rows, inner, columns = 512, 1536, 2048
    left, kernels = np.ones((1, rows, 1, inner), np.int8), np.ones((columns, 1, 1, inner), np.int8)
    out = np.zeros((1, rows, 1, columns), np.int32)
    context = ModelContext(0)
    parts = split(Problem.matmul("int8", "int32", rows, inner, columns), 1, 1)
    tracemalloc.start()
    try:
        (unit,) = build([context], parts, Weights(kernels, None, Post()), "matmul")
        unit.pack(left)
        unit.unpack(out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    operands = left.nbytes + kernels.nbytes
    return Row("extra host memory, of the operands", peak / operands, f"operands {operands / 2**20:.1f} MiB")


def main(arguments: Sequence[str]) -> int:
    """``model`` or ``host``, and how many rounds."""
    area, rounds = arguments[0], int(arguments[1])
    rows = model(rounds) if area == "model" else host(rounds)
    print(json.dumps([asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
