"""What each fault would cost under the live settings and the live backlog.

"Lost" means: acknowledged, and afterwards in neither Redis nor SQL. The figures are what Redis and SQL can lose between
them; a writing service that survives writes again what it still remembers, so it may be less. A prediction is an upper
bound; its number of entries is an estimate made from the backlog and the rate of writing at one moment.

Sources of the seconds: ``aof.c`` postpones a write for up to 2 s while an fsync runs; *measured* on Redis 7.0.15, Redis
8.2.3 and Valkey under everysec: power loss 0.93 to 0.96 s on a healthy disk, 3.9 to 4.0 s with an fsync stall of 3 s;
SIGKILL up to 1.9 s during stalls.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from writebehind.engine.core.disk_rules import on_disk, replay_drops
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.facts import Facts, RedisFacts

__all__ = ["Extent", "Fault", "Prediction", "predict"]

PROCESS_SECONDS: Final = 2.0
"""How long everysec keeps writes in the process's own memory while an fsync runs."""
POWER_SECONDS: Final = 4.0
"""Everysec where no fsync was counted as delayed, so that none took longer than 2 s: what is written just after one
begins waits for its end, and for the next."""
REPLICA_GRAIN_SECONDS: Final = 2.0
"""Replicas report once a second, and the primary looks once a second."""


class Fault(StrEnum):
    """What may happen."""

    SERVICE_CRASH = "service-crash"
    FLUSHER_KILL = "flusher-kill"
    ZOMBIE_FLUSHER = "zombie-flusher"
    REDIS_CRASH = "redis-crash"
    """The process ends; the machine goes on, and the process starts again on the same data."""
    REDIS_POWER_LOSS = "redis-power-loss"
    """The machine ends; the same disk comes back."""
    REDIS_FAILOVER = "redis-failover"
    """The host is gone for good, or a replica is promoted."""
    REDIS_PARTITION = "redis-partition"
    """A primary that is cut off goes on accepting writes while a replica is promoted."""
    SQL_CRASH = "sql-crash"
    SQL_FAILOVER = "sql-failover"
    """A standby that lags is promoted."""
    REDIS_FULL = "redis-full"
    CLOCK_JUMP = "clock-jump"


class Extent(StrEnum):
    """How much may be lost."""

    NONE = "none"
    WINDOW = "window"
    """At most what was accepted in the last ``seconds``."""
    UNFLUSHED = "unflushed"
    """At most what SQL does not have when it happens; ``seconds`` and ``entries`` say how much that is now."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a fault would cost.

    Attributes:
        fault: the fault.
        level: the durability level that the writes were confirmed at.
        extent: how much may be lost.
        seconds: the time span of what may be lost; None where it is not known.
        entries: how many may be lost, estimated; None where it is not known.
        why: the reason, with the setting that decides.
    """

    fault: Fault
    level: Durability
    extent: Extent
    seconds: float | None
    entries: int | None
    why: str


@dataclass(frozen=True, slots=True)
class _Loss:
    extent: Extent
    why: str
    seconds: float | None = None


def predict(facts: Facts, fault: Fault, level: Durability) -> Prediction:
    """Predict what a fault would cost of the writes that were confirmed at a level."""
    loss = _loss(facts, fault, level)
    namespace = facts.namespace
    backlog, rate = namespace.backlog_entries, namespace.entries_per_second
    seconds, entries = loss.seconds, None
    match loss.extent:
        case Extent.NONE:
            seconds, entries = 0.0, 0
        case Extent.WINDOW:
            bounds = [] if backlog is None else [backlog]
            if rate is not None and seconds is not None:
                bounds.append(math.ceil(rate * seconds))
            entries = min(bounds, default=None)
        case Extent.UNFLUSHED:
            seconds, entries = namespace.lag_seconds, backlog
        case Extent.UNKNOWN:
            pass
    return Prediction(fault=fault, level=level, extent=loss.extent, seconds=seconds, entries=entries, why=loss.why)


def _none(why: str) -> _Loss:
    return _Loss(Extent.NONE, why)


def _window(seconds: float, why: str) -> _Loss:
    return _Loss(Extent.WINDOW, why, seconds)


def _unflushed(why: str) -> _Loss:
    return _Loss(Extent.UNFLUSHED, why)


def _unknown(why: str) -> _Loss:
    return _Loss(Extent.UNKNOWN, why)


def _loss(facts: Facts, fault: Fault, level: Durability) -> _Loss:
    if fault is Fault.CLOCK_JUMP:
        return _none("order comes from positions in the log, leases from the database's clock")
    if fault in _SQL_FAULTS:
        return _torn(facts) or _SQL_FAULTS[fault](facts)
    if level is Durability.PERSISTED:
        return _none("the write is in SQL")
    if facts.redis is None:
        return _unknown("Redis cannot be asked")
    if (facts.redis.eviction_policy or "").startswith("allkeys"):
        return _unflushed(f"maxmemory-policy {facts.redis.eviction_policy} may evict the log at any time")
    return _REDIS_FAULTS[fault](facts, facts.redis, level)


