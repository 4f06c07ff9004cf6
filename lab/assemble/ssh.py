# SPDX-License-Identifier: MIT
"""Keys of the virtual board: one pair per cache to log in with, one host key for its SSH server (dropbear)."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

from lab.cache import Cache, digest
from lab.process import require, run

LOGIN_KEY = "ssh_key"
HOST_KEY = "ssh_host_key"
DROPBEAR_KEY = "dropbear_ed25519"


def keys(cache: Cache, log: Path) -> Path:
    """The cache entry with ``ssh_key``, ``ssh_key.pub``, ``ssh_host_key.pub`` and ``dropbear_ed25519``."""

    def make(entry: Path) -> None:
        keygen = require("ssh-keygen", "openssh-client")
        for name in (LOGIN_KEY, HOST_KEY):
            command: list[str | Path] = [
                keygen,
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"npulab-{name}",
                "-f",
                entry / name,
            ]
            run(command, stage="making SSH keys", log=log)
        (entry / DROPBEAR_KEY).write_bytes(to_dropbear((entry / HOST_KEY).read_text()))
        (entry / DROPBEAR_KEY).chmod(0o600)

    return cache.entry("ssh-keys", digest("ssh keys 1"), make)


def _strings(data: bytes) -> list[bytes]:
    found, position = [], 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        found.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return found


def to_dropbear(text: str) -> bytes:
    """An unencrypted OpenSSH ed25519 private key in the format that dropbear reads.

    OpenSSH: "openssh-key-v1\\0", cipher, kdf, options, u32 count, public blob, private blob (two check words, then
    type, public, private||public, comment). dropbear: type, private||public, as SSH strings.
    """
    body = "".join(line for line in text.splitlines() if line and not line.startswith("-----"))
    data = base64.b64decode(body)
    magic = b"openssh-key-v1\0"
    if not data.startswith(magic):
        raise ValueError("not an OpenSSH private key")
    position = len(magic)
    head = []
    for _ in range(3):
        (size,) = struct.unpack_from(">I", data, position)
        head.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    if head[0] != b"none":
        raise ValueError("the key is encrypted")
    _public, private = _strings(data[position + 4 :])[:2]
    kind, _, pair = _strings(private[8:])[:3]
    if kind != b"ssh-ed25519" or len(pair) != 64:
        raise ValueError("not an ed25519 key")
    return struct.pack(">I", len(kind)) + kind + struct.pack(">I", len(pair)) + pair
