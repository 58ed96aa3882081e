"""Waiting for what was accepted to become more durable, until the engine is closed: nobody waits in it then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import DurabilityTimeout

__all__ = ["Waits"]


class Waits:
    """Who waits for the receipts of one engine in its event loop."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._ended = False

    @asynccontextmanager
    async def until_closed(self, level: Durability) -> AsyncIterator[None]:
        """Break the block off where the engine is closed.

        Raises:
            DurabilityTimeout: it is, or was before.
        """
        if self._ended:
            raise _closed(level)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _closed(level) from None
        finally:
            self._limits.discard(limit)

    def end(self) -> None:
        """Break off all who wait, and whoever comes. Repeat: harmless."""
        self._ended = True
        limits, self._limits = self._limits, set()
        for limit in limits:
            limit.reschedule(asyncio.get_running_loop().time())


def _closed(level: Durability) -> DurabilityTimeout:
    return DurabilityTimeout(
        f"the write is accepted; this engine is closed, and cannot tell any more whether it is {level.name}",
        "nothing is lost by that: look for it in SQL, read the record with another engine, or ask 'writebehind status'",
    )
