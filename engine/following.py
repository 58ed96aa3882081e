"""Many tasks wait together until SQL has their writes.

SQL gets the writes of a partition in the order of its log. So for all who wait in one partition and one history one
task asks whether the offset has passed the first of them. Whenever it has, all whom it has passed are answered, and the
task goes on with the others. It alone asks, however many wait and however long. Where a dead letter may be among those
who were passed, they ask for themselves, and hold up nobody.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from writebehind.engine.adapters.confirmer import ASK_SQL_SECONDS, Passed, late
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import RedisUnavailable, WriteBehindError

__all__ = ["Following"]

PAUSE_SECONDS = 0.1
"""How long after a refusal of Redis it is asked again."""

Progress = Callable[[int, EntryID], Generator[float, EntryID | None, Passed]]
"""``Confirmer.progress``."""
RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _Line:
    """Attributes: who waits, by entry, the first one first; when the last look that has ended began."""

    waiting: list[tuple[EntryID, int, asyncio.Future[bool]]] = field(default_factory=list)
    looked_at_seconds: float = float("-inf")

    def first(self) -> EntryID | None:
        """Return the first entry that somebody still waits for."""
        while self.waiting and self.waiting[0][2].done():
            heapq.heappop(self.waiting)
        return self.waiting[0][0] if self.waiting else None

    def answer(self, passed: Passed) -> None:
        """Answer all whom the offset has passed."""
        while self.waiting and self.waiting[0][0] <= passed.last:
            *_, answer = heapq.heappop(self.waiting)
            if not answer.done():
                answer.set_result(not passed.letters)


class Following:
    """What one engine and one event loop wait for in SQL.

    Args:
        progress: follows the offset of a partition.
        in_thread: runs a step of that, which may ask a server.
    """

    def __init__(self, progress: Progress, in_thread: RunInThread) -> None:
        self._progress = progress
        self._in_thread = in_thread
        self._lines: dict[tuple[int, int], _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    async def passed(self, partition: int, entry_id: EntryID, until_seconds: float) -> bool:
        """Wait until SQL has an entry; return False where its writer has to ask for itself.

        Args:
            partition: the entry's partition.
            entry_id: where it stands now.
            until_seconds: when to give up, by ``time.monotonic``.

        Raises:
            DurabilityTimeout: it was asked in time, and SQL does not have it.
        """
        joined_at_seconds = time.monotonic()
        if joined_at_seconds >= until_seconds:
            return False
        line = self._line(partition, entry_id.epoch)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(line.waiting, (entry_id, next(self._numbers), answer))
        try:
            await asyncio.wait({answer}, timeout=until_seconds - joined_at_seconds)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        # By then SQL was asked, too, if Redis did not know, and then Redis again for as long.
        if line.looked_at_seconds >= joined_at_seconds + 2 * ASK_SQL_SECONDS:
            raise late(Durability.PERSISTED)
        return False

    async def end(self) -> None:
        """Answer nobody any more: those who wait ask for themselves. Repeat: harmless."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _line(self, partition: int, epoch: int) -> _Line:
        key = partition, epoch
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            # It begins with the next turn of the loop: there is somebody in the line by then.
            task = asyncio.get_running_loop().create_task(self._follow(key, line), name="writebehind-following")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return line

    async def _follow(self, key: tuple[int, int], line: _Line) -> None:
        try:
            while (first := line.first()) is not None:
                try:
                    passed = await self._look(self._progress(key[0], first), line)
                except RedisUnavailable:
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                if passed is not None:
                    line.answer(passed)
        except WriteBehindError:
            # Each who waits finds out for itself what of this concerns it.
            return
        finally:
            del self._lines[key]
            for *_, answer in line.waiting:
                if not answer.done():
                    answer.set_result(False)

    async def _look(self, steps: Generator[float, EntryID | None, Passed], line: _Line) -> Passed | None:
        """Look until the first who waits was passed; return None where nobody waits any more."""
        first: EntryID | None = None
        while True:
            began_at_seconds = time.monotonic()
            step = await self._in_thread(lambda: _resume(steps, first))  # noqa: B023 - called before it changes
            line.looked_at_seconds = began_at_seconds
            if isinstance(step, Passed):
                return step
            await asyncio.sleep(step)
            first = line.first()
            if first is None:
                return None


def _resume(steps: Generator[float, EntryID | None, Passed], first: EntryID | None) -> float | Passed:
    try:
        return steps.send(first)
    except StopIteration as stop:
        found: Passed = stop.value
        return found
