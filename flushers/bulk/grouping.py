"""Rows and updates grouped by the columns they name: one SQL statement serves one group.

Rows of one batch may differ in their columns, because writers of several releases may write at
the same time. What a row does not name is not written.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.config import UnknownColumns
from writebehind.engine.core.coalescing import Update
from writebehind.engine.errors import ConfigurationError, PoisonEntryError

__all__ = ["Assignment", "Row", "rows_by_columns", "updates_by_assignment"]

logger = logging.getLogger(__name__)

SAID_MAX = 1_000
"""Warnings about ignored columns, each given once: names come from the log, and may be anything."""

_said: set[str] = set()

Row = dict[str, Any]
"""Wire values by column name."""


class Assignment(NamedTuple):
    """The columns that a group of updates sets and those it adds to, each in table order."""

    sets: tuple[str, ...]
    increments: tuple[str, ...]


def rows_by_columns(declared: DeclaredTable, rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their columns in table order, each group in the order of the rows.

    Raises:
        ConfigurationError, PoisonEntryError: a row names a column that is not declared, and that is not ignored.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        columns = tuple(row)
        group = groups.get(columns)
        if group is None:
            groups[columns] = [row]
        else:
            group.append(row)
    ordered: dict[tuple[str, ...], list[Row]] = {}
    for columns, group in groups.items():
        ordered.setdefault(_in_table_order(declared, columns), []).extend(group)
    return ordered


def updates_by_assignment(declared: DeclaredTable, updates: Iterable[Update]) -> dict[Assignment, list[Update]]:
    """Return the updates by the columns that they set and add to, each group in the order of the updates.

    Raises:
        ConfigurationError, PoisonEntryError: an update names one, likewise.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Update]] = {}
    for update in updates:
        columns = tuple(update.sets), tuple(update.increments)
        group = groups.get(columns)
        if group is None:
            groups[columns] = [update]
        else:
            group.append(update)
    ordered: dict[Assignment, list[Update]] = {}
    for (sets, increments), group in groups.items():
        assignment = Assignment(_in_table_order(declared, sets), _in_table_order(declared, increments))
        ordered.setdefault(assignment, []).extend(group)
    return ordered


def _in_table_order(declared: DeclaredTable, columns: tuple[str, ...]) -> tuple[str, ...]:
    positions: Mapping[str, int] = {column.name: position for position, column in enumerate(declared.entity.columns)}
    unknown = sorted(name for name in columns if name not in positions)
    if unknown:
        _refuse(declared, unknown)
        columns = tuple(name for name in columns if name in positions)
    return tuple(sorted(columns, key=positions.__getitem__))


def _refuse(declared: DeclaredTable, unknown: Sequence[str]) -> None:
    """Do what the table's policy says about columns that are not declared; return where they are to be left out."""
    what = (
        f"the log writes to {', '.join(unknown)} of table {declared.entity.name}, "
        "which this flusher's declaration does not have"
    )
    if declared.unknown_columns is UnknownColumns.IGNORE:
        if what not in _said and len(_said) < SAID_MAX:
            _said.add(what)
            logger.warning("%s: their values are not written", what)
        return
    kind = PoisonEntryError if declared.unknown_columns is UnknownColumns.DEAD_LETTER else ConfigurationError
    raise kind(what, "run flushers at least as new as the writers, or restore the column in the model")
