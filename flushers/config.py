"""What each flusher may tune."""

from dataclasses import asdict, dataclass

from writebehind.engine.config import limit_seconds
from writebehind.engine.errors import ConfigurationError

__all__ = ["FlusherSettings"]

LEASE_TTL_SECONDS_MAX = 86_400
"""Longest lease. What a dead flusher held waits for it; and PostgreSQL takes twice of it in milliseconds in 32 bits."""

MAY_BE_ZERO = frozenset({"linger_seconds", "retention_seconds", "foreign_key_seconds"})


@dataclass(frozen=True, kw_only=True, slots=True)
class FlusherSettings:
    """How a flusher trades latency for batch size, and how fast a dead one is noticed.

    Args:
        linger_seconds: how long to collect entries for a batch that is not full.
        batch_entries_max: entries of one batch, over all partitions of its transaction.
        batch_bytes_max: payload bytes of one batch, approximately.
        lease_ttl_seconds: after this long without renewal another flusher may take the partition over.
        retention_seconds: how long flushed entries stay in the log, for replay after a rollback of SQL; not at all
            while Redis is short of memory (``EngineSettings.redis_memory_share_max``).
        retry_seconds_max: longest pause between two tries while the database is away.
        halt_retry_seconds: how often a halted partition is tried again.
        foreign_key_seconds: how long an entry whose parent is missing is tried again before it is left to an operator.
        rows_per_second_max: SQL operations of this flusher; None for as many as it can. Several flushers share a
            database's load: give each its part.
        rows_per_second_total_max: SQL operations of all flushers of the namespace together, a whole number, the same
            for all of them; None for no limit. They count in Redis: it does not hold while Redis refuses to, nor for
            a service that flushes what it writes through by itself.
        concurrent_batches_max: flushers of the namespace that serve at a time, each with one batch under way; others
            stand by, and take the place of one that ends. The same for all of them; None for no limit.
        commit_seconds_target: a batch that takes longer than this from its beginning to its commit is followed by
            smaller ones.

    Raises:
        ConfigurationError: a value is not possible.
    """

    linger_seconds: float = 0.05
    batch_entries_max: int = 5000
    batch_bytes_max: int = 16 * 1024 * 1024
    lease_ttl_seconds: float = 5.0
    retention_seconds: float = 60.0
    retry_seconds_max: float = 5.0
    halt_retry_seconds: float = 5.0
    foreign_key_seconds: float = 60.0
    rows_per_second_max: float | None = None
    rows_per_second_total_max: int | None = None
    concurrent_batches_max: int | None = None
    commit_seconds_target: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (value >= 0 if name in MAY_BE_ZERO else value > 0):
                raise ConfigurationError(f"{name} is {value!r}", "give a positive number")
            if "_seconds" in name:
                limit_seconds(name, value)
        total = self.rows_per_second_total_max
        if total is not None and (isinstance(total, bool) or not isinstance(total, int)):
            raise ConfigurationError(f"rows_per_second_total_max is {total!r}", "give a positive whole number")
        limit_seconds("lease_ttl_seconds", self.lease_ttl_seconds, LEASE_TTL_SECONDS_MAX)
        if self.lease_ttl_seconds < 1:
            raise ConfigurationError(
                f"lease_ttl_seconds is {self.lease_ttl_seconds!r}", "give at least 1: commits have to fit into it"
            )
