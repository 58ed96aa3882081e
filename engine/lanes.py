"""Writes of many tasks share calls: each partition has a lane, in which they wait for one call and go with the next.

Everything here belongs to one event loop; calls are made by a few threads, which nothing cancels.

Invariants:

1. A partition has one call under way at a time. What arrives meanwhile goes with the next one, in the order of arrival:
   so the order of a key's writes is theirs, whatever has to be tried again. A write takes its place before anything is
   awaited, and keeps it while it must not be sent yet.
2. A write whose caller is cancelled while it waits in its lane never is sent. One that is in a call goes on to its end:
   it is in the log once, or not at all.
3. A failure reaches the writers of its call and no others. A call that the server itself refuses for good is divided
   until the write that it is refused for stands alone; nothing of it was written, so nothing is repeated.
4. A partition that takes no more holds up its own writers only, and each of them no longer than until its deadline;
   who is not to wait is refused at once, though others wait in the lane.
5. So many writes wait in a lane, and no more: others wait for their turn outside.

::

    outside --place--> queued --call made--> under way --accepted--> told
       |                 ^ |                     |------failed-----> told
       '--deadline--> told | '--cancelled--> gone |
                         '-----no room, or divided: nothing was written
"""

import asyncio
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from writebehind.engine.adapters.appender import Appender, Result
from writebehind.engine.adapters.deadline import Deadline, pause_seconds
from writebehind.engine.config import Backpressure, EngineSettings
from writebehind.engine.core.appending import Call, Full, Refused, exhausted, final
from writebehind.engine.core.composing import Draft, Entry
from writebehind.engine.errors import BacklogFull, RedisUnavailable, WriteBehindError, own_copy
from writebehind.engine.lane import Lane
from writebehind.engine.parcels import Clearance, Parcel
from writebehind.engine.receipts import AsyncReceipt
from writebehind.engine.sending import fill

__all__ = ["Lanes"]

logger = logging.getLogger(__name__)

THREADS_MAX = 4
"""Round trips under way together. More only make the calls smaller: what waits for one of them goes together."""

PAUSE_SECONDS_MIN = 0.001

Taken = tuple[Lane, list[Parcel]]
Told = tuple[Lane, list[Parcel], Call | None, Result]


