# SPDX-License-Identifier: MIT
"""A job that reads where nothing is mapped, through the library: what it raises, and whether the next one is right."""

from __future__ import annotations

import json

import numpy as np

from rknpu_userspace.backend import Job
from rknpu_userspace.device import open_device
from rknpu_userspace.errors import JobError
from rknpu_userspace.probe.rig import poke
from rknpu_userspace.probe.tasks import Flying

NOWHERE = 0xF0000000
DATA = np.arange(64, dtype=np.int32)


def main() -> None:
    """A good copy, one from nowhere, a good copy."""
    found: dict[str, object] = {"kind": "", "address": None, "message": ""}
    with open_device() as device:
        context = device.contexts()[0]
        source, out, code = (context.alloc(4096) for _ in range(3))
        source.view[:256].view(np.int32)[:] = DATA
        right = []
        for spoil in (False, True, False):
            words = Flying("int32").words(source.iova, 0, out.iova, 16, 4)
            if spoil:
                words = poke(words, "DPU_RDMA_RDMA_SRC_BASE_ADDR", SRC_BASE_ADDR=NOWHERE)
            code.view[: words.nbytes] = words.view(np.uint8)
            context.flush(code)
            out.view[:256] = 0
            submission = context.prepare([Job(((code.iova, len(words)),), 240, "a copy")], [code], [source], out)
            submission.start()
            try:
                submission.wait(10.0)
            except JobError as error:
                found = {"kind": error.kind, "address": error.address, "message": str(error)}
                continue
            right.append(bool(np.array_equal(out.view[:256].view(np.int32), DATA)))
    print(json.dumps({**found, "right": right}))


main()
