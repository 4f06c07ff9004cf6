# SPDX-License-Identifier: MIT
"""Several jobs at a time, prints JSON.

``concurrency.py processes N JOBS | scale ROWS INNER COLUMNS REPEATS | hang | soak SECONDS N | isolation``

Every result is compared with numpy's. Processes are forked after the imports, which take longer than many jobs.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from raw import NODE, Buffer, Device

import rknpu_userspace
from rknpu_userspace.ops.matmul import Matmul

SMALL = (48, 96, 64)
"""Rows, inner size, columns of a job that takes the NPU 30 microseconds: the driver's path is what is tested."""
WINDOWS = 10
START_SECONDS = 120.0
"""How long processes wait for one that does not come to its first job."""


def operands(shape: tuple[int, int, int], seed: int) -> tuple[Any, Any, Any]:
    """Two int8 matrices and their product."""
    rng = np.random.default_rng(seed)
    rows, inner, columns = shape
    a = rng.integers(-128, 128, (rows, inner), dtype=np.int8)
    b = rng.integers(-128, 128, (inner, columns), dtype=np.int8)
    return a, b, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)


def interrupts() -> dict[str, int]:
    """Interrupts since the boot by NPU core's address."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    processors = len(lines[0].split())
    found = {}
    for line in lines:
        words = line.split()
        if words[-1].endswith(".npu"):
            found[words[-1].removesuffix(".npu")] = sum(int(word) for word in words[1 : 1 + processors])
    return found


def gained(before: dict[str, int]) -> dict[str, int]:
    """Interrupts since ``before``."""
    return {core: count - before[core] for core, count in interrupts().items()}


def forked(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(number)`` returned in each of ``count`` processes; None for one that died."""
    pipes = []
    for number in range(count):
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writing, json.dumps(work(number)).encode())
            finally:
                # an error is in the output, and the pipe stays empty
                if sys.exc_info()[0] is not None:
                    traceback.print_exc()
                os._exit(0)
        os.close(writing)
        pipes.append(reading)
    answers: list[Any] = []
    for reading in pipes:
        with os.fdopen(reading) as stream:
            text = stream.read()
        answers.append(json.loads(text) if text else None)
    for _ in range(count):
        os.wait()
    return answers


def jobs(number: int, go_on: Callable[[int], bool]) -> dict[str, Any]:
    """Run jobs of an own matrix until ``go_on(done)``, asked before each, says no; how many, and how many wrong."""
    a, b, wanted = operands(SMALL, number)
    out = np.empty(wanted.shape, np.int32)
    done = wrong = 0
    with rknpu_userspace.open(NODE) as device, device.compile(Matmul(b, SMALL[0])) as program:
        while go_on(done):
            out.fill(-1)
            program(a, out=out)
            wrong += not np.array_equal(out, wanted)
            done += 1
    return {"done": done, "wrong": wrong}


def processes(count: int, each: int) -> dict[str, Any]:
    """``count`` processes, ``each`` jobs in every one, all at the same time."""
    before, started = interrupts(), time.monotonic()
    answers = forked(count, lambda number: jobs(number, lambda done: done < each))
    return {
        "done": [answer and answer["done"] for answer in answers],
        "wrong": [answer and answer["wrong"] for answer in answers],
        "seconds": time.monotonic() - started,
        "interrupts": gained(before),
    }


