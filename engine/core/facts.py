"""What is known of the servers and of a namespace at one moment.

Every fact may be unknown, which is None: a managed server hides settings, a user lacks a permission, a server is away.
Unknown is never taken for fine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from writebehind.engine.core.durability import Durability

__all__ = ["Facts", "NamespaceFacts", "RedisFacts", "Replica", "SqlFacts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """A replica as its primary sees it.

    Attributes:
        online: whether it is past its first synchronisation.
        lag_seconds: since it last said how far it is; healthy ones say so every second.
        behind_bytes: of the replication stream that it has not confirmed.
    """

    online: bool
    lag_seconds: int
    behind_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisFacts:
    """A Redis or Valkey server.

    Attributes:
        address: where it is, without user and password.
        hidden: which of CONFIG, INFO and ACL it refused to answer, at least in part.
        product: "Redis" or "Valkey".
        version: the product's own.
        compatible: the version of Redis that it says it is compatible with.
        identified: it tells its run ID and replication ID.
        role: "master" or "slave".
        cluster: it runs in cluster mode.
        appendonly: it keeps an append-only file.
        appendfsync: "always", "everysec" or "no".
        fsync_pauses: ``no-appendfsync-on-rewrite``.
        rewriting: a child process writes a snapshot or a new append-only file now.
        loads_truncated: it starts with an append-only file whose end is torn.
        snapshots: its ``save`` setting; "" for none.
        writes_ok: the last write to the append-only file succeeded.
        delayed_fsyncs: how often since its start a write could not wait any longer for a slow fsync.
        replicas: those connected.
        had_replicas: it keeps a replication backlog, as it does for about an hour after the last replica left.
        replicas_min: ``min-replicas-to-write``.
        replicas_max_lag_seconds: ``min-replicas-max-lag``.
        memory_max_bytes: ``maxmemory``; 0 for no limit.
        memory_used_bytes: what it uses of it.
        eviction_policy: ``maxmemory-policy``.
        waitaof_waits: its WAITAOF was seen to wait for the fsync under everysec.
        replay_denied: commands that scripts write with and that the user ``default``, as whom the append-only file
            is loaded, may not run.
        denied: commands of the product that the user of this connection may not run.
        busy_milliseconds: ``busy-reply-threshold``; 0 for none.
        clock_ahead_seconds: its clock minus this machine's.
        partitions: how many the namespace has in its shared settings; 0 where it is not there yet.
    """

    address: str = ""
    hidden: frozenset[str] = frozenset()
    product: str | None = None
    version: tuple[int, ...] | None = None
    compatible: tuple[int, ...] | None = None
    identified: bool | None = None
    role: str | None = None
    cluster: bool | None = None
    appendonly: bool | None = None
    appendfsync: str | None = None
    fsync_pauses: bool | None = None
    rewriting: bool | None = None
    loads_truncated: bool | None = None
    snapshots: str | None = None
    writes_ok: bool | None = None
    delayed_fsyncs: int | None = None
    replicas: tuple[Replica, ...] | None = None
    had_replicas: bool | None = None
    replicas_min: int | None = None
    replicas_max_lag_seconds: int | None = None
    memory_max_bytes: int | None = None
    memory_used_bytes: int | None = None
    eviction_policy: str | None = None
    waitaof_waits: bool | None = None
    replay_denied: tuple[str, ...] | None = None
    denied: tuple[str, ...] | None = None
    busy_milliseconds: int | None = None
    clock_ahead_seconds: float | None = None
    partitions: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SqlFacts:
    """A database.

    Attributes:
        address: where it is, without user and password.
        dialect: SQLAlchemy's name of it.
        version: as it says itself.
        in_memory: it is an SQLite database without a file.
        settings: by their own names, what matters for durability; what it hides is missing.
        standby: it only repeats another server's work, or refuses writes.
        standbys: how many servers repeat its work.
        standby_lag_seconds: how far the last of them is behind.
        missing_tables: declared tables that it does not have.
        unsafe_tables: tables whose storage engine knows no transactions, each with its engine; declared ones and the
            product's own.
        triggers: triggers on declared tables, as "table.trigger".
        cascades: foreign keys between declared tables that change rows of the child by themselves.
        clock_ahead_seconds: its clock minus this machine's.
    """

    address: str = ""
    dialect: str
    version: str | None = None
    in_memory: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    standby: bool | None = None
    standbys: int | None = None
    standby_lag_seconds: float | None = None
    missing_tables: tuple[str, ...] | None = None
    unsafe_tables: Mapping[str, str] | None = None
    triggers: tuple[str, ...] | None = None
    cascades: tuple[str, ...] | None = None
    clock_ahead_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceFacts:
    """A namespace: its registration, its flushers, its backlog.

    Attributes:
        partitions_wanted: how many the application says.
        missing_control_tables: the product's own tables that the database does not have.
        partitions: how many the namespace is registered with in SQL; 0 where it is not registered.
        flushers: how many are alive.
        unheld: partitions that no live flusher holds.
        halted: by partition, why it is not flushed.
        lost_entries: entries ever found missing from the log, or passed over in doubt.
        missing_rows: patches that ever found no row.
        backlog_entries: entries that SQL does not have.
        lag_seconds: age of the oldest of them.
        entries_per_second: how fast the logs grow; measured over about a second.
        retention_seconds: how long flushers keep flushed entries in the log.
    """

    partitions_wanted: int = 0
    missing_control_tables: tuple[str, ...] | None = None
    partitions: int | None = None
    flushers: int | None = None
    unheld: int | None = None
    halted: Mapping[int, str] | None = None
    lost_entries: int | None = None
    missing_rows: int | None = None
    backlog_entries: int | None = None
    lag_seconds: float | None = None
    entries_per_second: float | None = None
    retention_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that a diagnosis rests on.

    Attributes:
        level: the durability level of writes that do not name one.
        replicas_wanted: how many replicas REPLICATED means.
        redis: the Redis server; None where it cannot be reached.
        redis_error: why not.
        sql: the database; None where it cannot be reached.
        sql_error: why not.
        namespace: the namespace.
    """

    level: Durability = Durability.ACCEPTED
    replicas_wanted: int = 1
    redis: RedisFacts | None = None
    redis_error: str = ""
    sql: SqlFacts | None = None
    sql_error: str = ""
    namespace: NamespaceFacts = field(default_factory=NamespaceFacts)
