# SPDX-License-Identifier: MIT
"""What `npulab doctor` looks at beyond packages and disk: adapters, rights, KVM, ports, the coordinator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the report. What is not ``needed`` for the virtual board is advice and fails nothing."""

    name: str
    ok: bool
    found: str
    todo: str = ""
    needed: bool = True

    @property
    def state(self) -> str:
        """The word in the table."""
        return "ok" if self.ok else "MISSING" if self.needed else "advice"
