"""Takeover: from a lease just taken to a partition that can be served.

Pure protocol; the effects are done by a shell, and each is a point at which the recovering flusher may be killed.

Invariants:

1. Nothing is acknowledged that SQL has not applied.
2. Reading begins right after what SQL has applied of this log's own history; what was delivered before and not
   applied is replayed from there, whoever it was delivered to.
3. Where Redis has a new history, its records are believed again only after it was compared with SQL: what SQL has
   newer is removed first. Each rollback is judged once. Where it has nothing of the history that SQL has, and was never
   served, what was loaded into it goes.
4. Repeating the takeover, whole or after dying at any step, changes nothing further.

::

    look at the log --another primary--> open an epoch --> look again
        |--the history is new--> remove ghosts --> doubt the last records --SQL is ahead--> distrust records
        |                                                                 '--> trust what is left
        '--> make the group if it is missing --> claim what is pending --> acknowledge what SQL has already
                '--Redis is full and refuses    --> serve from the position, replaying up to what was delivered
                    --> serve from the position, reading everything by position
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from writebehind.engine.adapters.log import LogState
from writebehind.engine.adapters.log_replies import RawEntry
from writebehind.engine.core.contiguity import Lineage, ahead, begin
from writebehind.engine.core.positions import ORIGIN, EntryID

__all__ = [
    "Claim",
    "Confirmed",
    "Distrust",
    "Doubt",
    "Effect",
    "Expunge",
    "Inspect",
    "MakeGroup",
    "OpenEpoch",
    "Reply",
    "Start",
    "Trust",
    "takeover",
]


@dataclass(frozen=True, slots=True)
class Inspect:
    """Read the log's state. Reply: ``LogState``."""


@dataclass(frozen=True, slots=True)
class OpenEpoch:
    """Open an epoch on this primary. Reply: False where Redis is full and refuses."""


@dataclass(frozen=True, slots=True)
class Expunge:
    """Remove these ghosts from the log, and what they left in records. Reply: None.

    A ghost is an entry above the end that the lineage gives its epoch: Redis was killed while it logged a transaction,
    forgot it at the next start, and was reminded of it at the one after that.
    """

    ghosts: Sequence[RawEntry]
    position: EntryID


@dataclass(frozen=True, slots=True)
class Doubt:
    """Believe no record that the last entry before this epoch has touched, and that was not written since. Reply: None.

    Redis may have been killed while it logged that transaction, and have executed its beginning at a later start: as
    the log is written first, the entry is there, and its records need not be as it left them.
    """

    epoch: int
    last: RawEntry
    position: EntryID


@dataclass(frozen=True, slots=True)
class Distrust:
    """Remove the records of epochs below this one that SQL has applied. Reply: how many."""

    below: int
    position: EntryID


@dataclass(frozen=True, slots=True)
class Trust:
    """Let the records that are left be believed, and note how far they were judged. Reply: None."""

    floor: int
    judged: int | None


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
        ahead: the epoch below which SQL is ahead of this history, if this was found just now: Redis was rolled back.
        distrusted: records removed from Redis because SQL has them newer.
        ghosts: entries removed because they came back from before the end of their epoch.
        judged: the history was compared with SQL; False where a full Redis refused to note a new one.
    """

    position: EntryID
    replay_until: EntryID | None
    lineage: Lineage
    claimed: int
    gone: Sequence[bytes]
    group_made: bool
    served_by_group: bool
    past_missing: bool
    ahead: int | None = None
    distrusted: int = 0
    ghosts: int = 0
    judged: bool = True


Effect = Inspect | OpenEpoch | Expunge | Doubt | Distrust | Trust | MakeGroup | Claim | Confirmed
Reply = LogState | tuple[list[bytes], list[bytes]] | bool | int | None
Answer = TypeVar("Answer")


def takeover(offset: EntryID, earlier: Mapping[int, EntryID]) -> Generator[Effect, Reply, Start]:
    """Take a partition over, given what SQL has applied.

    Args:
        offset: the offset in SQL.
        earlier: by epoch, the last applied entry of the epoch before it.

    Durability: nothing is written but to the group, and what is removed is in SQL. Repeat: harmless. Crash: the next
    takeover begins anew.
    """
    state = _answer(LogState, (yield Inspect()))
    judged = True
    if state.moved and state.lineage:
        judged = (yield OpenEpoch()) is not False
        state = _answer(LogState, (yield Inspect()))
    position = begin(offset, earlier, state.lineage)
    behind, distrusted = None, 0
    if state.floor is not None:
        behind = ahead(offset, earlier, state.lineage)
        if behind is not None and state.judged is not None and behind <= state.judged:
            # The rollback is a past one; had another one taken the judgement back, it would have taken the note, too.
            behind = None
        if state.ghosts:
            yield Expunge(state.ghosts, position)
        for epoch, last in state.last_before.items():
            yield Doubt(epoch, last, position)
        if behind is not None:
            distrusted = _answer(int, (yield Distrust(behind, position)))
        yield Trust(state.floor, behind)
    elif state.watermark is None and state.lineage and position == ORIGIN and offset != ORIGIN:
        # Nobody has served this history yet, and SQL has another one, which may have gone on until now: what reads have
        # loaded here may be from before that.
        distrusted = _answer(int, (yield Distrust(max(state.lineage), position)))
    made = state.delivered is None
    served = not made or (yield MakeGroup(position)) is not False
    # A full Redis may refuse the group: what it holds is read by position, which frees memory in the end.
    claimed: Sequence[bytes] = ()
    gone: Sequence[bytes] = ()
    if served:
        claimed, gone = _answer(tuple, (yield Claim()))
        yield Confirmed([entry for entry in claimed if EntryID.parse(entry) <= position], position)
    # Positions within one log's history do compare: its IDs only grow.
    delivered = state.delivered or position
    replay_until = delivered if delivered > position else None
    return Start(
        position=position,
        replay_until=replay_until if served else state.end,
        lineage=state.lineage,
        claimed=len(claimed),
        gone=[entry for entry in gone if EntryID.parse(entry) > position],
        past_missing=position == ORIGIN and offset != ORIGIN,
        group_made=served and made and state.end is not None and position != ORIGIN,
        served_by_group=served,
        ahead=behind,
        distrusted=distrusted,
        ghosts=len(state.ghosts),
        judged=judged,
    )


def _answer(kind: type[Answer], reply: Reply) -> Answer:
    if not isinstance(reply, kind):
        raise TypeError(f"an effect was answered with {reply!r} and not with {kind.__name__}")
    return reply
