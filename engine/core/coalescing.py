"""Coalescing: many mutations of a batch become at most one SQL operation per key.

Invariants:

1. Applying the changes of a batch gives the rows that applying its entries one by one would give
   (floats: up to rounding, because their increments are summed first).
2. A key is in at most one of ``inserts``, ``puts``, ``updates`` and ``deletes`` of its table.
3. An entry is merged whole or not at all, a group included.

States of a key inside a batch, and what the next mutation makes of them::

    (none)   --put-->  put     --patch, increment-->  put
    (none)   --patch, increment-->  update            --put-->  put
    (none)   --insert-->  insert  --put, patch, increment-->  insert
    any      --delete-->  delete  --put, insert-->  put
    delete   --patch-->  delete   --increment-->  put, where the table lets a row begin with it
    put, update, insert  --insert-->  refused: the caller ends the batch before this entry

A row may lack columns: its writer was of an older release, or left a column to the database. Then some
of these steps have no single SQL operation, and are refused likewise: ``delete`` or ``update`` followed
by a put that lacks columns, ``delete`` by such an insert, and a row that lacks a column by that
column's increment.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, Final

from writebehind.engine.core.payload import Op
from writebehind.engine.errors import PoisonEntryError

__all__ = ["Changes", "TableChanges", "Update"]

_PUT: Final = int(Op.PUT)  # a plain int: comparing with a member of an IntEnum costs as much as the merge

Values = dict[str, Any]
Adder = Callable[[Any, Any], Any]
Member = Sequence[Any]
"""One mutation as decoded: ``[op, table, key_text, values]``."""


class Update:
    """What a batch does to one row that it does not replace as a whole.

    Attributes:
        key: the key columns' wire values.
        sets: columns to set where the row exists.
        increments: amounts to add where the row exists; NULL counts as 0. Disjoint from ``sets``.
        missing: the whole row to create where none exists, or None to leave it so.
    """

    __slots__ = ("increments", "key", "missing", "sets")

    def __init__(self, key: Values) -> None:
        self.key = key
        self.sets: Values = {}
        self.increments: Values = {}
        self.missing: Values | None = None

    def __copy__(self) -> "Update":
        twin = Update(self.key)
        twin.sets = dict(self.sets)
        twin.increments = dict(self.increments)
        twin.missing = None if self.missing is None else dict(self.missing)
        return twin


class TableChanges:
    """The coalesced operations on one table.

    Args:
        key_columns: names of the key's columns.
        adders: for each numeric column, the function that adds two wire values.
        default_row: makes the row that an increment begins with, or None where the table has a
            NOT NULL column without a default.
        delta_adders: likewise, the function that adds two increments; ``adders`` where not given.
        columns: names of all columns, by which a row that lacks some is told; without them every
            row passes for a whole one.

    Attributes:
        appended: rows to insert whose key the database makes.
        inserts: rows to insert, which must not exist, by key text.
        puts: whole rows to insert or replace, by key text.
        updates: changes to parts of rows, by key text.
        deletes: key values of rows to delete, by key text.
        versions: by partition and key text, the ID of the last entry that touched the record's hash.
        refused: key texts of puts that the database refuses, with the reason, as a bulk path has found them.
        touched: key texts whose last mutation was no put, so that the hash may be anything but whole.
    """

    __slots__ = (
        "_columns",
        "_versions",
        "adders",
        "appended",
        "default_row",
        "deletes",
        "delta_adders",
        "inserts",
        "key_columns",
        "puts",
        "refused",
        "touched",
        "updates",
        "versions",
    )

    def __init__(
        self,
        key_columns: tuple[str, ...],
        adders: Mapping[str, Adder],
        default_row: Callable[[Values, set[str]], Values | None],
        *,
        delta_adders: Mapping[str, Adder] | None = None,
        columns: Collection[str] = (),
    ) -> None:
        self.key_columns = key_columns
        self.adders = adders
        self.delta_adders = adders if delta_adders is None else delta_adders
        self.default_row = default_row
        self._columns = columns
        self.appended: list[Values] = []
        self.inserts: dict[str, Values] = {}
        self.puts: dict[str, Values] = {}
        self.updates: dict[str, Update] = {}
        self.deletes: dict[str, Values] = {}
        self.versions: dict[int, dict[str, bytes]] = {}
        self._versions: dict[str, bytes] = {}
        self.touched: set[str] = set()
        self.refused: dict[str, Exception] = {}

    def __len__(self) -> int:
        return len(self.appended) + len(self.inserts) + len(self.puts) + len(self.updates) + len(self.deletes)

    def enter(self, partition: int) -> None:
        """Say which partition the mutations that follow come from."""
        self._versions = self.versions.setdefault(partition, {})

    def accepts(self, op: int, key: str, values: Values) -> bool:
        """Tell whether the mutation can be merged; otherwise the caller begins a new batch with it."""
        if op == Op.PUT:
            return not (
                (self.deletes or self.updates)
                and len(values) < len(self._columns)
                and (key in self.deletes or key in self.updates)
            )
        if op == Op.INCREMENT:
            row = self._row(key)
            return row is None or row.keys() >= values.keys()
        if op != Op.INSERT or not key:
            return True
        if key in self.deletes:
            return len(values) >= len(self._columns)
        return not (key in self.puts or key in self.updates or key in self.inserts)

    def replace(self, key: str, values: Values, entry_id: bytes) -> bool:
        """Merge a put in the most frequent case, quickly; return False, changing nothing, in any other case.

        Owns ``values`` from now on, if it returns True.
        """
        if self.inserts or self.updates or self.deletes or self.touched:
            return False
        former = self.puts.get(key)
        if former is not None and not former.keys() <= values.keys():
            return False
        self.puts[key] = values
        self._versions[key] = entry_id
        return True

    def merge(self, op: int, key: str, values: Values, entry_id: bytes) -> None:
        """Merge one mutation that ``accepts`` has let through. Owns ``values`` from now on.

        Raises:
            PoisonEntryError: a column that is not numeric is incremented; nothing has changed.
            ValidationError: an increment leaves the column's range; nothing has changed.
            ValueError: the operation is unknown; nothing has changed.
        """
        if op == Op.PUT:
            self._put(key, values)
            self.touched.discard(key)
            self._versions[key] = entry_id
            return
        if op == Op.INCREMENT:
            self._increment(key, values)
        elif op == Op.PATCH:
            self._patch(key, values)
        elif op == Op.INSERT:
            self._insert(key, values)
            if not key:
                return
        elif op == Op.DELETE:
            self._delete(key, values)
        else:
            raise ValueError(f"unknown operation {op}")
        self.touched.add(key)
        self._versions[key] = entry_id

    def pass_over(self, key: str, entry_id: bytes) -> None:
        """Note that an entry has left its mark on a record, although it changes nothing in SQL."""
        self.touched.add(key)
        self._versions[key] = entry_id

    def undo(self, key: str) -> Callable[[], None]:
        """Return what takes back all that will have happened to a key, and all rows appended."""
        appended = len(self.appended)
        kept: tuple[dict[str, Any], ...] = (self.inserts, self.puts, self.updates, self.deletes, self._versions)
        former = [(by_key, copy(by_key.get(key))) for by_key in kept]

        def take_back() -> None:
            del self.appended[appended:]
            self.touched.add(key)
            for by_key, value in former:
                by_key.pop(key, None)
                if value is not None:
                    by_key[key] = value

        return take_back

    def _row(self, key: str) -> Values | None:
        return self.puts.get(key) or self.inserts.get(key)

    def _put(self, key: str, values: Values) -> None:
        rows = self.inserts if self.inserts and key in self.inserts else self.puts
        former = rows.get(key)
        if former is not None and not former.keys() <= values.keys():
            values = {**former, **values}
        rows[key] = values
        if self.updates:
            self.updates.pop(key, None)
        if self.deletes:
            self.deletes.pop(key, None)

    def _insert(self, key: str, values: Values) -> None:
        if not key:
            self.appended.append(values)
        elif key in self.deletes:
            del self.deletes[key]
            self.puts[key] = values
        else:
            self.inserts[key] = values

    def _delete(self, key: str, values: Values) -> None:
        self.puts.pop(key, None)
        self.updates.pop(key, None)
        self.inserts.pop(key, None)
        self.deletes[key] = values

    def _patch(self, key: str, values: Values) -> None:
        row = self._row(key)
        if row is not None:
            row.update(values)
        elif key not in self.deletes:
            update = self.updates.get(key)
            if update is None:
                update = self.updates[key] = self._new_update(values)
            for name, value in values.items():
                if name not in update.key:
                    update.sets[name] = value
                    update.increments.pop(name, None)
            if update.missing is not None:
                update.missing.update(values)

    def _increment(self, key: str, values: Values) -> None:
        row = self._row(key)
        if row is not None:
            row.update(self._sums(self.adders, row, values))
        elif key in self.deletes:
            row = self._begin(self.adders, values)
            if row is not None:
                del self.deletes[key]
                self.puts[key] = row
        else:
            self._increment_update(key, values)

    def _increment_update(self, key: str, values: Values) -> None:
        # Whether the row exists is not known here, so only the database can tell whether a sum fits.
        # All that can fail comes before the first change.
        update = self.updates.get(key) or self._new_update(values)
        sets: Values = {}
        increments = values
        if update.sets:
            sets = {name: delta for name, delta in values.items() if name in update.sets}
            increments = {name: delta for name, delta in values.items() if name not in update.sets}
            sets = self._sums(self.delta_adders, update.sets, sets)
        increments = self._sums(self.delta_adders, update.increments, increments)
        if update.missing is None:
            missing = self._begin(self.delta_adders, values)
        else:
            missing = {**update.missing, **self._sums(self.delta_adders, update.missing, values)}
        update.sets.update(sets)
        update.increments.update(increments)
        update.missing = missing
        self.updates[key] = update

    def _new_update(self, values: Values) -> Update:
        return Update({name: values[name] for name in self.key_columns})

    def _begin(self, adders: Mapping[str, Adder], values: Values) -> Values | None:
        row = self.default_row(
            {name: values[name] for name in self.key_columns},
            {name for name in values if name not in self.key_columns},
        )
        return None if row is None else {**row, **self._sums(adders, row, values)}

    def _sums(self, adders: Mapping[str, Adder], amounts: Values, deltas: Values) -> Values:
        """Return the increased amounts of the columns of ``deltas`` outside the key; one that is not there is 0."""
        sums: Values = {}
        for name, delta in deltas.items():
            if name in self.key_columns:
                continue
            adder = adders.get(name)
            if adder is None:
                if self._columns and name not in self._columns:
                    # Whoever writes it to SQL does what the table's policy says about columns that are not declared.
                    sums[name] = delta
                    continue
                raise PoisonEntryError(f"column {name} is not numeric and cannot be incremented")
            sums[name] = adder(amounts.get(name), delta)
        return sums


class Changes:
    """The coalesced operations of a batch, by table.

    Args:
        tables: a maker of empty ``TableChanges`` for each table that may occur.

    Attributes:
        entries: how many log entries were merged.
        mutations: how many mutations they held.
    """

    __slots__ = ("_makers", "_partition", "entries", "mutations", "tables")

    def __init__(self, tables: Mapping[str, Callable[[], TableChanges]]) -> None:
        self._makers = tables
        self._partition = 0
        self.tables: dict[str, TableChanges] = {}
        self.entries = 0
        self.mutations = 0

    def table(self, name: str) -> TableChanges:
        """Return the named table's changes.

        Raises:
            KeyError: no such table is declared.
        """
        changes = self.tables.get(name)
        if changes is None:
            changes = self.tables[name] = self._makers[name]()
            changes.enter(self._partition)
        return changes

    def enter(self, partition: int) -> None:
        """Say which partition the entries that follow come from."""
        self._partition = partition
        for table in self.tables.values():
            table.enter(partition)

    def merge(self, members: Sequence[Member], entry_id: bytes) -> bool:
        """Merge one entry, given as its mutations; return False, changing nothing, where it must begin a new batch.

        An entry that raises has changed nothing either. An empty batch never returns False.

        Raises:
            KeyError: a mutation names a table that is not declared.
            PoisonEntryError: the entry contradicts itself.
            ValidationError: an increment leaves its column's range.
            ValueError: an operation is unknown.
        """
        if len(members) == 1:
            ((op, name, key, values),) = members
            table = self.tables.get(name)
            if table is None:
                table = self.table(name)
            if op != _PUT or not table.replace(key, values, entry_id):
                if not table.accepts(op, key, values):
                    return False
                table.merge(op, key, values, entry_id)
        elif not self._merge_group(members, entry_id):
            return False
        self.entries += 1
        self.mutations += len(members)
        return True

    def pass_over(self, members: Sequence[Member], entry_id: bytes) -> None:
        """Count an entry whose effect SQL has already by another one.

        Raises:
            KeyError: a mutation names a table that is not declared.
        """
        for _, name, key, _ in members:
            if key:
                self.table(name).pass_over(key, entry_id)
        self.entries += 1

    def _merge_group(self, members: Sequence[Member], entry_id: bytes) -> bool:
        for op, name, key, values in members:
            if not self.table(name).accepts(op, key, values):
                return False
        undos = [self.table(name).undo(key) for _, name, key, _ in members]
        try:
            for op, name, key, values in members:
                self._merge_member(op, name, key, values, entry_id)
        except BaseException:
            for undo in undos:
                undo()
            raise
        return True

    def _merge_member(self, op: int, name: str, key: str, values: Values, entry_id: bytes) -> None:
        table = self.table(name)
        if not table.accepts(op, key, values):
            raise PoisonEntryError(
                f"an atomic group makes a row of {name} again that it has already written",
                "write each row of a group once, or name all of its columns",
            )
        table.merge(op, key, values, entry_id)

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables.values())
