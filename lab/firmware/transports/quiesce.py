# SPDX-License-Identifier: MIT
"""File systems that stand still while they are copied, and never stay so.

A file system that is written while its medium is read comes back as after a power cut, or worse: the two ends of the
copy are minutes apart. ``fsfreeze`` brings everything to the medium and holds writers until it is thawed; where a file
system cannot be frozen (FAT) it is mounted read-only for the time.

A frozen root that nobody thaws is a dead board. So a guard runs on the board before anything is frozen: it thaws as
soon as nobody has shown signs of life for `GUARD_SECONDS`, whatever became of the link or of this host. It lives in
memory (tmpfs) and so does what it reads.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence

from lab.errors import KitError

log = logging.getLogger(__name__)

GUARD_SECONDS = 90
"""Without a sign of life for this long the board thaws itself."""

BEAT_SECONDS = 5.0

Run = Callable[[str], bytes]

_FUNCTIONS = r"""
ioctl() { python3 -B -c 'import fcntl,os,sys
fcntl.ioctl(os.open(sys.argv[2],os.O_RDONLY),int(sys.argv[1],16),0)' "$1" "$2" 2>/dev/null; }
freeze() { fsfreeze -f "$1" 2>/dev/null || ioctl c0045877 "$1"; }
thaw() { fsfreeze -u "$1" 2>/dev/null || ioctl c0045878 "$1"; }
"""
"""FIFREEZE and FITHAW of linux include/uapi/linux/fs.h where util-linux is missing."""

_FREEZE = (
    _FUNCTIONS
    + r"""
echo 0 > $B || exit 1
printf '%s\n' "$@" > $B.mounts
( trap '' HUP INT TERM; n=0; last=
  while [ -e $B ]; do
    now=$(cat $B)
    if [ "$now" = "$last" ]; then n=$((n + 1)); else n=0; last=$now; fi
    [ $n -ge $T ] && echo > $B.expired && break
    sleep 1
  done
  while read -r m; do thaw "$m"; done < $B.mounts
  [ ! -e $B.ro ] || while read -r m; do mount -o remount,rw "$m"; done < $B.ro
  rm -f $B $B.mounts $B.ro
) < /dev/null > /dev/null 2>&1 &
for m do
  if freeze "$m"; then echo "frozen|$m"
  elif mount -o remount,ro "$m" 2>/dev/null; then echo "$m" >> $B.ro; echo "read-only|$m"
  else echo "busy|$m"; fi
done
"""
)

_THAW = (
    _FUNCTIONS
    + r"""
[ -e $B ] && [ ! -e $B.expired ] && echo kept
for m do thaw "$m"; done
[ ! -e $B.ro ] || while read -r m; do mount -o remount,rw "$m"; done < $B.ro
rm -f $B $B.ro $B.mounts $B.expired; true
"""
)


class Hold:
    """What stands still: mount point and how. ``kept`` says afterwards whether it did so until the end."""

    def __init__(self, run: Run, beat: str) -> None:
        self._run, self._beat = run, beat
        self._count, self._last = itertools.count(1), time.monotonic()
        self.mounts: dict[str, str] = {}
        self.kept = False

    def beat(self) -> None:
        """A sign of life; cheap enough to be given before every request."""
        if self.mounts and time.monotonic() - self._last >= BEAT_SECONDS:
            self._run(f"[ ! -e {self._beat} ] || echo {next(self._count)} > {self._beat}")
            self._last = time.monotonic()


@contextlib.contextmanager
def hold(run: Run, memory: str, mounts: Sequence[str]) -> Iterator[Hold]:
    """Hold the file systems at ``mounts`` still within the block; ``memory`` is a tmpfs of the board.

    All of them or none: one that can neither be frozen nor be made read-only lets all others go at once.
    """
    beat = f"{memory}/npulab-quiesce-{os.getpid():x}-{time.monotonic_ns():x}"
    made = Hold(run, beat)
    deepest = sorted(mounts, key=lambda path: (-path.rstrip("/").count("/"), path))
    words = f"B={beat}; T={GUARD_SECONDS}; set -- {shlex.join(deepest)}\n"
    try:
        rows = run(words + _FREEZE).decode(errors="replace").splitlines()
        found = {row.split("|", 1)[1]: row.split("|", 1)[0] for row in rows if "|" in row}
        if set(found) == set(mounts) and "busy" not in found.values():
            made.mounts = found
        else:
            _let_go(run, words)
        yield made
    finally:
        made.kept = _let_go(run, words) and bool(made.mounts)


def _let_go(run: Run, words: str) -> bool:
    """Thaw; whether everything had stood still until now."""
    try:
        return run(words + _THAW).strip() == b"kept"
    except KitError as error:
        log.warning("the board could not be thawed (%s); it does so itself within %d s", error, GUARD_SECONDS)
        return False
