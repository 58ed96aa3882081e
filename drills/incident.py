"""Incidents: a fault that happened, and how the product got over it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from writebehind.drills.processes import LogLine

__all__ = ["Incident"]


@dataclass
class Incident:
    """One fault.

    Attributes:
        fault: its name.
        notes: what was done to whom, each with its time on the monotonic clock; the first is when it began.
        healed: when servers and connections were as they should be.
        recovered: when writes to every partition came through to SQL again.
        detected: when a flusher first said that something was wrong.
        taken_over: when the last partition was taken over from a holder that was gone.
        loss_seconds_max: how much the promise for these settings allows to be lost, before the fault.
        error: why it could not be got over.
    """

    fault: str
    notes: list[tuple[float, str]] = field(default_factory=list)
    healed: float | None = None
    recovered: float | None = None
    detected: float | None = None
    taken_over: float | None = None
    loss_seconds_max: float = 0.0
    error: str | None = None

    @property
    def began(self) -> float | None:
        """When it began; None where nothing came of it."""
        return self.notes[0][0] if self.notes else None

    def note(self, what: str) -> None:
        """Note what is done right now."""
        self.notes.append((time.monotonic(), what))

    def recover(self) -> None:
        """Note the recovery, the first time."""
        if self.recovered is None:
            self.recovered = time.monotonic()

    def learn(self, lines: Iterable[LogLine], clock_offset: float) -> None:
        """Find out from the flushers' logs when they noticed and when they had taken over.

        Args:
            lines: of all flushers.
            clock_offset: seconds from the monotonic clock to the one of the logs.
        """
        if self.began is None:
            return
        until = self.recovered if self.recovered is not None else float("inf")
        for line in lines:
            at = line.at - clock_offset
            if not self.began <= at <= until or line.level not in {"WARNING", "ERROR"}:
                continue
            self.detected = at if self.detected is None else min(at, self.detected)
            if "taking over from" in line.text:
                self.taken_over = at if self.taken_over is None else max(at, self.taken_over)

    def seconds(self, moment: float | None) -> float | None:
        """Return how long after the beginning a moment was."""
        return None if moment is None or self.began is None else round(max(0.0, moment - self.began), 3)
