"""Receipts: what a write returns, and what it can truthfully say."""

from typing import TYPE_CHECKING

from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import WriteBehindError

if TYPE_CHECKING:
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["Receipt"]


class Receipt:
    """Proof that a write is in the log.

    Attributes:
        partition: number of the partition.
        mutation_id: ID that the write carries in the log, unique for ever.
        identity: the primary that accepted it, in short form.
        durability: the highest level confirmed so far.
        in_doubt: whether it was accepted after an attempt whose reply was lost together with the attempt itself, in a
            failover: a flusher may have to pass it over, because nobody knows whether SQL has that attempt.
    """

    __slots__ = ("_engine", "_raw_id", "durability", "identity", "in_doubt", "mutation_id", "partition")

    def __init__(self, engine: "WriteBehind", partition: int) -> None:
        self._engine = engine
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

    def wait(self, durability: Durability = Durability.PERSISTED, timeout: float = 30.0) -> "Receipt":
        """Wait until the write is as durable as asked, and return this receipt.

        Args:
            durability: the level to wait for.
            timeout: seconds to wait at the most.

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
            self.durability = durability
        return self

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
        return f"<Receipt {self.mutation_id or '?'} partition {self.partition} entry {entry} {level}>"
