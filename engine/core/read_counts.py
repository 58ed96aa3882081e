"""What reads of one table have met with, and how long what they loaded is kept."""

from dataclasses import dataclass, fields

__all__ = ["Keeping", "ReadCounts", "lifetime_ms"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadCounts:
    """What the reads of one table have met with; sums over processes mean something. Each record counts.

    Attributes:
        hits: found in Redis at the first look, also where it was to be loaded again.
        negative_hits: of these, those that Redis knew not to exist.
        misses: not found at the first look.
        loads: asked for in SQL, also again or in vain.
        load_ms: milliseconds spent asking SQL, for many records at once as for one.
        waits: waited for, because another caller loaded it or SQL had to get it first.
        stale: given although past its time, while another caller loaded it or SQL was away.
        not_kept: loaded and not put into Redis, because it was written meanwhile, because Redis was full, or because
            what Redis has may be older than SQL.
        evictions: not found before its time by the process that had loaded it into Redis: evicted; or removed, by a
            repair or the flush of a delete. A process knows of the last 10,000 that it has loaded.
    """

    hits: int = 0
    negative_hits: int = 0
    misses: int = 0
    loads: int = 0
    load_ms: int = 0
    waits: int = 0
    stale: int = 0
    not_kept: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of the records that were found at the first look; None where none was looked for."""
        looks = self.hits + self.misses
        return self.hits / looks if looks else None

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        """Return the sum."""
        return ReadCounts(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(ReadCounts)}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """How long what was loaded is kept, in milliseconds.

    Attributes:
        lease_ms: how long one caller may load.
        ttl_ms: how long a record is fresh.
        stale_ms: how long it stays afterwards.
        negative_ttl_ms: how long it is known that there is no row; 0 for not at all.
        jitter: share of these times by which they end earlier at random.
    """

    lease_ms: int
    ttl_ms: int
    stale_ms: int
    negative_ttl_ms: int
    jitter: float

    def record_ms(self, chance: float) -> int:
        """Return how long a record stays; see ``lifetime_ms``."""
        return lifetime_ms(self.ttl_ms, self.jitter, chance) + self.stale_ms

    def negative_ms(self, chance: float) -> int:
        """Return how long it is known that there is no row; 0 for not at all."""
        return lifetime_ms(self.negative_ttl_ms, self.jitter, chance) if self.negative_ttl_ms else 0


def lifetime_ms(ttl_ms: int, jitter: float, chance: float) -> int:
    """Return how long something is kept: what was loaded together does not end together.

    Args:
        ttl_ms: at the most.
        jitter: the share of it by which it ends earlier.
        chance: uniform, from 0 to 1.
    """
    return max(1, int(ttl_ms * (1 - jitter * chance)))
