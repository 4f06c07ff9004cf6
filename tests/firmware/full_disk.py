# SPDX-License-Identifier: MIT
"""Backups and flash runs whose store's disk fills up meanwhile; run by test_disk_full.py in a mount namespace.

The store is on a tmpfs of a few MiB. At a chosen change of the store another file grows until nothing is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import boards, cli
from lab.errors import ExitCode
from lab.firmware.standin.media import make_board
from lab.firmware.store import disk

BOARD, MIB = "rock-5-itx-plus", 1 << 20


class Disk:
    """The tmpfs, and the file on it that grows."""

    def __init__(self, root: Path) -> None:
        self.root, self.other = root, root / "another-file"
        root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", root], check=True)

    def fill(self) -> None:
        """Until the kernel says that nothing is left."""
        with contextlib.suppress(OSError), self.other.open("ab", buffering=0) as stream:
            for size in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while stream.write(bytes(size)) == size:
                        pass
        free = os.statvfs(self.root)
        assert free.f_bavail * free.f_frsize < 4096

    def free(self) -> None:
        """The other file goes."""
        self.other.unlink()

    @contextlib.contextmanager
    def full_at(self, which: Callable[[str, Path], bool]) -> Any:
        """Within the block the disk fills up just before the first change that ``which`` picks."""
        seen = []

        def observe(kind: str, path: Path) -> None:
            if not seen and which(kind, path):
                seen.append(path)
                self.fill()

        disk.observer = observe
        try:
            yield
        finally:
            disk.observer = None
        assert seen, "never filled"


class Bench:
    """A board made of files beside the store's disk, and the commands."""

    def __init__(self, root: Path) -> None:
        self.root, self.disk = root, Disk(root / "disk")
        make_board(root / "board", boards.load(BOARD), sizes={"spi": MIB, "emmc": 32 * MIB, "sd": 0})
        self.medium = root / "board/emmc.img"
        self.draw = random.Random(1)

    def change(self) -> bytes:
        """New content for the medium."""
        content = self.draw.randbytes(3 * MIB)
        with self.medium.open("r+b") as stream:
            stream.seek(4 * MIB)
            stream.write(content)
        return self.medium.read_bytes()

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        """A command: its document, and one clear line when it fails."""
        noun, verb, *rest = words
        shown, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            store = str(self.disk.root / "store")
            found = cli.main([noun, "--json", "--quiet", verb, "--store", store, *rest])
        assert found == code, (words, found, shown.getvalue(), said.getvalue())
        assert "Traceback" not in said.getvalue()
        document: dict[str, Any] = json.loads(shown.getvalue())
        return document

    def full(self, *words: str) -> str:
        """A command that must fail for want of space: its message and hint."""
        error = self.run(*words, code=ExitCode.INFRASTRUCTURE)["error"]
        assert "the disk is full" in error["message"] and str(self.disk.root) in error["message"], error
        assert "\n" not in error["message"] and "free space" in error["hint"], error
        return f"{error['message']}. {error['hint']}"

    def leftovers(self) -> list[Path]:
        """Half-made files."""
        return sorted(self.disk.root.rglob("*.partial"))


def backups(bench: Bench) -> None:
    """The disk fills up at each kind of change that a backup makes."""
    via = ("--board", BOARD, "--via", f"file:{bench.root / 'board'}", "--storage", "emmc")
    bench.change()
    first = bench.run("backup", "create", *via)["backup"]
    places: dict[str, Callable[[str, Path], bool]] = {
        "a chunk": lambda kind, path: kind == "write" and path.name.endswith(".partial") and "chunks" in path.parts,
        "the index": lambda kind, path: kind == "write" and path.suffix == ".idx",
        "the manifest": lambda kind, path: kind == "write" and path.name == "manifest.json.partial",
    }
    for place, which in places.items():
        bench.change()
        known = bench.run("backup", "list")["backups"]
        with bench.disk.full_at(which):
            print(f"{place}: {bench.full('backup', 'create', *via)}")
        assert not bench.leftovers(), f"{place}: half-made files take room on a full disk"
        listed = bench.run("backup", "list")["backups"]
        assert listed == known and all(entry["verified"] for entry in listed), place
        for entry in listed:
            bench.run("backup", "verify", entry["backup"])
        bench.full("backup", "create", *via)  # as long as nothing is freed
        bench.disk.free()
        again = bench.run("backup", "create", *via)
        assert again["verified"] and not list((bench.disk.root / "store/partial").iterdir()), place
        bench.run("backup", "verify", again["backup"], "--via", via[3])
        bench.run("backup", "verify", first)
        bench.run("backup", "prune", "--keep", "2", "--yes")
        first = bench.run("backup", "list")["backups"][0]["backup"]


def flash(bench: Bench) -> None:
    """The journal of a flash run cannot be written: before anything is on the medium, and when all of it is."""
    via, new = ("--via", f"file:{bench.root / 'board'}"), bench.root / "new.img"
    old = bench.medium.read_bytes()
    wanted = old[: 20 * MIB] + bench.draw.randbytes(MIB) + old[21 * MIB :]
    new.write_bytes(wanted)
    plan = ("flash", "plan", "--board", BOARD, *via, "--storage", "emmc", "--image", str(new))
    journal = "journal.jsonl"
    for line, content in ((1, old), (2, wanted), (3, wanted)):
        run = str(bench.run(*plan)["run"])
        lines: list[Path] = []

        def which(kind: str, path: Path, lines: list[Path] = lines, line: int = line) -> bool:
            lines += [path] if kind == "write" and path.name == journal else []
            if len(lines) != line:
                return False
            # a line that fits into the file's last page would find its room there: this one begins in it
            with path.open("ab") as stream:
                stream.write(b"\n" * (4096 - 10 - stream.tell()))
            return True

        with bench.disk.full_at(which):
            said = bench.full("flash", "run", run, *via, "--yes")
        assert run in said and f"npulab flash run {run}" in said, said
        print(f"line {line} of the journal: {said}")
        assert bench.medium.read_bytes() == content
        bench.full("flash", "run", run, *via, "--yes")
        bench.disk.free()
        assert bench.run("flash", "run", run, *via, "--yes")["state"] == "verified"
        assert bench.medium.read_bytes() == wanted
        assert bench.run("flash", "rollback", run, *via, "--yes")["state"] == "rolled-back"
        assert bench.medium.read_bytes() == old


def main() -> None:
    """Both, in the directory that the command line names."""
    bench = Bench(Path(sys.argv[1]))
    backups(bench)
    flash(bench)
    print("done")


if __name__ == "__main__":
    main()