class Lanes:
    """The lanes of one engine and one event loop.

    Args:
        appender: makes the calls.
        settings: how large a call may be.

    Durability: a parcel that was told is in the primary's memory. Repeat: another write. Crash: a call is in the log
    whole or not at all; what waits in a lane is lost with the process, and nobody was told of it.
    """

    def __init__(self, appender: Appender, settings: EngineSettings) -> None:
        self._appender = appender
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(THREADS_MAX, "writebehind-lane")
        self._lanes: dict[int, Lane] = {}
        self._ready: dict[int, Lane] = {}
        self._awaited: set[tuple[int, Clearance]] = set()
        self._awake = False
        self._trips = 0
        self._open = 0
        self._over = asyncio.Event()
        self._over.set()
        self._ended = False

    async def send(self, parcel: Parcel) -> Sequence[AsyncReceipt]:
        """Send a parcel with what else waits for its partition; its place is taken before anything is awaited.

        Returns:
            Its receipts, where it was accepted beyond a limit: its writer has to wait until SQL has it.

        Raises:
            WriteBehindError: as ``core.appending.append`` says, or the engine is closed.
            asyncio.CancelledError: with a note of what is known of the write then; see ``Parcel.standing``.
        """
        self._enter(parcel)
        try:
            await parcel.told
        except asyncio.CancelledError as error:
            error.add_note(parcel.standing())
            self._withdraw(parcel)
            raise
        return parcel.beyond

    async def send_all(self, parcels: Sequence[Parcel]) -> list[Exception]:
        """Send parcels of different partitions, and wait for all; their places are taken before anything is awaited.

        Returns:
            The failures of those that failed.

        Raises:
            WriteBehindError: the engine is closed.
            asyncio.CancelledError: what was not sent never will be, and what is under way goes on to its end.
        """
        for parcel in parcels:
            self._enter(parcel)
        try:
            await asyncio.wait([parcel.told for parcel in parcels])
        except asyncio.CancelledError:
            for parcel in parcels:
                self._withdraw(parcel)
            raise
        failures = [parcel.told.exception() for parcel in parcels]
        return [error for error in failures if isinstance(error, Exception)]

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Have ``end`` wait for the block."""
        self._begin_one()
        try:
            yield
        finally:
            self._close_one()

    async def end(self) -> None:
        """Wait until nothing is under way and nobody waits; nothing may be sent any more. Repeat: harmless."""
        # Others may begin between the event and the turn of this task.
        while self._open:
            await self._over.wait()
        self._ended = True
        self._threads.shutdown(wait=False)

    def _begin_one(self) -> None:
        self._open += 1
        self._over.clear()

    def _close_one(self) -> None:
        self._open -= 1
        if not self._open:
            self._over.set()

    # Entering and leaving

    def _enter(self, parcel: Parcel) -> None:
        if self._ended:
            raise WriteBehindError("this engine is closed", "nothing was written; make a new one")
        lane = self._lanes.get(parcel.partition)
        if lane is None:
            lane = self._lanes[parcel.partition] = Lane(parcel.partition, self._settings.call_entries_max)
        if lane.waiting and lane.full is not None and parcel.policy is Backpressure.REJECT:
            parcel.told.set_exception(_rejected(lane.full))
            return
        self._begin_one()
        if not lane.enter(parcel):
            left = max(0.0, parcel.deadline_seconds - time.monotonic())
            parcel.outside = self._loop.call_later(left, self._give_up, lane, parcel)
        if parcel.clearance is not None and (lane.partition, parcel.clearance) not in self._awaited:
            self._awaited.add((lane.partition, parcel.clearance))
            parcel.clearance.add_done_callback(functools.partial(self._cleared, lane))
        self._wake(lane)

    def _withdraw(self, parcel: Parcel) -> None:
        """Let a parcel's caller go: what waits is taken out, what is under way goes on."""
        parcel.told.cancel()
        if not parcel.told.cancelled():
            parcel.told.exception()  # nobody will ask for it
        elif (lane := self._lanes[parcel.partition]).remove(parcel):
            self._close_one()
            self._wake(lane)

    def _give_up(self, lane: Lane, parcel: Parcel) -> None:
        """Refuse a parcel that got no place in time."""
        if lane.remove(parcel):
            self._tell(parcel, _no_place(lane))

    def _cleared(self, lane: Lane, clearance: Clearance) -> None:
        """Let those be sent that waited for a clearance, or tell them why they may not."""
        self._awaited.discard((lane.partition, clearance))
        error = None if clearance.cancelled() else clearance.exception()
        if clearance.cancelled() or error is not None:
            for parcel in lane.remove_where(lambda parcel: parcel.clearance is clearance):
                self._tell(parcel, error if isinstance(error, Exception) else _loop_ended())
        for parcel in (*lane.queue, *lane.outside):
            if parcel.clearance is clearance:
                parcel.cleared()
        self._wake(lane)

    def _end(self, lane: Lane, parcel: Parcel, error: Exception | None = None) -> None:
        """Let a parcel go that is in no queue any more, and tell its caller."""
        lane.leave(parcel)
        self._tell(parcel, error)

    def _tell(self, parcel: Parcel, error: Exception | None = None) -> None:
        self._close_one()
        if error is None:
            if not parcel.told.done():
                parcel.told.set_result(None)
        elif parcel.told.done():
            logger.warning("a write whose caller was cancelled is not accepted: %s", error)
        else:
            parcel.told.set_exception(own_copy(error))

    # Going

    def _wake(self, lane: Lane) -> None:
        lane.admit()
        if lane.ready():
            self._ready[lane.partition] = lane
            self._wake_up()

    def _wake_up(self) -> None:
        if not self._awake:
            self._awake = True
            # Not at once: the other tasks of this turn of the loop write, too.
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        """Make one round trip of all lanes that are ready."""
        self._awake = False
        if self._trips >= THREADS_MAX:
            return
        ready, self._ready = self._ready, {}
        taken: list[Taken] = []
        for lane in ready.values():
            # All who waited there may have left since.
            if lane.ready():
                lane.busy = True
                taken.append((lane, lane.take(self._settings.call_entries_max, self._settings.call_bytes_max)))
        if not taken:
            return
        self._trips += 1
        # Those whose callers have gone are waited for, too.
        self._begin_one()
        try:
            self._threads.submit(self._trip, taken)
        except RuntimeError as error:  # no thread can be had
            self._hear([(lane, parcels, None, error) for lane, parcels in taken])
            self._back()

    # In a thread

    def _trip(self, taken: Sequence[Taken]) -> None:
        """Make calls, and have the loop told what became of each as soon as it is known."""
        missing = dict(enumerate(taken))
        calls: list[Call] = []
        try:
            calls += [self._call(parcels) for _, parcels in taken]
            last = max(parcel.deadline_seconds for _, parcels in taken for parcel in parcels)
            deadline = Deadline(max(0.0, last - time.monotonic()))
            for results in self._appender.append_each([(call, deadline) for call in calls]):
                self._report([(*missing.pop(number), calls[number], result) for number, result in results])
        except Exception as error:  # noqa: BLE001 - handed to the callers, who raise it
            self._report([(lane, parcels, None, error) for lane, parcels in missing.values()])
        try:
            self._loop.call_soon_threadsafe(self._back)
        except RuntimeError:
            logger.debug("the event loop was closed")

    def _call(self, parcels: Sequence[Parcel]) -> Call:
        draft = Draft(parcels[0].partition)
        for parcel in parcels:
            if not isinstance(parcel.content, Entry):
                return parcel.content.call(self._appender.call_id())  # drafts stand alone
            draft.add(parcel.content)
        return draft.call(self._appender.call_id())

    def _report(self, told: list[Told]) -> None:
        if not told:
            return
        try:
            self._loop.call_soon_threadsafe(self._hear, told)
        except RuntimeError:
            logger.warning("an event loop was closed while %d calls were under way, without close()", len(told))

    # In the loop again

    def _back(self) -> None:
        self._trips -= 1
        self._close_one()
        if self._ready:
            self._wake_up()

    def _hear(self, told: Sequence[Told]) -> None:
        for lane, parcels, call, result in told:
            if isinstance(result, Full):
                self._hold(lane, parcels, result)
                continue
            lane.busy = False
            lane.full = None
            lane.pauses = 0
            if isinstance(result, tuple) and call is not None:
                self._accept(lane, parcels, result, call)
            elif isinstance(result, Refused):
                self._refused(lane, parcels, result)
            elif isinstance(result, Exception):
                self._fail(lane, parcels, result)
            self._wake(lane)

    def _accept(self, lane: Lane, parcels: Sequence[Parcel], result: tuple[bytes, bytes], call: Call) -> None:
        fill([receipt for parcel in parcels for receipt in parcel.unfilled], result, call)
        lane.entries_max = min(2 * lane.entries_max, self._settings.call_entries_max)
        for parcel in parcels:
            if parcel.accepted(beyond=call.through):
                lane.put_back([parcel])
            else:
                self._end(lane, parcel)

    def _refused(self, lane: Lane, parcels: Sequence[Parcel], refused: Refused) -> None:
        """Divide a call that the server has refused: nothing of it was written. No other failure says so."""
        if len(parcels) == 1:
            self._fail(lane, parcels, final(refused))
            return
        # It grows again with each call that is accepted.
        lane.entries_max = max(1, len(parcels) // 2)
        lane.put_back(parcels)

    def _fail(self, lane: Lane, parcels: Sequence[Parcel], error: Exception) -> None:
        for parcel in parcels:
            self._end(lane, parcel, error)

    def _hold(self, lane: Lane, parcels: Sequence[Parcel], full: Full) -> None:
        """Have a lane wait for room, and give up what has waited for long enough."""
        lane.put_back(parcels)
        for parcel in lane.remove_where(lambda parcel: parcel.policy is Backpressure.REJECT):
            self._tell(parcel, _rejected(full))
        now = time.monotonic()
        for parcel in lane.remove_where(lambda parcel: parcel.deadline_seconds <= now):
            self._tell(parcel, exhausted(full))
        lane.admit()
        lane.full = full
        lane.waiting = True
        lane.pauses += 1
        left = min((parcel.deadline_seconds - now for parcel in lane.queue), default=0.0)
        self._loop.call_later(max(PAUSE_SECONDS_MIN, min(left, pause_seconds(lane.pauses))), self._resume, lane)

    def _resume(self, lane: Lane) -> None:
        """Try again; what was known of the room there is does not count any more."""
        lane.busy = False
        lane.waiting = False
        if not lane.queue:
            # Nobody finds out whether there is room again.
            lane.full = None
            lane.pauses = 0
        self._wake(lane)


def _rejected(full: Full) -> WriteBehindError:
    """Return the error of one that does not wait where others do."""
    return exhausted(replace(full, policy=Backpressure.REJECT))


def _no_place(lane: Lane) -> WriteBehindError:
    """Return the error of one that waited for a place in vain: because there is no room, or no answer."""
    crowd = f"{len(lane.queue)} writes of partition {lane.partition} wait in this process already"
    if lane.full is not None and not lane.full.out_of_memory:
        return BacklogFull(
            crowd,
            "nothing was written; write from fewer tasks, or look why SQL takes no more",
            retry_after_seconds=lane.full.retry_after_seconds,
        )
    return RedisUnavailable(f"{crowd}, and Redis takes none in time", "nothing was written; try later")


def _loop_ended() -> WriteBehindError:
    return WriteBehindError("the event loop ended before the engine was started", "nothing was written")
