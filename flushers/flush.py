"""The flush protocol: one batch into SQL, exactly once.

Pure: it yields effects; a shell does them. Every effect is a point at which the flusher may be killed.

Invariants:

1. The offset moves in the transaction that writes the rows, from exactly the offset at which the batch begins, under
   the batch's own fencing token. So an entry's effect is in SQL once, however often the flush is tried.
2. The fence comes first: one row lock orders two holders, and waits for an earlier attempt whose outcome is unknown.
3. Nothing is acknowledged before the commit has succeeded, or was found to have succeeded earlier.
4. Whatever goes wrong before that rolls the whole batch back.

::

    begin --> fence --MOVED--> write --> commit --> acknowledge
                |--ALREADY (an earlier attempt was committed)--> roll back --> acknowledge
                '--LOST (another holder, or SQL was rolled back)--> roll back --> LeaseLost
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto

from writebehind.engine.errors import LeaseLost
from writebehind.flushers.batch import Batch

__all__ = ["Acknowledge", "Begin", "Commit", "Effect", "Fence", "Fenced", "RollBack", "Write", "flush"]


class Fenced(Enum):
    """What the fence found."""

    MOVED = auto()
    ALREADY = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a transaction."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Move the offsets, each from where its segment starts, under its token. Reply: ``Fenced``."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Write:
    """Write the rows."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Roll back."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge the entries in Redis."""

    batch: Batch


Effect = Begin | Fence | Write | Commit | RollBack | Acknowledge


def flush(batch: Batch) -> Generator[Effect, Fenced | None, None]:
    """Flush a batch.

    Durability: on return SQL has committed it. Repeat: finds it committed and does nothing more.
    Crash: before the commit nothing is in SQL, after it everything; the next holder finds out which.

    Raises:
        LeaseLost: SQL's offset or token is not what this holder left; nothing was written.
    """
    yield Begin()
    fenced = yield Fence(batch)
    if fenced is Fenced.MOVED:
        yield Write(batch)
        yield Commit()
    else:
        yield RollBack()
        if fenced is not Fenced.ALREADY:
            numbers = ", ".join(str(segment.partition) for segment in batch.segments)
            raise LeaseLost(f"partitions {numbers} have another holder or another offset", "they are taken over anew")
    yield Acknowledge(batch)
