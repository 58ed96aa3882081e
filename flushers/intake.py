"""Intake: from logs to a coalesced batch.

Invariants:

1. A segment continues where its cursor stands: sequences are checked, gaps are filled by position, and what cannot
   be found is counted as lost, never passed over in silence.
2. An entry that cannot be merged begins a new batch; an entry that cannot be read ends the batch before it.
3. A log that gives nothing is looked at now and then: what was delivered to somebody else is read by position, and
   entries that were removed with none after them are counted too.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.log import Log, RawEntry
from writebehind.engine.core.coalescing import Changes, TableChanges
from writebehind.engine.core.contiguity import Lineage, backlog, step
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.payload import decode
from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.errors import ConfigurationError, WriteBehindError
from writebehind.flushers.batch import Batch, Crossing, Segment
from writebehind.flushers.cursor import Cursor
from writebehind.flushers.quarantine import Key, keys_of
from writebehind.flushers.sifting import Refusal
from writebehind.flushers.suspect import Suspect

__all__ = ["EntryFailed", "Intake", "made_at_ms", "refusals", "suspect_of"]

logger = logging.getLogger(__name__)

ENTRY_BYTES_ASSUMED = 16 * 1024
"""Size of an entry before any was seen: keeps the first batch small where payloads are large."""

ENTRY_FIELDS = 4
"""Names and values of an ordinary entry; one that was written again names its original, too."""

DOUBT = b"?"
"""Ends the ID of an entry that was lost together with an attempt whose reply was lost."""

LOOK_SECONDS = 1.0
"""How often to look whether a log that gives nothing really has nothing."""


class EntryFailed(Exception):
    """An entry cannot be read or merged.

    Attributes:
        partition: where it is.
        entry_id: which it is.
        readable: how many entries from the cursor on come before it.
        error: what is wrong with it.
    """

    def __init__(self, partition: int, entry_id: str, readable: int, error: WriteBehindError) -> None:
        super().__init__(partition, entry_id, readable, error)
        self.partition = partition
        self.entry_id = entry_id
        self.readable = readable
        self.error = error


class Intake:
    """Reads batches.

    Args:
        log: the logs.
        tables: the declared tables by name.
        bytes_max: payload bytes of one batch, approximately.
    """

    def __init__(self, log: Log, tables: Mapping[str, DeclaredTable], bytes_max: int) -> None:
        self._log = log
        self._makers: dict[str, Callable[[], TableChanges]] = {
            name: partial(
                TableChanges,
                tuple(column.name for column in declared.entity.key),
                declared.plan.adders,
                declared.plan.default_row,
                delta_adders=declared.plan.delta_adders,
                columns=declared.plan.columns.keys(),
            )
            for name, declared in tables.items()
        }
        self._bytes_max = bytes_max
        self._entry_bytes = float(ENTRY_BYTES_ASSUMED)
        self._looked_at = float("-inf")

    def read(self, cursors: Sequence[Cursor], entries_max: int, block_ms: int) -> Batch | None:
        """Read the next batch of some partitions, and move their positions to its end.

        Args:
            cursors: the partitions.
            entries_max: entries of the batch at the most.
            block_ms: how long to wait where there is nothing; 0 does not wait.

        Returns:
            None where there is nothing to do.

        Raises:
            EntryFailed: an entry cannot be read or merged; positions have moved, and must be reset.
            RedisUnavailable: Redis cannot be read; positions may have moved, and must be reset.
        """
        return self._read(cursors, entries_max, block_ms, Changes(self._makers), [])

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
        changes, segments = self.blank(cursor.number), list[Segment]()
        suspects: list[Suspect] = []
        self._take(cursor, entries, changes, segments, suspects)
        return (Batch(segments=segments, changes=changes), suspects) if segments else None

    def merged(self, suspects: Sequence[Suspect]) -> list[Changes]:
        """Merge entries, in as few steps as possible, to be written without being settled.

        Raises:
            ConfigurationError: a table is not declared, or an operation is unknown.
            PoisonEntryError, ValidationError: an entry contradicts itself or the one before it.
        """
        steps = [self.blank()]
        for suspect in suspects:
            try:
                if not steps[-1].merge(decode(suspect.payload), suspect.entry_id):
                    steps.append(self.blank())
                    steps[-1].merge(decode(suspect.payload), suspect.entry_id)
            except KeyError as error:
                raise _undeclared(error) from error
            except ValueError as error:
                raise ConfigurationError(f"an entry cannot be applied: {error}", "upgrade the flushers") from error
        return steps

    def stepwise(self, suspect: Suspect) -> list[Changes]:
        """Return an entry's mutations as a step each."""
        steps = []
        for member in decode(suspect.payload):
            steps.append(self.blank())
            steps[-1].merge([member], suspect.entry_id)
        return steps

    def blank(self, partition: int = 0) -> Changes:
        """Return changes that hold nothing; what is passed over in them is settled in the partition."""
        changes = Changes(self._makers)
        changes.enter(partition)
        return changes

    def pass_over(self, changes: Changes, partition: int, suspect: Suspect) -> None:
        """Have the records of an entry settled that changes nothing more in SQL, whether or not it is declared."""
        for _, name, key, _ in suspect.mutations or ():
            if name not in self._makers and name not in changes.tables:
                changes.tables[name] = TableChanges((), {}, lambda *_: None)
                changes.tables[name].enter(partition)
            if key:
                changes.table(name).pass_over(key, suspect.entry_id)
        changes.entries += 1

    def read_more(self, batch: Batch, cursors: Sequence[Cursor], entries_max: int) -> Batch:
        """Add to a batch what has arrived since; see ``read``."""
        return self._read(cursors, entries_max, 0, batch.changes, list(batch.segments)) or batch

    def _read(
        self, cursors: Sequence[Cursor], entries_max: int, block_ms: int, changes: Changes, segments: list[Segment]
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
                    self._take(cursor, entries, changes, segments)
                    continue
                cursor.replay_until = None
            serving.append(cursor)
        by_number = {cursor.number: cursor for cursor in serving}
        hungry = list(by_number)
        left = room - changes.entries
        while hungry and left > 0:
            count = max(1, left // len(hungry))
            read = self._log.read_new(hungry, count, 0 if segments else block_ms)
            for number, entries in read.items():
                self._take(by_number[number], entries, changes, segments)
            # Whoever gave all that was asked has more: a skewed load fills a batch from few partitions.
            hungry = [
                number
                for number, entries in read.items()
                if len(entries) == count and not by_number[number].stale and by_number[number].replay_until is None
            ]
            left = room - changes.entries
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
        taken = _Taken(cursor.next_place)
        if suspects is None:
            merged = self._merge(cursor, entries, changes, taken)
        else:
            merged = self._gather(cursor, entries, changes, taken, suspects)
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

    def _merge(self, cursor: Cursor, entries: Sequence[RawEntry], changes: Changes, taken: "_Taken") -> int:
        """Merge entries until one has to begin a new batch; return how many were merged or passed over.

        Passed over is what SQL has already under another ID: an entry that was written again although SQL had the
        original, or an original that comes back although it was written again.
        """
        merge, ahead = changes.merge, cursor.ahead
        changes.enter(cursor.number)
        size = 0
        number = 0
        try:
            for number, (entry_id, fields) in enumerate(entries):
                payload = fields[3]
                size += len(payload)
                again = len(fields) > ENTRY_FIELDS
                if (again or cursor.rewritten) and _is_elsewhere(cursor, entry_id, fields):
                    changes.pass_over(decode(payload), entry_id)
                    taken.passed_over += 1
                    continue
                members = decode(payload)
                held = bool(ahead) and ahead.holds(members)
                superseded = ahead.superseded_by(members) if held else ()
                if held and not superseded:
                    _park(cursor, suspect_of(entries[number], taken.first_place + number), taken)
                    changes.entries += 1
                elif not merge(members, entry_id):
                    return number
                if superseded:
                    taken.superseded += superseded
                    ahead.remove(superseded)
                if again and not fields[5].endswith(DOUBT):
                    taken.originals.append(_origin(fields))
                    cursor.rewriting.add(taken.originals[-1])
        except (WriteBehindError, IndexError, KeyError, TypeError, ValueError) as error:
            failure = _failure(error)
        else:
            self._entry_bytes = 0.8 * self._entry_bytes + 0.2 * (size / len(entries))
            return len(entries)
        raise EntryFailed(cursor.number, entries[number][0].decode(), number, failure)

    def _gather(
        self, cursor: Cursor, entries: Sequence[RawEntry], changes: Changes, taken: "_Taken", suspects: list[Suspect]
    ) -> int:
        """Take entries as they are; return how many. What SQL has under another ID is passed over, as in a merge."""
        for number, (entry_id, fields) in enumerate(entries):
            place = taken.first_place + number
            again = len(fields) > ENTRY_FIELDS
            try:
                suspect = suspect_of(entries[number], place)
                elsewhere = (again or cursor.rewritten) and _is_elsewhere(cursor, entry_id, fields)
                original = _origin(fields) if again and not fields[5].endswith(DOUBT) else None
            except (IndexError, ValueError):
                # Not an entry of this product: what it consists of is kept for whoever looks.
                suspect, elsewhere, original = Suspect(entry_id, "", msgspec.msgpack.encode(fields), place), False, None
            if elsewhere:
                self.pass_over(changes, cursor.number, suspect)
                continue
            if suspect.control is not None and number:
                return number
            suspects.append(suspect)
            if original is not None:
                taken.originals.append(original)
                cursor.rewriting.add(original)
            if suspect.control is not None:
                return number + 1
        return len(entries)


@dataclass(slots=True)
class _Taken:
    """What was found while entries were merged; see ``Segment``."""

    first_place: int
    passed_over: int = 0
    originals: list[EntryID] = field(default_factory=list)
    parked: list[Suspect] = field(default_factory=list)
    superseded: list[int] = field(default_factory=list)


def suspect_of(entry: RawEntry, place: int) -> Suspect:
    """Return an entry of the log as one that is tried apart."""
    entry_id, fields = entry
    return Suspect(entry_id, fields[1].decode(errors="replace"), fields[3], place)


def _park(cursor: Cursor, suspect: Suspect, taken: _Taken) -> None:
    if suspect.control is not None:
        raise ValueError("it is about a dead letter, and comes alone")
    cursor.ahead.add(suspect.place, suspect.as_letter())
    taken.parked.append(suspect)


def refusals(batch: Batch, refused: Mapping[Key, Exception]) -> list[Refusal]:
    """Return the entries of keys whose rows were not written, and let the others be settled without them.

    Raises:
        PoisonEntryError: they are tied to others, so that the whole batch has to be isolated.
    """
    found: list[Refusal] = []
    for segment in batch.segments if refused else ():
        lines: dict[Key, list[Suspect]] = {}
        for first_place, entries in segment.pieces:
            for number, entry in enumerate(entries):
                members = decode(entry[1][3])
                keys = [key for key in keys_of(members) if key in refused]
                if keys and (len(members) > 1 or segment.superseded or segment.rewritten or segment.passed_over):
                    raise refused[keys[0]]
                for key in keys:
                    lines.setdefault(key, []).append(suspect_of(entry, first_place + number))
        if lines:
            found.append(Refusal(segment, lines))
        for table, key_text in lines:
            batch.changes.tables[table].versions[segment.partition].pop(key_text, None)
    for key in refused.keys() - {key for refusal in found for key in refusal.lines}:
        # Not to be found again by its key: nothing of it may be passed over.
        raise refused[key]
    return found


def _failure(error: Exception) -> WriteBehindError:
    if isinstance(error, WriteBehindError):
        return error
    if isinstance(error, KeyError):
        return _undeclared(error)
    return ConfigurationError(
        f"it is not an entry of this product: {type(error).__name__}", "find out who else writes to this stream"
    )


def _undeclared(error: KeyError) -> ConfigurationError:
    return ConfigurationError(f"table {error} is not declared here", "add it to tables=[...] of the flusher")


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
                pieces=[*first.pieces, *segment.pieces],
            )
        )
    return list(joined.values())


def _is_elsewhere(cursor: Cursor, entry_id: bytes, fields: Sequence[bytes]) -> bool:
    """Tell whether SQL has an entry's effect by another entry."""
    if len(fields) > ENTRY_FIELDS:
        if not fields[5].endswith(DOUBT):
            return cursor.has(_origin(fields))
        applied = cursor.reaches(EntryID.parse(fields[5][:-1]))
        if applied:
            logger.error(
                "POSSIBLE DATA LOSS: partition %d: entry %s is passed over: its writer did not hear whether an earlier "
                "attempt was accepted, and SQL has some of what Redis lost then",
                cursor.number, entry_id.decode(),
            )  # fmt: skip
        return applied
    return EntryID.parse(entry_id) in cursor.rewritten


def _origin(fields: Sequence[bytes]) -> EntryID:
    return EntryID.parse(fields[5])


def made_at_ms(entry: RawEntry) -> int:
    """Read when an entry was made; 0 where it does not say, as a forged one."""
    return made_ms(entry[1][1]) if entry[1] and len(entry[1]) > 1 else 0
