"""What a mutation means, one by one: the judge's own reading of the log, without coalescing."""

from collections.abc import Mapping
from typing import Any

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.payload import Op, decode

__all__ = ["CONTROLS", "Contents", "apply_entry", "default_row"]

Row = dict[str, Any]

CONTROLS = frozenset({Op.REPLAY, Op.DISCARD})


class Contents:
    """Rows of some tables.

    Attributes:
        rows: by table and key text.
        appended: rows whose key the database makes.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.appended: list[tuple[str, Row]] = []

    def copied(self) -> "Contents":
        """Return the same, to be changed apart: rows are replaced, never changed."""
        twin = Contents()
        twin.rows, twin.appended = dict(self.rows), list(self.appended)
        return twin


def default_row(declared: DeclaredTable, row: Row) -> Row:
    """Return a row with all of its columns."""
    return {**dict.fromkeys(declared.plan.columns), **row}


def apply_entry(contents: Contents, payload: bytes, tables: Mapping[str, DeclaredTable]) -> set[tuple[str, str]]:
    """Do what an entry means; return which rows it concerns."""
    touched = set()
    for op, table, key, values in decode(payload):
        if op in CONTROLS:
            # What becomes of the letter that it names, the transaction says that comes to it.
            touched |= {(table, key)} if key else set()
            continue
        declared = tables[table]
        if not key:
            contents.appended.append((table, values))
            continue
        touched.add((table, key))
        row = contents.rows.get((table, key))
        if op in {Op.PUT, Op.INSERT}:
            contents.rows[table, key] = default_row(declared, values)
        elif op == Op.DELETE:
            contents.rows.pop((table, key), None)
        elif op == Op.PATCH:
            if row is not None:
                contents.rows[table, key] = {**row, **values}
        else:
            names = {column.name for column in declared.entity.key}
            amounts = {name: value for name, value in values.items() if name not in names}
            if row is None:
                row = declared.plan.default_row({name: values[name] for name in names}, set(amounts))
            if row is not None:
                sums = {name: (row[name] or 0) + amount for name, amount in amounts.items()}
                contents.rows[table, key] = {**row, **sums}
    return touched
