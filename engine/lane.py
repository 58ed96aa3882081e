"""What waits for one partition, in order."""

from collections import deque
from collections.abc import Callable, Iterable

from writebehind.engine.core.appending import Full
from writebehind.engine.core.composing import Entry
from writebehind.engine.parcels import Parcel

__all__ = ["Lane"]

PLACES_MAX = 1000
"""Parcels that have a place in one lane: what goes with the next two calls."""

PLACES_BYTES_MAX = 16 * 1024 * 1024
"""What these may take; one parcel has a place however large it is."""


class Lane:
    """The parcels of one partition: some are under way, some have a place in the queue, others wait outside, in order.

    Args:
        partition: its number.
        entries_max: parcels that may share a call now.

    Attributes:
        queue: those that go next.
        outside: those that come after them.
        busy: a call is under way, or room is waited for.
        full: why the last call found no room, or None where it did.
        waiting: room is waited for, before the next try.
        pauses: how often that was tried.
    """

    __slots__ = (
        "_bytes",
        "_places",
        "busy",
        "entries_max",
        "full",
        "outside",
        "partition",
        "pauses",
        "queue",
        "waiting",
    )

    def __init__(self, partition: int, entries_max: int) -> None:
        self.partition = partition
        self.entries_max = entries_max
        self.queue: deque[Parcel] = deque()
        self.outside: deque[Parcel] = deque()
        self.busy = False
        self.full: Full | None = None
        self.waiting = False
        self.pauses = 0
        self._places = 0
        self._bytes = 0

    def ready(self) -> bool:
        """Tell whether a call can be made now."""
        return not self.busy and bool(self.queue) and self.queue[0].clearance is None

    def enter(self, parcel: Parcel) -> bool:
        """Take in a parcel, behind all others; return whether it has a place."""
        self.outside.append(parcel)
        self.admit()
        return not self.outside

    def admit(self) -> None:
        """Give places to those outside, as far as there are any."""
        while self.outside:
            size = self.outside[0].payload_bytes
            if self._places and (self._places >= PLACES_MAX or self._bytes + size > PLACES_BYTES_MAX):
                return
            parcel = self.outside.popleft()
            if parcel.outside is not None:
                parcel.outside.cancel()
                parcel.outside = None
            self._places += 1
            self._bytes += size
            self.queue.append(parcel)

    def leave(self, parcel: Parcel) -> None:
        """Give a parcel's place back, or its turn outside; it is in no queue any more."""
        if parcel.outside is None:
            self._places -= 1
            self._bytes -= parcel.payload_bytes
        else:
            parcel.outside.cancel()
            parcel.outside = None

    def take(self, operations_max: int, bytes_max: int) -> list[Parcel]:
        """Take the parcels of the next call out of the queue; one at least.

        Args:
            operations_max: records that a call of several parcels may change, so that Redis is not busy with it for
                long: a group counts with all of its members.
            bytes_max: payloads that it may carry.
        """
        first = self.queue.popleft()
        taken = [first]
        if isinstance(first.content, Entry):
            operations, size = first.content.count, len(first.content.payload)
            while self.queue and len(taken) < self.entries_max:
                parcel = self.queue[0]
                content = parcel.content
                if not isinstance(content, Entry) or parcel.policy is not first.policy or parcel.clearance is not None:
                    break
                operations += content.count
                size += len(content.payload)
                if operations > operations_max or size > bytes_max:
                    break
                taken.append(self.queue.popleft())
        for parcel in taken:
            parcel.sent = True
        return taken

    def put_back(self, parcels: Iterable[Parcel]) -> None:
        """Queue parcels again, of which nothing was written, in their old order before all others.

        Also those whose callers have gone: they were told that their writes go on.
        """
        for parcel in reversed(list(parcels)):
            parcel.sent = False
            self.queue.appendleft(parcel)

    def remove(self, parcel: Parcel) -> bool:
        """Remove a parcel that is not under way; return whether it was here."""
        for queue in (self.queue, self.outside):
            if parcel in queue:
                queue.remove(parcel)
                self.leave(parcel)
                return True
        return False

    def remove_where(self, condition: Callable[[Parcel], bool]) -> list[Parcel]:
        """Remove those parcels that are not under way and meet a condition; return them in their order."""
        removed: list[Parcel] = []
        for queue in (self.queue, self.outside):
            kept = [parcel for parcel in queue if not condition(parcel)]
            if len(kept) < len(queue):
                removed += [parcel for parcel in queue if condition(parcel)]
                queue.clear()
                queue.extend(kept)
        for parcel in removed:
            self.leave(parcel)
        return removed
