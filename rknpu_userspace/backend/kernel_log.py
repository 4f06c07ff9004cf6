# SPDX-License-Identifier: MIT
"""Page faults of the NPU's IOMMU in the kernel's log, for those who may read it.

The driver tells user space nothing about a fault: the job times out. The IOMMU's driver prints the address (linux
drivers/iommu/rockchip-iommu.c, rk_iommu_irq: "Page fault at %pad of type %s").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KMSG = Path("/dev/kmsg")
_RECORD = re.compile(rb"^\d+,\d+,(?P<micro>\d+),[^;]*;(?P<text>.*)")
_FAULT = re.compile(rb"fd(?:ab|ac|ad)[0-9a-f]{4}\.iommu.*Page fault at (?P<iova>0x[0-9a-f]+) of type (?P<kind>\w+)")
_VERSION = re.compile(rb"NPU core (?P<core>\d+) version: (?P<version>\d+)")
_SLACK = 0.05
"""Seconds by which the log's clock may differ from the monotonic one."""
_RECORD_BYTES = 8192
_MOST_RECORDS = 100_000


@dataclass(frozen=True)
class Fault:
    """A page fault as the kernel reports it."""

    address: int
    write: bool


def _records(path: Path) -> Iterator[bytes]:
    """What the log holds; nothing when it may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_MOST_RECORDS):
            try:
                record = os.read(fd, _RECORD_BYTES)
            except BrokenPipeError:  # the oldest records were overwritten meanwhile
                continue
            except OSError:
                return
            if not record:
                return
            yield from record.splitlines()
    finally:
        os.close(fd)


def core_versions(path: Path = KMSG) -> dict[int, int]:
    """PC_VERSION of each core, as the driver printed it when it started (rocket_core.c); empty when not to be seen."""
    matches = (_VERSION.search(record) for record in _records(path))
    return {int(match["core"]): int(match["version"]) for match in matches if match is not None}


def last_fault(since: float, path: Path = KMSG) -> Fault | None:
    """The last fault of an NPU's IOMMU after ``since`` (seconds of CLOCK_MONOTONIC), None if none can be seen."""
    found = None
    for record in _records(path):
        header = _RECORD.match(record)
        if header is None or int(header["micro"]) < (since - _SLACK) * 1e6:
            continue
        match = _FAULT.search(header["text"])
        if match is not None:
            found = Fault(int(match["iova"], 16), match["kind"] == b"write")
    return found
