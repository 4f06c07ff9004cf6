# SPDX-License-Identifier: MIT
"""Why a task does not complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_broken: ContextVar[list[str] | None] = ContextVar("broken", default=None)


class TaskStopped(Exception):
    """The task never completes; the message is the line for the log."""


class IllegalConfig(TaskStopped):
    """The registers break a rule of the hardware."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"illegal configuration: {rule}")


class Unsupported(TaskStopped):
    """The registers ask for something that the model, or public knowledge of the hardware, does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not modelled: {what}")


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Within the block, ``require`` notes broken rules in the list instead of raising at the first."""
    broken: list[str] = []
    token = _broken.set(broken)
    try:
        yield broken
    finally:
        _broken.reset(token)


def require(condition: bool, rule: str) -> None:
    """Raise IllegalConfig naming the rule unless the condition holds."""
    if not condition:
        broken = _broken.get()
        if broken is None:
            raise IllegalConfig(rule)
        broken.append(rule)


def require_zero(fields: dict[str, int], block: str, names: tuple[str, ...]) -> None:
    """Raise Unsupported for the first of these fields that is not zero."""
    for name in names:
        if fields[name]:
            raise Unsupported(f"{block} {name} = {fields[name]:#x}")
