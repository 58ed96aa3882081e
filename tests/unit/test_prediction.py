"""What each fault is predicted to cost, cell by cell of the table of promises."""

from dataclasses import replace
from typing import Any

import pytest

from healthy import DURABLE, FINE, MARIADB, NAMESPACE, ONE, REDIS, SQL, SQLITE
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.facts import Facts, RedisFacts, Replica, SqlFacts
from writebehind.engine.core.prediction import Extent, Fault, predict

NONE, WINDOW, UNFLUSHED, UNKNOWN = Extent
ACCEPTED, FSYNCED, REPLICATED, PERSISTED = Durability

BUSY = replace(NAMESPACE, backlog_entries=1000, lag_seconds=4.0, entries_per_second=300.0)
ALONE = replace(REDIS, replicas=(), had_replicas=False, replicas_min=0)
SETUPS: dict[str, RedisFacts] = {
    "memory": replace(ALONE, appendonly=False),
    "everysec": replace(ALONE, appendfsync="everysec", waitaof_waits=True),
    "everysec without WAITAOF": replace(ALONE, appendfsync="everysec", waitaof_waits=False),
    "always": ALONE,
    "replicated": REDIS,
}

ROWS = [
    # fault, setup, level, extent, seconds, entries
    *(
        (fault, setup, level, NONE, 0.0, 0)
        for fault in (Fault.SERVICE_CRASH, Fault.FLUSHER_KILL, Fault.ZOMBIE_FLUSHER, Fault.SQL_CRASH, Fault.CLOCK_JUMP)
        for setup in SETUPS
        for level in Durability
    ),
    *((fault, setup, PERSISTED, NONE, 0.0, 0) for fault in Fault for setup in SETUPS),
    *((Fault.REDIS_FULL, setup, level, NONE, 0.0, 0) for setup in SETUPS for level in Durability),
    # the process of Redis
    (Fault.REDIS_CRASH, "memory", ACCEPTED, UNFLUSHED, 4.0, 1000),
    (Fault.REDIS_CRASH, "memory", FSYNCED, UNFLUSHED, 4.0, 1000),
    (Fault.REDIS_CRASH, "everysec", ACCEPTED, WINDOW, 2.0, 600),
    (Fault.REDIS_CRASH, "everysec", FSYNCED, NONE, 0.0, 0),
    (Fault.REDIS_CRASH, "everysec", REPLICATED, NONE, 0.0, 0),
    (Fault.REDIS_CRASH, "everysec without WAITAOF", FSYNCED, WINDOW, 2.0, 600),
    (Fault.REDIS_CRASH, "always", ACCEPTED, NONE, 0.0, 0),
    (Fault.REDIS_CRASH, "always", FSYNCED, NONE, 0.0, 0),
    (Fault.REDIS_CRASH, "replicated", ACCEPTED, NONE, 0.0, 0),
    # its machine, whose disk comes back
    (Fault.REDIS_POWER_LOSS, "memory", ACCEPTED, UNFLUSHED, 4.0, 1000),
    (Fault.REDIS_POWER_LOSS, "everysec", ACCEPTED, WINDOW, 4.0, 1000),
    (Fault.REDIS_POWER_LOSS, "everysec", FSYNCED, NONE, 0.0, 0),
    (Fault.REDIS_POWER_LOSS, "everysec without WAITAOF", FSYNCED, WINDOW, 4.0, 1000),
    (Fault.REDIS_POWER_LOSS, "always", ACCEPTED, NONE, 0.0, 0),
    (Fault.REDIS_POWER_LOSS, "always", REPLICATED, NONE, 0.0, 0),
    (Fault.REDIS_POWER_LOSS, "replicated", ACCEPTED, NONE, 0.0, 0),
    # its host, for good
    *((Fault.REDIS_FAILOVER, setup, level, UNFLUSHED, 4.0, 1000)
      for setup in ("memory", "everysec", "always") for level in (ACCEPTED, FSYNCED, REPLICATED)),
    (Fault.REDIS_FAILOVER, "replicated", ACCEPTED, WINDOW, 12.0, 1000),
    (Fault.REDIS_FAILOVER, "replicated", FSYNCED, WINDOW, 12.0, 1000),
    (Fault.REDIS_FAILOVER, "replicated", REPLICATED, NONE, 0.0, 0),
    # a primary that is cut off
    *((Fault.REDIS_PARTITION, setup, level, NONE, 0.0, 0)
      for setup in ("memory", "everysec", "always") for level in (ACCEPTED, FSYNCED)),
    (Fault.REDIS_PARTITION, "replicated", ACCEPTED, WINDOW, 12.0, 1000),
    (Fault.REDIS_PARTITION, "replicated", FSYNCED, WINDOW, 12.0, 1000),
    (Fault.REDIS_PARTITION, "replicated", REPLICATED, NONE, 0.0, 0),
    *((Fault.SQL_FAILOVER, setup, level, NONE, 0.0, 0) for setup in SETUPS for level in Durability),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_promises(row: tuple[Fault, str, Durability, Extent, float, int]) -> None:
    """Each fault costs what the table says, for each way to run Redis and each level."""
    fault, setup, level, extent, seconds, entries = row
    found = predict(replace(FINE, redis=SETUPS[setup], namespace=BUSY), fault, level)
    assert (found.fault, found.level) == (fault, level)
    assert (found.extent, found.seconds, found.entries) == (extent, seconds, entries), found.why
    assert found.why


def test_the_table_is_whole() -> None:
    """Each fault has its cell for accepted and for persisted writes, for each way to run Redis."""
    cells = {(fault, setup, level) for fault, setup, level, *_ in ROWS}
    for fault in Fault:
        for setup in ("memory", "everysec", "always", "replicated"):
            assert (fault, setup, PERSISTED) in cells
            assert (fault, setup, ACCEPTED) in cells


@pytest.mark.parametrize(
    ("fault", "changes", "extent", "seconds"),
    [
        (Fault.REDIS_CRASH, {"replay_denied": ("XADD",)}, UNFLUSHED, 4.0),
        (Fault.REDIS_CRASH, {"replay_denied": None}, UNKNOWN, None),
        (Fault.REDIS_CRASH, {"replay_denied": None, "version": (8, 6, 1)}, NONE, 0.0),
        (Fault.REDIS_CRASH, {"appendonly": None}, UNKNOWN, None),
        (Fault.REDIS_CRASH, {"appendfsync": None}, WINDOW, 2.0),
        (Fault.REDIS_CRASH, {"appendfsync": "no"}, NONE, 0.0),
        (Fault.REDIS_CRASH, {"fsync_pauses": True}, NONE, 0.0),
        (Fault.REDIS_POWER_LOSS, {"replay_denied": ("XADD",)}, UNFLUSHED, 4.0),
        (Fault.REDIS_POWER_LOSS, {"fsync_pauses": True}, UNFLUSHED, 4.0),
        (Fault.REDIS_POWER_LOSS, {"fsync_pauses": True, "appendfsync": "everysec"}, UNFLUSHED, 4.0),
        (Fault.REDIS_POWER_LOSS, {"fsync_pauses": None}, UNKNOWN, None),
        (Fault.REDIS_POWER_LOSS, {"appendfsync": None}, UNKNOWN, None),
        (Fault.REDIS_POWER_LOSS, {"appendfsync": "no"}, UNFLUSHED, 4.0),
        (Fault.REDIS_POWER_LOSS, {"appendfsync": "everysec", "delayed_fsyncs": None}, UNKNOWN, None),
        (Fault.REDIS_POWER_LOSS, {"appendfsync": "everysec", "delayed_fsyncs": 4}, UNFLUSHED, 4.0),
        (Fault.REDIS_POWER_LOSS, {"appendfsync": "everysec"}, WINDOW, 4.0),
        (Fault.REDIS_FAILOVER, {"replicas": None}, UNKNOWN, None),
        (Fault.REDIS_FAILOVER, {"replicas_min": 0}, UNFLUSHED, 4.0),
        (Fault.REDIS_FAILOVER, {"replicas_max_lag_seconds": 0}, UNFLUSHED, 4.0),
        (Fault.REDIS_FAILOVER, {"replicas_min": None}, UNKNOWN, None),
        (Fault.REDIS_FAILOVER, {"replicas_max_lag_seconds": 3}, WINDOW, 5.0),
        (Fault.REDIS_FAILOVER, {"replay_denied": ("XADD",)}, WINDOW, 12.0),
        (Fault.REDIS_PARTITION, {"replicas": None}, UNKNOWN, None),
        (Fault.REDIS_PARTITION, {"replicas": (), "replicas_min": 0}, UNFLUSHED, 4.0),
        (Fault.REDIS_PARTITION, {"replicas": ONE * 3}, UNFLUSHED, 4.0),
        (Fault.REDIS_PARTITION, {"replicas": ONE * 3, "replicas_min": 3}, WINDOW, 12.0),
        (Fault.REDIS_FULL, {"eviction_policy": None}, UNKNOWN, None),
        (Fault.REDIS_FULL, {"memory_max_bytes": None}, UNKNOWN, None),
        (Fault.REDIS_FULL, {"memory_max_bytes": 0, "appendfsync": "everysec"}, WINDOW, 2.0),
        *(
            (fault, {"eviction_policy": "allkeys-lru"}, UNFLUSHED, 4.0)
            for fault in Fault
            if fault.startswith(("redis", "service"))
        ),
    ],
)
def test_what_changes_the_cost_of_accepted_writes(
    fault: Fault, changes: dict[str, Any], extent: Extent, seconds: float | None
) -> None:
    """Each setting that matters changes the prediction; what is hidden makes it unknown."""
    found = predict(replace(FINE, redis=replace(REDIS, **changes), namespace=BUSY), fault, ACCEPTED)
    assert (found.extent, found.seconds) == (extent, seconds), found.why
    assert predict(replace(FINE, redis=replace(REDIS, **changes)), fault, PERSISTED).extent is NONE


@pytest.mark.parametrize(
    ("changes", "fault", "extent"),
    [
        ({"waitaof_waits": None}, Fault.REDIS_POWER_LOSS, UNKNOWN),
        ({"waitaof_waits": None}, Fault.REDIS_CRASH, WINDOW),
        ({"waitaof_waits": True, "appendfsync": None}, Fault.REDIS_POWER_LOSS, NONE),
        ({"waitaof_waits": True, "fsync_pauses": True}, Fault.REDIS_POWER_LOSS, NONE),
        ({"waitaof_waits": True, "replay_denied": ("XADD",)}, Fault.REDIS_POWER_LOSS, UNFLUSHED),
        ({"waitaof_waits": True, "appendonly": False}, Fault.REDIS_CRASH, UNFLUSHED),
    ],
)
def test_what_changes_the_cost_of_confirmed_writes(changes: dict[str, Any], fault: Fault, extent: Extent) -> None:
    """A confirmation counts where it was seen to wait, and where the restart keeps what was confirmed."""
    redis = replace(REDIS, **({"appendfsync": "everysec"} | changes))
    assert predict(replace(FINE, redis=redis, namespace=BUSY), fault, FSYNCED).extent is extent


@pytest.mark.parametrize("fault", [Fault.REDIS_FAILOVER, Fault.REDIS_PARTITION])
@pytest.mark.parametrize(("replicas", "wanted", "extent"), [(1, 1, NONE), (2, 2, NONE), (2, 1, WINDOW)])
def test_replicated_holds_where_every_replica_confirmed(
    fault: Fault, replicas: int, wanted: int, extent: Extent
) -> None:
    """Where some did not, one of those may be promoted."""
    redis = replace(REDIS, replicas=ONE * replicas, replicas_min=replicas)
    found = predict(replace(FINE, redis=redis, replicas_wanted=wanted, namespace=BUSY), fault, REPLICATED)
    assert found.extent is extent


def test_a_replica_that_is_still_joining_saves_nothing() -> None:
    """Only replicas that are online count."""
    redis = replace(REDIS, replicas=(Replica(online=False, lag_seconds=0, behind_bytes=0),))
    assert predict(replace(FINE, redis=redis), Fault.REDIS_FAILOVER, REPLICATED).extent is UNFLUSHED


@pytest.mark.parametrize(
    ("sql", "changes", "fault", "extent"),
    [
        (SQL, {"settings": DURABLE | {"fsync": "off"}}, Fault.SQL_CRASH, UNKNOWN),
        (SQL, {"settings": DURABLE | {"full_page_writes": "off"}}, Fault.SQL_CRASH, UNKNOWN),
        (SQL, {"settings": {}}, Fault.SQL_CRASH, UNKNOWN),
        (SQL, {"settings": DURABLE | {"synchronous_commit": "off"}}, Fault.SQL_CRASH, NONE),
        (SQL, {"dialect": "oracle"}, Fault.SQL_CRASH, UNKNOWN),
        (MARIADB, {}, Fault.SQL_CRASH, NONE),
        (MARIADB, {"settings": {}}, Fault.SQL_CRASH, UNKNOWN),
        (MARIADB, {"settings": {"innodb_flush_log_at_trx_commit": "2"}}, Fault.SQL_CRASH, NONE),
        (SQLITE, {}, Fault.SQL_CRASH, NONE),
        (SQLITE, {"in_memory": True}, Fault.SQL_CRASH, UNKNOWN),
        (SQL, {"standbys": 2, "standby_lag_seconds": 5.0}, Fault.SQL_FAILOVER, NONE),
        (SQL, {"standbys": 2, "standby_lag_seconds": 90.0}, Fault.SQL_FAILOVER, WINDOW),
        (SQL, {"standbys": 2, "standby_lag_seconds": None}, Fault.SQL_FAILOVER, UNKNOWN),
        (SQL, {"standbys": None, "standby_lag_seconds": None}, Fault.SQL_FAILOVER, UNKNOWN),
        (
            SQL,
            {"standbys": 1, "standby_lag_seconds": None, "settings": DURABLE | {"synchronous_standby_names": "*"}},
            Fault.SQL_FAILOVER,
            NONE,
        ),
        (MARIADB, {"standby_lag_seconds": None}, Fault.SQL_FAILOVER, UNKNOWN),
        (SQLITE, {}, Fault.SQL_FAILOVER, NONE),
        *(
            (MARIADB, {"unsafe_tables": tables}, fault, UNKNOWN)
            for tables in ({"accounts": "MyISAM"}, None)
            for fault in (Fault.FLUSHER_KILL, Fault.ZOMBIE_FLUSHER, Fault.SQL_CRASH, Fault.SQL_FAILOVER)
        ),
    ],
)
@pytest.mark.parametrize("level", Durability)
def test_sql(sql: SqlFacts, changes: dict[str, Any], fault: Fault, extent: Extent, level: Durability) -> None:
    """What a database forgets is replayed as far as the log reaches, at every level."""
    found = predict(replace(FINE, sql=replace(sql, **changes), namespace=BUSY), fault, level)
    assert found.extent is extent, found.why


@pytest.mark.parametrize(("retention", "extent"), [(60.0, NONE), (1.0, WINDOW), (0.0, WINDOW), (None, UNKNOWN)])
def test_a_rollback_of_sql_is_replayed_while_the_log_reaches(retention: float | None, extent: Extent) -> None:
    """Without retention the database's own window is the loss; where it is not known, nothing is."""
    sql = replace(MARIADB, settings={"innodb_flush_log_at_trx_commit": "2"})
    facts = replace(FINE, sql=sql, namespace=replace(BUSY, retention_seconds=retention))
    assert predict(facts, Fault.SQL_CRASH, PERSISTED).extent is extent


def test_servers_that_are_away() -> None:
    """Nothing is predicted of a server that cannot be asked, but for what does not rest on it."""
    for fault in Fault:
        without_redis = predict(replace(FINE, redis=None), fault, ACCEPTED).extent
        assert without_redis is (UNKNOWN if fault.startswith(("redis", "service")) else NONE)
        without_sql = predict(replace(FINE, sql=None), fault, ACCEPTED).extent
        assert (without_sql is UNKNOWN) is fault.startswith(("sql", "flusher", "zombie"))


def test_what_is_not_known_is_never_none() -> None:
    """With every fact unknown, only what rests on no server is certain."""
    facts = Facts(redis=RedisFacts(), sql=SqlFacts(dialect="postgresql"))
    certain = {fault for fault in Fault if predict(facts, fault, ACCEPTED).extent is NONE}
    # That PostgreSQL's tables know transactions is no setting.
    assert certain == {Fault.SERVICE_CRASH, Fault.FLUSHER_KILL, Fault.ZOMBIE_FLUSHER, Fault.CLOCK_JUMP}


@pytest.mark.parametrize(
    ("backlog", "rate", "entries"),
    [
        (2000, 300.0, 1200),
        (100, 300.0, 100),
        (1000, 0.2, 1),
        (None, 300.0, 1200),
        (1000, None, 1000),
        (None, None, None),
    ],
)
def test_entries_of_a_window(backlog: int | None, rate: float | None, entries: int | None) -> None:
    """No more than SQL lacks, and no more than was written in the window; what is not known bounds nothing."""
    namespace = replace(NAMESPACE, backlog_entries=backlog, entries_per_second=rate)
    facts = replace(FINE, redis=SETUPS["everysec"], namespace=namespace)
    assert predict(facts, Fault.REDIS_POWER_LOSS, ACCEPTED).entries == entries
