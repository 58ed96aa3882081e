"""What writes of an event loop wait for before they may be sent: the engine's start, and checks of levels."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from writebehind.engine.core.durability import Durability
from writebehind.engine.errors import WriteBehindError, own_copy

__all__ = ["Clearances"]


class Clearances:
    """Asks each question once, for all who wait for its answer; one that failed is asked again by who needs it next.

    The asking belongs to nobody: it goes on where a caller is cancelled.

    Args:
        start: connects, compares settings, and checks the engine's own level.
        require: refuses a level that the servers cannot give.
        in_thread: runs either in a thread.
        own: the engine's own level.

    Attributes:
        started: whether ``start`` has succeeded.
    """

    def __init__(
        self,
        *,
        start: Callable[[], object],
        require: Callable[[Durability], object],
        in_thread: Callable[..., Awaitable[Any]],
        own: Durability,
    ) -> None:
        self._start = start
        self._require = require
        self._in_thread = in_thread
        # What comes with the start.
        self._given = {Durability.ACCEPTED, Durability.PERSISTED, own}
        self._asked: dict[Durability, asyncio.Task[None]] = {}
        self.started = False

    def of(self, level: Durability) -> asyncio.Task[None] | None:
        """Return what must end well before a write that asks for a level may be sent; None where it may go at once."""
        question = Durability.ACCEPTED if level in self._given else level
        if self.started and question is Durability.ACCEPTED:
            return None
        task = self._asked.get(question)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(question), name="writebehind-clearance")
            self._asked[question] = task
            task.add_done_callback(functools.partial(self._answered, question))
        return task

    async def wait(self, level: Durability = Durability.ACCEPTED) -> None:
        """Wait until a write may be sent that asks for a level.

        Raises:
            ConfigurationError, RedisUnavailable: as ``WriteBehind.start``; or the servers cannot give the level.
        """
        task = self.of(level)
        if task is not None:
            try:
                await asyncio.shield(task)
            except WriteBehindError as error:
                raise own_copy(error) from error.__cause__

    async def _ask(self, question: Durability) -> None:
        if question is not Durability.ACCEPTED:
            await self.wait()
            await self._in_thread(self._require, question)
            self._given.add(question)
        else:
            await self._in_thread(self._start)
            self.started = True

    def _answered(self, question: Durability, task: asyncio.Task[None]) -> None:
        del self._asked[question]
        if not task.cancelled():
            task.exception()  # all who waited may have gone
