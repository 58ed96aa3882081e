"""Intake: from logs to a coalesced batch.

Invariants:

1. A segment continues where its cursor stands: sequences are checked, gaps are filled by position, and what cannot
   be found is counted as lost, never passed over in silence.
2. An entry that cannot be merged begins a new batch; an entry that cannot be read ends the batch before it.
3. A log that gives nothing is looked at now and then: what was delivered to somebody else is read by position, and
   entries that were removed with none after them are counted too.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from writebehind.engine.adapters.log import Log
from writebehind.engine.adapters.log_replies import RawEntry
from writebehind.engine.core.coalescing import Changes
from writebehind.engine.core.contiguity import Lineage, backlog, step
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.flushers.batch import Batch, Crossing, Segment
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.merging import Merger, Taken
from writebehind.flushers.suspect import Suspect

__all__ = ["Intake", "made_at_ms"]

logger = logging.getLogger(__name__)

ENTRY_BYTES_ASSUMED = 16 * 1024
"""Size of an entry before any was seen: keeps the first batch small where payloads are large."""

LOOK_SECONDS = 1.0
"""How often to look whether a log that gives nothing really has nothing."""


class Intake:
    """Reads batches.

    Args:
        log: the logs.
        merger: makes changes of entries.
        bytes_max: payload bytes of one batch, approximately.
    """

    def __init__(self, log: Log, merger: Merger, bytes_max: int) -> None:
        self._log = log
        self._merger = merger
        self._bytes_max = bytes_max
        self._entry_bytes = float(ENTRY_BYTES_ASSUMED)
        self._looked_at = float("-inf")

    def read(
        self, cursors: Sequence[Cursor], entries_max: int, block_ms: int, mutations_max: int = sys.maxsize
    ) -> Batch | None:
        """Read the next batch of some partitions, and move their positions to its end.

        Args:
            cursors: the partitions.
            entries_max: entries of the batch at the most.
            block_ms: how long to wait where there is nothing; 0 does not wait.
            mutations_max: mutations of all entries, but for the last entry of each partition, which may be a group.

        Returns:
            None where there is nothing to do.

        Raises:
            EntryFailed: an entry cannot be read or merged; positions have moved, and must be reset.
            RedisUnavailable: Redis cannot be read; positions may have moved, and must be reset.
        """
        blank = self._merger.blank()
        return self._read(cursors, entries_max, blank, [], block_ms=block_ms, mutations_max=mutations_max)

    def read_raw(self, cursor: Cursor, entries_max: int) -> tuple[Batch, list[Suspect]] | None:
        """Read entries of one partition without merging them; one that is about a dead letter comes alone.

        Returns:
            A batch without changes, and its entries; None where there is nothing, or something else to do first.

        Raises:
            RedisUnavailable: Redis cannot be read; the position may have moved, and must be reset.
        """
        if cursor.stale:
            return None
        entries: list[RawEntry] = []
        if cursor.replay_until is not None:
            entries = self._log.read_range(cursor.number, cursor.position, cursor.replay_until, entries_max)
            if not entries:
                cursor.replay_until = None
        if not entries:
            entries = self._log.read_new([cursor.number], entries_max, 0).get(cursor.number, [])
        if not entries:
            return None
        changes, segments = self._merger.blank(cursor.number), list[Segment]()
        suspects: list[Suspect] = []
        self._take(cursor, entries, changes, segments, suspects)
        return (Batch(segments=segments, changes=changes), suspects) if segments else None

    def read_more(self, batch: Batch, cursors: Sequence[Cursor], entries_max: int, mutations_max: int) -> Batch:
        """Add to a batch what has arrived since; see ``read``."""
        segments = list(batch.segments)
        more = self._read(cursors, entries_max, batch.changes, segments, block_ms=0, mutations_max=mutations_max)
        return more or batch

    def _read(
        self,
        cursors: Sequence[Cursor],
        entries_max: int,
        changes: Changes,
        segments: list[Segment],
        *,
        block_ms: int,
        mutations_max: int,
    ) -> Batch | None:
        room = max(1, min(entries_max, int(self._bytes_max / self._entry_bytes)))
        share = max(1, room // max(1, len(cursors)))
        serving = []
        for cursor in cursors:
            if cursor.stale:
                continue
            if cursor.replay_until is not None:
                entries = self._log.read_range(cursor.number, cursor.position, cursor.replay_until, share)
                if entries:
                    self._take(cursor, entries, changes, segments, mutations_max=mutations_max // len(cursors))
                    continue
                cursor.replay_until = None
            serving.append(cursor)
        by_number = {cursor.number: cursor for cursor in serving}
        hungry = list(by_number)
        left = room - changes.entries
        while hungry and left > 0:
            count = max(1, left // len(hungry))
            read = self._log.read_new(hungry, count, 0 if segments else block_ms)
            each = (mutations_max - changes.mutations) // max(1, len(read))
            for number, entries in read.items():
                self._take(by_number[number], entries, changes, segments, mutations_max=each)
            # Whoever gave all that was asked has more: a skewed load fills a batch from few partitions.
            hungry = [
                number
                for number, entries in read.items()
                if len(entries) == count and not by_number[number].stale and by_number[number].replay_until is None
            ]
            left = room - changes.entries if changes.mutations < mutations_max else 0
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            busy = {segment.partition for segment in segments}
            segments += self._look([cursor for cursor in serving if cursor.number not in busy])
            self._looked_at = time.monotonic()
        return Batch(segments=_joined(segments), changes=changes) if segments else None

    def _take(
        self,
        cursor: Cursor,
        entries: list[RawEntry],
        changes: Changes,
        segments: list[Segment],
        suspects: list[Suspect] | None = None,
        *,
        mutations_max: int = sys.maxsize,
    ) -> None:
        start = cursor.position
        first, last = EntryID.parse(entries[0][0]), EntryID.parse(entries[-1][0])
        crossings: list[Crossing] = []
        lost, at_least = 0, False
        if (
            first.epoch != start.epoch
            or first.sequence != start.sequence + 1
            or last.epoch != start.epoch
            or last.sequence - start.sequence != len(entries)
            or cursor.expected.epoch != start.epoch
        ):
            judged = self._judge(cursor, entries)
            if judged is None:
                return
            crossings, lost, at_least = judged
        cursor.ended |= {crossing.applied.epoch: crossing.applied.sequence for crossing in crossings}
        taken = Taken(cursor.next_place, mutations_max)
        if suspects is None:
            merged = self._merger.merge(cursor, entries, changes, taken)
            if taken.payload_bytes:
                self._entry_bytes = 0.8 * self._entry_bytes + 0.2 * (taken.payload_bytes / merged)
        else:
            merged = self._merger.gather(cursor, entries, changes, taken, suspects)
        if merged == 0:
            cursor.replay_until = last if cursor.replay_until is None else max(last, cursor.replay_until)
            return
        if merged < len(entries):
            cursor.replay_until = last if cursor.replay_until is None else max(last, cursor.replay_until)
            entries = entries[:merged]
            last = EntryID.parse(entries[-1][0])
            if crossings or lost:
                crossings, lost, at_least = self._judge(cursor, entries) or (crossings, lost, at_least)
        cursor.next_place += len(entries)
        expected, cursor.expected, cursor.position = cursor.expected, last, last
        segments.append(
            Segment(
                partition=cursor.number,
                token=cursor.token,
                start=expected,
                end=last,
                ids=[entry[0] for entry in entries],
                crossings=crossings,
                lost=lost,
                at_least=at_least,
                rewritten=taken.originals,
                parked=taken.parked,
                superseded=taken.superseded,
                passed_over=taken.passed_over,
                in_doubt=taken.in_doubt,
                pieces=[(taken.first_place, entries)],
                oldest_ms=made_at_ms(entries[0]),
            )
        )

    def _look(self, cursors: Sequence[Cursor]) -> list[Segment]:
        """Find what no later entry would show: entries delivered to another consumer, or gone, with none after them.

        The former, taken by a flusher that did not know yet that its lease was over, are read by position. The latter
        are stepped over and counted.
        """
        segments = []
        states = self._log.states([cursor.number for cursor in cursors if not cursor.stale])
        for cursor in cursors:
            state = states.get(cursor.number)
            if state is None:
                continue
            if state.moved or state.floor is not None or _foreign(cursor, state.lineage):
                # Another history: it has to be compared with SQL, and numbers of the two must not be.
                cursor.stale = True
                continue
            # A command of a flusher that was frozen, or of a broken connection, may have come late.
            cursor.unpublished = (state.watermark or ORIGIN) != cursor.base
            if state.end is None or not backlog(cursor.position, state.end, state.lineage):
                continue
            # Asked later than the end: what was appended since is found, too.
            if self._log.read_range(cursor.number, cursor.position, None, 1):
                if state.delivered is not None and state.delivered > cursor.position:
                    cursor.replay_until = state.delivered
                continue
            judged = step(cursor.position, state.end, state.lineage)
            lost = judged.lost + 1
            start, cursor.expected, cursor.position = cursor.expected, state.end, state.end
            cursor.ended[start.epoch] = start.sequence
            crossed = start.epoch not in {0, state.end.epoch}
            segments.append(
                Segment(
                    partition=cursor.number,
                    token=cursor.token,
                    start=start,
                    end=state.end,
                    ids=[],
                    crossings=[Crossing(applied=start, successor=state.end.epoch, base=judged.base)] if crossed else [],
                    lost=lost,
                )
            )
        return segments

    def _judge(self, cursor: Cursor, entries: Sequence[RawEntry]) -> tuple[list[Crossing], int, bool] | None:
        """Count what is missing; None where the entries have to be read again by position first."""
        lineage: Lineage = self._log.states([cursor.number])[cursor.number].lineage
        position, applied = cursor.position, cursor.expected
        crossings: list[Crossing] = []
        lost = ahead = 0
        known = True
        for entry in entries:
            found = EntryID.parse(entry[0])
            if found.epoch in lineage and found.epoch not in cursor.epochs:
                # A history that begun since: it has to be compared with SQL first.
                cursor.stale = True
                return None
            try:
                judged = step(position, found, lineage)
            except ValueError:
                # Delivered again: the group was rolled back or made anew.
                cursor.stale = True
                return None
            if found.epoch != applied.epoch and applied.epoch:
                crossings.append(Crossing(applied=applied, successor=found.epoch, base=judged.base))
            lost += judged.lost
            ahead += judged.ahead
            known = known and judged.known
            position = applied = found
        if cursor.position.epoch and cursor.position.epoch not in lineage:
            cursor.stale = True
            return None
        if lost and cursor.replay_until is None:
            cursor.replay_until = position
            return None
        if ahead:
            logger.warning(
                "partition %d: Redis was rolled back; it no longer knows %d entries that SQL has", cursor.number, ahead
            )
        return crossings, lost, not known


def _foreign(cursor: Cursor, lineage: Lineage) -> bool:
    return cursor.position != ORIGIN and cursor.position.epoch not in lineage


def _joined(segments: list[Segment]) -> list[Segment]:
    """Join the segments of one partition: a transaction moves each offset once."""
    joined: dict[int, Segment] = {}
    for segment in segments:
        first = joined.get(segment.partition)
        joined[segment.partition] = (
            segment
            if first is None
            else replace(
                first,
                end=segment.end,
                ids=[*first.ids, *segment.ids],
                crossings=[*first.crossings, *segment.crossings],
                lost=first.lost + segment.lost,
                at_least=first.at_least or segment.at_least,
                rewritten=[*first.rewritten, *segment.rewritten],
                parked=[*first.parked, *segment.parked],
                superseded=[*first.superseded, *segment.superseded],
                passed_over=first.passed_over + segment.passed_over,
                in_doubt=[*first.in_doubt, *segment.in_doubt],
                pieces=[*first.pieces, *segment.pieces],
            )
        )
    return list(joined.values())


def made_at_ms(entry: RawEntry) -> int:
    """Read when an entry was made; 0 where it does not say, as a forged one."""
    return made_ms(entry[1][1]) if entry[1] and len(entry[1]) > 1 else 0
