"""The flusher: holds leases, reads, commits, acknowledges.

One thread commits; meanwhile a second one reads the next batch and a third acknowledges the last. Leases change
hands only between batches, when nothing is being read.

::

    tend leases --> take over what is new --> [ read N+1 | commit N ] --> [ acknowledge N, read N+2 | commit N+1 ] ...
                        '-- a batch that cannot be committed: its partitions one by one, in halves, until the entry
                            that is to blame is alone; it is set aside, or its partition halts, and the others go on
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, assert_never

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.hits import Hits
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.log import Log
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.reader import keeping_of
from writebehind.engine.errors import LeaseLost, LogDamaged, RedisUnavailable
from writebehind.flushers.apart import Apart
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.config import FlusherSettings
from writebehind.flushers.failures import Failure, classify, describe
from writebehind.flushers.flush import Acknowledge, Begin, Commit, Fence, Fenced, RollBack, Write, flush
from writebehind.flushers.flush import Effect as FlushEffect
from writebehind.flushers.flush import Reply as FlushReply
from writebehind.flushers.garbage import collected_rarely
from writebehind.flushers.holdings import Holdings, Tally
from writebehind.flushers.intake import Intake
from writebehind.flushers.isolation import Effect as IsolationEffect
from writebehind.flushers.isolation import Read
from writebehind.flushers.isolation import Reply as IsolationReply
from writebehind.flushers.leases import Leases
from writebehind.flushers.letters import Letters
from writebehind.flushers.merging import EntryFailed, Merger, refusals
from writebehind.flushers.pacing import Pacing
from writebehind.flushers.retrying import retrying
from writebehind.flushers.sessions import flusher_engine
from writebehind.flushers.settlement import Settlement
from writebehind.flushers.sifting import Attempt, Outcome, Record
from writebehind.flushers.total_rate import TotalRate
from writebehind.flushers.transaction import Transaction
from writebehind.flushers.trouble import Trouble

__all__ = ["Effect", "Flusher", "Reply", "holder_name"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

Effect = FlushEffect | IsolationEffect
"""What a flusher does: the effects of ``flushers.flush`` and of ``flushers.isolation``."""

Reply = FlushReply | IsolationReply

IDLE_BLOCK_MS = 200
DRAIN_BLOCK_MS = 10
IDLE_SECONDS = 0.1


def holder_name() -> str:
    """Return a name that no other flusher has: host, process ID, random."""
    return f"{socket.gethostname()[:80]}:{os.getpid()}:{secrets.token_hex(4)}"


class Flusher:
    """Flushes the partitions that it can get a lease on.

    Args:
        app: the engine whose namespace, tables and servers to use.
        settings: how to do it.
        member: whether to claim a fair share among other flushers; a drain takes only what is free.
        among: the partitions that come into question; None for all.
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
        among: Collection[int] | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.settings = settings or FlusherSettings()
        self.holder = holder_name()
        self.stopping = stopping or threading.Event()
        self._member = member
        self._links = Links(app.redis_target, app.settings.redis_timeout_seconds)
        self._log = Log(self._links, app.keys, self.holder)
        self._engine = flusher_engine(app.database, self.settings.lease_ttl_seconds, self.holder)
        namespace = app.namespace_settings.namespace
        letters = Letters(namespace, self.settings.foreign_key_seconds, app.tables)
        leases = Leases(self._engine, namespace, self.holder, self.settings.lease_ttl_seconds, letters)
        self._transaction = Transaction(
            self._engine,
            namespace,
            app.tables,
            self.settings.lease_ttl_seconds,
            holder=self.holder,
            letters=letters,
        )
        self._retrying = retrying(self._transaction, self.settings.retry_seconds_max, self.stopping)
        merger = Merger(app.tables)
        self._intake = Intake(self._log, merger, self.settings.batch_bytes_max)
        self._apart = Apart(self._transaction, merger, self.settings.foreign_key_seconds, app.tell_dead_letter)
        self.holdings = Holdings(
            app,
            self.settings,
            leases=leases,
            log=self._log,
            member=member,
            among=among,
            stopping=self.stopping,
            tell=self._apart.tell,
        )
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="writebehind-intake")
        self._settlement = Settlement(
            self.holdings,
            self._log,
            app.keys,
            None if app.settings.record_ttl_seconds is None else keeping_of(app.settings),
            self.settings.retention_seconds,
        )
        self._trouble = Trouble(
            holdings=self.holdings,
            intake=self._intake,
            merger=merger,
            apart=self._apart,
            settlement=self._settlement,
            carry_out=lambda protocol: self._retrying(lambda: self._drive(protocol())),
            stopping=self.stopping,
            retry_seconds=self.settings.halt_retry_seconds,
        )
        self._memory = Memory(self._links, app.settings.redis_memory_share_max)
        self._pacing = Pacing(self.settings, time.monotonic())
        self._total_rate: TotalRate | None = None
        if (rate := self.settings.rows_per_second_total_max) is not None:
            wait_seconds_max = self.settings.lease_ttl_seconds / 4
            self._total_rate = TotalRate(Hits(self._links, app.keys), app.keys.flushed(rate), rate, wait_seconds_max)

    @property
    def tally(self) -> Tally:
        """What this flusher has done."""
        return self.holdings.tally

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
                    self._settlement.collect(everything=True)
                    self._tend()
                    self._trouble.retry_letters()
                    if until is not None and until():
                        return
                    upcoming = self._reading.submit(self._read)
                batch, upcoming = self._collect(upcoming), None
                if batch is None:
                    continue
                self._take(len(batch.changes))
                if not self.holdings.are_due():
                    upcoming = self._reading.submit(self._read)
                upcoming = self._commit(batch, upcoming)
        finally:
            if upcoming is not None:
                self._abandon(upcoming)
            self._end()

    def _read(self) -> Batch | None:
        cursors = self.holdings.readable()
        if not cursors:
            self.stopping.wait(IDLE_SECONDS)
            return None
        pause_seconds = self._pacing.wait_seconds(time.monotonic())
        if not pause_seconds and self._total_rate is not None:
            pause_seconds = self._total_rate.wait_seconds()
        if pause_seconds:
            # In pieces, so that leases are renewed in between.
            self.stopping.wait(pause_seconds)
            return None
        settings, entries_max, mutations_max = self.settings, self._pacing.entries_max, self._pacing.mutations_max
        # Who drains wants to be told that there is no more, rather than to wait for it.
        block_ms = IDLE_BLOCK_MS if self._member else DRAIN_BLOCK_MS
        batch = self._intake.read(cursors, entries_max, block_ms, mutations_max)
        if batch is None:
            return None
        changes = batch.changes
        few = changes.entries * 2 <= entries_max and changes.mutations * 2 <= mutations_max
        if few and self._member and settings.linger_seconds > 0:
            # What arrives within the linger joins them, for one commit instead of many.
            self.stopping.wait(settings.linger_seconds)
            batch = self._intake.read_more(batch, cursors, entries_max, mutations_max)
        return batch

    def _take(self, rows: int) -> None:
        """Note SQL operations that the database is given now."""
        self._pacing.take(rows, time.monotonic())
        if self._total_rate is not None:
            self._total_rate.take(rows)

    def _collect(self, upcoming: "Future[Batch | None]") -> Batch | None:
        try:
            return upcoming.result()
        except EntryFailed as failed:
            self.holdings.rewind()
            self._trouble.isolate(self.holdings.cursors[failed.partition], failed.readable + 1)
        except (RedisUnavailable, LogDamaged) as error:
            self.holdings.lose_redis(error)
        return None

    def _commit(self, batch: Batch, upcoming: "Future[Batch | None] | None") -> "Future[Batch | None] | None":
        """Commit a batch; return the batch being read meanwhile unless it has to be read again."""
        try:
            outcomes = self._retrying(self._attempt, batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is isolated, or halts and says so
            self._abandon(upcoming)
            self._fail(batch, error)
            return None
        self.holdings.note(batch)
        self._settlement.collect(everything=False)
        if outcomes is None:
            # Committed by an attempt whose answer was lost: which letters it made, only SQL knows.
            self._abandon(upcoming)
            for segment in batch.segments:
                self.holdings.doubt(segment.partition, segment.places)
            return None
        if outcomes and upcoming is not None and self._overtakes(upcoming, outcomes):
            self._abandon(upcoming)
            upcoming = None
        for segment in batch.segments:
            cursor = self.holdings.cursors.get(segment.partition)
            if cursor is not None and segment.partition in outcomes:
                self._apart.note(cursor, segment, outcomes[segment.partition])
        return upcoming

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Do what a batch's failure calls for; everything is read again afterwards."""
        if isinstance(error, LeaseLost):
            self.holdings.drop(batch, error)
        elif classify(error, committing=False) is Failure.TIMEOUT and self._pacing.timed_out(batch.changes.entries):
            logger.warning("%s; batches of %d entries from now on", describe(error), self._pacing.entries_max)
        elif not self.stopping.is_set():
            logger.warning("a batch of %d entries failed: %s", batch.changes.entries, describe(error))
            for segment in batch.segments:
                if segment.partition in self.holdings.cursors:
                    self._trouble.isolate(self.holdings.cursors[segment.partition], len(segment.ids))

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
        self.holdings.rewind()

    def _tend(self) -> None:
        """Do what has to be done now and then, while nothing is being read."""
        if not self.holdings.are_due():
            return
        self.holdings.tend()
        for cursor in self.holdings.overdue():
            self._trouble.isolate(cursor, 1)
        try:
            self._memory.look()
        except RedisUnavailable as error:
            self.holdings.lose_redis(error)
        self._settlement.short_of_memory = self._memory.short
        self._apart.sum_up()
        self._settlement.trim()

    def _end(self) -> None:
        """Hand everything back."""
        self._reading.shutdown()
        self._settlement.close()
        self._apart.sum_up()
        self._transaction.roll_back()
        self._settlement.collect(everything=True)
        self.holdings.hand_back()
        self._links.close()
        self._engine.dispose()

    # One batch

    def _attempt(self, batch: Batch) -> dict[int, Outcome] | None:
        begun = time.monotonic()
        outcomes = self._drive(flush(batch))
        self._pacing.committed(batch.changes.entries, time.monotonic() - begun)
        return outcomes

    def _drive(self, protocol: Generator[Effect, Any, Answer]) -> Answer:
        """Perform a protocol's effects; whatever is raised, the transaction is rolled back."""
        try:
            effect = next(protocol)
            while True:
                effect = protocol.send(self.perform(effect))
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer
        except BaseException:
            self._transaction.roll_back()
            raise

    def perform(self, effect: Effect) -> Reply:
        """Do one effect of the flush protocol, or of isolation."""
        match effect:
            case Begin(attempting):
                self._transaction.begin(attempting=attempting)
            case Fence(segments):
                return self._fence(segments)
            case Write(batch):
                return refusals(batch, self._transaction.write(batch))
            case Read(segment, places):
                return self._transaction.letters(segment.partition, places)
            case Attempt(suspects):
                self._take(sum(len(each.mutations or ()) for each in suspects))
                return self._apart.write(suspects)
            case Record(segment, outcome):
                self._transaction.record(segment, outcome, self.holdings.cursors[segment.partition].quarantine)
            case Commit():
                self._transaction.commit()
            case RollBack():
                self._transaction.roll_back()
            case Acknowledge(batch, lettered):
                self._settlement.submit(batch, lettered)
            case _:
                assert_never(effect)
        return None

    def _fence(self, segments: Sequence[Segment]) -> Fenced:
        cursors = self.holdings.cursors
        letters = {segment.partition: cursors[segment.partition].letters for segment in segments}
        return self._transaction.fence(segments, letters)
