"""When to kill: a plan that a seed decides, and how fast to write while a kill is due.

Pure. A kill is due once so many flights are written; the hunter then finds the moment. Until it has, flights are
saved: written in trickles while the victim is not at work yet, and in bursts when it is, so that even a short replay
has flights left for each kill to hit a flush of some size.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KILLS_REQUIRED", "Kill", "Plan"]

KILLS_MIN, KILLS_MAX, FLIGHTS_PER_KILL = 4, 8, 40_000
KILLS_REQUIRED = 3
FIRST_SHARE, LAST_SHARE = 0.04, 0.84
"""Between these shares of the replay the kills are due."""
BURSTS, BURST_SECONDS = 20, 0.2
"""While the victim serves: enough at a time that a flush takes a while, and time for each to be flushed."""
TRICKLES, TRICKLE_SECONDS = 400, 0.05
"""While it does not serve yet: just enough to see that it begins."""
CHUNKS_MIN = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """A SIGKILL that hit.

    Attributes:
        seconds: when, since the first write.
        pid: whom.
        entries_in_flight: delivered to it and not acknowledged when it was dead.
    """

    seconds: float
    pid: int
    entries_in_flight: int


class Plan:
    """A replay's plan.

    Args:
        flights: how many will be written.
        seed: decides after which flights kills are due.
        chunk_max: flights of one batch at full speed.

    Attributes:
        kills: how many are planned: one more than needed in a short replay, more in a long one.
        due: after how many flights each is due.
    """

    def __init__(self, flights: int, seed: int, chunk_max: int) -> None:
        chance = random.Random(seed)
        self.kills = max(KILLS_MIN, min(KILLS_MAX, flights // FLIGHTS_PER_KILL))
        width = (LAST_SHARE - FIRST_SHARE) / self.kills
        self._flights = flights
        self._chunk = max(1, min(chunk_max, flights // CHUNKS_MIN))
        # In the first part of its slice of the year: the rest is room to find the moment.
        self.due: Sequence[int] = [
            int(flights * (FIRST_SHARE + width * (number + 0.6 * chance.random()))) for number in range(self.kills)
        ]

    def is_due(self, written: int, kills: int) -> bool:
        """Tell whether another kill is due.

        Args:
            written: flights so far.
            kills: how many hit so far.
        """
        return kills < self.kills and written >= self.due[kills]

    def pace(self, written: int, kills: int, *, serving: bool) -> tuple[int, float]:
        """Return how many flights to write next, and for how many seconds to pause after them.

        Args:
            written: flights so far.
            kills: how many hit so far.
            serving: whether the victim flushes.
        """
        if not self.is_due(written, kills):
            return self._chunk, 0.0
        # The flights that are left are shared among the kills that are left; what is used shrinks with what is left.
        room = (self._flights - written) / (self.kills - kills)
        pieces, pause = (BURSTS, BURST_SECONDS) if serving else (TRICKLES, TRICKLE_SECONDS)
        return max(1, min(self._chunk, int(room / pieces))), pause
