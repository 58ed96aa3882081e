"""What a history is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.faults import Fault

__all__ = ["THEMES", "Theme"]


@dataclass(frozen=True, kw_only=True)
class Theme:
    """What is part of a history in any case.

    Attributes:
        faults: what goes wrong at effects.
        events: what happens to servers and processes.
        only: whether nothing else does.
        refuses: whether SQL refuses rows.
        forgets: whether writers keep nothing of what they have written.
        reads: whether there are processes that only read, and records that expire.
        appendfsync: how Redis keeps its data; drawn where it is empty.
        replica_lags: whether the replica of Redis is as far behind as it ever is.
    """

    faults: Sequence[Fault] = ()
    events: Sequence[str] = ()
    only: bool = False
    refuses: bool = False
    forgets: bool = False
    reads: bool = False
    appendfsync: str = ""
    replica_lags: bool = False


ROLLBACKS = Theme(
    faults=(Fault.UNANSWERED, Fault.LATE),
    events=("failover", "replica cut", "power loss", "old primary follows"),
    only=True,
)
DEATHS = Theme(
    faults=(Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.FREEZE_BEFORE, Fault.FREEZE_AFTER), events=("freeze",), only=True
)
REFUSALS = Theme(refuses=True)
READS = Theme(reads=True, faults=(Fault.STALL, Fault.FREEZE_AFTER), events=("eviction",))
THEMES = (Theme(), Theme(), ROLLBACKS, DEATHS, REFUSALS, READS)
"""What histories are about: many of them about anything."""
