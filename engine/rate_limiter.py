"""Rate limiters: how often a subject may do something, in any window of time."""

from collections.abc import Callable

from writebehind.engine.adapters.hits import Hits
from writebehind.engine.core.limits import Hit, Limits, hit_of

__all__ = ["RateLimiter"]


class RateLimiter:
    """Admits so many units of each subject in any window, for all processes together; made by ``WriteBehind``.

    The windows slide, on Redis's clock: no interval as long as the window ever has more than the limit, wherever it
    begins. Counting and admitting are one step in Redis. May be shared between threads, and used after a fork.

    Hits are not in the log, nor in SQL. What a crash or a failover takes from Redis is forgotten, and admitted again.

    Args:
        hits: the hits in Redis.
        limits: the limits.
        start: makes sure that the engine has started.
    """

    __slots__ = ("_hits", "_limits", "_start")

    def __init__(self, hits: Hits, limits: Limits, start: Callable[[], object]) -> None:
        self._hits = hits
        self._limits = limits
        self._start = start

    def hit(self, subject: str, cost: int = 1) -> Hit:
        """Count a hit, if each limit has room for all of its cost; one that is refused costs nothing.

        Args:
            subject: who hits, ``"user:1"`` say; 1 to 512 bytes. It becomes part of a key's name in Redis.
            cost: units, up to the smallest limit.

        Durability: an admitted hit is in the memory of the primary.
        Repeat: another hit.
        Crash: it is counted or not, as it is where Redis does not answer.

        Raises:
            ValidationError: the cost is above a limit, or it or the subject is not possible; nothing was counted.
            RedisUnavailable: Redis refuses for now, being full, say, and nothing was counted; or it does not answer,
                and the hit may have been counted. Nothing is repeated, and nothing is admitted: whether to go on
                without the limit is the caller's choice.
            ConfigurationError: Redis refuses for good; nothing was counted.
        """
        self._start()
        return hit_of(self._hits.hit(self._limits, subject, cost, count=True))

    def peek(self, subject: str, cost: int = 1) -> Hit:
        """Tell what would become of a hit, and count nothing. Another one may come before the hit itself.

        Args:
            subject: as in ``hit``.
            cost: as in ``hit``.

        Durability, Repeat, Crash: nothing is counted.

        Raises:
            ValidationError, RedisUnavailable, ConfigurationError: as ``hit``.
        """
        self._start()
        return hit_of(self._hits.hit(self._limits, subject, cost, count=False))

    def reset(self, subject: str) -> None:
        """Forget all hits of a subject.

        Args:
            subject: as in ``hit``.

        Durability: as ``hit``. Repeat: harmless. Crash: all are forgotten or none is.

        Raises:
            ValidationError, RedisUnavailable, ConfigurationError: as ``hit``.
        """
        self._start()
        self._hits.forget(self._limits, subject)
