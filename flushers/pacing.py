"""Pacing: how large the next batch is, and how long it waits.

Pure: it is told the time.

Invariants:

1. No more than ``batch_entries_max`` entries are asked for, and never none.
2. A statement that ran into its timeout halves the batch, down to one entry. A commit beyond the target lets it shrink
   as well, but not below a tenth of the maximum: where a commit takes long however small it is, small batches only make
   it worse. Full batches let it grow again: by a quarter where they commit in half of the target, by a twentieth within
   it, and by one entry beyond it, up to that tenth. So no size is kept for ever that a passing trouble has left.
3. Over any time, the SQL operations are no more than the rate allows, and half a second's worth, and one batch, and
   what of it is tried apart. A batch of more than half a second's worth, as an atomic group may be, is paid for in full
   before the next one is read: so the rate holds over any longer time, whatever entries are made of.
4. What is owed is what SQL was given, no more. It is waited for in pieces that are shorter than a lease.
"""

import sys

from writebehind.flushers.config import FlusherSettings

__all__ = ["Pacing"]

BURST_SECONDS = 0.5
"""How much of the rate one batch may take, and an idle flusher saves up."""

WAIT_SECONDS_MIN = 0.001

GROWTH_QUICK = 1.25
GROWTH_SLOW = 1.05
FLOOR_SHARE = 0.1
FULL_SHARE = 0.9
"""A batch that has this share of what it might have is a full one: its latency tells about the size."""


class Pacing:
    """The pace of one flusher. One thread may ask while another one tells what SQL was given.

    Args:
        settings: its limits.
        now: seconds on a monotonic clock.

    Attributes:
        entries_max: entries of the next batch at the most.
        mutations_max: mutations that its entries may hold, but for the last of each partition.
    """

    def __init__(self, settings: FlusherSettings, now: float) -> None:
        self._rate = settings.rows_per_second_max
        rates = [each for each in (self._rate, settings.rows_per_second_total_max) if each is not None]
        self._target_seconds = settings.commit_seconds_target
        self._ceiling = settings.batch_entries_max
        self.mutations_max = sys.maxsize
        if rates:
            self.mutations_max = max(1, int(min(rates) * BURST_SECONDS))
            self._ceiling = min(self._ceiling, self.mutations_max)
        self._floor = max(1, int(self._ceiling * FLOOR_SHARE))
        self._wait_max = settings.lease_ttl_seconds / 4
        # Operations, negative where they are owed, and when it was so.
        self._saved = (0.0, now)
        self.entries_max = self._ceiling

    def wait_seconds(self, now: float) -> float:
        """Return how long to wait before another batch is read, or before this is asked again: 0 where nothing is owed.

        Args:
            now: seconds on the monotonic clock.
        """
        if self._rate is None or (saved := self._saved_at(now, self._rate)) >= 0:
            return 0.0
        return min(self._wait_max, max(WAIT_SECONDS_MIN, -saved / self._rate))

    def take(self, rows: int, now: float) -> None:
        """Take SQL operations that the database is given now from what the rate has yielded.

        Args:
            rows: how many.
            now: seconds on the monotonic clock.
        """
        if self._rate is not None:
            self._saved = (self._saved_at(now, self._rate) - rows, now)

    def _saved_at(self, now: float, rate: float) -> float:
        saved, at = self._saved
        return min(rate * BURST_SECONDS, saved + (now - at) * rate)

    def committed(self, entries: int, seconds: float) -> None:
        """Note how long a batch's transaction took.

        Args:
            entries: of the batch.
            seconds: from its beginning to the commit.
        """
        target = self._target_seconds
        if seconds > target and entries > self._floor:
            self.entries_max = min(self.entries_max, max(self._floor, int(entries * target / seconds)))
        elif entries < FULL_SHARE * self.entries_max:
            return
        elif seconds <= target:
            growth = GROWTH_QUICK if seconds <= target / 2 else GROWTH_SLOW
            self.entries_max = min(self._ceiling, int(self.entries_max * growth) + 1)
        elif self.entries_max < self._floor:
            self.entries_max += 1

    def timed_out(self, entries: int) -> bool:
        """Note that a statement of a batch ran into its timeout; return whether a smaller batch is worth trying.

        Args:
            entries: of the batch.
        """
        smaller = self.entries_max > 1
        self.entries_max = max(1, min(self.entries_max, entries) // 2)
        return smaller
