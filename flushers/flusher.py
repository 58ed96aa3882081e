"""The flusher: holds leases, reads, commits, acknowledges.

One thread commits; meanwhile a second one reads the next batch and a third acknowledges the last. Leases change
hands only between batches, when nothing is being read.

::

    tend leases --> take over what is new --> [ read N+1 | commit N ] --> [ acknowledge N, read N+2 | commit N+1 ] ...
                        '-- a batch that cannot be committed: its partitions one by one, in halves, until the entry
                            that is to blame is alone; its partition halts, the others go on
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import assert_never

import sqlalchemy as sa
import tenacity

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.database_facts import require_transactions
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.log import Log
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import ConfigurationError, LeaseLost, RedisUnavailable, TransientError
from writebehind.flushers import isolation
from writebehind.flushers.apart import REFUSING, Apart
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.failures import Failure, classify, describe
from writebehind.flushers.flush import Acknowledge, Begin, Commit, Effect, Fence, Fenced, Reply, RollBack, Write, flush
from writebehind.flushers.garbage import collected_rarely
from writebehind.flushers.intake import EntryFailed, Intake, refusals
from writebehind.flushers.leases import Lease, Leases
from writebehind.flushers.letters import Letters
from writebehind.flushers.pacing import Pacing
from writebehind.flushers.sessions import flusher_engine
from writebehind.flushers.settlement import Settlement
from writebehind.flushers.sifting import Attempt, Outcome, Record
from writebehind.flushers.suspect import Suspect
from writebehind.flushers.transaction import Transaction
from writebehind.recovery.reclaim import reclaim

__all__ = ["Flusher", "holder_name"]

logger = logging.getLogger(__name__)

PASSING = frozenset({Failure.TRANSIENT, Failure.UNKNOWN})
ISOLATED_ENTRIES_MAX = 1000
RETRIED_LETTERS_MAX = 200
IDLE_BLOCK_MS = 200
DRAIN_BLOCK_MS = 10
IDLE_SECONDS = 0.1
REDIS_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Tally:
    """What this flusher has done."""

    entries: int = 0
    rows: int = 0
    batches: int = 0
    takeovers: int = 0
    claimed: int = 0


def holder_name() -> str:
    """Return a name that no other flusher has: host, process ID, random."""
    return f"{socket.gethostname()[:80]}:{os.getpid()}:{secrets.token_hex(4)}"


class Flusher:
    """Flushes the partitions that it can get a lease on.

    Args:
        app: the engine whose namespace, tables and servers to use.
        settings: how to do it.
        member: whether to claim a fair share among other flushers; a drain takes only what is free.
        stopping: set this event to make ``run`` finish its batch and return.

    Durability: rows are in SQL when their offset is; nothing is acknowledged before. Repeat: any number of flushers
    may run. Crash: another one takes over after the lease TTL and replays exactly what is not in SQL.
    """

    def __init__(
        self,
        app: WriteBehind,
        settings: FlusherSettings | None = None,
        *,
        member: bool = True,
        stopping: threading.Event | None = None,
    ) -> None:
        self.settings = settings or FlusherSettings()
        self.holder = holder_name()
        self.tally = Tally()
        self.stopping = stopping or threading.Event()
        self.cursors: dict[int, Cursor] = {}
        self._app = app
        self._member = member
        self._links = Links(app.redis_target, app.settings.redis_timeout_seconds)
        self._log = Log(self._links, app.keys, self.holder)
        self._engine = flusher_engine(app.database, self.settings.lease_ttl_seconds, self.holder)
        namespace = app.namespace_settings.namespace
        self._letters = Letters(namespace, self.settings.foreign_key_seconds, app.tables)
        self._leases = Leases(self._engine, namespace, self.holder, self.settings.lease_ttl_seconds, self._letters)
        self._transaction = Transaction(
            self._engine,
            namespace,
            app.tables,
            self.settings.lease_ttl_seconds,
            holder=self.holder,
            letters=self._letters,
        )
        self._intake = Intake(self._log, app.tables, self.settings.batch_bytes_max)
        self._apart = Apart(self._transaction, self._intake, self.settings.foreign_key_seconds, app.tell_dead_letter)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="writebehind-intake")
        self._settlement = Settlement(
            self._log, app.keys, app.settings.record_ttl_seconds, self.settings.retention_seconds
        )
        self._memory = Memory(self._links, app.settings.redis_memory_share_max)
        self._pacing = Pacing(self.settings, time.monotonic())
        self._committing = False
        self._untold: dict[int, range] = {}
        self._redis_lost = False
        self._tended_at = float("-inf")
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._passes),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=self.settings.retry_seconds_max),
            stop=tenacity.stop_when_event_set(self.stopping),
            sleep=tenacity.sleep_using_event(self.stopping),
            before_sleep=self._log_retry,
            reraise=True,
        )

    # Serving

    @collected_rarely()
    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Flush until ``stopping`` is set, or until ``until`` says so between two batches.

        Raises:
            ConfigurationError: the control tables are missing, or a server refuses for good.
        """
        upcoming: Future[Batch | None] | None = None
        try:
            while not self.stopping.is_set():
                if upcoming is None:
                    self._collect_settled(everything=True)
                    self._tend()
                    self._retry_letters()
                    if until is not None and until():
                        return
                    upcoming = self._reading.submit(self._read)
                batch, upcoming = self._collect(upcoming), None
                if batch is None:
                    continue
                if not self._tend_is_due():
                    upcoming = self._reading.submit(self._read)
                upcoming = self._commit(batch, upcoming)
        finally:
            if upcoming is not None:
                self._abandon(upcoming)
            self._end()

    def _read(self) -> Batch | None:
        cursors = [cursor for cursor in self.cursors.values() if cursor.halted is None and not cursor.stale]
        if not cursors:
            self.stopping.wait(IDLE_SECONDS)
            return None
        settings, entries_max = self.settings, self._pacing.entries_max
        # Who drains wants to be told that there is no more, rather than to wait for it.
        block_ms = IDLE_BLOCK_MS if self._member else DRAIN_BLOCK_MS
        batch = self._intake.read(cursors, entries_max, block_ms)
        if batch is None:
            return None
        if self._member and settings.linger_seconds > 0 and batch.changes.entries * 2 <= entries_max:
            # Few entries: what arrives within the linger joins them, for one commit instead of many.
            self.stopping.wait(settings.linger_seconds)
            batch = self._intake.read_more(batch, cursors, entries_max)
        pause_seconds = self._pacing.wait_seconds(len(batch.changes), time.monotonic())
        if pause_seconds:
            self.stopping.wait(pause_seconds)
        return batch

    def _collect(self, upcoming: "Future[Batch | None]") -> Batch | None:
        try:
            return upcoming.result()
        except EntryFailed as failed:
            self._rewind()
            self._isolate(self.cursors[failed.partition], failed.readable + 1)
        except RedisUnavailable as error:
            self._lose_redis(error)
        return None

    def _commit(self, batch: Batch, upcoming: "Future[Batch | None] | None") -> "Future[Batch | None] | None":
        """Commit a batch; return the batch being read meanwhile unless it has to be read again."""
        try:
            outcomes = self._retrying(self._attempt, batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is isolated, or halts and says so
            self._abandon(upcoming)
            self._fail(batch, error)
            return None
        self._note(batch)
        if outcomes is None:
            # Committed by an attempt whose answer was lost: which letters it made, only SQL knows.
            self._abandon(upcoming)
            for segment in batch.segments:
                self._untold[segment.partition] = segment.places
                self.cursors.pop(segment.partition, None)
            return None
        if outcomes and upcoming is not None and self._overtakes(upcoming, outcomes):
            self._abandon(upcoming)
            upcoming = None
        for segment in batch.segments:
            if segment.partition in self.cursors and segment.partition in outcomes:
                self._apart.note(self.cursors[segment.partition], segment, outcomes[segment.partition])
        return upcoming

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Do what a batch's failure calls for; everything is read again afterwards."""
        self._drop_lost(batch, error)
        if classify(error, committing=False) is Failure.TIMEOUT and self._pacing.timed_out(batch.changes.entries):
            logger.warning("%s; batches of %d entries from now on", describe(error), self._pacing.entries_max)
        elif not (self._passes(error) or isinstance(error, LeaseLost)):
            logger.warning("a batch of %d entries failed: %s", batch.changes.entries, describe(error))
            for segment in batch.segments:
                if segment.partition in self.cursors:
                    self._isolate(self.cursors[segment.partition], len(segment.ids))

    def _overtakes(self, upcoming: "Future[Batch | None]", outcomes: Mapping[int, Outcome]) -> bool:
        """Tell whether the batch read meanwhile has entries that have to wait now; it is read to its end then."""
        if upcoming.exception() is not None:
            return True
        batch = upcoming.result()
        return batch is not None and any(
            key in batch.changes.tables[table].versions.get(partition, ())
            for partition, outcome in outcomes.items()
            for suspect in [*outcome.parked, *(suspect for suspect, _ in outcome.refused)]
            for table, key in suspect.keys
            if table in batch.changes.tables
        )

    def _abandon(self, upcoming: "Future[Batch | None] | None") -> None:
        """Wait for the batch being read and throw it away, also where reading it failed."""
        if upcoming is not None:
            upcoming.exception()
        self._rewind()

    def _rewind(self) -> None:
        for cursor in self.cursors.values():
            cursor.rewind()

    def _lose_redis(self, error: RedisUnavailable) -> None:
        """Take everything over anew when Redis is back: its history may be another one then."""
        if not self._redis_lost:
            logger.warning("Redis: %s; trying again until it answers", error)
            self._redis_lost = True
        self._rewind()
        for cursor in self.cursors.values():
            cursor.stale = True
        self.stopping.wait(REDIS_PAUSE_SECONDS)

    # One batch

    def _attempt(self, batch: Batch) -> dict[int, Outcome] | None:
        protocol = flush(batch)
        begun = time.monotonic()
        try:
            effect = next(protocol)
            while True:
                effect = protocol.send(self.perform(effect))
        except StopIteration as stop:
            self._pacing.committed(batch.changes.entries, time.monotonic() - begun)
            outcomes: dict[int, Outcome] | None = stop.value
            return outcomes
        except BaseException:
            self._transaction.roll_back()
            raise

    def perform(self, effect: Effect) -> Reply:
        """Do one effect of the flush protocol."""
        self._committing = False
        match effect:
            case Begin():
                self._transaction.begin()
            case Fence(batch):
                return self._fence(batch.segments)
            case Write(batch):
                return refusals(batch, self._transaction.write(batch))
            case Attempt(suspects):
                return self._apart.write(suspects)
            case Record(segment, outcome):
                self._transaction.record(segment, outcome, self.cursors[segment.partition].quarantine)
            case Commit():
                self._committing = True
                self._transaction.commit()
            case RollBack():
                self._transaction.roll_back()
            case Acknowledge(batch, lettered):
                self._settlement.submit(batch, self.cursors, lettered)
            case _:
                assert_never(effect)
        return None

    def _fence(self, segments: Sequence[Segment]) -> Fenced:
        return self._transaction.fence(
            segments, {segment.partition: self.cursors[segment.partition].letters for segment in segments}
        )

    def _collect_settled(self, *, everything: bool) -> None:
        if self._settlement.collect(everything=everything):
            # Redis may have another history by now: every partition is looked at anew.
            for cursor in self.cursors.values():
                cursor.stale = True

    def _note(self, batch: Batch) -> None:
        now = time.monotonic()
        for segment in batch.segments:
            if segment.lost or segment.at_least:
                self._tell_loss(segment)
            cursor = self.cursors.get(segment.partition)
            if cursor is None:
                continue
            cursor.advance(segment.end, segment.rewritten)
            for suspect in segment.parked:
                cursor.quarantine.add(suspect.place, suspect.as_letter())
            cursor.quarantine.remove(segment.superseded)
            if segment.parked or segment.superseded:
                cursor.letters = segment.places.stop
            cursor.seen_ms = segment.oldest_ms
            if segment.crossings:
                # Numbers of another epoch must not trim this one.
                cursor.milestones.clear()
                cursor.earlier = {
                    **cursor.earlier,
                    **{crossing.successor: crossing.applied for crossing in segment.crossings},
                }
            cursor.milestones.append((now, segment.end))
            if cursor.halted is not None:
                logger.warning("partition %d flushes again", cursor.number)
                self._note_halt(cursor, None)
        self.tally.entries += batch.changes.entries
        self.tally.rows += len(batch.changes)
        self.tally.batches += 1
        self._collect_settled(everything=False)

    def _tell_loss(self, segment: Segment) -> None:
        """Say what is missing, once the offset has passed it: before that a flusher may be mistaken."""
        logger.error(
            "DATA LOSS: partition %d: %s%d entries between %s and %s are not in the log and not in SQL",
            segment.partition, "at least " if segment.at_least else "", segment.lost, segment.start, segment.end,
        )  # fmt: skip
        self._app.tell_loss(
            DataLoss(
                partition=segment.partition,
                first_id=str(segment.start.next()),
                last_id=str(segment.end),
                entries=0,
                rewritten=0,
                applied=0,
                superseded=0,
                unretained=segment.lost,
                from_ms=0,
                until_ms=segment.oldest_ms,
                keys=(),
            )
        )

    # Trouble

    def _isolate(self, cursor: Cursor, entries: int) -> None:
        """Flush one partition's next entries alone, setting aside those that SQL refuses.

        What is no entry's fault, a missing table, say, is found in ever smaller batches, and halts the partition there.
        """
        limit = min(entries, ISOLATED_ENTRIES_MAX)
        condemned: Exception | None = None
        while entries > 0 and not self.stopping.is_set() and cursor.number in self.cursors:
            self._collect_settled(everything=True)
            if cursor.stale and not (self._take_over(cursor) and cursor.number in self.cursors):
                return
            try:
                read = self._intake.read_raw(cursor, limit)
            except RedisUnavailable as unavailable:
                self._lose_redis(unavailable)
                return
            if read is None:
                return
            batch, suspects = read
            segment = batch.segments[0]
            error = self._try_apart(cursor, batch, suspects, condemned=condemned)
            if error is None:
                condemned = None
                entries -= len(segment.ids)
                limit = min(2 * limit, ISOLATED_ENTRIES_MAX)
                continue
            self._rewind()
            if isinstance(error, LeaseLost):
                # Lost, or committed by an attempt whose answer was lost: SQL knows.
                self._untold[cursor.number] = segment.places
            self._drop_lost(batch, error)
            if self._passes(error) or cursor.number not in self.cursors:
                return
            if len(segment.ids) > 1:
                limit = len(segment.ids) // 2
            elif condemned is None and classify(error, committing=False) in REFUSING:
                # Only the end of the transaction has shown it.
                condemned = error
            else:
                self._halt(cursor, segment.ids[0].decode(), error)
                return

    def _try_apart(
        self,
        cursor: Cursor,
        batch: Batch,
        suspects: Sequence[Suspect] = (),
        *,
        due: Collection[int] = (),
        condemned: Exception | None = None,
    ) -> Exception | None:
        """Commit what can be of one partition's entries and letters, retrying what passes; return what else fails."""
        segment = batch.segments[0]
        try:
            outcome = self._retrying(
                self._apart.attempt, self._perform_apart, cursor, segment, suspects, due=due, condemned=condemned
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller isolates it, halts and says so
            return error
        for suspect in [*outcome.applied, *(each for each in suspects if each.control is not None)]:
            self._intake.pass_over(batch.changes, cursor.number, suspect)
        if segment.ids:
            self._note(batch)
        self._apart.note(cursor, segment, outcome)
        self._settlement.submit(batch, self.cursors)
        return None

    def _perform_apart(self, effect: isolation.Effect) -> isolation.Reply:
        match effect:
            case isolation.Begin():
                self._transaction.begin()
                self._transaction.check_attempts()
            case isolation.Fence(segment):
                return self._fence([segment])
            case isolation.Read(segment, places):
                return self._transaction.letters(segment.partition, places)
            case Attempt() | Record() | Commit() | RollBack():
                reply = self.perform(effect)
                return reply if isinstance(reply, Exception) else None
            case _:
                assert_never(effect)
        return None

    def _retry_letters(self) -> None:
        """Try letters again that are due: whose parents were missing, or with nothing before them."""
        for cursor in list(self.cursors.values()):
            due = cursor.quarantine.due(time.monotonic())[:RETRIED_LETTERS_MAX]
            if not due or cursor.stale or cursor.halted is not None:
                continue
            error = self._retry(cursor, due)
            for place in due if error is not None else ():
                # Whatever is the matter with one line, the others go on.
                if self.stopping.is_set() or cursor.number not in self.cursors:
                    return
                if place in cursor.quarantine.due(time.monotonic()):
                    self._retry_line(cursor, place)

    def _retry_line(self, cursor: Cursor, place: int) -> None:
        error = self._retry(cursor, [place])
        if error is not None and classify(error, committing=False) in REFUSING and cursor.number in self.cursors:
            # Only the end of the transaction has shown it.
            error = self._retry(cursor, [place], error)
        if error is not None:
            logger.warning("partition %d: dead letters: %s; trying again", cursor.number, describe(error))
            cursor.quarantine.postpone(place, time.monotonic() + self.settings.halt_retry_seconds)

    def _retry(self, cursor: Cursor, due: Collection[int], condemned: Exception | None = None) -> Exception | None:
        here = cursor.committed
        cursor.next_place += 1
        pieces = [(cursor.next_place, ())]
        segment = Segment(partition=cursor.number, token=cursor.token, start=here, end=here, ids=[], pieces=pieces)
        batch = Batch(segments=[segment], changes=self._intake.blank(cursor.number))
        error = self._try_apart(cursor, batch, due=due, condemned=condemned)
        if error is not None:
            self._drop_lost(batch, error)
        return error

    def _drop_lost(self, batch: Batch, error: Exception) -> None:
        if isinstance(error, LeaseLost):
            logger.warning("%s", error)
            for segment in batch.segments:
                self.cursors.pop(segment.partition, None)

    def _halt(self, cursor: Cursor, entry_id: str, error: Exception) -> None:
        pause = self.settings.halt_retry_seconds
        reason = f"entry {entry_id}: {describe(error)}"
        cursor.retry_at = time.monotonic() + pause
        if cursor.halted != reason:
            logger.error(
                "partition %d HALTED at %s; nothing is lost, it is tried again every %g s", cursor.number, reason, pause
            )
            self._note_halt(cursor, reason)

    def _note_halt(self, cursor: Cursor, reason: str | None) -> None:
        cursor.halted = reason
        try:
            self._leases.note_halt(cursor.number, cursor.token, reason)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("partition %d: status cannot show the halt: %s", cursor.number, describe(error))

    def _passes(self, error: BaseException) -> bool:
        if isinstance(error, LeaseLost):
            return False
        return isinstance(error, TransientError) or classify(error, committing=self._committing) in PASSING

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number in {1, 2, 5} or state.attempt_number % 20 == 0:
            error = state.outcome.exception() if state.outcome is not None else None
            logger.warning(
                "flush attempt %d: %s; trying again", state.attempt_number, describe(error) if error else "?"
            )

    # Leases

    def _tend_is_due(self) -> bool:
        now = time.monotonic()
        interval = min(1.0, self.settings.lease_ttl_seconds / 4)
        return now - self._tended_at >= interval or any(
            cursor.stale or (cursor.halted is not None and cursor.retry_at <= now) for cursor in self.cursors.values()
        )

    def _tend(self) -> None:
        if not self._tend_is_due():
            return
        try:
            members = self._leases.tend(self.cursors.keys(), member=self._member)
            total = self._app.keys.partitions
            if self._tended_at == float("-inf"):
                self._require_database(total)
            self._drop_taken(self._leases.held())
            share = self._share(members, total) if self._member else total
            self._release_surplus(share)
            for lease in self._leases.take(share - len(self.cursors), avoid=self.cursors.keys()):
                self.cursors[lease.partition] = self._cursor(lease)
            self._tended_at = time.monotonic()
        except sa.exc.SQLAlchemyError as error:
            if classify(error, committing=False) not in PASSING | {Failure.TIMEOUT}:
                raise ConfigurationError(
                    f"the control tables cannot be used: {describe(error)}", "run 'writebehind init', check permissions"
                ) from error
            logger.warning("leases: %s", describe(error))
            self.stopping.wait(REDIS_PAUSE_SECONDS)
        for cursor in list(self.cursors.values()):
            if cursor.stale and not self._take_over(cursor):
                break
        for cursor in list(self.cursors.values()):
            if cursor.halted is not None and time.monotonic() >= cursor.retry_at:
                self._isolate(cursor, 1)
        self._look_at_memory()
        self._apart.sum_up()
        self._settlement.trim(self.cursors.values())

    def _look_at_memory(self) -> None:
        try:
            self._memory.look()
        except RedisUnavailable as error:
            self._lose_redis(error)
        self._settlement.short_of_memory = self._memory.short

    def _share(self, members: int, total: int) -> int:
        serving = self.settings.concurrent_batches_max
        if serving is None or members <= serving:
            return self._leases.share(members, total)
        # One flusher has one batch under way: the others stand by.
        return self._leases.share(serving, total) if self._leases.rank() < serving else 0

    def _require_database(self, total: int) -> None:
        if self._leases.registered() != total:
            raise ConfigurationError(
                f"namespace {self._app.keys.namespace} is not registered in SQL with {total} partitions",
                "run 'writebehind init'",
            )
        require_transactions(self._engine, self._app.tables)

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

    def _cursor(self, lease: Lease) -> Cursor:
        if lease.previous is not None:
            logger.warning("partition %d: taking over from %s", lease.partition, lease.previous)
        elif lease.partition in self._untold:
            with self._engine.connect() as connection:
                made = self._letters.made(connection, lease.partition, self._untold[lease.partition])
            for letter in made:
                self._apart.tell(letter)
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

    def _take_over(self, cursor: Cursor) -> bool:
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
        except sa.exc.SQLAlchemyError as error:
            logger.warning("taking partition %d over: %s", cursor.number, describe(error))
            return False
        except RedisUnavailable as error:
            self._lose_redis(error)
            return False
        if self._redis_lost:
            logger.warning("Redis answers again")
            self._redis_lost = False
        cursor.begin(start.position, start.replay_until, start.lineage, time.monotonic())
        self.tally.takeovers += 1
        self.tally.claimed += start.claimed
        return True

    def _release_surplus(self, share: int) -> None:
        surplus = list(self.cursors.values())[share:]
        if surplus:
            self._leases.release({cursor.number: cursor.token for cursor in surplus})
            for cursor in surplus:
                del self.cursors[cursor.number]

    def _end(self) -> None:
        """Hand everything back. What cannot be handed back expires."""
        self._reading.shutdown()
        self._settlement.close()
        self._apart.sum_up()
        self._transaction.roll_back()
        try:
            self._collect_settled(everything=True)
            self._leases.release({cursor.number: cursor.token for cursor in self.cursors.values()})
            self._leases.resign()
        except sa.exc.SQLAlchemyError as error:
            logger.warning("leases are left to expire: %s", describe(error))
        self.cursors.clear()
        self._links.close()
        self._engine.dispose()
