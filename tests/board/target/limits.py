# SPDX-License-Identifier: MIT
"""Limits, leaks and permissions of the interface: ``limits.py arguments|beyond|leaks ROUNDS|opens COUNT|access``.

Prints one JSON document: name of the check -> result.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raw import CREATE_BO, NODE, SUBMIT, Buffer, Device
from uapi import refusal

NOBODY = 65534
UNKNOWN_IOCTL = 3 << 30 | 16 << 16 | ord("d") << 8 | 0x4F
"""A driver ioctl that rocket does not have."""


def _memory(*words: int, form: str = "I") -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Words in memory, and where they are."""
    buffer = ctypes.create_string_buffer(struct.pack(f"<{len(words)}{form}", *words) or b"\0")
    return buffer, ctypes.addressof(buffer)


def _job(device: Device, **changes: int) -> None:
    """Submit one job whose fields are all right but for ``changes``; its command words do nothing and are never run."""
    tasks, task_address = _memory(0x1000, 2)
    fields = {"tasks": task_address, "inputs": 0, "outputs": 0, "task_count": 1, "task_size": 8}
    fields |= {"input_count": 0, "output_count": 0, **changes}
    job = ctypes.create_string_buffer(struct.pack("<QQQIIII", *fields.values()))
    device.submit_raw(ctypes.addressof(job), 1, 40)
    del tasks


def arguments() -> dict[str, Any]:
    """Bad arguments that `uapi.py` has not."""
    device = Device()
    buffer = Buffer(device, 4096)
    unknown, unknown_address = _memory(9999)

    def create(size: int, flags: int = 0) -> None:
        fcntl.ioctl(device.fd, CREATE_BO, bytearray(struct.pack("<IIQQ", size, flags, 0, 0)))

    def closed() -> None:
        fd = os.open(NODE, os.O_RDWR)
        os.close(fd)
        fcntl.ioctl(fd, SUBMIT, struct.pack("<QIIQ", 0, 0, 40, 0))

    def map_elsewhere() -> None:
        mmap.mmap(device.fd, 4096, offset=1 << 40).close()

    checks: dict[str, Callable[[], object]] = {
        "create_nothing": lambda: create(0),
        "unknown_ioctl": lambda: fcntl.ioctl(device.fd, UNKNOWN_IOCTL, bytearray(16)),
        "closed_file": closed,
        "map_elsewhere": map_elsewhere,
        "map_too_much": lambda: mmap.mmap(device.fd, 1 << 20, offset=_offset(device, 4096)).close(),
        "many_jobs_at_a_bad_address": lambda: device.submit_raw(8, 1 << 20, 40),
        "job_struct_of_a_later_kernel": lambda: device.submit_raw(0, 0, 48),
        "tasks_at_a_bad_address": lambda: _job(device, tasks=8),
        "inputs_at_a_bad_address": lambda: _job(device, inputs=8, input_count=1),
        "outputs_at_a_bad_address": lambda: _job(device, outputs=8, output_count=1),
        "unknown_input": lambda: _job(device, inputs=unknown_address, input_count=1),
        "unknown_output": lambda: _job(device, outputs=unknown_address, output_count=1),
    }
    result: dict[str, Any] = {name: refusal(check) for name, check in checks.items()}
    # nothing of all that may have become a job
    result["idle_afterwards"] = refusal(lambda: buffer.prep(0))
    del unknown
    buffer.close()
    device.close()
    return result


def beyond() -> dict[str, Any]:
    """A job that claims more tasks than fit into any memory."""
    device = Device()
    answer = refusal(lambda: _job(device, task_count=(1 << 32) - 1))
    device.close()
    return {"answer": answer}


def _offset(device: Device, size: int) -> int:
    answer = bytearray(struct.pack("<IIQQ", size, 0, 0, 0))
    fcntl.ioctl(device.fd, CREATE_BO, answer)
    return int(struct.unpack("<IIQQ", answer)[3])


def _available() -> int:
    words = Path("/proc/meminfo").read_text().split()
    return int(words[words.index("MemAvailable:") + 1])


def leaks(rounds: int) -> dict[str, Any]:
    """Make and drop buffers again and again, also without unmapping first; open and close the node."""
    device = Device()
    highest = 0

    def turn() -> None:
        nonlocal highest
        buffers = [Buffer(device, 4096 << (number % 4)) for number in range(4)]
        highest = max(highest, *(buffer.address + buffer.size for buffer in buffers))
        for buffer in buffers:
            buffer.close()
        # dropped with the file instead of one by one
        other = Device()
        Buffer(other, 1 << 16).map.close()
        os.close(other.fd)

    for _ in range(10):
        turn()
    first, before = highest, _available()
    for _ in range(rounds):
        turn()
    lost = before - _available()
    files = len(list(Path("/proc/self/fd").iterdir()))
    device.close()
    return {"address_space": first, "address_space_later": highest, "lost_kib": lost, "files": files}


def opens(count: int) -> dict[str, Any]:
    """Many files at once: each has an address space of its own, and closing one leaves the others."""
    devices = [Device() for _ in range(count)]
    buffers = [Buffer(device, 8192) for device in devices]
    for number, buffer in enumerate(buffers):
        buffer.map[:4] = struct.pack("<I", number)
    for device in devices[::2]:
        os.close(device.fd)
    kept = [struct.unpack("<I", buffer.map[:4])[0] == number for number, buffer in enumerate(buffers)]
    answers = {refusal(lambda buffer=buffer: buffer.prep(0)) for buffer in buffers[1::2]}
    for buffer in buffers[1::2]:
        buffer.close()
    for device in devices[1::2]:
        os.close(device.fd)
    return {"addresses": len({buffer.address for buffer in buffers}), "kept": all(kept), "answers": sorted(answers)}


def _as_user(group: int, work: Callable[[], object]) -> str:
    """What ``work`` ends with in a process of user nobody with that group."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setgroups([group])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.write(writing, refusal(work).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        answer = stream.read()
    os.wait()
    return answer or "died"


def access() -> dict[str, Any]:
    """Who may use the node: a user without rights, one of its group; what a file opened for reading may do."""
    before = Path(NODE).stat()
    group = 4242

    def use() -> None:
        device = Device()
        buffer = Buffer(device, 4096)
        buffer.fini()
        buffer.prep(0)
        buffer.close()
        os.close(device.fd)

    try:
        os.chown(NODE, before.st_uid, group)
        Path(NODE).chmod(0o660)
        result = {"stranger": _as_user(group + 1, use), "member": _as_user(group, use)}
    finally:
        os.chown(NODE, before.st_uid, before.st_gid)
        Path(NODE).chmod(stat.S_IMODE(before.st_mode))
    return {**result, "mode": stat.filemode(before.st_mode), "world": bool(before.st_mode & 0o007)}


def main() -> None:
    """One of them."""
    known: dict[str, Callable[..., dict[str, Any]]] = {
        "arguments": arguments,
        "beyond": beyond,
        "leaks": leaks,
        "opens": opens,
        "access": access,
    }
    print(json.dumps(known[sys.argv[1]](*(int(word) for word in sys.argv[2:]))))


if __name__ == "__main__":
    main()
