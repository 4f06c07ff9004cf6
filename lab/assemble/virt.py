# SPDX-License-Identifier: MIT
"""``npulab build virt``: the artifact set of the virtual board."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lab.assemble.artifacts import ArtifactSet
from lab.output import Output


@dataclass(frozen=True)
class BuildOptions:
    """What to assemble.

    ``kernel``: ``fast`` is a trimmed mainline kernel for the virtual board, ``distro`` is Debian's own with rocket built
    against it. ``source`` (fast only): None or ``apt`` for Debian's linux-source package, a directory with a kernel
    tree, a tarball, or an https URL of one followed by ``#sha256=<hex>``. ``qemu_source``: the same for QEMU.
    ``update``: ask the mirror for newer versions instead of keeping those resolved before.
    """

    kernel: Literal["fast", "distro"] = "fast"
    source: str | Path | None = None
    qemu_source: str | Path | None = None
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    rocket_module: bool = False
    debian_mirror: str | None = None
    update: bool = False


def assemble(options: BuildOptions, out: Output) -> ArtifactSet:
    """The artifact set for these options: found in the cache, or built."""
    raise NotImplementedError
