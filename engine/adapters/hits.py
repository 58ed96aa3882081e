"""Hits of rate limiters in Redis."""

import redis

from writebehind.engine.adapters.links import Links, refusal
from writebehind.engine.adapters.scripts import HIT
from writebehind.engine.core.appending import Refused
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.limits import Limits, refused, subject_bytes

__all__ = ["Hits"]


class Hits:
    """The hits of a namespace's limiters; safe to share between threads.

    Args:
        links: connections.
        keys: the namespace's key names.
    """

    def __init__(self, links: Links, keys: Keys) -> None:
        self._links = links
        self._keys = keys

    def hit(self, limits: Limits, subject: str, cost: int, *, count: bool) -> list[int]:
        """Run the script for a subject, once; return its reply. See ``hit_at``."""
        return self.hit_at(self._key(limits, subject), limits, cost, count=count)

    def hit_at(self, key: str | bytes, limits: Limits, cost: int, *, count: bool) -> list[int]:
        """Run the script for a key, once; return its reply.

        Durability: what is counted is in the primary's memory. Repeat: counts again. Crash: it is counted or not.

        Raises:
            ValidationError: no such hit is possible; nothing was sent.
            RedisUnavailable: Redis refuses for now, cannot be reached, or its reply was lost.
            ConfigurationError: Redis refuses for good.
        """
        arguments = limits.arguments(cost, count=count)
        with self._links.link() as link:
            try:
                reply: list[int] = link.script(HIT, (key,), arguments)
            except redis.ResponseError as error:
                answer = refusal(error)
            else:
                return reply
        raise self._refused(limits, answer)

    def forget(self, limits: Limits, subject: str) -> None:
        """Remove a subject's hits.

        Durability: as ``hit``. Repeat: harmless. Crash: they are all there or none is.

        Raises:
            ValidationError, RedisUnavailable, ConfigurationError: as ``hit``.
        """
        key = self._key(limits, subject)
        with self._links.link() as link:
            try:
                link.command("DEL", key)
            except redis.ResponseError as error:
                answer = refusal(error)
            else:
                return
        raise self._refused(limits, answer)

    def _key(self, limits: Limits, subject: str) -> bytes:
        return self._keys.hits(limits.name, subject_bytes(limits.name, subject))

    def _refused(self, limits: Limits, answer: Refused) -> Exception:
        if answer.code in {"READONLY", "MASTERDOWN", "LOADING"}:
            # The primary is another server now, and where it is only a new connection finds out.
            self._links.drop_idle()
        return refused(limits.name, answer)
