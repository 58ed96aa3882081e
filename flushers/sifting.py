"""Telling the entries that SQL refuses from the others, by trying them in ever smaller numbers.

Pure: it yields attempts; a shell makes them, each in a savepoint of its own.

Invariants:

1. An entry is tried only in an order in which everything of its keys before it was applied or superseded.
2. ``k`` guilty among ``n`` entries take ``O(k log n)`` attempts.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from writebehind.engine.core.payload import Damaged
from writebehind.flushers.batch import Segment
from writebehind.flushers.quarantine import Key, Quarantine
from writebehind.flushers.suspect import Suspect

__all__ = ["Attempt", "Outcome", "Record", "Refusal", "sift"]


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

    @property
    def moves_letters(self) -> bool:
        """Whether a letter is made or deleted."""
        made = [*(suspect for suspect, _ in self.refused), *self.parked]
        return bool(self.gone) or any(not suspect.letter for suspect in made)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Entries of one partition whose keys' rows a constraint refuses, as a bulk path has found.

    Attributes:
        segment: what the batch takes from the partition.
        lines: the entries of each such key, in their order.
    """

    segment: Segment
    lines: Mapping[Key, Sequence[Suspect]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Write these in a savepoint; roll back to it where SQL refuses one. Reply: why, or None."""

    suspects: Sequence[Suspect]


@dataclass(frozen=True, slots=True)
class Record:
    """Make, change and delete letters."""

    segment: Segment
    outcome: Outcome


def sift(
    suspects: Sequence[Suspect], held: Quarantine, outcome: Outcome, condemned: Exception | None = None
) -> Generator[Attempt, object, None]:
    """Try entries of one partition until each is applied, refused, or parked behind another one.

    Args:
        suspects: the entries, in their order.
        held: the letters that they may have to wait behind; changed.
        outcome: filled.
        condemned: why the one entry is refused, where that is known.

    Raises:
        PayloadError: an entry is of a release that is not known here.
    """
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


def _admitted(suspects: Sequence[Suspect], held: Quarantine, outcome: Outcome) -> tuple[tuple[Suspect, ...], set[int]]:
    """Set aside what waits; return what may be tried, and the letters that it supersedes where it is applied."""
    admitted: list[Suspect] = []
    lifted: set[int] = set()
    free: set[Key] = set()
    for suspect in suspects:
        if suspect.unreadable is not None:
            if not isinstance(suspect.unreadable, Damaged) and not suspect.letter:
                # A newer flusher may read it.
                raise suspect.unreadable
            _refuse(suspect, suspect.unreadable, held, outcome)
            continue
        mutations = suspect.mutations or ()
        waiting = [mutation for mutation in mutations if (mutation[1], mutation[2]) not in free]
        if held and held.holds(waiting, suspect.place):
            superseded = held.superseded_by(mutations, suspect.place)
            if not superseded:
                outcome.parked.append(suspect)
                free -= set(suspect.keys)
                held.add(suspect.place, suspect.as_letter())
                continue
            lifted |= set(superseded)
            free |= set(suspect.keys)
        admitted.append(suspect)
    return tuple(admitted), lifted


def _refuse(suspect: Suspect, error: Exception, held: Quarantine, outcome: Outcome) -> None:
    outcome.refused.append((suspect, error))
    held.add(suspect.place, suspect.as_letter())
