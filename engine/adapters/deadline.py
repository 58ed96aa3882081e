"""How long a write keeps trying, alone or together with others."""

import random
import time
from collections.abc import Generator
from typing import TypeVar

__all__ = ["Deadline", "Waiting", "pause", "pause_seconds", "wait_out"]

Result = TypeVar("Result")

Waiting = Generator[float, None, Result]
"""Work that has to wait now and then: it yields for how many seconds, holding no connection meanwhile."""

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
    time.sleep(min(pause_seconds(attempt), seconds_max))


def pause_seconds(attempt: int) -> float:
    """Return how long to wait before the next attempt; see ``pause``."""
    return min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries


def wait_out(work: Waiting[Result]) -> Result:
    """Do work in this thread, its waiting included."""
    while True:
        try:
            seconds = next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        time.sleep(seconds)
