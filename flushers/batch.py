"""A batch: entries of one or more partitions, coalesced, to be committed in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from writebehind.engine.adapters.log_replies import RawEntry
from writebehind.engine.core.coalescing import Changes
from writebehind.engine.core.positions import EntryID
from writebehind.flushers.suspect import Suspect

__all__ = ["Batch", "Crossing", "Segment"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """The end of one epoch and the beginning of the next, inside a segment.

    Attributes:
        applied: the last applied entry of the epoch that ends.
        successor: the epoch that begins.
        base: where the epoch ended according to Redis.
    """

    applied: EntryID
    successor: int
    base: EntryID | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """What a batch takes from one partition.

    Attributes:
        partition: its number.
        token: fencing token of the lease under which it was read.
        start: the offset that SQL must have before.
        end: the offset that SQL will have after.
        ids: the entries, for acknowledging.
        crossings: epochs that end inside the segment.
        lost: entries that should be in it and are not in the log.
        at_least: whether more may be missing, because the lineage does not tell.
        rewritten: originals of its entries that were written again.
        parked: its entries that wait behind a dead letter.
        superseded: places of the dead letters that its entries make meaningless.
        passed_over: how many of its entries SQL has by other ones, or may have.
        in_doubt: those of them that SQL may have, nobody can know.
        pieces: its entries as they were read, each piece with the place that its first one would get as a dead letter.
        oldest_ms: when its first entry was made, on the writer's clock.
    """

    partition: int
    token: int
    start: EntryID
    end: EntryID
    ids: Sequence[bytes]
    crossings: Sequence[Crossing] = ()
    lost: int = 0
    at_least: bool = False
    rewritten: Sequence[EntryID] = ()
    parked: Sequence[Suspect] = ()
    superseded: Sequence[int] = ()
    passed_over: int = 0
    in_doubt: Sequence[Suspect] = ()
    pieces: Sequence[tuple[int, Sequence[RawEntry]]] = ()
    oldest_ms: int = 0

    @property
    def places(self) -> range:
        """The places that its entries would get as dead letters."""
        if not self.pieces:
            return range(0)
        (first, _), (last, entries) = self.pieces[0], self.pieces[-1]
        return range(first, last + len(entries))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Segments of different partitions and their changes together."""

    segments: Sequence[Segment]
    changes: Changes
