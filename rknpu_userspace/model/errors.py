# SPDX-License-Identifier: MIT
"""Why a task does not complete."""

from __future__ import annotations


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


def require(condition: bool, rule: str) -> None:
    """Raise IllegalConfig naming the rule unless the condition holds."""
    if not condition:
        raise IllegalConfig(rule)


def require_zero(fields: dict[str, int], block: str, names: tuple[str, ...]) -> None:
    """Raise Unsupported for the first of these fields that is not zero."""
    for name in names:
        if fields[name]:
            raise Unsupported(f"{block} {name} = {fields[name]:#x}")
