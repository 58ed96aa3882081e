"""Pacing: how large the next batch is, and how long it waits.

Pure: it is told the time.

Invariants:

1. No more than ``batch_entries_max`` entries are asked for, and never none.
2. A statement that ran into its timeout halves the batch, down to one entry; full batches that commit in half of the
   target let it grow again by a quarter. A commit beyond the target lets it shrink as well, but not below a tenth of
   the maximum: where a commit takes long however small it is, small batches only make it worse.
3. Over any time, the SQL operations are no more than the rate allows, and half a second's worth, and one batch.
"""

from writebehind.flushers.config import FlusherSettings

__all__ = ["Pacing"]

BURST_SECONDS = 0.5
"""How much of the rate one batch may take, and an idle flusher saves up."""

GROWTH = 1.25
FLOOR_SHARE = 0.1
FULL_SHARE = 0.9
"""A batch that has this share of what it might have is a full one: its latency tells about the size."""


class Pacing:
    """The pace of one flusher. One thread may wait while another one tells of commits.

    Args:
        settings: its limits.
        now: seconds on a monotonic clock.

    Attributes:
        entries_max: entries of the next batch at the most.
    """

    def __init__(self, settings: FlusherSettings, now: float) -> None:
        self._rate = settings.rows_per_second_max
        self._target_seconds = settings.commit_seconds_target
        self._ceiling = settings.batch_entries_max
        if self._rate is not None:
            # What one batch has to wait for is short, so that leases are renewed in time.
            self._ceiling = max(1, min(self._ceiling, int(self._rate * BURST_SECONDS)))
        self._floor = max(1, int(self._ceiling * FLOOR_SHARE))
        self._wait_max = settings.lease_ttl_seconds / 4
        self._saved = 0.0
        self._at = now
        self.entries_max = self._ceiling

    def wait_seconds(self, rows: int, now: float) -> float:
        """Take a batch's SQL operations from what the rate has yielded, and return how long it has to wait for them.

        No longer than a lease allows: what is owed then is waited for by later batches.

        Args:
            rows: SQL operations of the batch.
            now: seconds on the monotonic clock.
        """
        if self._rate is None:
            return 0.0
        self._saved = min(self._rate * BURST_SECONDS, self._saved + (now - self._at) * self._rate) - rows
        self._at = now
        return min(self._wait_max, max(0.0, -self._saved / self._rate))

    def committed(self, entries: int, seconds: float) -> None:
        """Note how long a batch's transaction took.

        Args:
            entries: of the batch.
            seconds: from its beginning to the commit.
        """
        if seconds > self._target_seconds:
            if entries > self._floor:
                smaller = max(self._floor, int(entries * self._target_seconds / seconds))
                self.entries_max = min(self.entries_max, smaller)
        elif entries >= FULL_SHARE * self.entries_max and seconds <= self._target_seconds / 2:
            self.entries_max = min(self._ceiling, int(self.entries_max * GROWTH) + 1)

    def timed_out(self, entries: int) -> bool:
        """Note that a statement of a batch ran into its timeout; return whether a smaller batch is worth trying.

        Args:
            entries: of the batch.
        """
        smaller = self.entries_max > 1
        self.entries_max = max(1, min(self.entries_max, entries) // 2)
        return smaller
