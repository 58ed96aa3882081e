"""The script of rate limiters, on a real server, under a clock that the test sets; and what windows may hold."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from writebehind.engine.adapters.scripts import HIT

__all__ = ["START", "Clocked", "Reply", "units_max"]

START = 4_000_000_000 * 1_000_000
"""Microseconds, long after the servers' own clock: they must not find the keys expired."""

ASKED = b"redis.call('TIME')"
TOLD = b"{KEYS[2], KEYS[3]}"


class Reply(NamedTuple):
    """What the script says."""

    allowed: int
    left: int
    wait: int
    clock: int


class Clocked:
    """One subject's hits.

    Args:
        client: a plain client of a server.
        key: the key's name.
        windows: for each limit its units and its window in microseconds.
    """

    def __init__(self, client: Any, key: str, *windows: tuple[int, int]) -> None:
        assert HIT.text.count(ASKED) == 1
        self.client = client
        self.key = key
        self.windows = windows
        self._script = client.register_script(HIT.text.replace(ASKED, TOLD))

    def hit(self, clock: int, cost: int = 1, *, count: bool = True) -> Reply:
        """Hit, or look only, at a time."""
        seconds, microseconds = divmod(clock, 1_000_000)
        numbers = [number for pair in self.windows for number in pair]
        reply = self._script(keys=[self.key, seconds, microseconds], args=[cost, int(count), *numbers])
        return Reply(*reply)

    def kept(self) -> int:
        """Return how many hits Redis keeps."""
        return int(self.client.zcard(self.key))


def units_max(hits: Iterable[tuple[int, int]], window: int) -> int:
    """Return the most units that any window has held, wherever it begins.

    Args:
        hits: times and units of those that were admitted.
        window: its length; of two hits that are as far apart it has one.
    """
    ordered: Sequence[tuple[int, int]] = sorted(hits)
    most = held = first = 0
    for at, units in ordered:
        held += units
        while ordered[first][0] <= at - window:
            held -= ordered[first][1]
            first += 1
        most = max(most, held)
    return most
