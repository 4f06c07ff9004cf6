# SPDX-License-Identifier: MIT
"""Jobs that cannot end: ``recovery.py hang|fault [COUNT]``. Prints how long the driver took to give each up.

``hang``: command words that write nothing and start nothing. ``fault``: command words at an address that is not mapped.
"""

from __future__ import annotations

import json
import sys
import time

from raw import Buffer, Device

WORDS = 64


def main() -> None:
    """Submit the jobs one after the other, wait for each."""
    kind, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    device = Device()
    commands, output = Buffer(device, 4096), Buffer(device, 4096)
    output.map[:] = b"\xa5" * 4096
    output.fini()
    commands.fini()
    # the page after the last one that is mapped of this file's addresses
    address = commands.address if kind == "hang" else max(commands.address, output.address) + (64 << 20)
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
