# SPDX-License-Identifier: MIT
"""A labgrid client whose board is on the USB of another host: ``place_client.py FOLDER SHA256-OF-THE-LOADER``.

FOLDER has ``exporter.yaml`` and ``loader.bin``. A coordinator and an exporter are started on 127.0.0.1 and ended; the
last line that is printed is a JSON document of what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labgrid import Environment

from lab.errors import KitError
from lab.farm.client import Client
from lab.farm.server import free_ports

ENVIRONMENT = """
imports: [lab.labgrid]
targets:
  main:
    resources:
      RemotePlace: {{name: usb}}
    drivers:
      RockusbDriver:
        board: rock-5-itx-plus
        loader: {root}/loader.bin
        loader_sha256: {sha256}
      BackupDriver: {{board: rock-5-itx-plus, store: {root}/store}}
"""
OWNER = "npulab/test"
PROGRAMS = Path(sys.executable).parent


@contextmanager
def program(*words: str, cwd: Path) -> Iterator[None]:
    """One of labgrid's programs, until the block ends."""
    child = subprocess.Popen([str(PROGRAMS / words[0]), *words[1:]], cwd=cwd, stdout=sys.stderr)
    try:
        yield
    finally:
        child.terminate()
        child.wait(20)


def use(root: Path, sha256: str) -> dict[str, Any]:
    """Mask ROM, loader, backup, by the drivers of an environment."""
    path = root / "env.yaml"
    path.write_text(ENVIRONMENT.format(root=root, sha256=sha256))
    environment = Environment(str(path))
    try:
        target = environment.get_target()
        rockusb, backup = target.get_driver("RockusbDriver"), target.get_driver("BackupDriver")
        modes = [rockusb.mode()]
        rockusb.start_loader()
        modes.append(rockusb.mode())
        made = backup.create()
        return {
            "modes": modes,
            "way": backup.way(),
            "command": backup.create_command(),
            "id": made.id,
            "verified": made.verified,
            "fresh": backup.assert_fresh(["emmc"]).id,
        }
    finally:
        environment.cleanup()


def meet(address: str, deadline: float) -> Client:
    """A session with the coordinator, which takes a moment to start."""
    while True:
        client = Client(address, OWNER)
        try:
            client.start()
            return client
        except KitError:
            client.close()
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.2)


def main() -> None:
    """Coordinator, exporter, place, and what is done with it."""
    root, sha256 = Path(sys.argv[1]), sys.argv[2]
    address = f"127.0.0.1:{free_ports(1)[0]}"
    host, _, user = OWNER.partition("/")
    os.environ.update(LG_COORDINATOR=address, LG_HOSTNAME=host, LG_USERNAME=user)
    exporter = ("labgrid-exporter", "-c", address, "--name", "desk", "--hostname", "127.0.0.1", "exporter.yaml")
    with program("labgrid-coordinator", "-l", address, cwd=root):
        client = meet(address, time.monotonic() + 60)
        with program(*exporter, cwd=root):
            assert not client.wait_for_groups({"usb"}, 60), "the exporter offers nothing"
            client.ensure_place("usb", "desk/usb/*", {})
            client.acquire("usb")
            try:
                print(json.dumps(use(root, sha256)))
            finally:
                client.release("usb", OWNER)
                client.close()


if __name__ == "__main__":
    main()
