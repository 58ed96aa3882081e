"""Waiting for what receipts promise, also where a write was written again after Redis had lost it."""

import time
from collections.abc import Generator, Iterable, Sequence

import redis

from writebehind.engine.adapters.confirmer import GRACE_SECONDS, Confirmer, Passed, late
from writebehind.engine.adapters.deadline import Waiting, wait_out
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import (
    DataLossDetected,
    DurabilityTimeout,
    LogDamaged,
    RedisUnavailable,
    WriteBehindError,
    gravest,
)
from writebehind.engine.receipts import Receipt

__all__ = ["Confirmations"]

RECONCILE_PAUSE_SECONDS = 0.05


class Confirmations:
    """Confirms what was accepted; safe to share between threads.

    Args:
        confirmer: asks the servers.
        rewriter: knows where lost entries were written again.
    """

    __slots__ = ("_confirmer", "_rewriter")

    def __init__(self, confirmer: Confirmer, rewriter: Rewriter) -> None:
        self._confirmer = confirmer
        self._rewriter = rewriter

    def confirm(
        self,
        partition: int,
        entry_id: EntryID,
        identity: bytes,
        durability: Durability,
        timeout: float,
        *,
        in_doubt: bool = False,
    ) -> bool:
        """Wait until an entry is as durable as asked, also where it was written again; see ``Receipt.wait``.

        Return whether the entries of the partition before it certainly are, too.
        """
        until_seconds = time.monotonic() + timeout
        return wait_out(self.confirming(partition, entry_id, identity, durability, until_seconds, in_doubt=in_doubt))

    def confirming(
        self,
        partition: int,
        entry_id: EntryID,
        identity: bytes,
        durability: Durability,
        until_seconds: float,
        *,
        in_doubt: bool = False,
    ) -> Waiting[bool]:
        """Do what ``confirm`` does, until a time by ``time.monotonic``, for who does not wait in a thread."""
        level = Durability(durability)
        while True:
            # What SQL has, it has: an entry is looked for in its new place only where it was lost in the old one.
            moved = self._rewriter.whereabouts(partition, entry_id)
            at, primary = moved[-1] if moved else (entry_id, identity)
            places = [entry_id, *(place for place, _ in moved)]
            try:
                try:
                    covers = yield from self._confirmer.confirm(
                        partition, at, primary, level, until_seconds, places=places, in_doubt=in_doubt
                    )
                except DataLossDetected:
                    self._reconcile(partition)
                    if self._rewriter.whereabouts(partition, entry_id) == moved:
                        raise
                else:
                    return covers and not moved
            except (RedisUnavailable, LogDamaged) as error:
                # That error says "nothing was written"; this write was accepted.
                if time.monotonic() >= until_seconds:
                    raise DurabilityTimeout(
                        f"the write is accepted, but not {level.name} in time: {error.message}",
                        "wait for the receipt again; where Redis has lost the write, the engine writes it again",
                    ) from error
                yield RECONCILE_PAUSE_SECONDS

    def place_of(self, partition: int, entry_id: EntryID) -> EntryID:
        """Return where an entry stands that may have been written again."""
        moved = self._rewriter.whereabouts(partition, entry_id)
        return moved[-1][0] if moved else entry_id

    def progress(self, partition: int, entry_id: EntryID) -> Generator[float, EntryID | None, Passed]:
        """Wait until the offset has passed an entry; see ``Confirmer.progress``.

        Raises:
            DataLossDetected: Redis lost the entry; what could be written again has been.
        """
        try:
            return (yield from self._confirmer.progress(partition, entry_id))
        except DataLossDetected:
            self._reconcile(partition)
            raise

    def confirm_all(self, receipts: Iterable[Sequence[Receipt]], level: Durability, timeout: float) -> None:
        """Wait until all of some writes are as durable as asked; each sequence is of one partition, in order.

        One is waited for after the other. What is left when the time is over is looked at once more.

        Args:
            receipts: of the writes.
            level: the level to wait for.
            timeout: seconds for all of them together.

        Raises:
            WriteBehindError: as ``Receipt.wait``; of several, as ``gravest`` says.
        """
        until_seconds = time.monotonic() + timeout
        failures: list[WriteBehindError] = []
        waits = [self._confirming_each(listed, level, until_seconds, failures) for listed in receipts]
        while waits:
            over_since = time.monotonic() - until_seconds
            pauses: list[float] = []
            for wait in waits[:1] if over_since < 0 else list(waits):
                if pauses and time.monotonic() >= until_seconds + GRACE_SECONDS:
                    break  # a Redis that does not answer holds up each look for as long as it may
                try:
                    pauses.append(next(wait))
                except StopIteration:
                    waits.remove(wait)
            if time.monotonic() >= until_seconds + GRACE_SECONDS and waits:
                failures.append(late(level))
                while waits:
                    waits.pop().close()
            elif pauses:
                time.sleep(min(pauses))
        if failures:
            raise gravest(failures)

    def _confirming_each(
        self, listed: Sequence[Receipt], level: Durability, until_seconds: float, failures: list[WriteBehindError]
    ) -> Waiting[None]:
        """Wait for the writes of one partition, and note what keeps them from the level."""
        # What one primary accepted last covers what it accepted before in the partition, where SQL refuses nothing.
        covered = []
        for last in {receipt.identity: receipt for receipt in listed if not receipt.in_doubt}.values():
            try:
                asked = (last.partition, last.entry_id, last.identity, level, until_seconds)
                covered.append((yield from self.confirming(*asked)))
            except WriteBehindError:
                # Each finds out for itself what of this concerns it.
                covered.append(False)
        for receipt in listed:
            if not all(covered) or receipt.in_doubt:
                if time.monotonic() >= until_seconds + 2 * GRACE_SECONDS:
                    # However many there are of which Redis or SQL tells at once.
                    failures.append(late(level))
                    return
                try:
                    yield from self._confirming_one(receipt, level, until_seconds)
                except WriteBehindError as error:
                    failures.append(error)
                    if self._concerns_later_ones(error, receipt, level):
                        return
                    continue
            receipt.durability = max(receipt.durability or level, level)

    def _confirming_one(self, receipt: Receipt, level: Durability, until_seconds: float) -> Waiting[None]:
        if receipt.durability is None or receipt.durability < level:
            asked = (receipt.partition, receipt.entry_id, receipt.identity, level, until_seconds)
            yield from self.confirming(*asked, in_doubt=receipt.in_doubt)

    def _concerns_later_ones(self, error: WriteBehindError, receipt: Receipt, level: Durability) -> bool:
        """Tell whether what keeps a write from its level keeps all from it that stand after it in the partition."""
        if isinstance(error, DataLossDetected):
            return not receipt.in_doubt
        if not isinstance(error, DurabilityTimeout) or level is not Durability.PERSISTED:
            return isinstance(error, DurabilityTimeout)
        try:
            # Where the offset has passed it, it waits behind a dead letter.
            place = self.place_of(receipt.partition, receipt.entry_id)
            return not self._confirmer.has_passed(receipt.partition, place)
        except (RedisUnavailable, LogDamaged):
            return True

    def _reconcile(self, partition: int) -> None:
        try:
            self._rewriter.reconcile(partition)
        except redis.ResponseError as error:
            raise RedisUnavailable(f"Redis refuses: {error}", "try later") from error
