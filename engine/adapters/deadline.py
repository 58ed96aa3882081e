"""How long a write keeps trying, alone or together with others."""

import random
import time

__all__ = ["Deadline", "pause"]

PAUSE_SECONDS = 0.005
PAUSE_SECONDS_MAX = 0.5


class Deadline:
    """When to give up; calls that have one together wait together. It begins when it is first asked.

    Args:
        seconds: how long from then on.
    """

    __slots__ = ("_at", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at: float | None = None

    def left_seconds(self) -> float:
        """Return how long it is until then; 0 where it has passed."""
        now = time.monotonic()
        if self._at is None:
            self._at = now + self._seconds
        return max(0.0, self._at - now)


def pause(attempt: int, seconds_max: float) -> None:
    """Wait before the next attempt, longer with each one, and not as long as others do.

    Args:
        attempt: number of the attempt that failed, from 1.
        seconds_max: no longer than this.
    """
    seconds = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries
    time.sleep(min(seconds, seconds_max))
