# SPDX-License-Identifier: MIT
"""What can go wrong with a board on USB, as a plan that the stand-in follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.errors import ExitCode, KitError

KINDS = {
    "hang": "stops answering",
    "flip": "one bit of the data read is wrong",
    "drop": "a write reports success and changes nothing",
    "short": "fewer bytes than asked for",
    "stall": "the endpoint stalls in the data phase",
    "disconnect": "falls off the bus in the data phase and comes back",
    "move": "falls off the bus and comes back at another port",
    "tag": "the status carries another request's tag",
    "fail": "the status reports failure",
    "slow": "answers late, but within the timeout",
    "power": "loses power in the middle of a write and stays off",
}

OPERATIONS = ("read", "write", "erase", "any", "query", "reset")
"""``any`` is any access to a medium; ``query`` is every other command but a restart."""


@dataclass
class Fault:
    """``kind`` happens at the ``after``-th matching operation (from 0), ``times`` times (0: for ever)."""

    kind: str
    operation: str = "any"
    after: int = 0
    times: int = 1
    seen: int = field(default=0, compare=False)

    def strikes(self, operation: str) -> bool:
        """Count an operation; whether it is struck."""
        if self.operation != operation and (self.operation != "any" or operation in ("query", "reset")):
            return False
        position = self.seen
        self.seen += 1
        return position >= self.after and (not self.times or position < self.after + self.times)


def parse(text: str) -> Fault:
    """``KIND[:OPERATION[:AFTER[:TIMES]]]``, for example ``flip:read:3``."""
    words = text.split(":")
    try:
        kind, operation = words[0], words[1] if len(words) > 1 else "any"
        after, times = (int(words[n]) if len(words) > n else default for n, default in ((2, 0), (3, 1)))
        if kind not in KINDS or operation not in OPERATIONS or after < 0 or times < 0 or len(words) > 4:
            raise ValueError
    except ValueError as error:
        raise KitError(
            ExitCode.USAGE, f"no fault is called {text}", f"KIND[:OPERATION[:AFTER[:TIMES]]], kinds: {', '.join(KINDS)}"
        ) from error
    return Fault(kind, operation, after, times)
