# SPDX-License-Identifier: MIT
"""What the driver does where it is known to be wrong: ``defects.py rejected|late|hang|jobs [COUNT]``, prints JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import sys
from pathlib import Path

from raw import NODE, Buffer, Device

PRIME_HANDLE_TO_FD = 3 << 30 | 12 << 16 | ord("d") << 8 | 0x2D
"""linux include/uapi/drm/drm.h"""
WORDS = 64


def rejected() -> dict[str, object]:
    """A job without tasks; then a submission of a job that names no buffer and one behind it."""
    device = Device()
    buffer = Buffer(device, 4096)

    def error(tasks: list[tuple[int, int]]) -> str:
        try:
            device.submit(tasks, [buffer])
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]
        return "none"

    answers = {"without_tasks": error([]), "task_without_words": error([(buffer.address, 0)])}
    buffer.close()
    device.close()
    return answers


def late() -> dict[str, object]:
    """Export a buffer, close the file it was made with, then the export: the buffer is freed after its file."""
    device = Device()
    buffer = Buffer(device, 1 << 16)
    request = bytearray(struct.pack("<IIi", buffer.handle, os.O_CLOEXEC, -1))
    fcntl.ioctl(device.fd, PRIME_HANDLE_TO_FD, request)
    export = struct.unpack("<IIi", request)[2]
    buffer.map.close()
    os.close(device.fd)
    os.close(export)
    # whoever opens it next gets memory that was just freed
    again = Device()
    other = Buffer(again, 4096)
    address = other.address
    other.close()
    again.close()
    return {"exported": export >= 0, "address": address}


def hang() -> dict[str, object]:
    """A job whose command words start nothing: it is given up after half a second."""
    device = Device()
    commands, output = Buffer(device, 4096), Buffer(device, 4096)
    commands.fini()
    output.fini()
    device.submit([(commands.address, WORDS)], [output])
    output.prep(10.0)
    for buffer in (commands, output):
        buffer.close()
    device.close()
    return {"done": True}


def jobs(count: int) -> dict[str, object]:
    """Jobs that end, through the library."""
    import numpy

    import rknpu_userspace

    device = rknpu_userspace.open(NODE)
    a = numpy.eye(32, dtype=numpy.int8)
    for _ in range(count):
        device.matmul(a, a)
    device.close()
    lines = Path("/proc/interrupts").read_text().splitlines()
    return {"done": count, "interrupts": [line for line in lines if ".npu" in line]}


def main() -> None:
    """One of them."""
    name = sys.argv[1]
    known = {"rejected": rejected, "late": late, "hang": hang}
    document = jobs(int(sys.argv[2])) if name == "jobs" else known[name]()
    print(json.dumps(document))


if __name__ == "__main__":
    main()
