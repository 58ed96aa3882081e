"""What the engine keeps of its accepted writes, and which of them it may write again after Redis has lost them.

Pure. A write is lost when its entry stands above the end that the lineage gives its epoch, or its epoch is unknown to
the lineage: Redis was rolled back. It is written again under a condition that only the flusher can judge exactly, that
SQL has not applied the original; so writing again never doubles a write.

Invariants:

1. What is kept is bounded in bytes and in age; what is dropped leaves its position behind.
2. A write that another one has overwritten since is not written again: it would put back an old value.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from writebehind.engine.core.appending import Call
from writebehind.engine.core.contiguity import Lineage, end_of
from writebehind.engine.core.payload import Mutation, Op
from writebehind.engine.core.positions import EntryID

__all__ = ["Accepted", "DataLoss", "Ring", "Single", "commutes", "is_lost"]

ITEM_BYTES = 300
ARGUMENT_BYTES = 60
"""What CPython takes, roughly, for a call and for each of its arguments."""

EPOCHS_MAX = 100
"""Epochs of which it is remembered where the last dropped entry stood."""

ADDING = frozenset({Op.INCREMENT, Op.PATCH})


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLoss:
    """What a rollback of Redis took of this engine's accepted writes in one partition.

    Attributes:
        partition: its number.
        first_id: the first entry lost.
        last_id: the last entry lost.
        entries: how many of this engine's own entries Redis lost.
        rewritten: how many of them were written again; those that SQL had applied before take effect once.
        applied: how many were not, because others have written the records since, and SQL has them.
        superseded: how many were not, because others have written the records since, and SQL does not have them.
        unretained: how many entries of the partition, of this engine and of others, were lost that this engine no
            longer keeps and SQL has not applied.
        in_doubt: how many entries a flusher has passed over, because nobody can know whether SQL has their writes
            already: an attempt of each was lost with another history, of which SQL has some. An upper bound.
        from_ms: when the first one kept was made, in milliseconds since 1970 on this machine's clock; 0 for unknown.
        until_ms: when the last one was made.
        keys: table and key of each record whose write is superseded or in doubt; the key is empty where SQL makes it.
    """

    partition: int
    first_id: str
    last_id: str
    entries: int = 0
    rewritten: int = 0
    applied: int = 0
    superseded: int = 0
    unretained: int = 0
    in_doubt: int = 0
    from_ms: int = 0
    until_ms: int = 0
    keys: Sequence[tuple[str, str]] = ()

    @property
    def lost(self) -> int:
        """Entries whose effect is in neither Redis nor SQL; of those in doubt, it may be in SQL."""
        return self.superseded + self.unretained + self.in_doubt


@dataclass(slots=True)
class Single:
    """One accepted entry.

    Attributes:
        entry_id: where it stood.
        original: where it stood first; differs from ``entry_id`` once it was written again.
        mutation_id: the ID it carried.
        payload: the encoded mutations.
        records: names of the record hashes it changes.
        operations: for each mutation the script's operation and its arguments.
        doubts: see ``Call``.
    """

    entry_id: EntryID
    original: EntryID
    mutation_id: str
    payload: bytes = field(repr=False)
    records: Sequence[str]
    operations: Sequence[tuple[str, Sequence[Any]]] = field(repr=False)
    doubts: Sequence[EntryID] = ()


@dataclass(slots=True)
class Accepted:
    """One accepted call.

    Attributes:
        call: what was sent.
        last: ID of its last entry, as Redis gave it.
        at: when it was accepted, in seconds of a monotonic clock.
        original: where it stood first, if it was written again; such a call has one entry.
    """

    call: Call
    last: bytes
    at: float
    original: EntryID | None = None

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        return self.call.payload_bytes + ARGUMENT_BYTES * len(self.call.arguments) + ITEM_BYTES

    def singles(self) -> list[Single]:
        """Return its entries in order."""
        call = self.call
        last = EntryID.parse(self.last)
        found: list[Single] = []
        at, record = 2, 0
        arguments = call.arguments
        for number in range(call.entries):
            payload, count = arguments[at], arguments[at + 1]
            at += 2
            operations: list[tuple[str, Sequence[Any]]] = []
            begun = record
            for _ in range(count):
                op, size = arguments[at], arguments[at + 1]
                operations.append((op, arguments[at + 2 : at + 2 + size]))
                at += 2 + size
                record += op != "a"
            entry_id = EntryID(last.epoch, last.sequence - call.entries + 1 + number)
            found.append(
                Single(
                    entry_id,
                    self.original or entry_id,
                    call.call_id if call.entries == 1 else f"{call.call_id}.{number + 1}",
                    payload,
                    call.records[begun:record],
                    operations,
                    call.doubts,
                )
            )
        return found


@dataclass(slots=True)
class Ring:
    """The latest accepted calls.

    Args:
        bytes_max: memory that they may take, roughly; 0 keeps none.
        seconds_max: how long each is kept.

    Attributes:
        dropped: by partition and epoch, the last entry that is no longer kept and was not told to be lost.
    """

    bytes_max: int
    seconds_max: float
    dropped: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    _calls: deque[Accepted] = field(default_factory=deque)
    _bytes: int = 0

    def add(self, accepted: Accepted) -> None:
        """Keep a call, and drop what is too old or too much. Not for use by several threads at once."""
        calls = self._calls
        calls.append(accepted)
        self._bytes += accepted.size
        oldest = accepted.at - self.seconds_max
        while calls and (self._bytes > self.bytes_max or calls[0].at < oldest):
            self._drop(calls.popleft())

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        calls = self._calls
        while calls and calls[0].at < now - self.seconds_max:
            self._drop(calls.popleft())

    def _drop(self, accepted: Accepted) -> None:
        self._bytes -= accepted.size
        known = self.dropped.setdefault(accepted.call.partition, {})
        known[accepted.last.partition(b"-")[0]] = accepted.last
        if len(known) > EPOCHS_MAX:
            del known[next(iter(known))]

    def cut(self, partition: int, epoch: int, end: EntryID | None) -> None:
        """Note that what is not kept of an epoch was lost, and told.

        What is left of the epoch may be lost, too: Redis may be rolled back again, further.

        Args:
            partition: its number.
            epoch: the epoch.
            end: where the new history leaves it; an entry of an earlier one, or None, where nothing of it is left.
        """
        known = self.dropped.get(partition, {})
        if end is not None and end.epoch == epoch:
            known[b"%d" % epoch] = str(end).encode()
        else:
            known.pop(b"%d" % epoch, None)

    def partitions(self) -> set[int]:
        """Return the partitions of which something is kept, or was."""
        return {accepted.call.partition for accepted in self._calls} | self.dropped.keys()

    def of(self, partition: int) -> list[Accepted]:
        """Return what is kept of a partition, in the order of acceptance."""
        return [accepted for accepted in self._calls if accepted.call.partition == partition]

    def remove(self, gone: Callable[[Accepted], bool]) -> None:
        """Stop keeping some calls, because their entries are kept in other ones."""
        kept = [accepted for accepted in self._calls if not gone(accepted)]
        self._calls = deque(kept)
        self._bytes = sum(accepted.size for accepted in kept)


def is_lost(entry_id: EntryID, lineage: Lineage) -> bool:
    """Tell whether the history that a lineage describes is without an entry that was accepted once."""
    if entry_id.epoch not in lineage:
        return True
    end = end_of(entry_id.epoch, lineage)
    return end is not None and entry_id > end


def commutes(mutation: Mutation, since: Iterable[Mutation], key: Collection[str]) -> bool:
    """Tell whether a mutation of a record gives the same after others as before them.

    Args:
        mutation: the one.
        since: the others, of the same record.
        key: names of the key's columns, which every mutation carries.
    """
    op, _, _, values = mutation
    columns = values.keys() - set(key)
    return all(
        op in ADDING and other[0] in ADDING and (op == other[0] == Op.INCREMENT or columns.isdisjoint(other[3].keys()))
        for other in since
    )
