# SPDX-License-Identifier: MIT
"""``python -m lab.farm.launch PARENT PROGRAM ARGUMENTS``: runs a job's command and ends whatever it leaves behind.

It stands between keeper and command for three reasons: the keeper has threads (gRPC's), and Python code between fork
and exec is safe in a process without threads only; it adopts what the command's processes leave; and when the keeper is
killed, the kernel tells it (``PR_SET_PDEATHSIG``), so that the whole tree ends and not only its root.

The exit code is the command's, 128 and the number for a signal, as a shell has it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

from lab.farm.processes import adopt_orphans, end_descendants
from lab.virt.guard import die_with

ORPHAN_SECONDS = 5.0
"""How long the command's leftovers have to end by themselves; a board's guard needs less than one."""
GRACE_SECONDS = 5.0


def _signalled() -> int:
    """A descriptor that is readable after any signal; SIGINT is the command's affair."""
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return wake


def main() -> int:
    """Run it; returns the exit code."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    stopping: list[int] = []
    adopt_orphans()
    wake = _signalled()
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    die_with(parent, signal.SIGTERM)
    me = os.getpid()
    try:
        child = subprocess.Popen(argv, preexec_fn=lambda: die_with(me))
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while child.poll() is None and not stopping:
        if select.select([wake], [], [], 5.0)[0]:
            os.read(wake, 4096)
    if child.returncode is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    code = child.returncode
    end_descendants(1.0 if stopping else ORPHAN_SECONDS)
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
