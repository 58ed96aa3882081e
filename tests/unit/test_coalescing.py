"""The states of a key inside a batch."""

from typing import Any

import pytest

from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.payload import Op
from writebehind.engine.errors import PoisonEntryError, ValidationError

COLUMNS = ("id", "name", "count")
LIMIT = 100


def limited(value: int | None, delta: int) -> int:
    """Add as a column with a range does."""
    total = (value or 0) + delta
    if not -LIMIT <= total <= LIMIT:
        raise ValidationError("out of range")
    return total


def begins(key: dict[str, Any], given: set[str]) -> dict[str, Any] | None:
    """Begin a row of NULLs."""
    return {**key, "name": None, "count": None}


def begins_not(key: dict[str, Any], given: set[str]) -> dict[str, Any] | None:
    """Begin no row, as for a table with a NOT NULL column without default."""
    return None


@pytest.fixture
def table() -> TableChanges:
    """Empty changes of a table."""
    changes = TableChanges(
        ("id",),
        {"count": limited},
        begins,
        delta_adders={"count": lambda first, second: (first or 0) + second},
        columns=COLUMNS,
    )
    changes.enter(0)
    return changes


def row(name: str | None = "a", count: int | None = 1) -> dict[str, Any]:
    """A whole row."""
    return {"id": 1, "name": name, "count": count}


def merge(table: TableChanges, *mutations: tuple[Op, dict[str, Any]]) -> None:
    """Merge mutations of one key."""
    for number, (op, values) in enumerate(mutations):
        assert table.accepts(op, "1", values)
        table.merge(op, "1", dict(values), b"1-%d" % number)


def held(table: TableChanges) -> dict[str, Any]:
    """What the table holds, by the names of its kinds."""
    kinds: dict[str, dict[str, Any]] = {
        "inserts": table.inserts,
        "puts": table.puts,
        "updates": table.updates,
        "deletes": table.deletes,
    }
    return {name: kept["1"] for name, kept in kinds.items() if kept}


def test_the_last_put_wins(table: TableChanges) -> None:
    """Of two puts the second is written."""
    merge(table, (Op.PUT, row("a")), (Op.PUT, row("b")))
    assert held(table) == {"puts": row("b")}


def test_a_put_takes_in_patches_and_increments(table: TableChanges) -> None:
    """What follows a put changes the row that it writes."""
    merge(table, (Op.PUT, row()), (Op.PATCH, {"id": 1, "name": "b"}), (Op.INCREMENT, {"id": 1, "count": 4}))
    assert held(table) == {"puts": row("b", 5)}


def test_patches_merge_and_increments_add_up(table: TableChanges) -> None:
    """Changes to a row that the batch has not seen stay changes."""
    merge(
        table,
        (Op.INCREMENT, {"id": 1, "count": 2}),
        (Op.PATCH, {"id": 1, "name": "b"}),
        (Op.INCREMENT, {"id": 1, "count": 3}),
    )
    update = held(table)["updates"]
    assert (update.key, update.sets, update.increments) == ({"id": 1}, {"name": "b"}, {"count": 5})
    assert update.missing == row("b", 5)


def test_an_increment_of_a_patched_column_changes_what_is_set(table: TableChanges) -> None:
    """A column is set or incremented, never both."""
    merge(table, (Op.PATCH, {"id": 1, "count": 10}), (Op.INCREMENT, {"id": 1, "count": 5}))
    update = held(table)["updates"]
    assert (update.sets, update.increments) == ({"count": 15}, {})
    assert update.missing == row(None, 5)


def test_a_patch_replaces_an_increment(table: TableChanges) -> None:
    """A column set after its increment is set only, in the new row as well."""
    merge(table, (Op.INCREMENT, {"id": 1, "count": 5}), (Op.PATCH, {"id": 1, "count": 10}))
    update = held(table)["updates"]
    assert (update.sets, update.increments, update.missing) == ({"count": 10}, {}, row(None, 10))


def test_a_patch_makes_no_row(table: TableChanges) -> None:
    """Only increments may begin a row."""
    merge(table, (Op.PATCH, {"id": 1, "name": "b"}))
    assert held(table)["updates"].missing is None


