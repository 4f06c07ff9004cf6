# SPDX-License-Identifier: MIT
"""rocket's ioctls with nothing in between, for tests of the driver itself (runs on the board, standard library only).

Structures and numbers: linux include/uapi/drm/rocket_accel.h and include/uapi/drm/drm.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time

NODE = "/dev/accel/accel0"
_BASE = 0x40  # DRM_COMMAND_BASE


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | ord("d") << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | ord("d") << 8 | number


VERSION = _iowr(0x00, 64)
GEM_CLOSE = _iow(0x09, 8)
CREATE_BO = _iowr(_BASE + 0, 24)
SUBMIT = _iow(_BASE + 1, 24)
PREP_BO = _iow(_BASE + 2, 16)
FINI_BO = _iow(_BASE + 3, 8)


class Buffer:
    """A buffer object, mapped."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        answer = bytearray(struct.pack("<IIQQ", size, 0, 0, 0))
        fcntl.ioctl(device.fd, CREATE_BO, answer)
        self.size, self.handle, self.address, offset = struct.unpack("<IIQQ", answer)
        self.map = mmap.mmap(device.fd, size, offset=offset)

    def prep(self, seconds: float = 5.0, *, handle: int | None = None, reserved: int = 0) -> None:
        """Wait for jobs that use it, take it for the CPU; the driver wants an absolute time."""
        until = time.monotonic_ns() + int(seconds * 1e9) if seconds else 0
        words = struct.pack("<IIq", self.handle if handle is None else handle, reserved, until)
        fcntl.ioctl(self.device.fd, PREP_BO, words)

    def fini(self, *, handle: int | None = None, reserved: int = 0) -> None:
        """Give it to the NPU."""
        fcntl.ioctl(self.device.fd, FINI_BO, struct.pack("<II", self.handle if handle is None else handle, reserved))

    def close(self) -> None:
        """Unmap it and drop the handle."""
        self.map.close()
        fcntl.ioctl(self.device.fd, GEM_CLOSE, struct.pack("<II", self.handle, 0))


class Device:
    """The device node, opened."""

    def __init__(self) -> None:
        self.fd = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)

    def name(self) -> str:
        """The driver's name."""
        text = ctypes.create_string_buffer(64)
        # struct drm_version: three ints and a hole, then length and pointer of name, date and description
        request = bytearray(struct.pack("<iii4xQQQQQQ", 0, 0, 0, 63, ctypes.addressof(text), 0, 0, 0, 0))
        fcntl.ioctl(self.fd, VERSION, request)
        return text.value.decode()

    def submit(
        self,
        tasks: list[tuple[int, int]],
        outputs: list[Buffer],
        *,
        job_size: int = 40,
        task_size: int = 8,
        reserved: int = 0,
    ) -> None:
        """One job of tasks (address and number of command words each) that writes the outputs."""
        array = ctypes.create_string_buffer(b"".join(struct.pack("<II", *task) for task in tasks) or b"\0")
        handles = ctypes.create_string_buffer(b"".join(struct.pack("<I", buffer.handle) for buffer in outputs) or b"\0")
        job = ctypes.create_string_buffer(
            struct.pack(
                "<QQQIIII",
                ctypes.addressof(array),
                0,
                ctypes.addressof(handles),
                len(tasks),
                task_size,
                0,
                len(outputs),
            )
        )
        self.submit_raw(ctypes.addressof(job), 1, job_size, reserved)

    def submit_raw(self, jobs: int, count: int, size: int, reserved: int = 0) -> None:
        """The ioctl itself."""
        fcntl.ioctl(self.fd, SUBMIT, struct.pack("<QIIQ", jobs, count, size, reserved))

    def close(self) -> None:
        """Close the node, a little after the last job: the driver frees that job's buffers only then, and until 7.3 at
        least it takes their address space down without waiting for it (WARN in drm_mm_takedown)."""
        time.sleep(0.5)
        os.close(self.fd)
