"""What a replay has shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from writebehind.examples.flights.comparison import Findings
from writebehind.examples.flights.kills import KILLS_REQUIRED, Kill

__all__ = ["EXACTLY_ONCE", "Report"]

EXACTLY_ONCE = "exactly once"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Measurements, kills and findings of one replay.

    Attributes:
        redis: URL, masked.
        database: URL, masked.
        flights: how many were replayed.
        seed: decided when to kill.
        mutations: log entries written.
        writing_seconds: first write to last write.
        held_back_seconds: how much of that the replay spent waiting on purpose for a kill to hit.
        drained_seconds: last write to empty backlog.
        row_operations: SQL row operations as counted by the flushers; a killed one does not count its last batch.
        kills: each SIGKILL that hit in mid-flush.
        missed: SIGKILLs that hit when nothing was in flight.
        findings: the comparison with SQL, by table.
        troubles: whatever else went wrong.
    """

    redis: str
    database: str
    flights: int
    seed: int
    mutations: int
    writing_seconds: float
    held_back_seconds: float
    drained_seconds: float
    row_operations: int
    kills: Sequence[Kill]
    missed: int
    findings: Sequence[Findings]
    troubles: Sequence[str]

    @property
    def entries_per_second_in(self) -> float:
        """Entries written per second of writing, pauses included."""
        return self.mutations / max(self.writing_seconds, 1e-9)

    @property
    def entries_per_second_out(self) -> float:
        """Entries in SQL per second from the first write until all were there, kills and takeovers included."""
        return self.mutations / max(self.writing_seconds + self.drained_seconds, 1e-9)

    @property
    def coalescing(self) -> float:
        """Log entries per SQL row operation."""
        return self.mutations / max(self.row_operations, 1)

    @property
    def lost(self) -> int:
        """Rows missing and counters too low."""
        return sum(each.lost for each in self.findings)

    @property
    def doubled(self) -> int:
        """Rows there once too often and counters too high."""
        return sum(each.doubled for each in self.findings)

    @property
    def differing(self) -> int:
        """Other values that are wrong."""
        return sum(each.differing for each in self.findings)

    @property
    def proven(self) -> bool:
        """Whether the verdict is "exactly once"."""
        return self.verdict == EXACTLY_ONCE

    @property
    def verdict(self) -> str:
        """``EXACTLY_ONCE``, or what stands against it."""
        counts = {"lost": self.lost, "doubled": self.doubled, "differing": self.differing}
        found = [f"{count} {name}" for name, count in counts.items() if count]
        if found:
            return f"NOT exactly once: {', '.join(found)}"
        against = list(self.troubles)
        if len(self.kills) < KILLS_REQUIRED:
            against.append(f"only {len(self.kills)} of {KILLS_REQUIRED} kills hit in mid-flush")
        return f"not proven: {'; '.join(against)}" if against else EXACTLY_ONCE

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "redis": self.redis,
            "database": self.database,
            "flights": self.flights,
            "seed": self.seed,
            "mutations": self.mutations,
            "writing_seconds": round(self.writing_seconds, 3),
            "held_back_seconds": round(self.held_back_seconds, 3),
            "entries_per_second_in": round(self.entries_per_second_in),
            "entries_per_second_out": round(self.entries_per_second_out),
            "row_operations": self.row_operations,
            "entries_per_row_operation": round(self.coalescing, 2),
            "kills": [asdict(kill) for kill in self.kills],
            "kills_missed": self.missed,
            "tables": [asdict(each) for each in self.findings],
            "lost": self.lost,
            "doubled": self.doubled,
            "differing": self.differing,
            "drained_seconds": round(self.drained_seconds, 3),
            "troubles": list(self.troubles),
            "verdict": self.verdict,
        }

    def lines(self) -> list[str]:
        """Return everything as lines for a terminal."""
        rows = ", ".join(f"{each.rows:,} {each.table}" for each in self.findings)
        held = f"; held back {self.held_back_seconds:.1f} s for kills to hit" if self.held_back_seconds >= 1 else ""
        flying = ", ".join(f"{kill.entries_in_flight:,} at {kill.seconds:.1f} s" for kill in self.kills)
        missed = f"; {self.missed} more hit nothing in flight" if self.missed else ""
        facts = {
            "mutations": f"{self.mutations:,} of {self.flights:,} flights",
            "entries in": f"{self.entries_per_second_in:,.0f}/s for {self.writing_seconds:.1f} s{held}",
            "entries out": f"{self.entries_per_second_out:,.0f}/s, kills and takeovers included",
            "coalescing": f"{self.coalescing:.2f} log entries per SQL row operation",
            "kills survived": f"{len(self.kills)}; entries in flight: {flying or '-'}{missed}",
            "rows compared": rows,
            "lost": f"{self.lost:,}",
            "doubled": f"{self.doubled:,}",
            "differing": f"{self.differing:,}",
            "drained": f"{self.drained_seconds:.1f} s after the last write",
            "verdict": self.verdict,
        }
        examples = [example for each in self.findings for example in each.examples]
        return [*examples, *(f"{name:<15} {fact}" for name, fact in facts.items())]