def test_an_increment_makes_no_row_where_the_table_cannot_begin_one() -> None:
    """Where there is no default row, an increment changes existing rows only."""
    table = TableChanges(("id",), {"count": limited}, begins_not)
    merge(table, (Op.INCREMENT, {"id": 1, "count": 5}), (Op.INCREMENT, {"id": 1, "count": 5}))
    update = held(table)["updates"]
    assert (update.increments, update.missing) == ({"count": 10}, None)


@pytest.mark.parametrize(
    ("op", "values"),
    [(Op.PUT, row()), (Op.PATCH, {"id": 1}), (Op.INCREMENT, {"id": 1, "count": 1}), (Op.INSERT, row())],
)
def test_a_delete_wins_over_what_is_before_it(table: TableChanges, op: Op, values: dict[str, Any]) -> None:
    """After a delete nothing else of the key is written."""
    merge(table, (op, values), (Op.DELETE, {"id": 1}))
    assert held(table) == {"deletes": {"id": 1}}


@pytest.mark.parametrize("op", [Op.PUT, Op.INSERT])
def test_a_row_after_a_delete_replaces_it(table: TableChanges, op: Op) -> None:
    """A put or an insert after a delete is one upsert."""
    merge(table, (Op.DELETE, {"id": 1}), (op, row()))
    assert held(table) == {"puts": row()}


def test_a_patch_after_a_delete_is_without_effect(table: TableChanges) -> None:
    """There is no row to patch."""
    merge(table, (Op.DELETE, {"id": 1}), (Op.PATCH, {"id": 1, "name": "b"}))
    assert held(table) == {"deletes": {"id": 1}}


def test_an_increment_after_a_delete_begins_the_row_anew(table: TableChanges) -> None:
    """The new row has the defaults and the increment."""
    merge(table, (Op.DELETE, {"id": 1}), (Op.INCREMENT, {"id": 1, "count": 5}))
    assert held(table) == {"puts": row(None, 5)}


def test_an_insert_takes_in_what_follows(table: TableChanges) -> None:
    """An inserted row that is written again is still inserted, so that a conflict shows."""
    merge(table, (Op.INSERT, row()), (Op.INCREMENT, {"id": 1, "count": 4}), (Op.PUT, row("b", 2)))
    assert held(table) == {"inserts": row("b", 2)}


@pytest.mark.parametrize("op", [Op.PUT, Op.PATCH, Op.INSERT])
def test_an_insert_of_a_key_with_a_row_is_refused(table: TableChanges, op: Op) -> None:
    """An insert ends the batch before it where the batch leaves, or may leave, a row."""
    merge(table, (op, row()))
    assert not table.accepts(Op.INSERT, "1", row())
    assert table.accepts(Op.INSERT, "2", row())


def test_inserts_without_key_are_all_kept(table: TableChanges) -> None:
    """Rows whose keys the database makes have nothing in common."""
    for _ in range(2):
        assert table.accepts(Op.INSERT, "", {"name": "a"})
        table.merge(Op.INSERT, "", {"name": "a"}, b"1-0")
    assert table.appended == [{"name": "a"}, {"name": "a"}]
    assert table.versions == {0: {}}


def test_versions_name_the_last_entry(table: TableChanges) -> None:
    """Each key has the ID of the last entry that touched its record."""
    merge(table, (Op.PUT, row()), (Op.PATCH, {"id": 1, "name": "b"}))
    assert table.versions == {0: {"1": b"1-1"}}


def test_versions_are_kept_by_partition(table: TableChanges) -> None:
    """Each partition's records can be told from the others'."""
    merge(table, (Op.PUT, row()))
    table.enter(3)
    table.merge(Op.PUT, "2", {**row(), "id": 2}, b"9-0")
    assert table.versions == {0: {"1": b"1-0"}, 3: {"2": b"9-0"}}


def test_a_put_that_lacks_columns_keeps_those_of_the_put_before(table: TableChanges) -> None:
    """A writer of an older release leaves the columns that it does not know."""
    merge(table, (Op.PUT, row("a", 7)), (Op.PUT, {"id": 1, "name": "b"}))
    assert held(table) == {"puts": row("b", 7)}


