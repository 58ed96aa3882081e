"""Counts of this process, and their sums over all processes of a namespace, which are in Redis."""

import logging
import threading
from collections import Counter

import redis

from writebehind.engine.adapters.links import Links

__all__ = ["Counted", "SharedCounts", "sums_of"]

logger = logging.getLogger(__name__)

DIGITS_MAX = 19
"""Of a number that HINCRBY makes; Python takes no longer ones than 4,300."""

Counted = tuple[str, str]
"""Whose, and what: a table or a cache, and a field of its counts."""


class SharedCounts:
    """What this process has counted; may be shared between threads.

    Args:
        links: connections.
        name: the hash with the sums.
    """

    def __init__(self, links: Links, name: str) -> None:
        self._links = links
        self._name = name
        self.begin()

    def begin(self) -> None:
        """Count from 0; to be called in a forked child."""
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._counts: Counter[Counted] = Counter()
        self._told: Counter[Counted] = Counter()

    def add(self, counted: Counted, amount: int) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[counted] += amount

    def counts(self) -> dict[Counted, int]:
        """Return what this process has counted."""
        with self._lock:
            return dict(self._counts)

    def tell(self) -> None:
        """Add what is new to the sums in Redis.

        What cannot be told is told the next time. Repeat: adds nothing twice, unless a reply was lost. Crash: what was
        not told yet is missing from the sums.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        with self._telling:
            new = [
                (counted, amount - self._told[counted])
                for counted, amount in self.counts().items()
                if amount != self._told[counted]
            ]
            if not new:
                return
            commands = [("HINCRBY", self._name, ":".join(counted), amount) for counted, amount in new]
            with self._links.link() as link:
                replies = link.pipeline(commands)
            for (counted, amount), reply in zip(new, replies, strict=True):
                if isinstance(reply, redis.ResponseError):
                    logger.debug("counts are kept until Redis takes them (%s): %s", self._name, reply)
                else:
                    self._told[counted] += amount


def sums_of(links: Links, name: str) -> dict[Counted, int]:
    """Return what all processes have told; nothing where Redis refuses to tell.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    with links.link() as link:
        (reply,) = link.pipeline([("HGETALL", name)])
    if isinstance(reply, redis.ResponseError):
        logger.warning("Redis refuses to tell what reads have met with (%s): %s", name, reply)
        return {}
    sums: dict[Counted, int] = {}
    for field, value in zip(reply[::2], reply[1::2], strict=True):
        whose, _, what = field.decode(errors="replace").rpartition(":")
        if value.isdigit() and len(value) <= DIGITS_MAX:
            sums[whose, what] = int(value)
    return sums
