# SPDX-License-Identifier: MIT
"""A board that is a list of kernel messages."""

from __future__ import annotations

import re


class FakeBoard:
    """Keeps a ring buffer as the kernel does, and answers the journal's command."""

    def __init__(self, size: int = 1000) -> None:
        self.records: list[tuple[int, str, bool]] = []
        self.next = 0
        self.size = size
        self.taint = 0
        self.boot = "one"
        self.dead = False

    def say(self, text: str, *, user: bool = False) -> None:
        self.records = [*self.records, (self.next, text, user)][-self.size :]
        self.next += 1

    def restart(self) -> None:
        self.records, self.next, self.taint, self.boot = [], 0, 0, self.boot + "+"
        self.say("Booting Linux")

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        if self.dead:
            return ["ssh: connection refused"], 255
        if "/dev/kmsg" not in command:
            return [], 0
        marker, title = re.findall(r"<14>(npulab-\w+) ([^']*)'", command)[0]
        since = re.findall(r"sed -n '/(npulab-\w+)/", command)
        self.say(f"{marker} {title}", user=True)
        self.say("npulab", user=True)
        lines, shown = [], not since
        for number, text, user in self.records:
            shown = shown or (bool(since) and since[0] in text)
            if shown:
                lines.append(f"{14 if user else 4},{number},{number * 1000},-;{text}")
                lines.append(" SUBSYSTEM=platform")
            if marker in text:
                break
        return [*lines, f"state-{marker} {self.taint} {self.boot}"], 0
