# SPDX-License-Identifier: MIT
"""What tests hand to the report: measured values and error statistics, with fixtures ``measure`` and ``numerics``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

Label = str | int | float | bool


@dataclass(frozen=True)
class Measurement:
    """One measured value. Labels tell points of a series apart (``cores=2``)."""

    name: str
    value: float
    unit: str
    labels: dict[str, Label] = field(default_factory=dict)


@dataclass(frozen=True)
class Numerics:
    """Error statistics of one result: greatest absolute error, greatest distance in units in the last place, elements
    that are not what they should be, and how many elements there were."""

    op: str
    dtype: str
    max_abs: float | None
    max_ulp: float | None
    mismatches: int
    elements: int
    labels: dict[str, Label] = field(default_factory=dict)


def number(value: Any, what: str) -> float:
    """A finite number; ValueError names ``what`` otherwise. numpy's scalars are numbers."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError(f"{what} is not a number: {value!r}")
    converted = float(value)
    if not math.isfinite(converted):
        raise ValueError(f"{what} is {converted}")
    return converted


def _statistic(value: Any, what: str) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return number(value, what)


class Recorder:
    """What one test has recorded."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []
        self.numerics: list[Numerics] = []

    def clear(self) -> None:
        """Forget it: the test is run once more."""
        self.measurements.clear()
        self.numerics.clear()

    def measure(self, name: str, value: float, unit: str, **labels: Label) -> None:
        """Record a measured value; ``unit`` as it is printed (``GOP/s``, ``jobs/s``, ``ms``)."""
        self.measurements.append(Measurement(name, number(value, name), unit, dict(labels)))

    def add_numerics(
        self,
        op: str,
        dtype: str,
        max_abs: float | None,
        max_ulp: float | None,
        mismatches: int,
        elements: int,
        **labels: Label,
    ) -> None:
        """Record the error statistics of one result; None where a statistic has no meaning for the datatype, or no
        value because the result is not finite (which the mismatches tell)."""
        greatest, distance = _statistic(max_abs, f"{op}: max_abs"), _statistic(max_ulp, f"{op}: max_ulp")
        self.numerics.append(Numerics(op, dtype, greatest, distance, int(mismatches), int(elements), dict(labels)))

    def documents(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "measurements": [asdict(row) for row in self.measurements],
            "numerics": [asdict(row) for row in self.numerics],
        }
