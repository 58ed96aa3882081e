"""Backpressure: what the write script is told of the limits, and what its refusal says.

Pure. The script decides, so that the check and the write are one; here is what both sides of it understand.
"""

from dataclasses import dataclass

from writebehind.engine.errors import BacklogFull

__all__ = ["EXEMPT", "OUT_OF_MEMORY", "Drainage", "Held", "admission"]

Admission = tuple[bytes, bytes]

EXEMPT: Admission = (b"", b"")
"""What the script is told for a call that is admitted in any case."""

NO_LIMIT = 2**53

OUT_OF_MEMORY = "out of memory"
"""The reason where Redis itself refuses."""

RETRY_SECONDS = 1.0
"""What is advised while nothing is known of how fast a partition is flushed."""

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 60.0
FORGET_SECONDS = 60.0


def admission(entries_max: int | None, seconds_max: float | None, *, short_of_memory: bool) -> Admission:
    """Return what the script is told of the limits.

    Args:
        entries_max: entries that SQL may not have; None for no limit.
        seconds_max: age of the oldest of them; None for no limit.
        short_of_memory: whether Redis has so little memory left that no more may be put in than is taken out.
    """
    if entries_max is None and seconds_max is None and not short_of_memory:
        return EXEMPT
    further = ""
    if seconds_max is not None or short_of_memory:
        milliseconds = 0 if seconds_max is None else max(1, int(seconds_max * 1000))
        further = f"{milliseconds} m" if short_of_memory else f"{milliseconds}"
    return b"%d" % (NO_LIMIT if entries_max is None else entries_max), further.encode()


@dataclass(frozen=True, slots=True)
class Held:
    """Why a partition takes no more.

    Attributes:
        reason: ``entries``, ``seconds`` or ``memory``; or ``OUT_OF_MEMORY``, and then the numbers are not known.
        backlog: entries that SQL does not have.
        resume: with how few of them it takes more again.
    """

    reason: str
    backlog: int
    resume: int

    @classmethod
    def parse(cls, text: str) -> "Held":
        """Read what the script says after ``BACKLOG``.

        Raises:
            ValueError: it is something else.
        """
        reason, backlog, resume, *_ = text.split()
        return cls(reason, int(backlog), int(resume))

    def error(self, partition: int, retry_after_seconds: float) -> BacklogFull:
        """Return the error for a write that this is in the way of."""
        why = {
            "entries": f"{self.backlog} of its entries are not in SQL yet (backlog_entries_max)",
            "seconds": f"the oldest of {self.backlog} entries that are not in SQL yet is too old (backlog_seconds_max)",
            "memory": f"Redis is short of memory, and {self.backlog} of its entries are not in SQL yet",
            OUT_OF_MEMORY: "Redis is out of memory",
        }[self.reason]
        return BacklogFull(
            f"partition {partition} takes no more: {why}",
            "nothing was written; try later; are flushers running, is the database slow? See 'writebehind status'",
            retry_after_seconds=retry_after_seconds,
        )


class Drainage:
    """How fast partitions are flushed, as far as writers that are refused can see it. For use by several threads."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}

    def retry_after_seconds(self, partition: int, held: Held, now: float) -> float:
        """Return when there may be room again.

        Args:
            partition: which one.
            held: why it takes no more.
            now: on the monotonic clock.
        """
        if held.reason == OUT_OF_MEMORY:
            return RETRY_SECONDS
        at, before = self._seen.get(partition, (now, held.backlog))
        if now - at > FORGET_SECONDS or before <= held.backlog:
            at, before = now, held.backlog
        self._seen[partition] = (at, before)
        if before == held.backlog or now <= at:
            return RETRY_SECONDS
        rate = (before - held.backlog) / (now - at)
        missing = max(1, held.backlog - held.resume)
        return min(RETRY_SECONDS_MAX, max(RETRY_SECONDS_MIN, missing / rate))
