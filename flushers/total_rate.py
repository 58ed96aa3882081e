"""The load that all flushers of a namespace put on SQL together.

They share a rate limiter. What SQL was given is paid for afterwards, in pieces, and before all of it is paid nothing
more is read. So over any time SQL is given no more than the rate allows, and one second's worth, and the batches that
were under way.
"""

import logging
import time

from writebehind.engine.adapters.hits import Hits
from writebehind.engine.core.limits import UNITS_MAX, Limits
from writebehind.engine.errors import ConfigurationError, RedisUnavailable

__all__ = ["TotalRate"]

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 1.0
PIECES = 10
"""What the window yields is paid in so many pieces at least, lest one who owes much waits for an empty window."""

WAIT_SECONDS_MIN = 0.001

SILENT_SECONDS = 60.0
"""A Redis that is full, and then is not, and then is, makes one line of the log in this time."""


class TotalRate:
    """What one flusher owes to the rate of all. One thread may pay while another one tells what SQL was given.

    A flusher must work while Redis is full, or else nothing makes room in it; and a full Redis counts no hits. So where
    nothing can be counted, nothing is waited for, and the log says so: ``rows_per_second_max`` still holds then.

    Args:
        hits: the hits of the namespace.
        key: where those of its flushers are.
        rows_per_second_max: SQL operations of all flushers together, whole.
        wait_seconds_max: longest wait before it is asked again.

    Durability: what was paid is in the primary's memory. Repeat: pays again. Crash: what a dead flusher had not paid is
    never paid.
    """

    def __init__(self, hits: Hits, key: str, rows_per_second_max: int, wait_seconds_max: float) -> None:
        self._hits = hits
        self._key = key
        # Beyond what a limit may have, several operations are one unit.
        self._rows_per_unit = -(-rows_per_second_max // UNITS_MAX)
        self._limits = Limits.of("flushers", rows_per_second_max // self._rows_per_unit, WINDOW_SECONDS)
        self._piece = max(1, self._limits.cost_max // PIECES)
        self._wait_seconds_max = wait_seconds_max
        self._taken_rows = 0
        self._paid_rows = 0
        self._silent_until_seconds = float("-inf")

    def take(self, rows: int) -> None:
        """Note SQL operations that the database is given now.

        Args:
            rows: how many.
        """
        self._taken_rows += rows

    def wait_seconds(self) -> float:
        """Pay what is owed as far as the rate has room; return how long to wait until this is asked again, or 0."""
        while (owed := self._taken_rows - self._paid_rows) > 0:
            units = min(self._piece, -(-owed // self._rows_per_unit))
            try:
                allowed, _, microseconds, _ = self._hits.hit_at(self._key, self._limits, units, count=True)
            except RedisUnavailable as error:
                return self._forgive(owed, f"for now: {error.message}")
            except ConfigurationError:
                return self._forgive(
                    owed,
                    f"until this is mended: {self._key} in Redis is not what the engine writes, or its user lacks "
                    "permissions (make it anew with 'writebehind acl')",
                )
            if not allowed:
                return min(self._wait_seconds_max, max(WAIT_SECONDS_MIN, microseconds / 1_000_000))
            self._paid_rows += min(owed, units * self._rows_per_unit)
        return 0.0

    def _forgive(self, owed: int, why: str) -> float:
        self._paid_rows += owed
        now = time.monotonic()
        if now >= self._silent_until_seconds:
            self._silent_until_seconds = now + SILENT_SECONDS
            logger.warning("rows_per_second_total_max does not hold %s; going on without it", why)
        return 0.0
