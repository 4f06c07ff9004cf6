# SPDX-License-Identifier: MIT
"""Runs stored tasks, register words and data as they are: ``golden.py FILE...``, prints JSON.

A file has ``words`` and ``trailer`` (target, offset and value of each command word; a value may be the name of a
buffer, whose address is put in), ``inputs`` and ``output`` (bytes of each buffer in base64) and its ``provenance``.
Standard library only: no function of the library takes part.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

from raw import Buffer, Device

PAGE = 4096


def run(path: Path) -> dict[str, Any]:
    """Submit the task twice; the second time over what the first has left."""
    vector = json.loads(path.read_text())
    contents = {name: base64.b64decode(text) for name, text in (vector["inputs"] | vector["output"]).items()}
    device = Device()
    buffers = {name: Buffer(device, -(-len(data) // PAGE) * PAGE) for name, data in contents.items()}
    commands = Buffer(device, PAGE)

    def word(target: str, offset: str, value: str) -> bytes:
        number = buffers[value].address if value in buffers else int(value, 16)
        return struct.pack("<Q", int(target, 16) << 48 | number << 16 | int(offset, 16))

    words = [word(*entry) for entry in vector["words"] + vector["trailer"]]
    commands.map[: 8 * len(words)] = b"".join(words)
    (wanted,) = vector["output"]
    for name, data in contents.items():
        buffers[name].map[: len(data)] = data if name in vector["inputs"] else b"\xa5" * len(data)
    different = []
    for _ in range(2):
        for buffer in (*buffers.values(), commands):
            buffer.fini()
        device.submit([(commands.address, len(words))], [buffers[wanted]])
        for buffer in (*buffers.values(), commands):
            buffer.prep(5.0)
        got = buffers[wanted].map[: len(contents[wanted])]
        different.append(sum(x != y for x, y in zip(got, contents[wanted], strict=True)))
        behind = buffers[wanted].map[len(contents[wanted]) :]
    for buffer in (*buffers.values(), commands):
        buffer.close()
    device.close()
    return {
        "name": vector["name"],
        "different": different,
        "bytes": len(contents[wanted]),
        "beyond": behind.count(0) != len(behind),
    }


def main() -> None:
    """All files."""
    print(json.dumps([run(Path(name)) for name in sys.argv[1:]]))


main()
