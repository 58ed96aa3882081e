"""Writing: from composed entries to receipts, and to SQL for what is written through."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from writebehind.engine.adapters.appender import Appender
from writebehind.engine.adapters.confirmer import Confirmer
from writebehind.engine.confirmations import Confirmations
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import DurabilityTimeout, WriteBehindError
from writebehind.engine.own_flusher import OwnFlusher
from writebehind.engine.receipts import Receipt
from writebehind.engine.sending import send

if TYPE_CHECKING:
    from writebehind.engine.write_behind import WriteBehind

__all__ = ["Writer"]


class Writer:
    """Writes for one engine; safe to share between threads.

    Args:
        engine: what receipts are of.
        appender: appends to logs.
        confirmer: knows which levels the servers can give.
        confirmations: waits for them.
        own_flusher: flushes what is written through where nobody else does.
    """

    __slots__ = ("_appender", "_confirmations", "_confirmer", "_engine", "_own_flusher", "_spread")

    def __init__(
        self,
        engine: "WriteBehind",
        *,
        appender: Appender,
        confirmer: Confirmer,
        confirmations: Confirmations,
        own_flusher: OwnFlusher,
    ) -> None:
        self._engine = engine
        self._appender = appender
        self._confirmer = confirmer
        self._confirmations = confirmations
        self._own_flusher = own_flusher
        self._spread = itertools.count()

    def any_partition(self) -> int:
        """Return a partition for a row that has no key of its own, taking turns."""
        return next(self._spread) % self._engine.keys.partitions

    def write(self, entry: Entry, durability: Durability | None, *, through: bool) -> Receipt:
        """Append one entry, and wait for its level, or until SQL has it.

        Durability, Crash, Raises: as ``WriteBehind.put``. Repeat: another write.
        """
        self._engine.ensure_started()
        level = self._level(durability)
        partition = entry.partition if entry.partition >= 0 else self.any_partition()
        sent = Draft(partition).add(entry).call(self._appender.call_id())
        receipt = Receipt(self._engine, partition)
        accepted = self._appender.append(sent)
        receipt.accepted(*accepted, sent.call_id, in_doubt=bool(sent.doubts))
        if through:
            self._persist([], {partition: [receipt]})
            return receipt
        if sent.through:
            level = Durability.PERSISTED
        if level:
            receipt.wait(level, self._engine.settings.write_timeout_seconds)
        return receipt

    def append_many(
        self,
        drafts: Mapping[int, Sequence[Draft]],
        receipts: Mapping[int, Sequence[Receipt]],
        durability: Durability | None,
        through: Collection[Receipt] = (),
    ) -> None:
        """Append drafts by partition, each partition's in order, and fill in their receipts.

        Args:
            drafts: the calls to be.
            receipts: of their entries.
            durability: the level to wait for; the engine's where None.
            through: receipts of what is written through.

        Durability: as ``Batch``. Crash: each script call is all or nothing; a partition whose call fails gets no later
        ones.

        Raises:
            WriteBehindError: the failure that says the least, after all partitions were tried; a note of it tells where
                SQL did not get in time what was written through.
        """
        self._engine.ensure_started()
        level = self._level(durability)
        timeout = self._engine.settings.write_timeout_seconds
        beyond, failure = send(self._appender, drafts, receipts, timeout)
        chosen: dict[int, list[Receipt]] = {}
        for receipt in through:
            if receipt.durability is not None:
                chosen.setdefault(receipt.partition, []).append(receipt)
        try:
            self._persist(beyond, chosen)
        except WriteBehindError as error:
            if failure is None:
                raise
            failure.add_note(f"what was written through: {error}")
        if failure is not None:
            raise failure
        if level:
            self._confirmations.confirm_all(receipts.values(), level, timeout)

    def _level(self, durability: Durability | None) -> Durability:
        level = self._engine.durability if durability is None else durability
        if level:
            self._confirmer.require(level)
        return level

    def _persist(self, beyond: Sequence[Sequence[Receipt]], chosen: Mapping[int, Sequence[Receipt]]) -> None:
        """Wait until SQL has what was accepted beyond a limit, and what is written through by choice."""
        timeout = self._engine.settings.write_timeout_seconds
        with self._own_flusher.needed(chosen.keys()):
            try:
                self._confirmations.confirm_all([*beyond, *chosen.values()], Durability.PERSISTED, timeout)
            except DurabilityTimeout as error:
                if not chosen:
                    raise
                waited = itertools.chain(*beyond, *chosen.values())
                raise self._own_flusher.late(error, list(waited)) from error