def scale(rows: int, inner: int, columns: int, repeats: int) -> dict[str, Any]:
    """The same float16 matmul on one, two and three files at once: the shortest time from first start to last end.

    The driver keeps an open file on one core. Operands are packed and results read outside of what is timed; of the
    results all are compared with each other and some rows with numpy's.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, shape).astype(np.float16) for shape in ((rows, inner), (inner, columns)))
    devices = [rknpu_userspace.open(NODE) for _ in range(3)]
    shares = [share for device in devices for share in device.compile(Matmul(b, rows))._shares]
    for share in shares:
        share.unit.pack(*share.source(a))
    seconds, used = {}, {}
    for count in (1, 2, 3):
        times, before = [], interrupts()
        for _ in range(repeats):
            started = time.monotonic()
            for share in shares[:count]:
                share.unit.start()
            for share in shares[:count]:
                share.unit.wait(10.0)
            times.append(time.monotonic() - started)
        seconds[count], used[count] = min(times), sum(map(bool, gained(before).values()))
    results = [np.full((rows, columns), np.nan, np.float32) for _ in shares]
    for share, out in zip(shares, results, strict=True):
        share.unit.unpack(share.target(out))
    some = rng.integers(0, rows, 8)
    close = np.allclose(results[0][some], a[some].astype(np.float64) @ b.astype(np.float64), rtol=1e-3, atol=1e-2)
    for device in devices:
        device.close()
    equal = all(np.array_equal(results[0], other) for other in results[1:])
    return {"seconds": seconds, "cores_used": used, "right": bool(close and equal)}


def hang() -> dict[str, Any]:
    """A job that never ends on each of three files at once: how long until the driver has given up all of them."""
    devices = [Device() for _ in range(3)]
    pairs = [(Buffer(device, 4096), Buffer(device, 4096)) for device in devices]
    for pair in pairs:
        for buffer in pair:
            buffer.fini()
    started = time.monotonic()
    for device, (commands, output) in zip(devices, pairs, strict=True):
        device.submit([(commands.address, 64)], [output])
    for _, output in pairs:
        output.prep(10.0)
    seconds = time.monotonic() - started
    for buffer in (buffer for pair in pairs for buffer in pair):
        buffer.close()
    for device in devices:
        device.close()
    return {"seconds": seconds}


def soak(seconds: float, count: int) -> dict[str, Any]:
    """Jobs in ``count`` processes for a time: jobs per second in each of ten equal parts of it, memory lost."""

    def available() -> int:
        words = Path("/proc/meminfo").read_text().split()
        return int(words[words.index("MemAvailable:") + 1])

    # the first processes leave caches behind that stay
    forked(count, lambda number: jobs(number, lambda done: done < 5)["done"])
    memory, started = available(), time.monotonic()
    ready = mmap.mmap(-1, count)

    def work(number: int) -> dict[str, Any]:
        counts = [0] * WINDOWS
        begin = 0.0

        def go_on(done: int) -> bool:
            nonlocal begin
            ready[number] = int(done > 0)
            if not begin:
                # jobs count from when every process has them
                begin = time.monotonic() if all(ready[:]) else 0.0
                return time.monotonic() < started + START_SECONDS
            window = int((time.monotonic() - begin) / seconds * WINDOWS)
            if window < WINDOWS:
                counts[window] += 1
            return window < WINDOWS

        return {**jobs(number, go_on), "counts": counts}

    answers = forked(count, work)
    alive = [answer for answer in answers if answer]
    totals = np.sum([answer["counts"] for answer in alive], axis=0) if alive else np.zeros(WINDOWS)
    rates = [round(float(total) * WINDOWS / seconds, 1) for total in totals]
    return {
        "died": count - len(alive),
        "done": sum(answer["done"] for answer in alive),
        "wrong": sum(answer["wrong"] for answer in alive),
        "rates": rates,
        "median": statistics.median(rates),
        "lost_kib": memory - available(),
    }


def isolation() -> dict[str, Any]:
    """Two files with the same NPU addresses for different memory; jobs of one must not see or change the other's."""
    (a, b, wanted), (c, d, other) = operands(SMALL, 1), operands(SMALL, 2)
    victim = Device()
    secrets = [Buffer(victim, 1 << 18) for _ in range(4)]
    for buffer in secrets:
        buffer.map[:] = b"\x5a" * buffer.size
        buffer.fini()
    mapped = {page for buffer in secrets for page in range(buffer.address, buffer.address + buffer.size, 4096)}
    with (
        rknpu_userspace.open(NODE) as first,
        rknpu_userspace.open(NODE) as second,
        first.compile(Matmul(b, SMALL[0])) as left,
        second.compile(Matmul(d, SMALL[0])) as right,
    ):
        turns = [bool(np.array_equal(left(a), wanted) and np.array_equal(right(c), other)) for _ in range(10)]
    stranger = Device()
    own = [Buffer(stranger, 4096) for _ in range(2)]
    for buffer in own:
        buffer.fini()
    shared = any(buffer.address in mapped for buffer in own)
    # command words in memory that only the victim's address space has at that place
    beyond = max(buffer.address for buffer in own) + 4096
    address = max(page for page in mapped if page > beyond)
    stranger.submit([(address, 64)], [own[0]])
    own[0].prep(10.0)
    for buffer in secrets:
        buffer.prep(10.0)
    untouched = all(buffer.map[:] == b"\x5a" * buffer.size for buffer in secrets)
    for buffer in (*secrets, *own):
        buffer.close()
    victim.close()
    stranger.close()
    return {"turns": turns, "addresses_shared": shared, "untouched": untouched, "address": address}


def main() -> None:
    """One of them."""
    name, numbers = sys.argv[1], [int(word) for word in sys.argv[2:]]
    known: dict[str, Callable[..., dict[str, Any]]] = {
        "processes": processes,
        "scale": scale,
        "hang": hang,
        "soak": soak,
        "isolation": isolation,
    }
    print(json.dumps(known[name](*numbers)))


if __name__ == "__main__":
    main()
