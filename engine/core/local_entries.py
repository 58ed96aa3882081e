"""A bounded number of payloads in this process, the least recently used of which go first.

The race that every such cache has: a value is read from Redis, then it is invalidated, then what was read is put here.
So whoever reads takes a ticket first; an invalidation makes the tickets of its key void, and nothing is put with a void
one. Keys share a few counters: now and then a ticket is void for another key's sake, and one value less is kept.
"""

from collections import OrderedDict
from typing import NamedTuple
from zlib import crc32

__all__ = ["LocalEntries", "Ticket"]

COUNTERS = 1024


class Ticket(NamedTuple):
    """What was known of invalidations before a read.

    Attributes:
        everything: how often all was dropped.
        here: how often a key that shares this one's counter was.
    """

    everything: int
    here: int


class LocalEntries:
    """Payloads by the texts of their keys. The caller holds a lock and knows the time.

    Args:
        entries_max: how many, at least 1.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._everything = 0
        self._dropped = [0] * COUNTERS

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str, now: float) -> bytes | None:
        """Return a payload that has not expired."""
        entry = self._entries.get(text)
        if entry is None:
            return None
        if now >= entry[1]:
            del self._entries[text]
            return None
        self._entries.move_to_end(text)
        return entry[0]

    def ticket(self, text: str) -> Ticket:
        """Return a ticket; to be taken before what is put is read."""
        return Ticket(self._everything, self._dropped[_counter(text)])

    def put(self, text: str, payload: bytes, until: float, ticket: Ticket) -> bool:
        """Keep a payload until a time; return whether the ticket was good."""
        if ticket != self.ticket(text):
            return False
        self._entries[text] = (payload, until)
        self._entries.move_to_end(text)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        return True

    def drop(self, text: str) -> None:
        """Forget one key, and void the tickets for it."""
        self._dropped[_counter(text)] += 1
        self._entries.pop(text, None)

    def drop_all(self) -> None:
        """Forget everything, and void all tickets."""
        self._everything += 1
        self._entries.clear()


def _counter(text: str) -> int:
    return crc32(text.encode()) % COUNTERS
