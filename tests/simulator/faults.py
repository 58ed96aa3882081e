"""What may go wrong at an effect, and how often in this history.

Each history draws which kinds it has at all (so that one kind does not hide another) and how many. A fault that
concerns a whole server is an event of ``nemesis``.
"""

from collections import Counter
from collections.abc import Sequence
from enum import Enum

from simulator.chance import Chance

__all__ = ["STALLS_SECONDS", "Fault", "Faults"]


class Fault(Enum):
    """What goes wrong at an effect. Its value is for the trace."""

    NONE = ""
    UNSENT = "the connection ends before the server gets it"
    UNANSWERED = "the server does it and the reply is lost"
    LATE = "the client gives up, and the server does it later"
    SPLIT = "others come between the parts of it"
    STALL = "it takes long"
    KILL_BEFORE = "the process is killed before it"
    KILL_AFTER = "the process is killed after it"
    FREEZE_BEFORE = "the process is frozen before it"
    FREEZE_AFTER = "the process is frozen after it"
    DEADLOCK = "the database ends the transaction: deadlock"
    TIMEOUT = "the database ends the statement: timeout"


STALLS_SECONDS = (0.05, 0.5, 2.0, 8.0)
"""How long something takes that takes long: less and more than any lease and timeout of a history."""


class Faults:
    """The faults of one history.

    Args:
        chance: decides.
        budget: how many there are at the most.
        share: at how many of the effects.
        kinds: which of them occur.

    Attributes:
        left: how many more there may be.
        seen: how often each occurred.
    """

    def __init__(self, chance: Chance, budget: int, share: float, kinds: Sequence[Fault]) -> None:
        self._chance = chance
        self._share = share
        self._kinds = frozenset(kinds)
        self.left = budget
        self.seen: Counter[str] = Counter()

    def at(self, possible: Sequence[Fault]) -> Fault:
        """Decide what goes wrong at an effect where these can."""
        if self.left <= 0 or not self._chance.happens(self._share):
            return Fault.NONE
        here = [fault for fault in possible if fault in self._kinds]
        if not here:
            return Fault.NONE
        self.left -= 1
        fault = here[self._chance.below(len(here))]
        self.seen[fault.name.lower().replace("_", " ")] += 1
        return fault

    def seconds(self) -> float:
        """Decide how long something takes that takes long."""
        return STALLS_SECONDS[self._chance.below(len(STALLS_SECONDS))]

    def end(self) -> None:
        """Have no more faults."""
        self.left = 0
