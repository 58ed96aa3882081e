"""Coalesced changes give the rows that the mutations would give one by one."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.payload import Op
from writebehind.engine.errors import PoisonEntryError

COLUMNS = ("id", "name", "count", "total")
SERVER_DEFAULTS = {"name": None, "count": 7, "total": None}
"""What the database fills in where an INSERT leaves a column out."""

Row = dict[str, Any]
Mutation = tuple[Op, str, str, Row]


class Conflict(Exception):
    """An insert found its row."""


class Database:
    """One table as a dict, with the SQL statements that flushes are made of."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.appended: list[Row] = []

    def insert(self, row: Row) -> None:
        """INSERT."""
        if row["id"] in self.rows:
            raise Conflict
        self.rows[row["id"]] = {**SERVER_DEFAULTS, **row}

    def upsert(self, row: Row) -> None:
        """INSERT ... ON CONFLICT DO UPDATE of the named columns."""
        self.rows[row["id"]] = {**self.rows.get(row["id"], SERVER_DEFAULTS), **row}

    def update(self, key: int, sets: Row, increments: Row) -> bool:
        """UPDATE; tells whether there was a row."""
        row = self.rows.get(key)
        if row is None:
            return False
        row.update(sets)
        for name, delta in increments.items():
            row[name] = (row[name] or 0) + delta
        return True

    def delete(self, key: int) -> None:
        """DELETE."""
        self.rows.pop(key, None)


def without_key(values: Row) -> Row:
    """The columns to set."""
    return {name: value for name, value in values.items() if name != "id"}


def default_row(*, begins: bool) -> Any:
    """The function that begins a row, or begins none."""

    def make(key: Row, given_columns: set[str]) -> Row | None:
        return {**key, "name": "new", "count": 3, "total": None} if begins else None

    return make


def apply_one(database: Database, mutation: Mutation, *, begins: bool) -> None:
    """Do what one mutation means."""
    op, _, key, values = mutation
    if op is Op.PUT:
        database.upsert(values)
    elif op is Op.PATCH:
        database.update(values["id"], without_key(values), {})
    elif op is Op.INCREMENT:
        if not database.update(values["id"], {}, without_key(values)) and begins:
            database.insert(default_row(begins=True)({"id": values["id"]}, set()))
            database.update(values["id"], {}, without_key(values))
    elif op is Op.DELETE:
        database.delete(values["id"])
    elif key:
        database.insert(values)
    else:
        database.appended.append(values)


def apply_changes(database: Database, changes: Changes) -> None:
    """Do what a flush does, statement by statement."""
    for table in changes.tables.values():
        database.appended += table.appended
        for row in table.inserts.values():
            database.insert(row)
        for row in table.puts.values():
            database.upsert(row)
        for update in table.updates.values():
            found = database.update(update.key["id"], update.sets, update.increments)
            if not found and update.missing is not None:
                database.insert(update.missing)
        for key in table.deletes.values():
            database.delete(key["id"])
        kinds = [set(table.inserts), set(table.puts), set(table.updates), set(table.deletes)]
        assert sum(map(len, kinds)) == len(set().union(*kinds))


def new_changes(*, begins: bool) -> Changes:
    """An empty batch."""

    def add(value: int | None, delta: int) -> int:
        return (value or 0) + delta

    return Changes(
        {"t": lambda: TableChanges(("id",), {"count": add, "total": add}, default_row(begins=begins), columns=COLUMNS)}
    )


numbers = st.integers(-5, 5)
keys = st.integers(1, 3)
wholes = st.fixed_dictionaries(
    {"id": keys, "name": st.sampled_from("ab"), "count": st.none() | numbers, "total": st.none() | numbers}
)
partials = wholes.flatmap(
    lambda row: st.sets(st.sampled_from(COLUMNS[1:])).map(
        lambda left_out: {name: value for name, value in row.items() if name not in left_out}
    )
)
amounts = st.fixed_dictionaries({"id": keys}, optional={"count": numbers, "total": numbers})


def mutation(op: Op, values: st.SearchStrategy[Row]) -> st.SearchStrategy[Mutation]:
    """Mutations of one kind."""
    return values.map(lambda chosen: (op, "t", str(chosen["id"]), chosen))


mutations = st.one_of(
    mutation(Op.PUT, wholes),
    mutation(Op.PUT, partials),
    mutation(Op.PATCH, partials),
    mutation(Op.INCREMENT, amounts),
    mutation(Op.DELETE, st.fixed_dictionaries({"id": keys})),
    mutation(Op.INSERT, wholes),
    mutation(Op.INSERT, partials),
    numbers.map(lambda number: (Op.INSERT, "t", "", {"name": "a", "count": number})),
)
entries = st.lists(st.lists(mutations, min_size=1, max_size=3), max_size=14)


def copied(members: Sequence[Mutation]) -> list[Mutation]:
    """Mutations whose values the callee may keep."""
    return [(op, name, key, dict(values)) for op, name, key, values in members]


def acceptable(database: Database, log: list[list[Mutation]], *, begins: bool) -> list[list[Mutation]]:
    """Apply the entries one by one; give those that the database took."""
    taken = []
    for members in log:
        rows, appended = {key: dict(row) for key, row in database.rows.items()}, list(database.appended)
        try:
            for member in copied(members):
                apply_one(database, member, begins=begins)
            new_changes(begins=begins).merge(copied(members), b"0-0")
        except (Conflict, PoisonEntryError):
            database.rows, database.appended = rows, appended
        else:
            taken.append(members)
    return taken


@pytest.mark.parametrize("begins", [True, False])
@given(log=entries, before=st.lists(wholes, max_size=3))
@example(log=[[(Op.PUT, "t", "1", {"id": 1})], [(Op.INCREMENT, "t", "1", {"id": 1, "count": 1})]], before=[])
@settings(max_examples=400, deadline=None)
def test_coalescing_equals_naive_apply(begins: bool, log: list[list[Mutation]], before: list[Row]) -> None:  # noqa: FBT001
    """Whatever the mutations, groups and refusals, the rows come out as one by one."""
    naive, coalesced = Database(), Database()
    for row in before:
        naive.upsert(row)
        coalesced.upsert(row)
    changes = new_changes(begins=begins)
    for members in acceptable(naive, log, begins=begins):
        if not changes.merge(copied(members), b"1-0"):
            apply_changes(coalesced, changes)
            changes = new_changes(begins=begins)
            assert changes.merge(copied(members), b"1-0"), "an empty batch takes any entry"
    apply_changes(coalesced, changes)
    assert coalesced.rows == naive.rows
    assert coalesced.appended == naive.appended