# Services, flushers, SQL


def _torn(facts: Facts) -> _Loss | None:
    """Judge tables without transactions: whatever cuts a batch off leaves a part of it."""
    sql = facts.sql
    if sql is None:
        return _unknown("the database cannot be asked")
    if sql.unsafe_tables:
        return _unknown("tables without transactions keep half of a batch that is cut off, and get it again")
    if sql.unsafe_tables is None and sql.dialect in {"mysql", "mariadb"}:
        return _unknown("the storage engines of the tables are not known")
    return None


def _flusher(_: Facts) -> _Loss:
    return _none("rows and offset move in one transaction, which only the holder of the lease can commit")


def _sql_crash(facts: Facts) -> _Loss:  # noqa: PLR0911 -- one for each setting
    sql = facts.sql
    if sql is None:
        return _unknown("the database cannot be asked")
    settings = sql.settings
    if sql.dialect == "sqlite":
        if sql.in_memory:
            return _unknown("the database is in the memory of a process")
        return _none("flushers write with journal_mode WAL and synchronous FULL")
    if sql.dialect == "postgresql":
        relevant = {name: settings.get(name) for name in ("fsync", "full_page_writes")}
        if "off" in relevant.values():
            return _unknown("with fsync or full_page_writes off a crash may damage the database")
        if None in relevant.values():
            return _unknown("fsync and full_page_writes are hidden")
        return _none("flushers commit with synchronous_commit on")
    if sql.dialect in {"mysql", "mariadb"}:
        flushes = settings.get("innodb_flush_log_at_trx_commit")
        if flushes is None:
            return _unknown("innodb_flush_log_at_trx_commit is hidden")
        if flushes in {"1", "3"}:
            return _none(f"innodb_flush_log_at_trx_commit is {flushes}: a commit is on disk")
        return _rolled_back(facts, 2.0, f"innodb_flush_log_at_trx_commit is {flushes}: about a second of commits goes")
    return _unknown(f"what {sql.dialect} keeps of a commit is not known")


def _sql_failover(facts: Facts) -> _Loss:
    sql = facts.sql
    if sql is None:
        return _unknown("the database cannot be asked")
    if sql.dialect == "sqlite":
        return _none("a file has no standby")
    if sql.standbys == 0:
        return _none("no standby follows that could be promoted")
    if sql.settings.get("synchronous_standby_names") and sql.settings.get("synchronous_commit") != "local":
        return _none("commits wait for the standby")
    lag = sql.standby_lag_seconds
    if lag is None:
        kept = facts.namespace.retention_seconds
        within = "" if not kept else f"; none while it is less than {kept:g} s"
        return _unknown(f"how far the standbys are behind is not known{within}")
    return _rolled_back(facts, lag, f"the last standby is {lag:.1f} s behind")


def _rolled_back(facts: Facts, seconds: float, why: str) -> _Loss:
    retention = facts.namespace.retention_seconds
    if retention is None:
        return _unknown(f"{why}; how long flushed entries are retained is not known")
    if seconds < retention:
        return _none(f"{why}; it is replayed from the log, which retains {retention:g} s")
    return _window(seconds, f"{why}, and the log retains {retention:g} s only")


# Redis


def _service_crash(_: Facts, __: RedisFacts, ___: Durability) -> _Loss:
    return _none("an accepted write is in Redis; one without a reply is there once or not at all")


def _confirmed(redis: RedisFacts, level: Durability) -> bool:
    """Tell whether the level was confirmed by a WAITAOF that waits."""
    return on_disk(level) and redis.waitaof_waits is True


def _restart(redis: RedisFacts) -> _Loss | None:
    """Judge what any restart takes, whatever the disk has."""
    if redis.appendonly is None:
        return _unknown("whether there is an append-only file is hidden")
    if not redis.appendonly:
        return _unflushed("there is no append-only file")
    drops = replay_drops(redis)
    if drops is None:
        return _unknown("what the user 'default' may do is hidden: without permissions a restart drops writes")
    if drops:
        return _unflushed("a restart drops what scripts wrote, because the user 'default' has no permissions")
    return None


def _redis_crash(_: Facts, redis: RedisFacts, level: Durability) -> _Loss:
    restart = _restart(redis)
    if restart is not None:
        return restart
    if _confirmed(redis, level):
        return _none("WAITAOF confirmed the fsync")
    match redis.appendfsync:
        case "always":
            return _none("appendfsync always: the write is on disk")
        case "no":
            return _none("the write is with the kernel, which goes on")
        case "everysec":
            why = "appendfsync everysec: normally none; up to 2 s are in the process while an fsync stalls"
        case _:
            why = "appendfsync is hidden: at the worst it is everysec, with up to 2 s in the process"
    return _window(PROCESS_SECONDS, why)


