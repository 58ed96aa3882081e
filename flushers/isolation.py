"""Isolating what SQL refuses: entries of one partition are applied, but for those to blame and those behind them.

Pure: it yields effects; a shell does them. Every effect is a point at which the flusher may be killed. The offset, the
rows and the dead letters move in one transaction.

::

    begin --> fence --> read letters --> all in one attempt --refused--> halves --> ... --> one alone: a dead letter
                                            '--applied-----------------------------------> record letters --> commit
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

from writebehind.engine.core.payload import Op
from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Segment
from writebehind.flushers.flush import Begin, Commit, Fence, Fenced, RollBack
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.sifting import Attempt, Outcome, Record, sift
from writebehind.flushers.suspect import Control, Suspect

__all__ = ["Effect", "Read", "Reply", "isolate"]


@dataclass(frozen=True, slots=True)
class Read:
    """Read letters inside the transaction. Reply: those that SQL has, as entries to be tried, in their order."""

    segment: Segment
    places: Collection[int]


Effect = Begin | Fence | Read | Attempt | Record | Commit | RollBack
Reply = Fenced | Sequence[Suspect] | Exception | None


def isolate(
    segment: Segment,
    suspects: Sequence[Suspect],
    quarantine: Quarantine,
    *,
    due: Collection[int] = (),
    condemned: Exception | None = None,
) -> Generator[Effect, Reply, Outcome]:
    """Apply entries of one partition as far as SQL takes them.

    Args:
        segment: from where to where the offset moves; nowhere, where only letters are tried again.
        suspects: the entries, in their order; or one that is about a letter, or none.
        quarantine: the partition's letters; not changed.
        due: places of letters to be tried again, with what is tied to them.
        condemned: the one entry or chain was refused where it cannot be tried, at the end of a transaction.

    Durability: on return SQL has committed it. Repeat: ``LeaseLost``, because the offset has moved; what SQL has is
    read again then. Where the offset does not move, letters that an earlier attempt has applied are gone from SQL,
    and are not tried again. Crash: all or nothing.

    Raises:
        LeaseLost: SQL's offset or token is not what this holder left, or an earlier attempt was committed.
    """
    yield Begin(attempting=True)
    if (yield Fence([segment])) is not Fenced.MOVED:
        yield RollBack()
        raise LeaseLost(f"partition {segment.partition} has another holder or another offset", "it is taken over anew")
    held = quarantine.copy()
    outcome = Outcome()
    control = suspects[0].control if len(suspects) == 1 else None
    places = quarantine.chains(due if control is None else [control.place])
    if places or control is not None:
        letters = yield Read(segment, places)
        suspects = letters if isinstance(letters, Sequence) else []
        outcome.gone = set(places) - {suspect.place for suspect in suspects}
    if control is not None:
        suspects = _decided(control, suspects, outcome)
    held.remove([*outcome.gone, *(suspect.place for suspect in suspects if suspect.letter)])
    yield from sift(suspects, held, outcome, condemned)
    yield Record(segment, outcome)
    yield Commit()
    return outcome


def _decided(control: Control, letters: Sequence[Suspect], outcome: Outcome) -> Sequence[Suspect]:
    """Carry out what was decided about a letter; return what is to be tried."""
    there = [letter for letter in letters if letter.place == control.place]
    if any(letter.mutation_id != control.meant for letter in there):
        # SQL was rolled back since, and the place is another's now.
        return []
    for letter in there:
        letter.correct(control.corrections)
    if control.op != Op.DISCARD:
        return letters
    outcome.gone |= {letter.place for letter in there}
    # What waited for it may go on; what SQL has refused is another decision.
    return [letter for letter in letters if letter.place > control.place and not letter.attempts]
