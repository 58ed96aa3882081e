"""Batches and atomic groups: many writes in few round trips, several writes as one."""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from writebehind.engine.config import WritePolicy
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.receipts import Acceptance, AsyncReceipt, Receipt

if TYPE_CHECKING:
    from writebehind.engine.async_write_behind import AsyncWriteBehind
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["AsyncAtomicGroup", "AsyncBatch", "AtomicGroup", "Batch"]

Proof = TypeVar("Proof", bound=Acceptance)


class Collected(Generic[Proof]):
    """Writes of a batch, as they are added: composed and checked, and divided into calls.

    Args:
        core: what composes them.
        durability: the level to wait for.
        policy: of all of them; what the table of each says where None.
    """

    __slots__ = ("_core", "_drafts", "_durability", "_policy", "_receipts", "_through")

    def __init__(self, core: "WriteBehind", durability: Durability | None, policy: WritePolicy | None) -> None:
        self._core = core
        self._durability = durability
        self._policy = policy
        self._through: list[Proof] = []
        self._drafts: dict[int, list[Draft]] = {}
        self._receipts: dict[int, list[Proof]] = {}

    def put(self, table: Any, record: Mapping[str, Any]) -> Proof:
        """Add the upsert of a whole record; see ``WriteBehind.put``."""
        core = self._core
        return self._add(core.composer.put(core.plan_of(table), record))

    def patch(self, table: Any, key: Any, changes: Mapping[str, Any]) -> Proof:
        """Add the change of some columns; see ``WriteBehind.patch``."""
        core = self._core
        return self._add(core.composer.patch(core.plan_of(table), key, changes))

    def increment(self, table: Any, key: Any, deltas: Mapping[str, Any]) -> Proof:
        """Add an exactly-once increment; see ``WriteBehind.increment``."""
        core = self._core
        return self._add(core.composer.increment(core.plan_of(table), key, deltas))

    def insert(self, table: Any, row: Mapping[str, Any]) -> Proof:
        """Add an append-only row; see ``WriteBehind.insert``."""
        core = self._core
        return self._add(core.composer.insert(core.plan_of(table), row))

    def delete(self, table: Any, key: Any) -> Proof:
        """Add a deletion; see ``WriteBehind.delete``."""
        core = self._core
        return self._add(core.composer.delete(core.plan_of(table), key))

    def _add(self, entry: Entry) -> Proof:
        partition = entry.partition
        if partition < 0:
            partition = self._core.any_partition()
        receipt = self._receipt(partition)
        if self._core.declarations.writes_through((entry.member[1],), self._policy):
            self._through.append(receipt)
        drafts = self._drafts.get(partition)
        if drafts is None:
            self._drafts[partition] = [Draft(partition).add(entry)]
            self._receipts[partition] = [receipt]
            return receipt
        settings = self._core.settings
        if not drafts[-1].has_room(entry, settings.call_entries_max, settings.call_bytes_max):
            drafts.append(Draft(partition))
        drafts[-1].add(entry)
        self._receipts[partition].append(receipt)
        return receipt

    def _receipt(self, partition: int) -> Proof:
        raise NotImplementedError

    def _take(self) -> tuple[dict[int, list[Draft]], dict[int, list[Proof]], list[Proof]]:
        """Return what was added since the last time, and which of it is written through."""
        drafts, self._drafts = self._drafts, {}
        receipts, self._receipts = self._receipts, {}
        through, self._through = self._through, []
        return drafts, receipts, through

    def __len__(self) -> int:
        return sum(map(len, self._receipts.values()))


class Batch(Collected[Receipt]):
    """Many independent writes, sent together when the ``with`` block ends.

    Each write is validated when it is added. Writes of one key keep their order. Not for sharing between threads.

    Durability: nothing is accepted before ``flush`` or the end of the block; an exception inside the block discards
    what was not sent. On return all of it is at the level asked for. Where that raises because some of it was not
    accepted, the rest is accepted and was not waited for: ``Receipt.durability`` says so, ``Receipt.wait`` waits. Only
    what was written through, by its policy or beyond a limit, was waited for, until SQL had it or time ran out. Repeat:
    a second ``flush`` sends only what was added since. Crash: some partitions' writes may be accepted and others not;
    each script call is all or nothing.
    """

    __slots__ = ()

    def _receipt(self, partition: int) -> Receipt:
        return Receipt(self._core, partition)

    def flush(self) -> None:
        """Send what was added so far.

        Raises:
            RedisUnavailable, BacklogFull, ValidationError, ConfigurationError: some calls were refused; their receipts
                say "not sent".
            WriteOutcomeUnknown: a reply was lost and could not be found out.
            DataLossDetected, PoisonEntryError, DurabilityTimeout: all are accepted, and some not as durable as asked;
                which of these goes before the others ``errors.gravest`` says.
        """
        drafts, receipts, through = self._take()
        self._core.append_many(drafts, receipts, self._durability, through)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.flush()


