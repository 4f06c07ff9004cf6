# SPDX-License-Identifier: MIT
"""The disk of the backup store runs full, for real: a tmpfs of a few MiB in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WAYS = (["unshare", "-rm"], ["unshare", "-m"])
"""As a user in a user namespace, or as root."""


def namespace() -> list[str]:
    """The command that gives a program mounts of its own; empty when this machine does not let us."""
    trial = ["sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    for way in WAYS:
        if shutil.which(way[0]) and not subprocess.run([*way, *trial], capture_output=True, check=False).returncode:
            return way
    return []


def test_disk_fills_up_while_the_store_is_written(tmp_path: Path) -> None:
    way = namespace()
    if not way:
        pytest.skip("neither user nor mount namespaces are permitted here: no small disk can be mounted")
    script = Path(__file__).with_name("full_disk.py")
    command = [*way, sys.executable, str(script), str(tmp_path / "work")]
    (tmp_path / "work").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr
