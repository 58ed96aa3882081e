"""Isolating what SQL refuses: entries of one partition are applied, but for those to blame and those behind them.

Pure: it yields effects; a shell does them. Every effect is a point at which the flusher may be killed.

Invariants:

1. The offset, the rows and the dead letters move in one transaction.
2. An entry is tried only in an order in which everything of its keys before it was applied or superseded.
3. ``k`` guilty among ``n`` entries take ``O(k log n)`` attempts, each in a savepoint of its own.

::

    begin --> fence --> all in one attempt --refused--> halves --> ... --> one alone: a dead letter
                           '--applied-----------------------------------> record letters --> commit --> acknowledge
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Segment
from writebehind.flushers.flush import Fenced
from writebehind.flushers.quarantine import Key, Letter, Quarantine
from writebehind.flushers.suspect import Suspect

__all__ = ["Attempt", "Begin", "Commit", "Effect", "Fence", "Outcome", "Record", "RollBack", "isolate"]


@dataclass(slots=True)
class Outcome:
    """What became of entries.

    Attributes:
        applied: in SQL with this transaction.
        refused: with the error of each.
        parked: wait behind a letter.
        gone: places of letters that are none any more: applied, superseded or discarded.
    """

    applied: list[Suspect] = field(default_factory=list)
    refused: list[tuple[Suspect, Exception]] = field(default_factory=list)
    parked: list[Suspect] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a transaction that checks every constraint at once."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Move the offset, as ``flush`` does. Reply: ``Fenced``."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class Attempt:
    """Write these in a savepoint; roll back to it where SQL refuses one. Reply: why, or None."""

    suspects: Sequence[Suspect]


@dataclass(frozen=True, slots=True)
class Record:
    """Make, change and delete letters."""

    segment: Segment
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Roll back."""


Effect = Begin | Fence | Attempt | Record | Commit | RollBack
Reply = Fenced | Exception | None


def isolate(
    segment: Segment,
    suspects: Sequence[Suspect],
    quarantine: Quarantine,
    *,
    discarded: Iterable[int] = (),
    condemned: Exception | None = None,
) -> Generator[Effect, Reply, Outcome]:
    """Apply entries of one partition as far as SQL takes them.

    Args:
        segment: from where to where the offset moves; nowhere, where only letters are tried again.
        suspects: the entries, in their order; among them letters, which count as in no quarantine meanwhile.
        quarantine: the partition's letters; not changed.
        discarded: places of letters that go.
        condemned: the one entry was refused where it cannot be tried, at the end of a transaction.

    Durability: on return SQL has committed it. Repeat: ``LeaseLost``, because the offset has moved; what SQL has is
    read again then. Crash: all or nothing.

    Raises:
        LeaseLost: SQL's offset or token is not what this holder left, or an earlier attempt was committed.
    """
    yield Begin()
    if (yield Fence(segment)) is not Fenced.MOVED:
        yield RollBack()
        raise LeaseLost(f"partition {segment.partition} has another holder or another offset", "it is taken over anew")
    held = quarantine.copy()
    outcome = Outcome(gone=set(discarded))
    held.remove([*outcome.gone, *(suspect.place for suspect in suspects if suspect.letter)])
    todo = [tuple(suspects)]
    while todo:
        chunk, lifted = _admitted(todo.pop(), held, outcome)
        if not chunk:
            continue
        error = condemned or (yield Attempt(chunk))
        if isinstance(error, Exception):
            if len(chunk) == 1:
                _refuse(chunk[0], error, held, outcome)
            else:
                middle = len(chunk) // 2
                todo += [chunk[middle:], chunk[:middle]]
            continue
        outcome.applied += chunk
        outcome.gone |= lifted
        outcome.gone |= {suspect.place for suspect in chunk if suspect.letter}
        held.remove(lifted)
    yield Record(segment, outcome)
    yield Commit()
    return outcome


def _admitted(suspects: Sequence[Suspect], held: Quarantine, outcome: Outcome) -> tuple[tuple[Suspect, ...], set[int]]:
    """Set aside what waits; return what may be tried, and the letters that it supersedes where it is applied."""
    admitted: list[Suspect] = []
    lifted: set[int] = set()
    free: set[Key] = set()
    for suspect in suspects:
        if suspect.unreadable is not None:
            _refuse(suspect, suspect.unreadable, held, outcome)
            continue
        mutations = suspect.mutations or ()
        waiting = [mutation for mutation in mutations if (mutation[1], mutation[2]) not in free]
        if held and held.holds(waiting, suspect.place):
            superseded = held.superseded_by(mutations, suspect.place)
            if not superseded:
                outcome.parked.append(suspect)
                free -= set(suspect.keys)
                held.add(suspect.place, Letter(suspect.keys))
                continue
            lifted |= set(superseded)
            free |= set(suspect.keys)
        admitted.append(suspect)
    return tuple(admitted), lifted


def _refuse(suspect: Suspect, error: Exception, held: Quarantine, outcome: Outcome) -> None:
    outcome.refused.append((suspect, error))
    held.add(suspect.place, Letter(suspect.keys))