class AsyncBatch(Collected[AsyncReceipt]):
    """A ``Batch`` whose ``flush`` and end of the ``async with`` block are awaited.

    Where that is cancelled, what was not sent yet never will be; each receipt says whether its write is accepted, once
    what was under way has ended: ``AsyncWriteBehind.close`` waits for that.

    Durability, Repeat, Crash: as ``Batch``.
    """

    __slots__ = ("_engine",)

    def __init__(
        self,
        engine: "AsyncWriteBehind",
        core: "WriteBehind",
        durability: Durability | None,
        policy: WritePolicy | None,
    ) -> None:
        super().__init__(core, durability, policy)
        self._engine = engine

    def _receipt(self, partition: int) -> AsyncReceipt:
        return AsyncReceipt(self._engine, partition)

    async def flush(self) -> None:
        """Send what was added so far.

        Raises:
            RedisUnavailable, BacklogFull, ValidationError, ConfigurationError: some calls were refused; their receipts
                say "not sent".
            WriteOutcomeUnknown: a reply was lost and could not be found out.
            DataLossDetected, PoisonEntryError, DurabilityTimeout: all are accepted, and some not as durable as asked;
                which of these goes before the others ``errors.gravest`` says.
        """
        drafts, receipts, through = self._take()
        await self._engine.writer().append_many(drafts, receipts, self._durability, through)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            await self.flush()


class Members:
    """Writes of an atomic group, as they are added: composed and checked.

    Args:
        core: what composes them.
        durability: the level to wait for.
        policy: of the group; where None, it is written through if one of its tables is.
    """

    __slots__ = ("_core", "_durability", "_entries", "_policy")

    def __init__(self, core: "WriteBehind", durability: Durability | None, policy: WritePolicy | None) -> None:
        self._core = core
        self._durability = durability
        self._policy = policy
        self._entries: list[Entry] = []

    def _writes_through(self) -> bool:
        return self._core.declarations.writes_through({each.member[1] for each in self._entries}, self._policy)

    def put(self, table: Any, record: Mapping[str, Any]) -> None:
        """Add the upsert of a whole record; see ``WriteBehind.put``."""
        self._entries.append(self._core.composer.put(self._core.plan_of(table), record))

    def patch(self, table: Any, key: Any, changes: Mapping[str, Any]) -> None:
        """Add the change of some columns; see ``WriteBehind.patch``."""
        self._entries.append(self._core.composer.patch(self._core.plan_of(table), key, changes))

    def increment(self, table: Any, key: Any, deltas: Mapping[str, Any]) -> None:
        """Add an exactly-once increment; see ``WriteBehind.increment``."""
        self._entries.append(self._core.composer.increment(self._core.plan_of(table), key, deltas))

    def insert(self, table: Any, row: Mapping[str, Any]) -> None:
        """Add an append-only row; see ``WriteBehind.insert``."""
        self._entries.append(self._core.composer.insert(self._core.plan_of(table), row))

    def delete(self, table: Any, key: Any) -> None:
        """Add a deletion; see ``WriteBehind.delete``."""
        self._entries.append(self._core.composer.delete(self._core.plan_of(table), key))


class AtomicGroup(Members):
    """Several writes of one partition that become one log entry: all or nothing in Redis and in SQL.

    The group's partition is that of the key it was opened with; every member must live there (``partition_by``).

    Durability: nothing is accepted before the block ends; an exception inside it discards everything.
    Repeat: not applicable. Crash: all or nothing.
    """

    __slots__ = ("_receipt",)

    def __init__(
        self, engine: "WriteBehind", partition: int, durability: Durability | None, policy: WritePolicy | None
    ) -> None:
        super().__init__(engine, durability, policy)
        self._receipt = Receipt(engine, partition)

    @property
    def receipt(self) -> Receipt:
        """The group's one receipt; usable after the block has ended."""
        return self._receipt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None and self._entries:
            entry = self._core.composer.group(self._entries, self._receipt.partition)
            partition = self._receipt.partition
            draft = Draft(partition).add(entry)
            through = [self._receipt] if self._writes_through() else []
            self._core.append_many({partition: [draft]}, {partition: [self._receipt]}, self._durability, through)


class AsyncAtomicGroup(Members):
    """An ``AtomicGroup`` whose end of the ``async with`` block is awaited.

    Durability, Repeat, Crash: as ``AtomicGroup``.
    """

    __slots__ = ("_engine", "_receipt")

    def __init__(
        self,
        engine: "AsyncWriteBehind",
        core: "WriteBehind",
        partition: int,
        durability: Durability | None,
        policy: WritePolicy | None,
    ) -> None:
        super().__init__(core, durability, policy)
        self._engine = engine
        self._receipt = AsyncReceipt(engine, partition)

    @property
    def receipt(self) -> AsyncReceipt:
        """The group's one receipt; usable after the block has ended."""
        return self._receipt

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None and self._entries:
            entry = self._core.composer.group(self._entries, self._receipt.partition)
            pressure = self._core.declarations.backpressure_of({each.member[1] for each in self._entries})
            through = self._writes_through()
            await self._engine.writer().append(entry, self._receipt, pressure, self._durability, through=through)
