# SPDX-License-Identifier: MIT
"""The audit's table: a row for each fact, a column for each kernel, evidence in each cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

GOOD, BAD, INFO, NONE = "good", "bad", "info", "none"
"""The fact holds; it does not; it is neither good nor bad; this kernel's files do not tell."""


@dataclass(frozen=True)
class Cell:
    """One fact about one kernel. ``evidence`` is a file with line or property."""

    value: str
    state: str
    evidence: str = ""


@dataclass(frozen=True)
class Fact:
    """A cell with the row that it belongs to. ``relied``: the kit does not work without it."""

    group: str
    key: str
    title: str
    cell: Cell
    relied: bool = False


@dataclass(frozen=True)
class Column:
    """A kernel."""

    label: str
    version: str
    origin: dict[str, Any]


@dataclass
class Row:
    """A fact over all kernels, by column label."""

    group: str
    key: str
    title: str
    relied: bool
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass
class Table:
    """The audit."""

    columns: list[Column] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, column: Column, facts: Iterable[Fact]) -> None:
        """A kernel's column. Rows keep the order in which their keys were first seen within their group."""
        self.columns.append(column)
        for fact in facts:
            row = self.rows.setdefault(fact.key, Row(fact.group, fact.key, fact.title, fact.relied))
            row.cells[column.label] = fact.cell

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group."""
        found: dict[str, list[Row]] = {}
        for row in self.rows.values():
            found.setdefault(row.group, []).append(row)
        return found

    def cell(self, row: Row, column: Column) -> Cell:
        """The cell, or an empty one."""
        return row.cells.get(column.label, Cell("-", NONE))

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "rows": [
                {
                    "group": row.group,
                    "key": row.key,
                    "title": row.title,
                    "relied": row.relied,
                    "cells": {column.label: asdict(self.cell(row, column)) for column in self.columns},
                }
                for row in self.rows.values()
            ],
        }


@dataclass(frozen=True)
class Change:
    """A row whose cell differs between two kernels. ``regressed``: good before, and not any more."""

    row: Row
    old: Cell
    new: Cell

    @property
    def regressed(self) -> bool:
        """Good before and not any more; what the files do not tell is no regression."""
        return self.old.state == GOOD and self.new.state == BAD


def changes(table: Table, old: Column, new: Column) -> list[Change]:
    """What differs from ``old`` to ``new``; evidence alone (a moved line) is no difference."""
    found = []
    for row in table.rows.values():
        before, after = table.cell(row, old), table.cell(row, new)
        if (before.value, before.state) != (after.value, after.state):
            found.append(Change(row, before, after))
    return found
