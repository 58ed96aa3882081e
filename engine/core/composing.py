"""Composing: from a caller's values to what one script call carries.

Nothing is sent before everything of a write has been validated and encoded, so a ``ValidationError`` means that
nothing was written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from writebehind.engine.config import MEMBERS_MAX
from writebehind.engine.core.appending import Call
from writebehind.engine.core.columns import Column, Kind
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.payload import Op, encode, encode_group
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ValidationError

__all__ = ["Composer", "Draft", "Entry", "pieces"]

INCREMENTING = frozenset({Op.INCREMENT, Op.GROUP})
"""Operations that may increment: the script checks more for them."""

Member = tuple[int, str, str, dict[str, Any]]


@dataclass(slots=True)
class Entry:
    """One log entry, ready to be sent.

    Attributes:
        partition: number of the partition, or -1 where any will do.
        payload: the encoded mutation or group.
        records: names of the record hashes it changes.
        operations: the script's arguments for these records.
        count: how many operations there are.
        member: the mutation as it would stand in a group.
    """

    partition: int
    payload: bytes = field(repr=False)
    records: list[str]
    operations: list[Any] = field(repr=False)
    count: int
    member: Member = field(repr=False)


class Composer:
    """Composes entries of one namespace.

    Args:
        keys: the namespace's key names.
        payload_bytes_max: limit of one payload, in bytes.
    """

    __slots__ = ("_keys", "_limit", "_partitions", "_stems")

    def __init__(self, keys: Keys, payload_bytes_max: int) -> None:
        self._keys = keys
        self._stems = keys.stems
        self._partitions = keys.partitions
        self._limit = payload_bytes_max

    def put(self, plan: RecordPlan, record: Mapping[str, Any]) -> Entry:
        """Compose the upsert of a whole record.

        Raises:
            ValidationError: the record does not fit the table.
        """
        key_text, spread, values, fields = plan.full_record(record)
        return self._entry(Op.PUT, plan.name, (key_text, spread, values), ["p", len(fields), *fields])

    def patch(self, plan: RecordPlan, key: Any, changes: Mapping[str, Any]) -> Entry:
        """Compose the change of some columns of an existing record.

        Raises:
            ValidationError: the key or the changes do not fit the table.
        """
        key_text, spread, values, fields = plan.partial(key, changes)
        return self._entry(Op.PATCH, plan.name, (key_text, spread, values), ["u", len(fields), *fields])

    def increment(self, plan: RecordPlan, key: Any, deltas: Mapping[str, Any]) -> Entry:
        """Compose the addition of amounts to numeric columns.

        Raises:
            ValidationError: the key or the amounts do not fit the table.
        """
        key_text, spread, values, fields = plan.deltas(key, deltas)
        arguments: list[Any] = ["i", 5 * (len(fields) // 2)]
        for name, text in zip(fields[::2], fields[1::2], strict=True):
            arguments += (name, *_arithmetic(plan.columns[name], text))
        return self._entry(Op.INCREMENT, plan.name, (key_text, spread, values), arguments)

    def delete(self, plan: RecordPlan, key: Any) -> Entry:
        """Compose the deletion of a record.

        Raises:
            ValidationError: the key does not fit the table.
        """
        key_text, spread, values = plan.key_only(key)
        return self._entry(Op.DELETE, plan.name, (key_text, spread, values), ["d", 0])

    def insert(self, plan: RecordPlan, row: Mapping[str, Any]) -> Entry:
        """Compose an append-only row.

        Raises:
            ValidationError: the row does not fit the table.
        """
        key_text, spread, values = plan.new_row(row)
        return self._entry(
            Op.INSERT, plan.name, (key_text or "", spread, values), ["n" if key_text else "a", 1, plan.name]
        )

    def _entry(
        self, op: Op, table: str, prepared: tuple[str, str | None, dict[str, Any]], operation: list[Any]
    ) -> Entry:
        key_text, spread, values = prepared
        payload = encode(op, table, key_text, values)
        self._check_size(payload, table)
        partition = -1 if spread is None else partition_of(spread, self._partitions)
        records = [f"{self._stems[partition]}{table}:{key_text}"] if key_text else []
        return Entry(partition, payload, records, operation, 1, (op, table, key_text, values))

    def group(self, entries: Sequence[Entry], partition: int) -> Entry:
        """Compose one entry of several mutations, which stay together in Redis and in SQL.

        Raises:
            ValidationError: a member belongs to another partition, or all together are too many or too large.
        """
        if len(entries) > MEMBERS_MAX:
            raise ValidationError(
                f"an atomic group of {len(entries)} writes; {MEMBERS_MAX} are allowed",
                "divide it, or use a batch; nothing was written",
            )
        for entry in entries:
            if entry.partition not in {partition, -1}:
                raise ValidationError(
                    f"a record of {entry.member[1]} in this atomic group lives in another partition",
                    "give its table partition_by with the column that holds the group's key; nothing was written",
                )
        payload = encode_group([entry.member for entry in entries])
        self._check_size(payload, "an atomic group")
        return Entry(
            partition,
            payload,
            [record for entry in entries for record in entry.records],
            [argument for entry in entries for argument in entry.operations],
            len(entries),
            (Op.GROUP, "", "", {}),
        )

    def _check_size(self, payload: bytes, table: str) -> None:
        if len(payload) > self._limit:
            raise ValidationError(
                f"{table}: the write takes {len(payload)} bytes and {self._limit} are allowed",
                "store large values elsewhere, or raise payload_bytes_max; nothing was written",
            )


class Draft:
    """A script call in the making: entries of one partition, in order.

    Holds texts and no objects of its own for each entry: a batch of them would keep the garbage collector busy.

    Args:
        partition: number of the partition.

    Attributes:
        entries: how many there are.
        payload_bytes: size of their payloads together.
        tables: names of the tables that they write to; none of a group's.
    """

    __slots__ = ("_arguments", "_increments", "_records", "entries", "partition", "payload_bytes", "tables")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.entries = 0
        self.payload_bytes = 0
        self.tables: set[str] = set()
        self._records: list[str] = []
        self._arguments: list[Any] = [0, 0]
        self._increments = False

    def add(self, entry: Entry) -> Self:
        """Add an entry."""
        self.entries += 1
        self.payload_bytes += len(entry.payload)
        self._records += entry.records
        arguments = self._arguments
        arguments.append(entry.payload)
        arguments.append(entry.count)
        arguments += entry.operations
        op, table, _, _ = entry.member
        self.tables.add(table)
        if op in INCREMENTING:
            self._increments = True
        return self

    def has_room(self, entry: Entry, entries_max: int, bytes_max: int) -> bool:
        """Tell whether the call stays so small with another entry that it does not keep Redis busy for long."""
        return self.entries < entries_max and self.payload_bytes + len(entry.payload) <= bytes_max

    def call(self, call_id: str) -> Call:
        """Return the call; nothing is added after that."""
        self._arguments[:2] = self.entries, int(self._increments)
        return Call(self.partition, call_id, self.entries, self._records, self._arguments, self.payload_bytes)


def pieces(payloads: Iterable[bytes], entries_max: int, bytes_max: int) -> Iterator[slice]:
    """Cut a sequence of entries, of which the payloads are given, so that no piece keeps Redis busy for long."""
    start = end = size = 0
    for end, payload in enumerate(payloads, 1):
        before = end - 1
        if before > start and (before - start >= entries_max or size + len(payload) > bytes_max):
            yield slice(start, before)
            start, size = before, 0
        size += len(payload)
    if end > start:
        yield slice(start, end)


def _arithmetic(column: Column, delta: Any) -> tuple[Any, Any, Any, Any]:
    if column.kind is Kind.FLOAT:
        return "f", delta, "", ""
    if column.kind is Kind.NUMERIC:
        scale = "" if column.scale is None else column.scale
        if column.precision is None:
            return f"n{scale}", delta, "", ""
        limit = 10 ** min(column.precision, column.significant_digits or column.precision) - 1
        low = -limit if column.minimum is None else column.minimum * 10 ** (column.scale or 0)
        return f"n{scale}", delta, low, limit
    return "i", delta, *column.integer_limits
