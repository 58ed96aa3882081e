"""Isolating what SQL refuses: entries of one partition are applied, but for those to blame and those behind them.

Pure: it yields effects; a shell does them. Every effect is a point at which the flusher may be killed. The offset, the
rows and the dead letters move in one transaction.

::

    begin --> fence --> all in one attempt --refused--> halves --> ... --> one alone: a dead letter
                           '--applied-----------------------------------> record letters --> commit
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Segment
from writebehind.flushers.flush import Commit, Fenced, RollBack
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.sifting import Attempt, Outcome, Record, sift
from writebehind.flushers.suspect import Suspect

__all__ = ["Begin", "Effect", "Fence", "Reply", "isolate"]


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a transaction that checks every constraint at once."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Move the offset, as ``flush`` does. Reply: ``Fenced``."""

    segment: Segment


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
    yield from sift(suspects, held, outcome, condemned)
    yield Record(segment, outcome)
    yield Commit()
    return outcome
