# SPDX-License-Identifier: MIT
"""Self-test of an NPU: ``python3 -m rknpu_userspace.selftest --device /dev/accel/accel0 --json``.

Each workload is computed on the NPU and in numpy, in this process, from a fixed seed, and one line is printed for it.
Integers must be equal. Floats are compared with a float64 reference, in units in the last place of the sum of the
absolute terms (what an accumulation in the output format works with); ``exact`` says that they equal the reference
after one rounding. ``--trials`` runs a small instance of every operation in every format instead (``ops.table``), which
are named OPERATION-FORMAT; their ``distance`` is in units of what the table states.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .formats import SUM_ULP

if TYPE_CHECKING:
    from .device import Device

SEED = 20240229
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_DEVICE = 0, 1, 2, 4


@dataclass(frozen=True)
class Workload:
    """A named computation. ``shape`` is (M, K, N), or (H, W, C, OC, K, stride, padding) of a convolution."""

    name: str
    dtype: str
    kind: str
    shape: tuple[int, ...]
    out: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        if self.kind == "matmul":
            rows, inner, columns = self.shape
            return rows * inner * columns
        height, width, channels, outputs, kernel, stride, padding = self.shape
        out_height = (height + 2 * padding - kernel) // stride + 1
        out_width = (width + 2 * padding - kernel) // stride + 1
        return out_height * out_width * outputs * kernel * kernel * channels


_QUANTISED = (("bias", True), ("relu", True), ("scale", 0.0007), ("out_zero_point", -11), ("x_zero_point", 4))
WORKLOADS: tuple[Workload, ...] = (
    Workload("int8-matmul", "int8", "matmul", (64, 64, 64), "int32"),
    Workload("int8-matmul-large", "int8", "matmul", (192, 2304, 256), "int32"),
    Workload("int8-matmul-quantised", "int8", "matmul", (61, 200, 75), "int8", _QUANTISED[:4]),
    Workload("fp16-matmul", "float16", "matmul", (64, 64, 64), "float32"),
    Workload("fp16-matmul-large", "float16", "matmul", (160, 1536, 192), "float16"),
    Workload("int8-conv3x3-stride2", "int8", "conv", (57, 57, 32, 64, 3, 2, 1), "int8", _QUANTISED),
    Workload("int8-conv1x1", "int8", "conv", (28, 28, 128, 128, 1, 1, 0), "int32"),
    Workload("int8-conv5x5-padded", "int8", "conv", (33, 31, 24, 40, 5, 1, 2), "int8", _QUANTISED),
    Workload("fp16-conv3x3-stride2", "float16", "conv", (57, 57, 32, 48, 3, 2, 1), "float16", (("relu", True),)),
    Workload("fp16-conv1x1", "float16", "conv", (28, 28, 128, 64, 1, 1, 0), "float32"),
    Workload("fp16-conv5x5-padded", "float16", "conv", (33, 31, 24, 24, 5, 1, 2), "float32", (("bias", True),)),
)


def _data(workload: Workload) -> tuple[Any, Any, dict[str, Any]]:
    """Operands and options, from the seed and the name."""
    import numpy as np

    rng = np.random.default_rng([SEED, *workload.name.encode()])

    def tensor(shape: tuple[int, ...]) -> Any:
        if workload.dtype == "int8":
            return rng.integers(-128, 128, shape, dtype=np.int8)
        return rng.uniform(-1, 1, shape).astype(np.float16)

    if workload.kind == "matmul":
        rows, inner, columns = workload.shape
        left, right = tensor((rows, inner)), tensor((inner, columns))
    else:
        height, width, channels, columns, kernel, _, _ = workload.shape
        left, right = tensor((1, height, width, channels)), tensor((columns, kernel, kernel, channels))
    options = dict(workload.options)
    if options.pop("bias", False):
        integer = workload.dtype == "int8"
        options["bias"] = rng.integers(-5000, 5000, columns) if integer else rng.uniform(-4, 4, columns).astype("f4")
    return left, right, options


def _reference(workload: Workload, left: Any, right: Any, options: dict[str, Any]) -> Any:
    from .ops import reference
    from .quant import derive

    options = dict(options)
    if workload.out == "int8":
        options["requant"] = derive(options.pop("scale"), options.pop("out_zero_point"))
    options["out_dtype"] = "float64" if workload.dtype == "float16" else workload.out
    if workload.kind == "matmul":
        return reference.matmul(left, right, **options)
    stride, padding = workload.shape[-2:]
    return reference.conv2d(left, right, stride=(stride, stride), padding=(padding,) * 4, **options)


def _compare(workload: Workload, result: Any, left: Any, right: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Error statistics: ``exact`` (equal to the reference after one rounding), greatest distance in units in the last
    place, greatest absolute error, elements that are not the rounded reference, elements."""
    import numpy as np

    from .ops.reference import ulp_distance_to

    expected = _reference(workload, left, right, options)
    wrong = int(np.count_nonzero(result != expected.astype(result.dtype)))
    distance = float(wrong)
    if workload.dtype != "int8":
        positive = {**options, "bias": np.abs(options["bias"])} if "bias" in options else options
        magnitude = _reference(workload, np.abs(left), np.abs(right), positive)
        distance = ulp_distance_to(result, expected, magnitude)
    error = float(np.max(np.abs(result.astype(np.float64) - expected.astype(np.float64))))
    return {
        "exact": wrong == 0,
        "max_ulp": round(distance, 3),
        "max_abs": error,
        "mismatches": wrong,
        "elements": int(result.size),
    }


