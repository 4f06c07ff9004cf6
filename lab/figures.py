# SPDX-License-Identifier: MIT
"""A measured figure: what was measured, what it should be, and the command that measures it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``goal`` is the most (or with ``at_least`` the least) that is good.

    ``missing``: why it was not measured on this machine; then there is no value.
    """

    name: str
    value: float
    unit: str
    goal: float
    command: str
    at_least: bool = False
    note: str = ""
    missing: str = ""

    @property
    def ok(self) -> bool:
        """Whether it meets its goal."""
        return not self.missing and (self.value >= self.goal if self.at_least else self.value <= self.goal)

    def cells(self) -> list[object]:
        """A row of the table."""
        goal = f"{'>=' if self.at_least else '<='} {self.goal:g}"
        value, state = (f"{self.value:.4g}", "ok" if self.ok else "MISSED") if not self.missing else ("-", "NOT RUN")
        return [self.name, value, self.unit, goal, state, self.command]

    def document(self) -> dict[str, Any]:
        """A row of ``figures`` in the JSON document."""
        return {**asdict(self), "value": None if self.missing else round(self.value, 4), "ok": self.ok}
