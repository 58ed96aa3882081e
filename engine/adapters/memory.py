"""Whether Redis is short of memory, as looked at now and then: a script cannot ask."""

import logging
import math
import time

import redis

from writebehind.engine.adapters.links import Links

__all__ = ["Memory"]

logger = logging.getLogger(__name__)

AHEAD_SECONDS = 0.5
"""How far ahead it is looked: a few of the pauses between two looks."""

BYTES_PER_PAYLOAD_BYTE = 2
"""What a write takes of Redis's memory: once in the log and once in its record."""

COUNTED_SECONDS = 5.0
"""So long after a look it counts what was sent since: later nobody knows how much was flushed meanwhile."""

UNLIMITED_SECONDS = 1.0
"""A Redis without a limit is looked at no more often."""

WARN_SECONDS = 60.0
"""At most so often it is said: under a steady load a small Redis is short of memory again and again."""


class Memory:
    """The memory of one Redis.

    Args:
        links: connections.
        share_max: the share of ``maxmemory`` from which on it is short of it; None: it never is.

    Attributes:
        short: whether it was at the last look, or will be soon if it goes on like this. Never where Redis has no limit
            or does not tell; nor where it makes room by evicting what has a time to live, because then all of its
            memory is in use in the end.
    """

    def __init__(self, links: Links, share_max: float | None) -> None:
        self._links = links
        self._share_max = share_max
        self.short = False
        self._limit = 0
        self._used = 0
        # What may be sent before the next look.
        self._room_bytes = math.inf
        self._looked_at: float | None = None
        self._warned_at = float("-inf")

    def short_of(self, payload_bytes: int) -> bool:
        """Tell whether Redis is short of memory, counting what this process sends: a burst is faster than looks are.

        Args:
            payload_bytes: what is sent now.
        """
        self._room_bytes -= payload_bytes * BYTES_PER_PAYLOAD_BYTE
        if self._room_bytes < 0 and time.monotonic() - (self._looked_at or 0.0) < COUNTED_SECONDS:
            self.short = True
        return self.short

    def look(self) -> None:
        """Look again.

        Durability, Repeat, Crash: nothing is written.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        now = time.monotonic()
        rarely = self._limit == 0 and self._looked_at is not None and now - self._looked_at < UNLIMITED_SECONDS
        if self._share_max is None or rarely:
            return
        with self._links.link() as link:
            try:
                told = link.command("INFO", "memory")
            except redis.ResponseError:
                told = b""
        facts = dict(line.split(b":", 1) for line in told.split(b"\r\n") if b":" in line)
        limit = self._limit = _number(facts, b"maxmemory")
        used = _number(facts, b"used_memory") - _number(facts, b"mem_not_counted_for_evict")
        expected = used + self._growth(used, now) * AHEAD_SECONDS
        limited = facts.get(b"maxmemory_policy") == b"noeviction" and limit > 0
        short = limited and limit * self._share_max <= expected
        if short and now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            logger.warning(
                "Redis is short of memory (%d of %d bytes): partitions have to be flushed before they get more, "
                "and flushed entries are not retained",
                used, limit,
            )  # fmt: skip
        self._room_bytes = limit * self._share_max - used if limited else math.inf
        self.short = short

    def _growth(self, used: int, now: float) -> float:
        """Return the bytes that were added in each second since the last look; 0 where it were fewer."""
        before, at = self._used, self._looked_at
        self._used, self._looked_at = used, now
        return 0.0 if at is None or now <= at else max(0.0, (used - before) / (now - at))


def _number(facts: dict[bytes, bytes], name: bytes) -> int:
    text = facts.get(name, b"0")
    return int(text) if text.isdigit() else 0
