# SPDX-License-Identifier: MIT
"""The driver's interface: what it grants and what it refuses. Prints one JSON document: name of the check -> result."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable

from raw import Buffer, Device


def refusal(call: Callable[[], object]) -> str:
    """The name of the error that a call ends with, or "none"."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "none"


def buffers(device: Device) -> dict[str, object]:
    """Sizes, addresses, mappings."""
    sizes = [4096, 8192, 1 << 20, 4096 * 3]
    made = [Buffer(device, size) for size in sizes]
    spans = sorted((buffer.address, buffer.address + buffer.size) for buffer in made)
    made[2].map[:] = bytes(range(256)) * 4096
    made[2].fini()
    made[2].prep()
    result = {
        "addresses_are_32_bit": all(buffer.address + buffer.size <= 1 << 32 for buffer in made),
        "addresses_are_page_aligned": all(buffer.address % 4096 == 0 for buffer in made),
        "addresses_do_not_overlap": all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)),
        "handles_differ": len({buffer.handle for buffer in made}) == len(made),
        "new_buffer_is_zero": made[0].map[:] == bytes(4096),
        "contents_survive_fini_and_prep": made[2].map[:] == bytes(range(256)) * 4096,
    }
    for buffer in made:
        buffer.close()
    return result


def refusals(device: Device) -> dict[str, object]:
    """Bad arguments, one at a time."""
    buffer, other = Buffer(device, 4096), Device()
    gone = Buffer(device, 4096)
    gone.close()
    foreign = Buffer(other, 4096)
    result: dict[str, object] = {
        "prep_unknown_handle": refusal(lambda: buffer.prep(handle=9999)),
        "prep_closed_handle": refusal(lambda: buffer.prep(handle=gone.handle + 1000)),
        "prep_reserved": refusal(lambda: buffer.prep(reserved=1)),
        "prep_idle_without_waiting": refusal(lambda: buffer.prep(0)),
        "fini_unknown_handle": refusal(lambda: buffer.fini(handle=9999)),
        "fini_reserved": refusal(lambda: buffer.fini(reserved=1)),
        "submit_nothing": refusal(lambda: device.submit_raw(0, 0, 40)),
        "submit_small_job_struct": refusal(lambda: device.submit([(0x1000, 2)], [buffer], job_size=32)),
        "submit_reserved": refusal(lambda: device.submit([(0x1000, 2)], [buffer], reserved=1)),
        "submit_bad_pointer": refusal(lambda: device.submit_raw(8, 1, 40)),
        # the driver drops the errors of single jobs: these return success, and nothing may happen
        "submit_without_tasks": refusal(lambda: device.submit([], [buffer])),
        "submit_task_without_words": refusal(lambda: device.submit([(0x1000, 0)], [buffer])),
        "submit_small_task_struct": refusal(lambda: device.submit([(0x1000, 2)], [buffer], task_size=4)),
        "foreign_handle": refusal(lambda: foreign.prep(handle=foreign.handle + 50)),
        "idle_afterwards": refusal(lambda: buffer.prep(0)),
    }
    foreign.close()
    buffer.close()
    other.close()
    return result


def main() -> None:
    """Run all checks."""
    device = Device()
    document = {"name": device.name(), **buffers(device), **refusals(device)}
    device.close()
    print(json.dumps(document))


if __name__ == "__main__":
    main()
