# SPDX-License-Identifier: MIT
"""The model as a process for QEMU's NPU device.

    python -m rknpu_userspace.model.server --socket PATH --ram FILE [--stats FILE.jsonl] [--log FILE] [--quirks FILE]

Prints one line, ``ready``, once it listens; exits 0 on SIGTERM, SIGINT or, with ``--exit-with-stdin``, when its
standard input closes. Protocol: docs/npu-link.md.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_DEFAULT_CLOCK_HZ = 200_000_000


def _limit_blas() -> None:
    """Leave half of the processors to QEMU; numpy reads this when it is first imported."""
    if any(variable in os.environ for variable in _BLAS_VARIABLES):
        return
    for variable in _BLAS_VARIABLES:
        os.environ[variable] = str(max(1, (os.cpu_count() or 1) // 2))
    if "numpy" in sys.modules:
        os.execv(sys.executable, [sys.executable, "-m", "rknpu_userspace.model.server", *sys.argv[1:]])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rknpu_userspace.model.server", description="NPU model process")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to listen on")
    parser.add_argument("--ram", type=Path, required=True, help="file that backs the machine's RAM")
    parser.add_argument("--stats", type=Path, help="append one line of JSON per job")
    parser.add_argument("--log", type=Path, help="append log lines (default: standard error)")
    parser.add_argument("--quirks", type=Path, help="JSON file of measured behaviour")
    parser.add_argument("--clock-hz", type=int, default=_DEFAULT_CLOCK_HZ, help="NPU clock of the time estimate")
    parser.add_argument("--exit-with-stdin", action="store_true", help="exit when standard input closes")
    options = parser.parse_args(argv)
    if options.clock_hz <= 0:
        parser.error("--clock-hz must be positive")
    return options


def _listen(path: Path) -> socket.socket:
    """Listen on a unix socket, replacing one that a dead process left; OSError or ValueError if that can not be."""
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"{path}: a unix socket path has at most 107 bytes")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ValueError(f"{path}: another process listens there")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def _accept_loop(listener: socket.socket, wake: int, watch_stdin: bool, options: argparse.Namespace) -> None:
    from .quirks import Quirks
    from .session import Log, Session, Shared, map_ram

    with contextlib.ExitStack() as stack:
        log_stream: IO[str] = sys.stderr
        if options.log:
            log_stream = stack.enter_context(options.log.open("a", encoding="utf-8"))
        stats = stack.enter_context(options.stats.open("a", encoding="utf-8")) if options.stats else None
        quirks = Quirks.load(options.quirks) if options.quirks else Quirks()
        with options.ram.open("r+b") as ram_file:
            if os.fstat(ram_file.fileno()).st_size == 0:
                raise ValueError(f"{options.ram}: empty RAM file")
            ram = map_ram(memoryview(mmap.mmap(ram_file.fileno(), 0)))
        shared = Shared(ram, quirks, options.clock_hz, Log(log_stream), stats, threading.Lock())
        print("ready", flush=True)
        watched: list[int] = [listener.fileno(), wake, *([sys.stdin.fileno()] if watch_stdin else [])]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if wake in ready or (watch_stdin and watched[2] in ready and not os.read(watched[2], 4096)):
                return
            if listener.fileno() in ready:
                connection, _ = listener.accept()
                session = Session(connection, shared)
                threading.Thread(target=session.run, name="npu-session", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    options = _arguments(argv)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(wake_write, b"x"))
    try:
        listener = _listen(options.socket)
    except (OSError, ValueError) as error:
        print(f"model server: can not listen on {options.socket}: {error}", file=sys.stderr)
        return 1
    try:
        _accept_loop(listener, wake_read, options.exit_with_stdin, options)
    except (OSError, ValueError) as error:
        missing = isinstance(error, OSError) and error.errno == errno.ENOENT
        print(f"model server: {error}" + (" (the machine makes the RAM file)" if missing else ""), file=sys.stderr)
        return 1
    finally:
        listener.close()
        options.socket.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    _limit_blas()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # worker threads may be inside BLAS; nothing is left to clean up
