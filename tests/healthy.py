"""Facts of servers where all is fine, for tests to spoil."""

from dataclasses import replace

from writebehind.engine.core.facts import Facts, NamespaceFacts, RedisFacts, Replica, SqlFacts

ONE = (Replica(online=True, lag_seconds=0, behind_bytes=0),)

REDIS = RedisFacts(
    address="127.0.0.1:6379",
    product="Redis",
    version=(8, 2, 9),
    compatible=(8, 2, 9),
    identified=True,
    role="master",
    cluster=False,
    appendonly=True,
    appendfsync="always",
    fsync_pauses=False,
    rewriting=False,
    loads_truncated=True,
    snapshots="",
    writes_ok=True,
    delayed_fsyncs=0,
    replicas=ONE,
    had_replicas=True,
    replicas_min=1,
    replicas_max_lag_seconds=10,
    memory_max_bytes=2**30,
    memory_used_bytes=2**20,
    eviction_policy="noeviction",
    replay_denied=(),
    denied=(),
    busy_milliseconds=5000,
    clock_ahead_seconds=0.0,
    partitions=16,
)
DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "synchronous_standby_names": ""}
SQL = SqlFacts(
    address="127.0.0.1/shop",
    dialect="postgresql",
    version="15.4",
    settings=DURABLE,
    standby=False,
    standbys=0,
    standby_lag_seconds=0.0,
    missing_tables=(),
    unsafe_tables={},
    triggers=(),
    cascades=(),
    clock_ahead_seconds=0.0,
)
MARIADB = replace(
    SQL, dialect="mysql", standbys=None, settings={"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "0"}
)
SQLITE = replace(SQL, dialect="sqlite", standby=None, standbys=None, clock_ahead_seconds=None, settings={})
NAMESPACE = NamespaceFacts(
    partitions_wanted=16,
    missing_control_tables=(),
    partitions=16,
    flushers=2,
    unheld=0,
    halted={},
    lost_entries=0,
    missing_rows=0,
    backlog_entries=0,
    lag_seconds=0.0,
    entries_per_second=0.0,
    retention_seconds=60.0,
)
FINE = Facts(redis=REDIS, sql=SQL, namespace=NAMESPACE)