@pytest.mark.parametrize(
    ("first", "op", "second"),
    [
        ((Op.DELETE, {"id": 1}), Op.PUT, {"id": 1, "name": "b"}),
        ((Op.DELETE, {"id": 1}), Op.INSERT, {"id": 1, "name": "b"}),
        ((Op.PATCH, {"id": 1, "count": 2}), Op.PUT, {"id": 1, "name": "b"}),
        ((Op.PUT, {"id": 1, "name": "b"}), Op.INCREMENT, {"id": 1, "count": 2}),
    ],
)
def test_what_no_single_operation_can_do_is_refused(
    table: TableChanges, first: tuple[Op, dict[str, Any]], op: Op, second: dict[str, Any]
) -> None:
    """Where a row that lacks columns meets its past, the batch ends."""
    merge(table, first)
    assert not table.accepts(op, "1", second)


def test_an_increment_out_of_range_changes_nothing(table: TableChanges) -> None:
    """The row stays as it was before the refused increment."""
    merge(table, (Op.PUT, row("a", LIMIT)))
    with pytest.raises(ValidationError):
        table.merge(Op.INCREMENT, "1", {"id": 1, "count": 1}, b"2-0")
    assert held(table) == {"puts": row("a", LIMIT)}
    assert table.versions == {0: {"1": b"1-0"}}


def test_increments_may_leave_the_range_where_the_row_is_unknown(table: TableChanges) -> None:
    """The row in SQL may have room for a sum that would not fit from 0."""
    merge(table, (Op.INCREMENT, {"id": 1, "count": -LIMIT}), (Op.INCREMENT, {"id": 1, "count": -LIMIT}))
    assert held(table)["updates"].increments == {"count": -2 * LIMIT}


def test_an_increment_of_text_is_poison(table: TableChanges) -> None:
    """A column that is not numeric is not incremented, and nothing is left of the attempt."""
    with pytest.raises(PoisonEntryError):
        table.merge(Op.INCREMENT, "1", {"id": 1, "name": 1}, b"1-0")
    assert not held(table)


def changes_of(table: TableChanges) -> Changes:
    """A batch of one table."""
    return Changes({"t": lambda: table})


def test_a_group_is_merged_whole_or_not_at_all(table: TableChanges) -> None:
    """A group whose last mutation is poison leaves nothing of its first ones."""
    changes = changes_of(table)
    assert changes.merge([(Op.PUT, "t", "1", row())], b"1-0")
    group = [
        (Op.PATCH, "t", "1", {"id": 1, "name": "b"}),
        (Op.INSERT, "t", "", {"name": "c"}),
        (Op.DELETE, "t", "2", {"id": 2}),
        (Op.INCREMENT, "t", "1", {"id": 1, "count": LIMIT}),
    ]
    with pytest.raises(ValidationError):
        changes.merge(group, b"1-1")
    assert held(table) == {"puts": row()}
    assert table.versions == {0: {"1": b"1-0"}}
    assert not table.appended
    assert (changes.entries, changes.mutations, len(changes)) == (1, 1, 1)


def test_a_group_that_cannot_be_merged_changes_nothing(table: TableChanges) -> None:
    """A group with one refused insert waits for the next batch as a whole."""
    changes = changes_of(table)
    assert changes.merge([(Op.PUT, "t", "1", row())], b"1-0")
    group = [(Op.PATCH, "t", "1", {"id": 1, "name": "b"}), (Op.INSERT, "t", "1", row())]
    assert not changes.merge(group, b"1-1")
    assert held(table) == {"puts": row()}


def test_a_group_that_contradicts_itself_is_poison(table: TableChanges) -> None:
    """No batch could ever take a group that inserts what it has just put."""
    changes = changes_of(table)
    with pytest.raises(PoisonEntryError):
        changes.merge([(Op.PUT, "t", "1", row()), (Op.INSERT, "t", "1", row())], b"1-0")
    assert not len(changes)


def test_unknown_operations_and_tables_change_nothing(table: TableChanges) -> None:
    """What this release does not know is refused before anything is merged."""
    changes = changes_of(table)
    with pytest.raises(ValueError, match="unknown operation 99"):
        changes.merge([(99, "t", "1", row())], b"1-0")
    with pytest.raises(KeyError):
        changes.merge([(Op.PUT, "t", "1", row()), (Op.PUT, "other", "1", row())], b"1-0")
    assert not len(changes)
