"""Receipts: what a write returns, and what it can truthfully say."""

from typing import TYPE_CHECKING

from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import WriteBehindError

if TYPE_CHECKING:
    from writebehind.engine.async_write_behind import AsyncWriteBehind
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["Acceptance", "AsyncReceipt", "Receipt"]


class Acceptance:
    """Proof that a write is in the log, and what it can say at once.

    Args:
        partition: number of the partition.

    Attributes:
        partition: number of the partition.
        mutation_id: ID that the write carries in the log, unique for ever.
        identity: the primary that accepted it, in short form.
        durability: the highest level confirmed so far.
        in_doubt: whether it was accepted after an attempt whose reply was lost together with the attempt itself, in a
            failover: a flusher may have to pass it over, because nobody knows whether SQL has that attempt.
    """

    __slots__ = ("_raw_id", "durability", "identity", "in_doubt", "mutation_id", "partition")

    def __init__(self, partition: int) -> None:
        self._raw_id: bytes | None = None
        self.identity = b""
        self.partition = partition
        self.mutation_id = ""
        self.durability: Durability | None = None
        self.in_doubt = False

    @property
    def entry_id(self) -> EntryID:
        """Position of the write in its partition's log.

        Raises:
            WriteBehindError: the write waits in a batch that has not been sent.
        """
        if self._raw_id is None:
            raise WriteBehindError(
                "this write is not known to be accepted", "leave the batch's with block; if that raised, it says why"
            )
        return EntryID.parse(self._raw_id)

    def accepted(self, raw_id: bytes, identity: bytes, mutation_id: str, *, in_doubt: bool) -> None:
        """Note that the write stands in the log; called by the engine."""
        self._raw_id = raw_id
        self.identity = identity
        self.mutation_id = mutation_id
        self.in_doubt = in_doubt
        self.durability = Durability.ACCEPTED

    def __repr__(self) -> str:
        level = "not sent" if self.durability is None else self.durability.name
        entry = self._raw_id.decode() if self._raw_id else "?"
        return f"<{type(self).__name__} {self.mutation_id or '?'} partition {self.partition} entry {entry} {level}>"


class Receipt(Acceptance):
    """Proof that a write is in the log; waits for more.

    Args:
        engine: the engine that it is of.
        partition: number of the partition.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: "WriteBehind", partition: int) -> None:
        super().__init__(partition)
        self._engine = engine

    def wait(self, durability: Durability = Durability.PERSISTED, timeout: float = 30.0) -> "Receipt":
        """Wait until the write is as durable as asked, and return this receipt.

        Args:
            durability: the level to wait for.
            timeout: seconds to wait at the most; 0.5 more for a last look at SQL, however long that takes to answer; up
                to two times ``redis_timeout_seconds`` more where it is Redis that does not answer.

        Durability: on return the level holds. Repeat: harmless. Crash: nothing is lost but the answer.

        Raises:
            DurabilityTimeout: it is accepted, but not yet as durable as asked.
            DataLossDetected: Redis lost the entry before it reached SQL; or, for ``PERSISTED``, it was passed over
                because nobody can know whether SQL has an earlier attempt: read the record, and write again if needed.
            PoisonEntryError: SQL refuses the write: it is a dead letter. One that was discarded since is not told from
                one that was applied.
            ConfigurationError: the servers cannot give this level.
        """
        if self.durability is None or self.durability < durability:
            entry_id = self.entry_id
            self._engine.confirm(self.partition, entry_id, self.identity, durability, timeout, in_doubt=self.in_doubt)
            self.durability = max(self.durability or durability, durability)
        return self


class AsyncReceipt(Acceptance):
    """Proof that a write is in the log; its waiting is awaited.

    Args:
        engine: the engine that it is of.
        partition: number of the partition.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: "AsyncWriteBehind", partition: int) -> None:
        super().__init__(partition)
        self._engine = engine

    async def wait(self, durability: Durability = Durability.PERSISTED, timeout: float = 30.0) -> "AsyncReceipt":  # noqa: ASYNC109 - one name for both
        """Wait until the write is as durable as asked, and return this receipt; see ``Receipt.wait``.

        Those who wait at the same time ask together. To cancel it changes nothing. Nobody waits any more in an engine
        that is closed, nor asks for what it does not know yet.

        Args:
            durability: the level to wait for.
            timeout: seconds to wait at the most.

        Durability, Repeat, Crash, Raises: as ``Receipt.wait``.

        Raises:
            DurabilityTimeout: also where the engine is closed, or was before; the write may be as durable all the same.
        """
        if self.durability is None or self.durability < durability:
            await self._engine.confirm(self, durability, timeout)
            self.durability = max(self.durability or durability, durability)
        return self