def _compile(device: Device, workload: Workload, left: Any, right: Any, options: dict[str, Any]) -> Any:
    if workload.kind == "matmul":
        from .ops.matmul import Matmul

        zero_points = {"a_zero_point": options["x_zero_point"]} if "x_zero_point" in options else {}
        kept = {name: value for name, value in options.items() if name != "x_zero_point"}
        return device.compile(Matmul(right, left.shape[0], out_dtype=workload.out, **kept, **zero_points))
    from .ops.conv2d import Conv2d

    stride, padding = workload.shape[-2:]
    operation = Conv2d(right, left.shape, stride=stride, padding=padding, out_dtype=workload.out, **options)
    return device.compile(operation)


def run(device: Device, workload: Workload) -> dict[str, Any]:
    """Run one workload; the row that is printed for it. Raises JobError when a job fails."""
    begin = time.perf_counter()
    left, right, options = _data(workload)
    with _compile(device, workload, left, right, options) as program:
        result = program(left)
        npu_seconds, jobs, tasks, moved = program.last.npu_seconds, program.jobs, program.tasks, program.dma_bytes
    found = _compare(workload, result, left, right, options)
    ok = found["exact"] if workload.dtype == "int8" else found["max_ulp"] <= SUM_ULP[workload.out]
    return {
        "name": workload.name,
        "dtype": workload.dtype,
        "out": workload.out,
        "shape": list(workload.shape),
        "cores": device.cores,
        "ok": ok,
        **found,
        "jobs": jobs,
        "tasks": tasks,
        "macs": workload.macs,
        "planned_dma_bytes": moved,
        "npu_seconds": round(npu_seconds, 6),
        "seconds": round(time.perf_counter() - begin, 6),
    }


def trial_names() -> dict[str, tuple[str, str]]:
    """Operation and format of every trial, by its name."""
    from .ops.table import TABLE

    return {f"{row.name}-{dtype}": (row.name, dtype) for row in TABLE for dtype in row.cells}


def run_trial(device: Device, name: str) -> dict[str, Any]:
    """Run one trial; the row that is printed for it. Raises JobError when a job fails."""
    import numpy as np

    from .calls import Calls
    from .trials import Sizes, trial

    class Recorder(Calls):
        """The device, and the programs that a call makes on it."""

        def compile(self, operation: Any, *, cores: int | None = None, core: int | None = None) -> Any:
            """Keep the program: its costs outlive its buffers."""
            programs.append(device.compile(operation, cores=cores, core=core))
            return programs[-1]

    programs: list[Any] = []
    begin = time.perf_counter()
    operation, dtype = trial_names()[name]
    chosen = trial(operation, dtype, Sizes(), np.random.default_rng([SEED, *name.encode()]))
    verdict = chosen.judge(chosen.call(Recorder()))
    return {
        "name": name,
        "operation": operation,
        "dtype": dtype,
        "cores": device.cores,
        "ok": verdict.ok,
        "exact": verdict.exact,
        "distance": round(verdict.distance, 3),
        "jobs": sum(program.last.jobs for program in programs),
        "tasks": sum(program.last.tasks for program in programs),
        "npu_seconds": round(sum(program.last.npu_seconds for program in programs), 6),
        "seconds": round(time.perf_counter() - begin, 6),
    }


def _text(row: dict[str, Any]) -> str:
    result = "exact"
    if not row["exact"] and "distance" in row:
        result = f"{row['distance']:g} of what is stated"
    elif not row["exact"] and "max_ulp" in row:
        result = f"max {row['max_ulp']:g} ulp"
    if "error" in row:
        result = row["error"]
    return f"{'ok' if row['ok'] else 'FAIL':4} {row['name']:24} {row['dtype']:8} {result}"


def _failed(name: str, dtype: str, error: Exception) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "ok": False, "exact": False, "error": str(error)}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rknpu-selftest", description="Compare the NPU with numpy.")
    parser.add_argument("--device", default="/dev/accel/accel0", help='device node, or "model"')
    parser.add_argument("--cores", type=int, default=3, choices=(1, 2, 3), help="cores to split every workload over")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run this workload (repeatable)")
    parser.add_argument("--trials", action="store_true", help="every operation in every format, small")
    parser.add_argument("--list", action="store_true", help="print the names of the workloads and end")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    options = parser.parse_args(arguments)
    names = set(trial_names()) if options.trials else {workload.name for workload in WORKLOADS}
    options.only = [name for group in options.only for name in group.split(",")]
    for name in options.only:
        if name not in names:
            parser.error(f"no workload {name!r}; --list prints the names")
    return options


def _chosen(options: argparse.Namespace) -> list[tuple[str, str, Callable[[Device], dict[str, Any]]]]:
    """Name, format and what to call of everything to be run."""
    if options.trials:
        rows = [(name, dtype, partial(run_trial, name=name)) for name, (_, dtype) in trial_names().items()]
    else:
        rows = [(workload.name, workload.dtype, partial(run, workload=workload)) for workload in WORKLOADS]
    return [row for row in rows if not options.only or row[0] in options.only]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    options = _parse(arguments)
    show: Callable[[dict[str, Any]], str] = json.dumps if options.json else _text
    chosen = _chosen(options)
    if options.list:
        for name, dtype, _ in chosen:
            print(json.dumps({"name": name, "dtype": dtype}) if options.json else name)
        return EXIT_OK
    from .device import open_device
    from .errors import DeviceError, JobError

    all_ok = True
    try:
        with open_device(options.device, cores=options.cores) as device:
            for name, dtype, run_it in chosen:
                try:
                    row = run_it(device)
                except JobError as error:
                    row = _failed(name, dtype, error)
                all_ok = all_ok and bool(row["ok"])
                print(show(row), flush=True)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NO_DEVICE
    return EXIT_OK if all_ok else EXIT_FAILED


if __name__ == "__main__":
    from rknpu_userspace.console import quietly

    sys.exit(quietly(main))
