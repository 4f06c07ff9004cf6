# SPDX-License-Identifier: MIT
"""QEMU with the rk3588 machine: source from `lab.assemble.sources`, built by `lab.virt.qemu_build`, cached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.assemble.artifacts import describe, link
from lab.assemble.sources import Source
from lab.cache import Cache, digest, tree_digest
from lab.output import Output
from lab.virt.qemu_build import BINARY, SOURCES, build_qemu, result_key, work_key


def key(source: Source) -> str:
    """Cache key: QEMU's source, the kit's devices, and how they are put together."""
    return result_key(source.key)


def build(source: Source, cache: Cache, jobs: int, out: Output) -> Path:
    """The cache entry with ``qemu-system-aarch64`` and ``component.json``; its build tree stays for the next edit."""
    place = source.key if source.user_tree is None else digest(str(source.user_tree))

    def make(entry: Path) -> None:
        with _source_tree(source, cache, out) as tree, cache.workdir("qemu", work_key(place)) as work:
            with out.stage("build QEMU") as meter:
                built = build_qemu(tree, work, jobs, meter.update)
            link(built, entry / BINARY)
            component = {
                "binary": BINARY,
                "version": (tree / "VERSION").read_text().strip(),
                "source": source.origin,
                "machine_sources": tree_digest(SOURCES),
                "files": {BINARY: describe(entry / BINARY)},
            }
        (entry / "component.json").write_text(json.dumps(component, indent=1))

    return cache.entry("qemu", key(source), make)


@contextmanager
def _source_tree(source: Source, cache: Cache, out: Output) -> Iterator[Path]:
    if source.user_tree is not None:
        yield source.user_tree  # only read
        return

    def make(entry: Path) -> None:
        with out.stage("unpack QEMU"):
            (entry / "qemu").mkdir()
            source.unpack(entry / "qemu")

    yield cache.entry("qemu-source", source.key, make) / "qemu"
