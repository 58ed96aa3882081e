"""Whether a log continues where SQL stands: gaps, epochs, and where to begin reading.

Sequences count without gaps inside an epoch, and the lineage tells where each epoch's predecessor ended. So what is
missing between two positions can be counted exactly. IDs of two histories are never compared: whether an epoch
belongs to the log's history is asked of the lineage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from writebehind.engine.core.positions import ORIGIN, EntryID
from writebehind.engine.errors import LogDamaged

__all__ = ["Lineage", "Step", "ahead", "backlog", "begin", "damaged", "end_of", "is_ghost", "parse_lineage", "step"]

Lineage = Mapping[int, EntryID | None]
"""Each epoch of the log with the last entry before it; None where the log was empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What lies between a position and the entry read next.

    Attributes:
        lost: entries that should be between them and are not in the log.
        ahead: entries that SQL applied and Redis no longer knows, because Redis was rolled back.
        known: False where the lineage does not connect the two, so that ``lost`` is a lower bound.
        base: where the position's epoch ended according to Redis, when a new epoch begins.
    """

    lost: int = 0
    ahead: int = 0
    known: bool = True
    base: EntryID | None = None


def step(position: EntryID, found: EntryID, lineage: Lineage) -> Step:
    """Judge the step from the last applied position to the entry found next.

    Raises:
        ValueError: the entry found does not come after the position.
    """
    if found.epoch == position.epoch:
        if found.sequence <= position.sequence:
            raise ValueError(f"entry {found} does not follow {position}")
        return Step(lost=found.sequence - position.sequence - 1)
    if found < position and found.epoch in lineage and position.epoch in lineage:
        # In one history IDs only grow: a group that was rolled back delivers what SQL has already.
        raise ValueError(f"entry {found} does not follow {position}")
    lost = found.sequence
    epoch = found.epoch
    base: EntryID | None = None
    while epoch != position.epoch:
        if epoch not in lineage:
            return Step(lost=lost, known=position == ORIGIN and lost == 0)
        base = lineage[epoch]
        if base is None:
            return Step(lost=lost, known=position == ORIGIN)
        if base.epoch < position.epoch:
            # This history has nothing of the position's epoch but its beginning.
            return Step(lost=lost, ahead=position.sequence + 1, base=base)
        if base.epoch == position.epoch:
            break
        lost += base.sequence + 1
        epoch = base.epoch
    if base is None:
        return Step(lost=lost)
    return Step(
        lost=lost + max(0, base.sequence - position.sequence),
        ahead=max(0, position.sequence - base.sequence),
        base=base,
    )


def begin(offset: EntryID, earlier: Mapping[int, EntryID], lineage: Lineage) -> EntryID:
    """Return the position after which to read this log, given what SQL has applied.

    Args:
        offset: the current offset in SQL.
        earlier: for each epoch that follows another in SQL, by the successor's number, the last applied entry
            of the epoch before it.
        lineage: the log's own.

    Returns:
        The last applied entry of the latest epoch that belongs to the log's history; ``ORIGIN`` where none does.
    """
    # IDs of one history only grow: the furthest one is where SQL stands in this one, whichever primaries took turns.
    return max((applied for applied in (offset, *earlier.values()) if applied.epoch in lineage), default=ORIGIN)


def ahead(offset: EntryID, earlier: Mapping[int, EntryID], lineage: Lineage) -> int | None:
    """Return the epoch below which records in Redis may be older than SQL has them, or None.

    Redis was rolled back where an epoch begins below what SQL had applied of the one before it. SQL stays ahead for the
    records that nobody has written since, also when it has applied much of the new epoch.

    Args:
        offset: the current offset in SQL.
        earlier: for each epoch that follows another in SQL, the last applied entry of the epoch before it.
        lineage: the log's own.
    """
    position = begin(offset, earlier, lineage)
    found = [
        epoch
        for epoch, base in lineage.items()
        if epoch in earlier and _is_ahead(earlier[epoch], base, lineage) and epoch <= max(position.epoch, offset.epoch)
    ]
    after = [epoch for epoch in lineage if epoch > position.epoch]
    if after:
        first = min(after)
        if (offset.epoch not in lineage and offset != ORIGIN) or _is_ahead(position, lineage[first], lineage):
            found.append(first)
    return max(found, default=None)


def _is_ahead(applied: EntryID, base: EntryID | None, lineage: Lineage) -> bool:
    """Tell whether SQL has applied more of the time before an epoch than Redis knows of it."""
    if applied == ORIGIN:
        return False
    if applied.epoch not in lineage:
        return True
    return base is None or applied > base


def end_of(epoch: int, lineage: Lineage) -> EntryID | None:
    """Return the last entry of an epoch that another one follows in this history; None while it goes on.

    An epoch that ended without an entry ends where the one before it did.
    """
    following = [other for other in lineage if other > epoch]
    return lineage[min(following)] or ORIGIN if following else None


def is_ghost(entry_id: EntryID, lineage: Lineage) -> bool:
    """Tell whether an entry stands above the end that the lineage gives its epoch: it came back after it was lost."""
    end = end_of(entry_id.epoch, lineage) if entry_id.epoch in lineage else None
    return end is not None and entry_id > end


def backlog(position: EntryID, end: EntryID | None, lineage: Lineage) -> int:
    """Count the entries above a position, up to the log's last one."""
    if end is None:
        return 0
    if end.epoch == position.epoch:
        return max(0, end.sequence - position.sequence)
    if end.epoch < position.epoch:
        # SQL is ahead of a history in which the position's epoch has no entry.
        return 0
    count = end.sequence + 1
    epoch = end.epoch
    while True:
        base = lineage.get(epoch)
        if base is None or base.epoch < position.epoch:
            return count
        if base.epoch == position.epoch:
            return count + max(0, base.sequence - position.sequence)
        count += base.sequence + 1
        epoch = base.epoch


