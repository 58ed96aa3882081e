"""Holdings: the partitions that a flusher serves, from taking the lease to handing it back.

Invariants:

1. What a cursor says is what this flusher has left in SQL. A cursor of which that is in doubt is dropped, and its
   partition taken again, so that SQL says it anew.
2. Nothing is read from a log that was not taken over in the history that it has now.
3. A halted partition keeps its lease, and is tried again now and then; the others go on.

::

    free --lease--> stale --log taken over--> served --released--> free
                      |  ^                     |  |
                      |  '-- another history --'  '-- an entry cannot be committed --> halted --committed--> served
                      '-- its keys in Redis are not the engine's --> halted
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.database_facts import require_transactions
from writebehind.engine.adapters.log import Log
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import ConfigurationError, LeaseLost, LogDamaged, RedisUnavailable
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.failures import PASSING, Failure, classify, describe
from writebehind.flushers.leases import Lease, Leases
from writebehind.flushers.losses import losses_of
from writebehind.recovery.reclaim import reclaim

__all__ = ["Holdings", "Tally"]

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.2
"""Between two tries while a server is away."""


@dataclass(slots=True)
class Tally:
    """What a flusher has done."""

    entries: int = 0
    rows: int = 0
    batches: int = 0
    takeovers: int = 0
    claimed: int = 0


class Holdings:
    """The partitions of one flusher.

    All of it is for the thread that commits; ``readable`` also for the one that reads. What hands partitions to others,
    or changes from where they are read, is for when nothing is being read.

    Args:
        app: the engine whose namespace, tables and servers to use.
        settings: of the flusher.
        leases: the flusher's, in SQL.
        log: the logs.
        member: whether to claim a fair share among other flushers, or all that is free.
        among: the partitions that come into question; None for all.
        stopping: ends pauses.
        tell: called with dead letters that were made by a commit whose reply was lost.

    Attributes:
        cursors: by partition.
        tally: what was done.
        members: how many flushers claimed a share when leases were tended last, this one among them if it does.
    """

    def __init__(
        self,
        app: WriteBehind,
        settings: FlusherSettings,
        *,
        leases: Leases,
        log: Log,
        member: bool,
        among: Collection[int] | None,
        stopping: threading.Event,
        tell: Callable[[DeadLetter], Any],
    ) -> None:
        self.cursors: dict[int, Cursor] = {}
        self.tally = Tally()
        self.members = 0
        self._app = app
        self._settings = settings
        self._leases = leases
        self._log = log
        self._member = member
        self._among = among
        self._stopping = stopping
        self._tell = tell
        self._untold: dict[int, Collection[int]] = {}
        self._redis_lost_at: float | None = None
        self._tended_at = float("-inf")

    def readable(self) -> list[Cursor]:
        """Return those whose entries may be read on."""
        return [cursor for cursor in self.cursors.values() if cursor.halted is None and not cursor.stale]

    def overdue(self) -> list[Cursor]:
        """Return the halted ones that are to be tried again."""
        now = time.monotonic()
        return [cursor for cursor in self.cursors.values() if cursor.halted is not None and cursor.is_due(now)]

    # Leases

    def are_due(self) -> bool:
        """Tell whether to tend them now: nothing may be being read then."""
        now = time.monotonic()
        interval = min(1.0, self._settings.lease_ttl_seconds / 4)
        return now - self._tended_at >= interval or any(cursor.is_due(now) for cursor in self.cursors.values())

    def tend(self) -> None:
        """Renew leases, drop and hand back what is not to be served any more, take what is free, take logs over.

        A server that is away is told of, and left for the next time. Where Redis is away for longer than a lease lasts,
        everything is handed back until it answers: another flusher may reach it.

        Repeat: harmless. Crash: leases expire.

        Raises:
            ConfigurationError: the control tables cannot be used, or Redis refuses whatever the partition.
        """
        if self._redis_is_away():
            return
        try:
            self._tend_leases()
        except sa.exc.SQLAlchemyError as error:
            if classify(error, committing=False) not in PASSING | {Failure.TIMEOUT}:
                raise ConfigurationError(
                    f"the control tables cannot be used: {describe(error)}", "run 'writebehind init', check permissions"
                ) from error
            logger.warning("leases: %s", describe(error))
            self._stopping.wait(PAUSE_SECONDS)
        now = time.monotonic()
        for cursor in list(self.cursors.values()):
            if cursor.stale and cursor.is_due(now) and not self.take_over(cursor):
                break

    def _redis_is_away(self) -> bool:
        if self._redis_lost_at is None or time.monotonic() - self._redis_lost_at < self._settings.lease_ttl_seconds:
            return False
        if self.cursors:
            logger.warning("Redis has been away for longer than a lease lasts: partitions are handed back")
        self.hand_back()
        try:
            self._log.states([0])
        except RedisUnavailable:
            self._stopping.wait(PAUSE_SECONDS)
            return True
        except LogDamaged:
            pass  # it answers
        self._find_redis()
        return False

    def _find_redis(self) -> None:
        if self._redis_lost_at is not None:
            logger.warning("Redis answers again")
            self._redis_lost_at = None

    def _tend_leases(self) -> None:
        members = self.members = self._leases.tend(self.cursors.keys(), member=self._member)
        total = self._app.keys.partitions
        if self._tended_at == float("-inf"):
            self._require_database(total)
        self._drop_taken(self._leases.held())
        share = self._share(members, total) if self._member else total
        self._release_surplus(share)
        for lease in self._leases.take(share - len(self.cursors), avoid=self.cursors.keys(), among=self._among):
            self.cursors[lease.partition] = self._cursor(lease)
        self._tended_at = time.monotonic()

    def _require_database(self, total: int) -> None:
        if self._leases.registered() != total:
            raise ConfigurationError(
                f"namespace {self._app.keys.namespace} is not registered in SQL with {total} partitions",
                "run 'writebehind init'",
            )
        require_transactions(self._app.database, self._app.tables)

    def _share(self, members: int, total: int) -> int:
        serving = self._settings.concurrent_batches_max
        if serving is None or members <= serving:
            return self._leases.share(members, total)
        # One flusher has one batch under way: the others stand by.
        return self._leases.share(serving, total) if self._leases.rank() < serving else 0

    def _release_surplus(self, share: int) -> None:
        surplus = list(self.cursors.values())[share:]
        if surplus:
            self._leases.release({cursor.number: cursor.token for cursor in surplus})
            for cursor in surplus:
                del self.cursors[cursor.number]

    def _cursor(self, lease: Lease) -> Cursor:
        if lease.previous is not None:
            logger.warning("partition %d: taking over from %s", lease.partition, lease.previous)
        elif lease.partition in self._untold:
            for letter in self._leases.made(lease.partition, self._untold[lease.partition]):
                self._tell(letter)
        self._untold.pop(lease.partition, None)
        return Cursor(
            number=lease.partition,
            token=lease.token,
            committed=lease.offset,
            earlier=lease.earlier,
            rewritten=set(lease.rewritten),
            quarantine=lease.quarantine,
            letters=lease.letters,
            next_place=lease.letters,
        )

    def hand_back(self) -> None:
        """Release everything. What cannot be handed back expires. Repeat: harmless."""
        try:
            self._leases.release({cursor.number: cursor.token for cursor in self.cursors.values()})
            self._leases.resign()
        except sa.exc.SQLAlchemyError as error:
            logger.warning("leases are left to expire: %s", describe(error))
        self.cursors.clear()

    # Doubts

    def _drop_taken(self, held: Mapping[int, tuple[int, EntryID, int]]) -> None:
        """Stop serving what another has taken since: this process may have been frozen, or SQL been rolled back."""
        for cursor in list(self.cursors.values()):
            token, offset, letters = held.get(cursor.number, (None, ORIGIN, 0))
            if token != cursor.token:
                logger.warning("partition %d has another holder now", cursor.number)
                del self.cursors[cursor.number]
            elif offset != cursor.committed:
                logger.warning(
                    "partition %d: SQL stands at %s and not at %s where this flusher left it: SQL was rolled back; "
                    "what the log still has is applied again",
                    cursor.number, offset, cursor.committed,
                )  # fmt: skip
                del self.cursors[cursor.number]
            elif letters != cursor.letters:
                logger.warning("partition %d: SQL has other dead letters: SQL was rolled back", cursor.number)
                del self.cursors[cursor.number]

    def drop(self, batch: Batch, lost: LeaseLost) -> None:
        """Stop serving what a batch was read from: SQL has another token or another offset."""
        logger.warning("%s", lost)
        for segment in batch.segments:
            self.cursors.pop(segment.partition, None)

    def doubt(self, number: int, places: Collection[int]) -> None:
        """Stop serving what was perhaps committed without this flusher hearing it: only SQL knows what became of it.

        Args:
            number: the partition.
            places: of the letters that were perhaps made, or tried again: services have not been told of these.
        """
        self._untold[number] = places
        self.cursors.pop(number, None)

    def rewind(self) -> None:
        """Throw away what was read and not committed; it is read again."""
        for cursor in self.cursors.values():
            cursor.rewind()

    def distrust(self) -> None:
        """Have every log taken over anew: Redis may have another history by now."""
        for cursor in self.cursors.values():
            cursor.distrust()

    def lose_redis(self, error: RedisUnavailable | LogDamaged) -> None:
        """Take everything over anew, after a pause; a log that is damaged halts its partition then."""
        if self._redis_lost_at is None:
            logger.warning("Redis: %s; trying again until it answers", error)
            self._redis_lost_at = time.monotonic()
        self.rewind()
        self.distrust()
        self._stopping.wait(PAUSE_SECONDS)

    def take_over(self, cursor: Cursor) -> bool:
        """Have a log compared with SQL, and serve it from where SQL stands; halt where it cannot be read.

        A cursor that stays stale is not to be served.

        Durability, Repeat, Crash: as ``takeover``.

        Returns:
            False where a server is away: then the others need not be tried.
        """
        try:
            start = reclaim(
                self._log,
                cursor.number,
                cursor.committed,
                cursor.earlier,
                lambda: self._leases.holds(cursor.number, cursor.token, cursor.committed),
            )
        except LeaseLost as error:
            logger.warning("%s", error)
            self.cursors.pop(cursor.number, None)
            return True
        except LogDamaged as error:
            self._find_redis()
            self.halt(cursor, f"its log: {describe(error)}")
            return True
        except sa.exc.SQLAlchemyError as error:
            logger.warning("taking partition %d over: %s", cursor.number, describe(error))
            return False
        except RedisUnavailable as error:
            self.lose_redis(error)
            return False
        self._find_redis()
        cursor.begin(start.position, start.replay_until, start.lineage, time.monotonic())
        self.tally.takeovers += 1
        self.tally.claimed += start.claimed
        return True

    # What was committed, and what cannot be

    def note(self, batch: Batch) -> None:
        """Note that a batch is committed, and tell what it has shown to be lost."""
        now = time.monotonic()
        for segment in batch.segments:
            for loss in losses_of(segment):
                self._tell_loss(segment, loss)
            cursor = self.cursors.get(segment.partition)
            if cursor is not None:
                cursor.advance(segment, now)
                self.resume(cursor)
        self.tally.entries += batch.changes.entries
        self.tally.rows += len(batch.changes)
        self.tally.batches += 1

    def _tell_loss(self, segment: Segment, loss: DataLoss) -> None:
        """Say what is missing, or in doubt, once the offset has passed it: before that a flusher may be mistaken."""
        if loss.in_doubt:
            logger.error(
                "POSSIBLE DATA LOSS: partition %d: %d entries, %s to %s, are passed over: their writer did not hear "
                "whether an earlier attempt was accepted, Redis lost it, and SQL has some of what Redis lost then",
                loss.partition, loss.in_doubt, loss.first_id, loss.last_id,
            )  # fmt: skip
        else:
            logger.error(
                "DATA LOSS: partition %d: %s%d entries between %s and %s are not in the log and not in SQL",
                loss.partition, "at least " if segment.at_least else "", loss.lost, segment.start, segment.end,
            )  # fmt: skip
        self._app.tell_loss(loss)

    def halt(self, cursor: Cursor, reason: str) -> None:
        """Do not serve a partition until it is tried again; told once for each reason."""
        pause = self._settings.halt_retry_seconds
        cursor.retry_at = time.monotonic() + pause
        if cursor.halted != reason:
            logger.error(
                "partition %d HALTED at %s; nothing is passed over, it is tried again every %g s",
                cursor.number, reason, pause,
            )  # fmt: skip
            self._note_halt(cursor, reason)

    def resume(self, cursor: Cursor) -> None:
        """Serve a partition again if it was halted."""
        if cursor.halted is not None:
            logger.warning("partition %d flushes again", cursor.number)
            self._note_halt(cursor, None)

    def _note_halt(self, cursor: Cursor, reason: str | None) -> None:
        cursor.halted = reason
        try:
            self._leases.note_halt(cursor.number, cursor.token, reason)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("partition %d: status cannot show the halt: %s", cursor.number, describe(error))
