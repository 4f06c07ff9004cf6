# SPDX-License-Identifier: MIT
"""The kit layer: a small ext4 image with ``rknpu_userspace``, which the board's first process mounts at /opt/npulab.

Apart from the root file system, so that an edit of the library costs a second, not a new image.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab.assemble.artifacts import describe
from lab.assemble.ext4 import make_image
from lab.assemble.hostpython import HostPython
from lab.assemble.sources import REPOSITORY
from lab.cache import Cache, digest, file_digest, tree_digest
from lab.output import Output

PACKAGE = REPOSITORY / "rknpu_userspace"
IMAGE = "kit.ext4"
LABEL = "npukit"
UUID = "6e70756c-6162-4000-8000-000000000002"
MOUNT = "/opt/npulab"
EPOCH = 1577836800


def build(python: HostPython, cache: Cache, jobs: int, out: Output, log: Path) -> Path:
    """The layer's cache entry: ``kit.ext4`` and ``component.json``."""
    contents = tree_digest(PACKAGE)
    recipe = [file_digest(Path(__file__).with_name(name)) for name in ("kit.py", "ext4.py")]

    def make(entry: Path) -> None:
        with out.stage("kit layer"):
            tree = entry / "tree"
            copy = tree / PACKAGE.name
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
            python.compile(copy, f"{MOUNT}/{PACKAGE.name}", jobs, log)
            make_image(tree, entry / IMAGE, label=LABEL, spare=0, uuid=UUID, epoch=EPOCH, log=log)
            shutil.rmtree(tree)
        component = {"image": IMAGE, "contents": contents, "files": {IMAGE: describe(entry / IMAGE)}}
        (entry / "component.json").write_text(json.dumps(component, indent=1))

    return cache.entry("kit", digest(recipe, contents, python.root.name), make)
