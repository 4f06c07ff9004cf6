# SPDX-License-Identifier: MIT
"""Clients that go away while a job of theirs is under way: ``process_end.py close|kill COUNT``, prints JSON.

``close``: the file is closed while its job hangs. ``kill``: a process is killed (SIGKILL), in turn while its job hangs
and in the middle of many short jobs. Buffers and mappings go with the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from raw import Buffer, Device

WORDS = 64


def hang() -> Device:
    """A file with a job under way that never ends."""
    device = Device()
    commands, output = Buffer(device, 4096), Buffer(device, 4096)
    for buffer in (commands, output):
        buffer.fini()
    device.submit([(commands.address, WORDS)], [output])
    return device


def close(count: int) -> dict[str, Any]:
    """Close a file whose job hangs."""
    for _ in range(count):
        os.close(hang().fd)
    return {"closed": count}


def victim(ready: int, busy: bool) -> None:
    """What a process does until it is killed."""
    if busy:
        from concurrency import jobs

        jobs(0, lambda done: done != 5 or os.write(ready, b"!") == 1)
    device = hang()
    os.write(ready, b"!")
    time.sleep(60)
    device.close()


def kill(count: int) -> dict[str, Any]:
    """Kill processes while they have a job under way; each second one has many short ones."""
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            victim(writing, number % 2 == 1)
            os._exit(1)
        os.close(writing)
        os.read(reading, 1)
        # somewhere in a job, not always at the same place
        time.sleep(0.002 * (number % 7))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
    return {"killed": count}


def main() -> None:
    """One of them."""
    print(json.dumps({"close": close, "kill": kill}[sys.argv[1]](int(sys.argv[2]))))


main()
