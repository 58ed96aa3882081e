"""Many tasks wait for the durability of their writes together.

What one primary accepted last covers what it accepted before in the partition. So those who wait for the same level in
the same partition make rounds: one asks for all who came before it began, and whoever comes meanwhile goes with the
next. Where a round does not answer for all, each asks for itself. Those who wait for SQL follow its offset instead; see
``following``.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from writebehind.engine.adapters.confirmer import GRACE_SECONDS, late
from writebehind.engine.adapters.deadline import Waiting
from writebehind.engine.awaiting import Done, RunInThread, await_out, step_of
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import WriteBehindError
from writebehind.engine.following import Following
from writebehind.engine.receipts import AsyncReceipt

__all__ = ["Rounds"]

Key = tuple[int, int, bytes, Durability]
Confirming = Callable[..., Waiting[bool]]
"""``WriteBehind.confirming``."""
PlaceOf = Callable[[int, EntryID], EntryID]
"""Tells where an entry stands now, of a partition."""


@dataclass(slots=True, eq=False)
class _Round:
    """Attributes: the last entry, when its last writer gives up, how many writers there are, what all of them get."""

    last: EntryID
    until_seconds: float
    waiting: int
    covers: asyncio.Future[bool]


class Rounds:
    """The rounds of one engine and one event loop.

    Args:
        confirming: asks for one entry.
        place_of: tells where an entry stands now.
        following: waits for SQL.
        in_thread: runs a step that may ask a server.
        held_up: runs one that may take as long as the level does.
    """

    def __init__(
        self,
        confirming: Confirming,
        place_of: PlaceOf,
        following: Following,
        *,
        in_thread: RunInThread,
        held_up: RunInThread,
    ) -> None:
        self._confirming = confirming
        self._place_of = place_of
        self._following = following
        self._in_thread = in_thread
        self._held_up = held_up
        self._loop = asyncio.get_running_loop()
        self._next: dict[Key, _Round] = {}
        self._running: dict[Key, asyncio.Task[None]] = {}

    async def confirm(self, receipt: AsyncReceipt, level: Durability, timeout: float) -> None:  # noqa: ASYNC109 - as Receipt.wait
        """Wait until a write is as durable as asked; see ``Receipt.wait``.

        Durability: on return the level holds. Repeat: harmless. Crash: nothing is lost but the answer.

        Raises:
            WriteBehindError: as ``Receipt.wait``.
        """
        # Also who waits for a thread to ask for it goes in time.
        limit = asyncio.timeout(max(0.0, timeout) + 2 * GRACE_SECONDS)
        try:
            async with limit:
                await self._confirm(receipt, level, time.monotonic() + timeout)
        except TimeoutError:
            if not limit.expired():
                raise
            raise late(level) from None

    async def _confirm(self, receipt: AsyncReceipt, level: Durability, until_seconds: float) -> None:
        if not receipt.in_doubt:
            if level is Durability.PERSISTED:
                settled = await self._in_sql(receipt, until_seconds)
            else:
                settled = await self._together(receipt, level, until_seconds)
            if settled:
                return
        asked = receipt.partition, receipt.entry_id, receipt.identity, level, until_seconds
        await await_out(self._confirming(*asked, in_doubt=receipt.in_doubt), self._runner(level))

    async def end(self) -> None:
        """End what nobody waits for any more. Repeat: harmless."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._following.end()

    async def _in_sql(self, receipt: AsyncReceipt, until_seconds: float) -> bool:
        """Wait until SQL has a write, wherever it is written again meanwhile."""
        asked: EntryID | None = None
        while (place := self._place_of(receipt.partition, receipt.entry_id)) != asked:
            asked = place
            if await self._following.passed(receipt.partition, place, until_seconds):
                return True
        return False

    async def _together(self, receipt: AsyncReceipt, level: Durability, until_seconds: float) -> bool:
        entry_id = receipt.entry_id
        key = receipt.partition, entry_id.epoch, receipt.identity, level
        joined = self._next.get(key)
        if joined is None:
            joined = self._next[key] = _Round(entry_id, until_seconds, 0, self._loop.create_future())
        joined.last = max(joined.last, entry_id)
        joined.until_seconds = max(joined.until_seconds, until_seconds)
        joined.waiting += 1
        if key not in self._running:
            # It begins with the next turn of the loop: the other tasks of this one ask, too.
            self._running[key] = self._loop.create_task(self._run(key), name="writebehind-round")
        try:
            await asyncio.wait({joined.covers}, timeout=max(0.0, until_seconds - time.monotonic()))
        finally:
            joined.waiting -= 1
        return joined.covers.done() and joined.covers.result()

    async def _run(self, key: Key) -> None:
        """Make one round after another, as long as somebody waits for the next."""
        this: _Round | None = None
        try:
            while (this := self._next.pop(key, None)) is not None:
                this.covers.set_result(await self._round(key, this))
        finally:
            del self._running[key]
            for left in (this, self._next.pop(key, None)):
                if left is not None and not left.covers.done():
                    left.covers.set_result(False)

    async def _round(self, key: Key, this: _Round) -> bool:
        partition, _, identity, level = key
        steps = self._confirming(partition, this.last, identity, level, this.until_seconds)
        try:
            while this.waiting:
                step = await step_of(steps, self._runner(level))
                if isinstance(step, Done):
                    return step.value
                await asyncio.sleep(step)
        except WriteBehindError:
            # Each who waits finds out for itself what of this concerns it.
            return False
        return False

    def _runner(self, level: Durability) -> RunInThread:
        return self._in_thread if level is Durability.PERSISTED else self._held_up