def _redis_power_loss(  # noqa: PLR0911 -- one for each setting
    _: Facts, redis: RedisFacts, level: Durability
) -> _Loss:
    restart = _restart(redis)
    if restart is not None:
        return restart
    if _confirmed(redis, level):
        return _none("WAITAOF confirmed the fsync")
    if redis.appendfsync is None:
        return _unknown("appendfsync is hidden")
    if redis.appendfsync == "no":
        return _unflushed("appendfsync no: the kernel writes when it likes, usually within half a minute")
    if redis.fsync_pauses is None:
        return _unknown("no-appendfsync-on-rewrite is hidden")
    if redis.fsync_pauses:
        return _unflushed("no-appendfsync-on-rewrite yes: everything written during a rewrite or snapshot goes")
    if redis.appendfsync == "always":
        return _none("appendfsync always: the write is on disk, if the disk honours fsync")
    if on_disk(level) and redis.waitaof_waits is None:
        return _unknown("whether WAITAOF waits for the fsync was not tried")
    return _everysec(redis)


def _everysec(redis: RedisFacts) -> _Loss:
    if redis.delayed_fsyncs is None:
        return _unknown("whether the disk stalls is hidden")
    if redis.delayed_fsyncs:
        return _unflushed("appendfsync everysec on a disk that has stalled: all since before a stall, however long")
    return _window(POWER_SECONDS, "appendfsync everysec: normally about 1 s; more if an fsync takes up to 2 s")


def _redis_failover(facts: Facts, redis: RedisFacts, level: Durability) -> _Loss:
    if redis.replicas is None:
        return _unknown("the replicas are hidden")
    online = sum(replica.online for replica in redis.replicas)
    if not online:
        return _unflushed("there is no replica: what SQL does not have goes with the host")
    if level is Durability.REPLICATED and facts.replicas_wanted >= online:
        return _none("every replica confirmed the write")
    return _asynchronous(redis, "replication is asynchronous")


def _redis_partition(facts: Facts, redis: RedisFacts, level: Durability) -> _Loss:
    if redis.replicas is None:
        return _unknown("the replicas are hidden")
    online = sum(replica.online for replica in redis.replicas)
    if not online and not redis.had_replicas:
        return _none("there is no replica that could be promoted")
    if level is Durability.REPLICATED and online and facts.replicas_wanted >= online:
        return _none("a primary that is cut off cannot confirm the level")
    if redis.replicas_min is not None and 0 < redis.replicas_min < online:
        return _unflushed(
            f"min-replicas-to-write {redis.replicas_min} of {online} replicas may be on the side that is cut off"
        )
    return _asynchronous(redis, "the old primary's writes are thrown away when it rejoins")


def _asynchronous(redis: RedisFacts, why: str) -> _Loss:
    if redis.replicas_min is None or redis.replicas_max_lag_seconds is None:
        return _unknown(f"{why}, and min-replicas-to-write is hidden")
    lag = redis.replicas_max_lag_seconds
    if redis.replicas_min == 0 or lag == 0:
        return _unflushed(f"{why}, and nothing bounds it: min-replicas-to-write is 0")
    return _window(lag + REPLICA_GRAIN_SECONDS, f"{why}; min-replicas-max-lag {lag} s bounds it while replicas keep up")


def _redis_full(facts: Facts, redis: RedisFacts, level: Durability) -> _Loss:
    if redis.eviction_policy is None or redis.memory_max_bytes is None:
        return _unknown("maxmemory and maxmemory-policy are hidden")
    if redis.memory_max_bytes == 0:
        crash = _redis_crash(facts, redis, level)
        return _Loss(crash.extent, f"no maxmemory: the kernel may end Redis, as in a crash; {crash.why}", crash.seconds)
    return _none(f"maxmemory-policy {redis.eviction_policy}: new writes are refused before any effect")


_SQL_FAULTS: Final[Mapping[Fault, Callable[[Facts], _Loss]]] = {
    Fault.FLUSHER_KILL: _flusher,
    Fault.ZOMBIE_FLUSHER: _flusher,
    Fault.SQL_CRASH: _sql_crash,
    Fault.SQL_FAILOVER: _sql_failover,
}
_REDIS_FAULTS: Final[Mapping[Fault, Callable[[Facts, RedisFacts, Durability], _Loss]]] = {
    Fault.SERVICE_CRASH: _service_crash,
    Fault.REDIS_CRASH: _redis_crash,
    Fault.REDIS_POWER_LOSS: _redis_power_loss,
    Fault.REDIS_FAILOVER: _redis_failover,
    Fault.REDIS_PARTITION: _redis_partition,
    Fault.REDIS_FULL: _redis_full,
}
