# SPDX-License-Identifier: MIT
"""Latency of a small job: ``python3 -m rknpu_userspace.jobloop --jobs 1000`` times a 64x64x64 int8 matmul.

Prints one JSON document: mean and percentiles of the time of a whole call (pack, submit, wait, read), microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

SIZE = 64
EXIT_OK, EXIT_FAILED, EXIT_NO_DEVICE = 0, 1, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="rknpu-jobloop", description="Time a small NPU job.")
    parser.add_argument("--device", default="/dev/accel/accel0", help='device node, or "model"')
    parser.add_argument("--jobs", type=int, default=1000, help="how many to run")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    import numpy as np

    from .device import open_device
    from .errors import DeviceError, JobError
    from .ops.matmul import Matmul

    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (SIZE, SIZE), dtype=np.int8)
    b = rng.integers(-128, 128, (SIZE, SIZE), dtype=np.int8)
    expected = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)
    out = np.empty((SIZE, SIZE), np.int32)
    times = np.empty(options.jobs)
    ok = True
    try:
        with open_device(options.device) as device, device.compile(Matmul(b, SIZE)) as program:
            begin = time.perf_counter()
            for index in range(options.jobs):
                out[0, 0] = expected[0, 0] ^ 1
                start = time.perf_counter()
                program(a, out=out)
                times[index] = time.perf_counter() - start
                ok = ok and bool(np.array_equal(out, expected))
            seconds = time.perf_counter() - begin
    except (DeviceError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, JobError) else EXIT_NO_DEVICE
    micro = times * 1e6
    figures = {f"p{rank}_us": round(float(np.percentile(micro, rank)), 1) for rank in (50, 90, 99)}
    row = {
        "name": f"int8 matmul {SIZE}x{SIZE}x{SIZE}",
        "device": options.device,
        "jobs": options.jobs,
        "ok": ok,
        "mean_us": round(float(micro.mean()), 1),
        "min_us": round(float(micro.min()), 1),
        **figures,
        "max_us": round(float(micro.max()), 1),
        "seconds": round(seconds, 3),
    }
    print(json.dumps(row), flush=True)
    return EXIT_OK if ok else EXIT_FAILED


if __name__ == "__main__":
    from rknpu_userspace.console import quietly

    sys.exit(quietly(main))
