# SPDX-License-Identifier: MIT
"""The kit's one error type and its exit codes."""

from __future__ import annotations

import errno
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the process returns to its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NO_DEVICE = 4
    LINK = 5
    MISMATCH = 6
    ABORTED = 7
    INFRASTRUCTURE = 8


class KitError(Exception):
    """A failure a user can act on.

    ``message`` says what was wrong and where, ``hint`` what to do next, ``tail`` the last lines of the log that
    belongs to it (shown on stderr below the message).
    """

    def __init__(
        self,
        code: ExitCode,
        message: str,
        hint: str = "",
        *,
        tail: str = "",
        log: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.tail = tail
        self.log = log


def from_os_error(error: OSError, doing: str) -> KitError:
    """The clear line for an operating system error met while ``doing`` something."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"{doing}: the disk is full{where}",
            "free space, or point NPULAB_CACHE at a larger file system; nothing half-made was kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"{doing}: no permission{where}",
            "check the owner of that path; the kit itself needs no root",
        )
    return KitError(ExitCode.INFRASTRUCTURE, f"{doing}: {error.strerror or error}{where}")
