# SPDX-License-Identifier: MIT
"""Jobs that cannot end: ``recovery.py hang|fault|garbage|neighbour [COUNT]``. Prints how long each was under way.

``hang``: command words that write nothing and start nothing. ``fault``: command words at an address that is not mapped.
``garbage``: random command words. ``neighbour``: a job that hangs, and others on another file at the same time.
"""

from __future__ import annotations

import json
import random
import sys
import time

from raw import Buffer, Device

WORDS = 64


def neighbour() -> dict[str, object]:
    """While one job hangs, jobs of another file go on, on the other cores."""
    from concurrency import jobs

    device = Device()
    commands, output = Buffer(device, 4096), Buffer(device, 4096)
    for buffer in (commands, output):
        buffer.fini()
    started, inside = 0.0, 0

    def go_on(done: int) -> bool:
        nonlocal started, inside
        inside = max(0, done - 5)
        if done == 5:
            # the library is warm now
            device.submit([(commands.address, WORDS)], [output])
            started = time.monotonic()
        return done <= 5 or time.monotonic() < started + 0.4

    answer = jobs(0, go_on)
    output.prep(10.0)
    seconds = time.monotonic() - started
    for buffer in (commands, output):
        buffer.close()
    device.close()
    return {"inside": inside, "wrong": answer["wrong"], "seconds": seconds}


def main() -> None:
    """Submit the jobs one after the other, wait for each."""
    kind, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    if kind == "neighbour":
        print(json.dumps(neighbour()))
        return
    device = Device()
    commands, output = Buffer(device, 4096), Buffer(device, 4096)
    output.map[:] = b"\xa5" * 4096
    output.fini()
    if kind == "garbage":
        commands.map[:] = random.Random(7).randbytes(4096)
    commands.fini()
    # the page after the last one that is mapped of this file's addresses
    address = commands.address if kind != "fault" else max(commands.address, output.address) + (64 << 20)
    seconds = []
    for _ in range(count):
        started = time.monotonic()
        device.submit([(address, WORDS)], [output])
        output.prep(10.0)
        seconds.append(time.monotonic() - started)
    untouched = output.map[:] == b"\xa5" * 4096
    for buffer in (commands, output):
        buffer.close()
    device.close()
    print(json.dumps({"seconds": seconds, "untouched": untouched, "address": address}))


if __name__ == "__main__":
    main()
