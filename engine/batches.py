"""Batches and atomic groups: many writes in few round trips, several writes as one."""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.receipts import Receipt

if TYPE_CHECKING:
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["AtomicGroup", "Batch"]


class Batch:
    """Many independent writes, sent together when the ``with`` block ends.

    Each write is validated when it is added. Writes of one key keep their order. Not for sharing between threads.

    Durability: nothing is accepted before ``flush`` or the end of the block; an exception inside the block discards
    what was not sent. On return all of it is at the level asked for. Where that raises because some of it was not
    accepted, the rest is accepted and was not waited for: ``Receipt.durability`` says so, ``Receipt.wait`` waits. Only
    what was written through beyond a limit was waited for, until SQL had it or time ran out. Repeat: a second ``flush``
    sends only what was added since. Crash: some partitions' writes may be accepted and others not; each script call is
    all or nothing.
    """

    __slots__ = ("_drafts", "_durability", "_engine", "_receipts")

    def __init__(self, engine: "WriteBehind", durability: Durability | None) -> None:
        self._engine = engine
        self._durability = durability
        self._drafts: dict[int, list[Draft]] = {}
        self._receipts: dict[int, list[Receipt]] = {}

    def put(self, table: Any, record: Mapping[str, Any]) -> Receipt:
        """Add the upsert of a whole record; see ``WriteBehind.put``."""
        engine = self._engine
        return self._add(engine.composer.put(engine.plan_of(table), record))

    def patch(self, table: Any, key: Any, changes: Mapping[str, Any]) -> Receipt:
        """Add the change of some columns; see ``WriteBehind.patch``."""
        engine = self._engine
        return self._add(engine.composer.patch(engine.plan_of(table), key, changes))

    def increment(self, table: Any, key: Any, deltas: Mapping[str, Any]) -> Receipt:
        """Add an exactly-once increment; see ``WriteBehind.increment``."""
        engine = self._engine
        return self._add(engine.composer.increment(engine.plan_of(table), key, deltas))

    def insert(self, table: Any, row: Mapping[str, Any]) -> Receipt:
        """Add an append-only row; see ``WriteBehind.insert``."""
        engine = self._engine
        return self._add(engine.composer.insert(engine.plan_of(table), row))

    def delete(self, table: Any, key: Any) -> Receipt:
        """Add a deletion; see ``WriteBehind.delete``."""
        engine = self._engine
        return self._add(engine.composer.delete(engine.plan_of(table), key))

    def _add(self, entry: Entry) -> Receipt:
        partition = entry.partition
        if partition < 0:
            partition = self._engine.any_partition()
        receipt = Receipt(self._engine, partition)
        drafts = self._drafts.get(partition)
        if drafts is None:
            self._drafts[partition] = [Draft(partition).add(entry)]
            self._receipts[partition] = [receipt]
            return receipt
        settings = self._engine.settings
        if not drafts[-1].has_room(entry, settings.call_entries_max, settings.call_bytes_max):
            drafts.append(Draft(partition))
        drafts[-1].add(entry)
        self._receipts[partition].append(receipt)
        return receipt

    def __len__(self) -> int:
        return sum(map(len, self._receipts.values()))

    def flush(self) -> None:
        """Send what was added so far.

        Raises:
            RedisUnavailable, BacklogFull, ValidationError: some calls were refused; their receipts say "not sent".
            WriteOutcomeUnknown: a reply was lost and could not be found out.
            DurabilityTimeout, PoisonEntryError: all are accepted, and some not as durable as asked.
        """
        drafts, self._drafts = self._drafts, {}
        receipts, self._receipts = self._receipts, {}
        self._engine.append_many(drafts, receipts, self._durability)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.flush()


class AtomicGroup:
    """Several writes of one partition that become one log entry: all or nothing in Redis and in SQL.

    The group's partition is that of the key it was opened with; every member must live there (``partition_by``).

    Durability: nothing is accepted before the block ends; an exception inside it discards everything.
    Repeat: not applicable. Crash: all or nothing.
    """

    __slots__ = ("_durability", "_engine", "_entries", "_receipt")

    def __init__(self, engine: "WriteBehind", partition: int, durability: Durability | None) -> None:
        self._engine = engine
        self._durability = durability
        self._entries: list[Entry] = []
        self._receipt = Receipt(engine, partition)

    @property
    def receipt(self) -> Receipt:
        """The group's one receipt; usable after the block has ended."""
        return self._receipt

    def put(self, table: Any, record: Mapping[str, Any]) -> None:
        """Add the upsert of a whole record; see ``WriteBehind.put``."""
        self._entries.append(self._engine.composer.put(self._engine.plan_of(table), record))

    def patch(self, table: Any, key: Any, changes: Mapping[str, Any]) -> None:
        """Add the change of some columns; see ``WriteBehind.patch``."""
        self._entries.append(self._engine.composer.patch(self._engine.plan_of(table), key, changes))

    def increment(self, table: Any, key: Any, deltas: Mapping[str, Any]) -> None:
        """Add an exactly-once increment; see ``WriteBehind.increment``."""
        self._entries.append(self._engine.composer.increment(self._engine.plan_of(table), key, deltas))

    def insert(self, table: Any, row: Mapping[str, Any]) -> None:
        """Add an append-only row; see ``WriteBehind.insert``."""
        self._entries.append(self._engine.composer.insert(self._engine.plan_of(table), row))

    def delete(self, table: Any, key: Any) -> None:
        """Add a deletion; see ``WriteBehind.delete``."""
        self._entries.append(self._engine.composer.delete(self._engine.plan_of(table), key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None and self._entries:
            entry = self._engine.composer.group(self._entries, self._receipt.partition)
            partition = self._receipt.partition
            draft = Draft(partition).add(entry)
            self._engine.append_many({partition: [draft]}, {partition: [self._receipt]}, self._durability)
