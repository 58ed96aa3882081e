"""Takeover: from a lease just taken to a partition that can be served.

Pure protocol; the effects are done by a shell, and each is a point at which the recovering flusher may be killed.

Invariants:

1. Nothing is acknowledged that SQL has not applied.
2. Reading begins right after what SQL has applied of this log's own history; what was delivered before and not
   applied is replayed from there, whoever it was delivered to.
3. Repeating the takeover, whole or after dying at any step, changes nothing further.

::

    look at the log --> make the group if it is missing --> claim what is pending
        --> acknowledge what SQL has already --> serve from the position, replaying up to what was delivered
                  '--Redis is full and refuses--> serve from the position, reading everything by position
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from writebehind.engine.adapters.log import LogState
from writebehind.engine.core.contiguity import begin
from writebehind.engine.core.positions import ORIGIN, EntryID

__all__ = ["Claim", "Confirmed", "Effect", "Inspect", "MakeGroup", "Reply", "Start", "takeover"]


@dataclass(frozen=True, slots=True)
class Inspect:
    """Read the log's state. Reply: ``LogState``."""


@dataclass(frozen=True, slots=True)
class MakeGroup:
    """Make the consumer group at this position. Reply: False where Redis is full and refuses."""

    position: EntryID


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim everything pending. Reply: IDs claimed, IDs that are gone."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Acknowledge these entries, which SQL has, and publish the position. Reply: None."""

    ids: Sequence[bytes]
    position: EntryID


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where to serve from.

    Attributes:
        position: read after this.
        replay_until: entries up to this one were delivered before; read them by position.
        lineage: the log's epochs.
        claimed: how many pending entries were taken over.
        gone: pending IDs above the position that are no longer in the log: lost data.
        group_made: the group was missing.
        served_by_group: new entries can be had from the group.
        past_missing: the log has nothing of the history that SQL has: it was emptied, or is another Redis.
    """

    position: EntryID
    replay_until: EntryID | None
    lineage: Mapping[int, EntryID | None]
    claimed: int
    gone: Sequence[bytes]
    group_made: bool
    served_by_group: bool
    past_missing: bool


Effect = Inspect | MakeGroup | Claim | Confirmed
Reply = LogState | tuple[list[bytes], list[bytes]] | bool | None


def takeover(offset: EntryID, earlier: Mapping[int, EntryID]) -> Generator[Effect, Reply, Start]:
    """Take a partition over, given what SQL has applied.

    Args:
        offset: the offset in SQL.
        earlier: by epoch, the last applied entry of the epoch before it.

    Durability: nothing is written but to the group. Repeat: harmless. Crash: the next takeover begins anew.
    """
    state = yield Inspect()
    if not isinstance(state, LogState):
        raise TypeError(f"Inspect was answered with {state!r}")
    position = begin(offset, earlier, state.lineage)
    made = state.delivered is None
    if made and (yield MakeGroup(position)) is False:
        # A full Redis: what it holds is read by position, which frees memory in the end.
        return Start(
            position=position,
            replay_until=state.end,
            lineage=state.lineage,
            claimed=0,
            gone=(),
            group_made=False,
            served_by_group=False,
            past_missing=_past_missing(offset, position),
        )
    pending = yield Claim()
    if not isinstance(pending, tuple):
        raise TypeError(f"Claim was answered with {pending!r}")
    claimed, gone = pending
    yield Confirmed([entry for entry in claimed if _within(EntryID.parse(entry), position)], position)
    # Positions within one log's history do compare: its IDs only grow.
    delivered = position if state.delivered is None else state.delivered
    return Start(
        position=position,
        replay_until=delivered if delivered > position else None,
        lineage=state.lineage,
        claimed=len(claimed),
        gone=[entry for entry in gone if not _within(EntryID.parse(entry), position)],
        past_missing=_past_missing(offset, position),
        group_made=made and state.end is not None and position != ORIGIN,
        served_by_group=True,
    )


def _past_missing(offset: EntryID, position: EntryID) -> bool:
    return position == ORIGIN and offset != ORIGIN


def _within(entry: EntryID, position: EntryID) -> bool:
    return entry <= position
