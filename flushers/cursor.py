"""A partition as its holder sees it."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.flushers.batch import Segment
from writebehind.flushers.quarantine import Quarantine

__all__ = ["Cursor"]


@dataclass(kw_only=True, slots=True)
class Cursor:
    """Where the holder of a lease stands in one partition.

    Attributes:
        number: the partition.
        token: fencing token of the lease.
        committed: the offset in SQL.
        earlier: by epoch, the last applied entry of the epoch before it, as in SQL.
        base: the same place in this log's own history; differs only where Redis was rolled back below SQL.
        position: the last entry read.
        expected: what the offset in SQL will be once everything read so far is committed.
        epochs: the epochs of this log when it was taken over; a new one means that Redis has a new history.
        ended: by earlier epoch, the sequence of the last entry of it that SQL has, once everything read is committed.
        rewritten: lost entries that were applied where they were written again.
        rewriting: those of them that were read and are not committed yet.
        quarantine: the dead letters that SQL has.
        ahead: what they will be once everything read so far is committed.
        letters: where the dead letters stand in SQL; moves with each that is made or deleted.
        next_place: of the next dead letter.
        replay_until: entries up to this one are read by position, because they were delivered before.
        stale: the log is not what it was; it has to be taken over again.
        halted: why it is not flushed, or None.
        retry_at: when a halted one is tried again, on the monotonic clock; in the past for one that never was.
        milestones: pairs of the time of a commit and its offset, for trimming after the retention.
        trimmed_at: when it was trimmed last, on the monotonic clock.
        seen_ms: when the last entry committed was made, on the writer's clock.
        unpublished: Redis was seen to tell another offset than SQL's.
    """

    number: int
    token: int
    committed: EntryID
    earlier: Mapping[int, EntryID] = field(default_factory=dict)
    base: EntryID = ORIGIN
    position: EntryID = ORIGIN
    expected: EntryID = ORIGIN
    epochs: frozenset[int] = frozenset()
    ended: dict[int, int] = field(default_factory=dict)
    rewritten: set[EntryID] = field(default_factory=set)
    rewriting: set[EntryID] = field(default_factory=set)
    quarantine: Quarantine = field(default_factory=Quarantine)
    ahead: Quarantine = field(default_factory=Quarantine)
    letters: int = 0
    next_place: int = 0
    replay_until: EntryID | None = None
    stale: bool = True
    halted: str | None = None
    retry_at: float = 0.0
    milestones: deque[tuple[float, EntryID]] = field(default_factory=deque)
    trimmed_at: float = 0.0
    seen_ms: int = 0
    unpublished: bool = False

    def rewind(self) -> None:
        """Go back to what is committed: what was read ahead was delivered, and is read again by position."""
        if self.position != self.base:
            if self.position.epoch != self.base.epoch:
                self.stale = True
            self.replay_until = self.position if self.replay_until is None else max(self.position, self.replay_until)
            self.position = self.base
        self.rewriting.clear()
        self.ahead = self.quarantine.copy()
        self.expected = self.committed

    def advance(self, segment: Segment, now: float) -> None:
        """Note that a segment is committed.

        Args:
            segment: of this partition.
            now: seconds on the monotonic clock.
        """
        self.committed = self.base = segment.end
        self.rewritten.update(segment.rewritten)
        self.rewriting.difference_update(segment.rewritten)
        for suspect in segment.parked:
            self.quarantine.add(suspect.place, suspect.as_letter())
        self.quarantine.remove(segment.superseded)
        if segment.parked or segment.superseded:
            self.letters = segment.places.stop
        self.seen_ms = segment.oldest_ms
        if segment.crossings:
            # Numbers of another epoch must not trim this one.
            self.milestones.clear()
            self.earlier = {**self.earlier, **{each.successor: each.applied for each in segment.crossings}}
        self.milestones.append((now, segment.end))

    def is_read_up(self) -> bool:
        """Tell whether what gave no entry has none, rather than has to be taken over or replayed first."""
        return not self.stale and self.replay_until is None

    def distrust(self) -> None:
        """Have the log taken over anew, at once: it may have another history."""
        self.stale = True
        self.retry_at = 0.0

    def is_due(self, now: float) -> bool:
        """Tell whether it is not served, and to be tried now.

        Args:
            now: seconds on the monotonic clock.
        """
        return (self.stale or self.halted is not None) and self.retry_at <= now

    def begin(self, position: EntryID, replay_until: EntryID | None, epochs: Iterable[int], now: float) -> None:
        """Serve from a position that a takeover has found, at a time on the monotonic clock.

        What is in the log up to it, SQL has: it may be trimmed like what this holder commits. A log full of it could
        never be drained otherwise.
        """
        if self.epochs != (known := frozenset(epochs)):
            # Numbers of another history must not trim this one.
            self.milestones.clear()
            self.epochs = known
        if position != ORIGIN:
            self.milestones.append((now, position))
        self.base = self.position = position
        self.expected = self.committed
        self.replay_until = replay_until
        self.ended = {applied.epoch: applied.sequence for applied in self.earlier.values()}
        self.rewriting.clear()
        self.ahead = self.quarantine.copy()
        self.stale = False

    def has(self, entry_id: EntryID) -> bool:
        """Tell whether SQL has an entry that Redis has lost, once everything read is committed.

        Not for entries of this log: its epochs count as ended as far as they were read, before that is merged.
        """
        return entry_id in self.rewritten or entry_id in self.rewriting or self.reaches(entry_id)

    def reaches(self, entry_id: EntryID) -> bool:
        """Tell whether SQL has an entry where it stood; see ``has``."""
        if entry_id.epoch == self.expected.epoch:
            return entry_id.sequence <= self.expected.sequence
        return entry_id.sequence <= self.ended.get(entry_id.epoch, -1)

    def trim_point(self, now: float, retention_seconds: float) -> EntryID | None:
        """Return the entry below which the log may be trimmed now, or None.

        Only positions that this holder has committed in this very history count, so a rolled-back log is never
        trimmed by a number from another one.
        """
        if now - self.trimmed_at < min(1.0, retention_seconds):
            return None
        point = None
        while self.milestones and self.milestones[0][0] <= now - retention_seconds:
            point = self.milestones.popleft()[1]
        if point is None:
            return None
        self.trimmed_at = now
        return EntryID(point.epoch, point.sequence + 1)
