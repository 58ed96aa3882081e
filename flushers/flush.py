"""The flush protocol: one batch into SQL, exactly once.

Pure: it yields effects; a shell does them. Every effect is a point at which the flusher may be killed.

Invariants:

1. The offset moves in the transaction that writes the rows, from exactly the offset at which the batch begins, under
   the batch's own fencing token. So an entry's effect is in SQL once, however often the flush is tried.
2. The fence comes first: one row lock orders two holders, and waits for an earlier attempt whose outcome is unknown.
3. Nothing is acknowledged before the commit has succeeded, or was found to have succeeded earlier.
4. Whatever goes wrong before that rolls the whole batch back.

::

    begin --> fence --MOVED--> write --> set aside what was refused --> commit --> acknowledge
                |--ALREADY (an earlier attempt was committed)--> roll back --> acknowledge
                '--LOST (another holder, or SQL was rolled back)--> roll back --> LeaseLost
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Batch, Segment
from writebehind.flushers.quarantine import Quarantine
from writebehind.flushers.sifting import Attempt, Outcome, Record, Refusal, sift

__all__ = ["Acknowledge", "Begin", "Commit", "Effect", "Fence", "Fenced", "Reply", "RollBack", "Write", "flush"]


class Fenced(Enum):
    """What the fence found."""

    MOVED = auto()
    ALREADY = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a transaction.

    Attributes:
        attempting: its rows are written by attempts, each of which has every constraint checked.
    """

    attempting: bool = False


@dataclass(frozen=True, slots=True)
class Fence:
    """Move the offsets, each from where its segment starts, under its token. Reply: ``Fenced``."""

    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Write:
    """Write the rows. Reply: the entries that must be looked at apart, because constraints refuse their rows."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Roll back."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge the entries in Redis. ``lettered``: partitions whose dead letters may be others now."""

    batch: Batch
    lettered: Collection[int] = ()


Effect = Begin | Fence | Write | Attempt | Record | Commit | RollBack | Acknowledge
Reply = Fenced | Sequence[Refusal] | Exception | None


def flush(batch: Batch) -> Generator[Effect, Reply, dict[int, Outcome] | None]:
    """Flush a batch; return by partition what became of entries that constraints refuse.

    None says that an earlier attempt was committed, so that only SQL knows.

    Durability: on return SQL has committed it. Repeat: finds it committed and does nothing more.
    Crash: before the commit nothing is in SQL, after it everything; the next holder finds out which.

    Raises:
        LeaseLost: SQL's offset or token is not what this holder left; nothing was written.
    """
    yield Begin()
    fenced = yield Fence(batch.segments)
    outcomes: dict[int, Outcome] = {}
    if fenced is Fenced.MOVED:
        refusals = yield Write(batch)
        for refusal in refusals if isinstance(refusals, Sequence) else ():
            outcome = outcomes[refusal.segment.partition] = Outcome()
            for line in refusal.lines.values():
                # The constraint was asked apart from the statement that writes the row: that one has the last word.
                yield from sift(line, Quarantine(), outcome)
            yield Record(refusal.segment, outcome)
        yield Commit()
        for partition, outcome in outcomes.items():
            batch.changes.enter(partition)
            for suspect in outcome.applied:
                for _, table, key, _ in suspect.mutations or ():
                    batch.changes.table(table).pass_over(key, suspect.entry_id)
    else:
        yield RollBack()
        if fenced is not Fenced.ALREADY:
            numbers = ", ".join(str(segment.partition) for segment in batch.segments)
            raise LeaseLost(f"partitions {numbers} have another holder or another offset", "they are taken over anew")
    yield Acknowledge(batch, outcomes if fenced is Fenced.MOVED else [each.partition for each in batch.segments])
    return outcomes if fenced is Fenced.MOVED else None