def parse_lineage(meta: Mapping[bytes, bytes]) -> dict[int, EntryID | None]:
    """Read the lineage from a partition's meta hash: ``lineage:<epoch>`` is ``<last ID before>@<milliseconds>``.

    Without epochs that are not of this history: the beginning of one, lost with the rest of its transaction, may come
    back at a later start, among epochs that were begun meanwhile.

    Raises:
        LogDamaged: it is none. What it says would otherwise lead in a circle.
    """
    lineage: dict[int, EntryID | None] = {}
    try:
        for name, value in meta.items():
            if name.startswith(b"lineage:"):
                base = value.partition(b"@")[0]
                epoch = int(name[8:])
                lineage[epoch] = known = None if base == b"0-0" else EntryID.parse(base)
                if epoch < 1 or (known is not None and not (0 < known.epoch < epoch and known.sequence >= 0)):
                    raise damaged()
        current = int(meta.get(b"epoch", b"0")) or max(lineage, default=0)
    except ValueError:
        raise damaged() from None
    following: int | None = None
    for epoch in sorted(lineage, reverse=True):
        if epoch > current or (following is not None and not _follows(following, epoch, lineage)):
            del lineage[epoch]
        else:
            following = epoch
    return lineage


def _follows(later: int, epoch: int, lineage: Lineage) -> bool:
    """Tell whether an epoch began where an earlier one ended: at its last entry, or where it began if it has none.

    One that began with no log at all follows any: somebody has deleted that.
    """
    base = lineage[later]
    return base is None or base == lineage[epoch] or base.epoch == epoch


def damaged() -> LogDamaged:
    """Return the error for a meta hash that the engine has not written so."""
    return LogDamaged(
        "the meta hash of a partition in Redis does not hold what the engine writes",
        "another program has changed it: with its epoch and its lineage:... fields the partition loses its history",
    )
