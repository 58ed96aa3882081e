"""Trouble: a batch that cannot be committed, and dead letters that are due.

One partition after the other, each in transactions of its own, while nothing else is being read. Who is to blame, the
protocol of ``flushers.isolation`` finds out.

::

    a batch fails --> its partitions one by one --refused--> set aside, the offset passes it
                                |--no entry's fault--> half as many, down to one --> the partition halts there
                                '--lease lost--> dropped, and taken anew
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from writebehind.engine.errors import LeaseLost, LogDamaged, RedisUnavailable
from writebehind.flushers.apart import REFUSING, Apart
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.failures import classify, describe
from writebehind.flushers.holdings import Holdings
from writebehind.flushers.intake import Intake
from writebehind.flushers.isolation import Effect, isolate
from writebehind.flushers.merging import Merger
from writebehind.flushers.settlement import Settlement
from writebehind.flushers.sifting import Outcome
from writebehind.flushers.suspect import Suspect

__all__ = ["Trouble"]

logger = logging.getLogger(__name__)

ISOLATED_ENTRIES_MAX = 1000
RETRIED_LETTERS_MAX = 200


class Trouble:
    """Flushes one partition's entries and letters apart from all others.

    Args:
        holdings: the partitions served.
        intake: reads entries without merging them.
        merger: lets what was written be settled.
        apart: remembers what became of them.
        settlement: acknowledges them.
        carry_out: makes a protocol and performs it, again and again while what fails passes.
        stopping: set when the flusher is to end.
        retry_seconds: how long a letter waits whose retry has failed without being refused.
    """

    def __init__(
        self,
        *,
        holdings: Holdings,
        intake: Intake,
        merger: Merger,
        apart: Apart,
        settlement: Settlement,
        carry_out: Callable[[Callable[[], Generator[Effect, Any, Outcome]]], Outcome],
        stopping: threading.Event,
        retry_seconds: float,
    ) -> None:
        self._holdings = holdings
        self._intake = intake
        self._merger = merger
        self._apart = apart
        self._settlement = settlement
        self._carry_out = carry_out
        self._stopping = stopping
        self._retry_seconds = retry_seconds

    def isolate(self, cursor: Cursor, entries: int) -> None:
        """Flush one partition's next entries alone, setting aside those that SQL refuses.

        What is no entry's fault, a missing table, say, is found in ever smaller batches, and halts the partition there.

        Args:
            cursor: the partition.
            entries: how many.
        """
        limit = min(entries, ISOLATED_ENTRIES_MAX)
        condemned: Exception | None = None
        while entries > 0 and self._serves(cursor):
            read = self._read(cursor, limit)
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
            self._holdings.rewind()
            if isinstance(error, LeaseLost):
                # Lost, or committed by an attempt whose answer was lost.
                logger.warning("%s", error)
                decided = [suspect.control.place for suspect in suspects if suspect.control is not None]
                self._holdings.doubt(cursor.number, [*segment.places, *cursor.quarantine.chains(decided)])
            if not self._serves(cursor):
                return
            if len(segment.ids) > 1:
                limit = len(segment.ids) // 2
            elif condemned is None and classify(error, committing=False) in REFUSING:
                # Only the end of the transaction has shown it.
                condemned = error
            else:
                self._holdings.halt(cursor, f"entry {segment.ids[0].decode()}: {describe(error)}")
                return

    def _serves(self, cursor: Cursor) -> bool:
        return not self._stopping.is_set() and cursor.number in self._holdings.cursors

    def _read(self, cursor: Cursor, limit: int) -> tuple[Batch, list[Suspect]] | None:
        """Read entries once everything committed is acknowledged; None where there are none, or they have to wait."""
        self._settlement.collect(everything=True)
        if cursor.stale:
            self._holdings.take_over(cursor)
        if cursor.stale:
            return None
        try:
            read = self._intake.read_raw(cursor, limit)
        except (RedisUnavailable, LogDamaged) as error:
            self._holdings.lose_redis(error)
            return None
        if read is None and cursor.is_read_up():
            # What has halted it is gone.
            self._holdings.resume(cursor)
        return read

    def _try_apart(
        self,
        cursor: Cursor,
        batch: Batch,
        suspects: Sequence[Suspect] = (),
        *,
        due: Collection[int] = (),
        condemned: Exception | None = None,
    ) -> Exception | None:
        """Commit what can be of one partition's entries and letters; return why that has failed."""
        segment = batch.segments[0]
        try:
            outcome = self._carry_out(
                lambda: isolate(segment, suspects, cursor.quarantine, due=due, condemned=condemned)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller isolates it, halts and says so
            return error
        for suspect in [*outcome.applied, *(each for each in suspects if each.control is not None)]:
            self._merger.pass_over(batch.changes, cursor.number, suspect)
        if segment.ids:
            self._holdings.note(batch)
        self._apart.note(cursor, segment, outcome)
        self._settlement.submit(batch, late=any(suspect.letter for suspect in outcome.applied))
        return None

    def retry_letters(self) -> None:
        """Try letters again that are due: whose parents were missing, or with nothing before them."""
        for cursor in self._holdings.readable():
            due = cursor.quarantine.due(time.monotonic())[:RETRIED_LETTERS_MAX]
            error = self._retry(cursor, due) if due else None
            for place in due if error is not None else ():
                # Whatever is the matter with one line, the others go on.
                if not self._serves(cursor):
                    return
                if place in cursor.quarantine.due(time.monotonic()):
                    self._retry_line(cursor, place)

    def _retry_line(self, cursor: Cursor, place: int) -> None:
        error = self._retry(cursor, [place])
        if error is not None and classify(error, committing=False) in REFUSING and self._serves(cursor):
            # Only the end of the transaction has shown it.
            error = self._retry(cursor, [place], error)
        if error is not None:
            logger.warning("partition %d: dead letters: %s; trying again", cursor.number, describe(error))
            cursor.quarantine.postpone(place, time.monotonic() + self._retry_seconds)

    def _retry(self, cursor: Cursor, due: Collection[int], condemned: Exception | None = None) -> Exception | None:
        here = cursor.committed
        cursor.next_place += 1
        pieces = [(cursor.next_place, ())]
        segment = Segment(partition=cursor.number, token=cursor.token, start=here, end=here, ids=[], pieces=pieces)
        batch = Batch(segments=[segment], changes=self._merger.blank(cursor.number))
        error = self._try_apart(cursor, batch, due=due, condemned=condemned)
        if isinstance(error, LeaseLost):
            # Likewise.
            logger.warning("%s", error)
            self._holdings.doubt(cursor.number, cursor.quarantine.chains(due))
        return error
