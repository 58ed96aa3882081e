"""What facts mean: each rule, the conditions of a start, and the rule that unknown is never fine."""

from dataclasses import fields, replace
from typing import Any

import pytest

from healthy import DURABLE, FINE, MARIADB, NAMESPACE, ONE, REDIS, SQL, SQLITE
from writebehind.engine.core.diagnosis import diagnose, disk_conditions, start_conditions
from writebehind.engine.core.disk_rules import replay_drops
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.facts import Facts, NamespaceFacts, RedisFacts, Replica, SqlFacts
from writebehind.engine.core.finding import Finding, Severity, worst

OK, NOTE, UNKNOWN, WARNING, FAILURE = Severity
SLOW = (Replica(online=True, lag_seconds=9, behind_bytes=5_000_000),)
JOINING = (Replica(online=False, lag_seconds=0, behind_bytes=0),)


def found(facts: Facts, code: str) -> Finding | None:
    """Return the finding with a code."""
    return next((finding for finding in diagnose(facts) if finding.code == code), None)


def severity_of(facts: Facts, code: str) -> Severity | None:
    """Return the severity of the finding with a code."""
    finding = found(facts, code)
    return None if finding is None else finding.severity


@pytest.mark.parametrize("facts", [FINE, replace(FINE, sql=MARIADB), replace(FINE, sql=SQLITE)])
def test_nothing_is_found_where_all_is_fine(facts: Facts) -> None:
    """Servers as they should be give findings that are all fine, each code once."""
    findings = diagnose(facts)
    assert {finding.severity for finding in findings} == {OK}
    assert len({finding.code for finding in findings}) == len(findings) > 20
    assert worst(findings) is OK


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"compatible": (6, 2, 14), "version": (6, 2, 14)}, "redis-version", FAILURE),
        ({"compatible": (7, 2, 4), "version": (8, 1, 8), "product": "Valkey"}, "redis-version", OK),
        ({"compatible": None, "version": None}, "redis-version", UNKNOWN),
        ({"version": (8, 2, 8)}, "server-advisories", NOTE),
        ({"version": (7, 0, 15)}, "server-advisories", NOTE),
        ({"version": (8, 0, 9)}, "server-advisories", NOTE),
        ({"version": (7, 4, 11)}, "server-advisories", OK),
        ({"version": (9, 0, 0)}, "server-advisories", OK),
        ({"version": None}, "server-advisories", None),
        ({"product": "Valkey"}, "server-advisories", None),
        ({"role": "slave"}, "redis-role", FAILURE),
        ({"role": None}, "redis-role", UNKNOWN),
        ({"identified": False}, "redis-identity", FAILURE),
        ({"cluster": True}, "cluster-mode", FAILURE),
        ({"cluster": None}, "cluster-mode", UNKNOWN),
        ({"denied": ("XADD", "HSET")}, "permissions", FAILURE),
        ({"denied": None}, "permissions", UNKNOWN),
        ({"eviction_policy": "allkeys-lru"}, "eviction-policy", FAILURE),
        ({"eviction_policy": "allkeys-random"}, "eviction-policy", FAILURE),
        ({"eviction_policy": "volatile-ttl"}, "eviction-policy", OK),
        ({"eviction_policy": None}, "eviction-policy", UNKNOWN),
        ({"memory_used_bytes": 2**30 - 1}, "memory-limit", WARNING),
        ({"memory_max_bytes": 0}, "memory-limit", NOTE),
        ({"memory_max_bytes": None}, "memory-limit", UNKNOWN),
        ({"replicas": (), "had_replicas": False}, "replicas", NOTE),
        ({"replicas": (), "had_replicas": True}, "replicas", WARNING),
        ({"replicas": JOINING, "had_replicas": False}, "replicas", NOTE),
        ({"replicas": SLOW}, "replicas", WARNING),
        ({"replicas": None}, "replicas", UNKNOWN),
        ({"replicas_min": 0}, "split-brain", WARNING),
        ({"replicas_max_lag_seconds": 0}, "split-brain", WARNING),
        ({"replicas_min": None}, "split-brain", UNKNOWN),
        ({"replicas": (), "had_replicas": False, "replicas_min": 0}, "split-brain", None),
        ({"appendonly": False, "snapshots": ""}, "empty-primary", FAILURE),
        ({"appendonly": False, "snapshots": "3600 1"}, "empty-primary", WARNING),
        ({"appendonly": False, "snapshots": None}, "empty-primary", UNKNOWN),
        ({"appendonly": False, "replicas": ()}, "empty-primary", None),
        ({"busy_milliseconds": 100}, "busy-threshold", WARNING),
        ({"busy_milliseconds": 0}, "busy-threshold", OK),
        ({"busy_milliseconds": None}, "busy-threshold", UNKNOWN),
        ({"clock_ahead_seconds": -3.0}, "redis-clock", WARNING),
        ({"clock_ahead_seconds": None}, "redis-clock", None),
        ({"appendonly": False}, "append-only-file", WARNING),
        ({"appendonly": None}, "append-only-file", UNKNOWN),
        ({"appendfsync": "everysec"}, "fsync-policy", NOTE),
        ({"appendfsync": "no"}, "fsync-policy", WARNING),
        ({"appendfsync": None}, "fsync-policy", UNKNOWN),
        ({"appendonly": False}, "fsync-policy", None),
        ({"fsync_pauses": True}, "fsync-on-rewrite", FAILURE),
        ({"fsync_pauses": True, "appendfsync": "everysec"}, "fsync-on-rewrite", FAILURE),
        ({"fsync_pauses": None}, "fsync-on-rewrite", UNKNOWN),
        ({"fsync_pauses": True, "appendfsync": "no"}, "fsync-on-rewrite", None),
        ({"fsync_pauses": True, "appendonly": False}, "fsync-on-rewrite", None),
        ({"appendfsync": "everysec", "waitaof_waits": True}, "fsync-confirmation", OK),
        ({"appendfsync": "everysec", "waitaof_waits": False}, "fsync-confirmation", NOTE),
        ({"appendfsync": "everysec", "waitaof_waits": None}, "fsync-confirmation", UNKNOWN),
        ({"appendfsync": None}, "fsync-confirmation", UNKNOWN),
        ({"appendfsync": "always"}, "fsync-confirmation", None),
        ({"delayed_fsyncs": 3}, "fsync-delays", WARNING),
        ({"delayed_fsyncs": None}, "fsync-delays", UNKNOWN),
        ({"writes_ok": False}, "append-only-writes", FAILURE),
        ({"writes_ok": None}, "append-only-writes", UNKNOWN),
        ({"loads_truncated": False}, "truncated-file", WARNING),
        ({"loads_truncated": None}, "truncated-file", UNKNOWN),
        ({"replay_denied": ("XADD",)}, "script-replay", FAILURE),
        ({"replay_denied": None}, "script-replay", UNKNOWN),
        ({"replay_denied": ("XADD",), "version": (8, 6, 0)}, "script-replay", OK),
        ({"replay_denied": ("XADD",), "appendonly": False}, "script-replay", None),
        ({"partitions": 8}, "namespace", FAILURE),
        ({"partitions": None}, "namespace", UNKNOWN),
        ({"partitions": 0}, "namespace", OK),
    ],
)
def test_redis(changes: dict[str, Any], code: str, severity: Severity | None) -> None:
    """Each fact of Redis has its finding."""
    assert severity_of(replace(FINE, redis=replace(REDIS, **changes)), code) is severity


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"appendonly": False}, "append-only-file"),
        ({"appendfsync": "no"}, "fsync-policy"),
        ({"appendfsync": "everysec", "waitaof_waits": False}, "fsync-confirmation"),
    ],
)
def test_a_level_that_rests_on_the_disk_makes_it_graver(changes: dict[str, Any], code: str) -> None:
    """What is bearable for accepted and for persisted writes is a failure for those that wait for Redis's disk."""
    facts = replace(FINE, redis=replace(REDIS, **changes))
    for level in Durability:
        failed = severity_of(replace(facts, level=level), code) is FAILURE
        assert failed is (level in {Durability.FSYNCED, Durability.REPLICATED})


@pytest.mark.parametrize(("replicas", "wanted"), [((), 1), (ONE, 2), (JOINING, 1)])
def test_replicated_needs_replicas(replicas: tuple[Replica, ...], wanted: int) -> None:
    """Too few replicas that are online are a failure at that level only."""
    facts = replace(FINE, redis=replace(REDIS, replicas=replicas), replicas_wanted=wanted)
    assert severity_of(replace(facts, level=Durability.REPLICATED), "replicas") is FAILURE
    assert severity_of(replace(facts, level=Durability.FSYNCED), "replicas") is not FAILURE


@pytest.mark.parametrize(
    ("product", "version", "drops"),
    [
        ("Redis", (7, 0, 15), True),
        ("Redis", (7, 4, 6), True),
        ("Redis", (8, 2, 3), True),
        ("Redis", (8, 4, 3), True),
        ("Redis", (8, 4, 4), False),
        ("Redis", (8, 5, 0), True),
        ("Redis", (8, 6), False),
        ("Redis", (9, 0, 0), False),
        ("Valkey", (8, 1, 8), True),
        ("Valkey", (9, 0, 3), True),
        ("Valkey", (9, 1, 2), False),
        (None, None, True),
    ],
)
def test_which_versions_drop_what_scripts_wrote(
    product: str | None, version: tuple[int, ...] | None, *, drops: bool
) -> None:
    """A stripped user ``default`` matters up to the version that fixed it, and where the version is not known."""
    assert replay_drops(replace(REDIS, product=product, version=version, replay_denied=("XADD",))) is drops
    assert replay_drops(replace(REDIS, product=product, version=version, replay_denied=())) is False
    hidden = replay_drops(replace(REDIS, product=product, version=version, replay_denied=None))
    assert hidden is (None if drops else False)


@pytest.mark.parametrize(
    ("sql", "changes", "code", "severity"),
    [
        (SQL, {"standby": True}, "sql-role", FAILURE),
        (SQL, {"standby": None}, "sql-role", UNKNOWN),
        (SQLITE, {}, "sql-role", None),
        (SQL, {"settings": DURABLE | {"fsync": "off"}}, "sql-commits", FAILURE),
        (SQL, {"settings": DURABLE | {"full_page_writes": "off"}}, "sql-commits", FAILURE),
        (SQL, {"settings": DURABLE | {"synchronous_commit": "off"}}, "sql-commits", NOTE),
        (SQL, {"settings": {"fsync": "on"}}, "sql-commits", UNKNOWN),
        (MARIADB, {"settings": {}}, "sql-commits", UNKNOWN),
        (MARIADB, {"settings": {"innodb_flush_log_at_trx_commit": "2"}}, "sql-commits", WARNING),
        (MARIADB, {"settings": {"innodb_flush_log_at_trx_commit": "0"}}, "sql-commits", WARNING),
        (MARIADB, {"settings": {"innodb_flush_log_at_trx_commit": "3"}}, "sql-commits", OK),
        (MARIADB, {"settings": {**MARIADB.settings, "log_bin": "1"}}, "sql-commits", NOTE),
        (SQLITE, {"in_memory": True}, "sql-commits", FAILURE),
        (SQLITE, {"dialect": "oracle"}, "sql-commits", UNKNOWN),
        (MARIADB, {"unsafe_tables": {"accounts": "MyISAM"}}, "sql-engines", FAILURE),
        (MARIADB, {"unsafe_tables": None}, "sql-engines", UNKNOWN),
        (MARIADB, {}, "sql-engines", OK),
        (SQL, {"unsafe_tables": None}, "sql-engines", None),
        (SQL, {"missing_tables": ("accounts",)}, "sql-tables", FAILURE),
        (SQL, {"missing_tables": None}, "sql-tables", UNKNOWN),
        (SQL, {"triggers": ("accounts.audit",)}, "sql-triggers", WARNING),
        (SQL, {"triggers": None}, "sql-triggers", UNKNOWN),
        (SQL, {"cascades": ("items.order_id ON DELETE CASCADE",)}, "sql-cascades", WARNING),
        (SQL, {"cascades": None}, "sql-cascades", UNKNOWN),
        (SQL, {"standbys": 1}, "sql-standbys", NOTE),
        (SQL, {"standbys": 1, "settings": DURABLE | {"synchronous_standby_names": "*"}}, "sql-standbys", OK),
        (SQL, {"clock_ahead_seconds": 20.0}, "sql-clock", WARNING),
    ],
)
def test_sql(sql: SqlFacts, changes: dict[str, Any], code: str, severity: Severity | None) -> None:
    """Each fact of a database has its finding."""
    assert severity_of(replace(FINE, sql=replace(sql, **changes)), code) is severity


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"missing_control_tables": ("writebehind_partitions",)}, "control-tables", FAILURE),
        ({"missing_control_tables": None}, "control-tables", UNKNOWN),
        ({"partitions": 8}, "namespace", FAILURE),
        ({"partitions": 0}, "namespace", FAILURE),
        ({"partitions": None}, "namespace", UNKNOWN),
        ({"flushers": 0, "unheld": 16}, "flushers", NOTE),
        ({"flushers": 0, "unheld": 16, "backlog_entries": 1}, "flushers", WARNING),
        ({"unheld": 3}, "flushers", WARNING),
        ({"flushers": None}, "flushers", UNKNOWN),
        ({"halted": {3: "entry 5-1: no such column"}}, "halted-partitions", FAILURE),
        ({"halted": None}, "halted-partitions", UNKNOWN),
        ({"lost_entries": 2}, "lost-entries", FAILURE),
        ({"lost_entries": None}, "lost-entries", UNKNOWN),
        ({"missing_rows": 2}, "missing-rows", NOTE),
        ({"backlog_entries": 10, "lag_seconds": 0.4}, "backlog", OK),
        ({"backlog_entries": 10, "lag_seconds": 90.0}, "backlog", WARNING),
        ({"backlog_entries": None}, "backlog", UNKNOWN),
        ({"retention_seconds": 0.0}, "log-retention", WARNING),
        ({"retention_seconds": None}, "log-retention", UNKNOWN),
    ],
)
def test_namespace(changes: dict[str, Any], code: str, severity: Severity) -> None:
    """Each fact of a namespace has its finding."""
    assert severity_of(replace(FINE, namespace=replace(NAMESPACE, **changes)), code) is severity


def test_servers_that_are_away() -> None:
    """One finding says that a server is away; nothing is claimed of it."""
    for facts, code in (
        (replace(FINE, redis=None, redis_error="refused"), "redis"),
        (replace(FINE, sql=None, sql_error="refused"), "sql"),
    ):
        first = diagnose(facts)[0]
        assert (first.code, first.severity) == (code, FAILURE)
        assert "refused" in first.what
        others = {finding.code.partition("-")[0] for finding in diagnose(facts)[1:]}
        assert code not in others


def test_what_is_not_known_is_never_fine() -> None:
    """With every fact unknown, nothing is fine."""
    facts = Facts(redis=RedisFacts(), sql=SqlFacts(dialect="postgresql"), namespace=NamespaceFacts())
    findings = diagnose(facts)
    assert {finding.severity for finding in findings} == {UNKNOWN, FAILURE}
    assert [finding.code for finding in findings if finding.severity is FAILURE] == ["redis-identity"]
    assert len(findings) > 20


@pytest.mark.parametrize("field", [field.name for field in fields(RedisFacts) if field.default is None])
def test_a_hidden_fact_of_redis_shows(field: str) -> None:
    """Each fact that becomes unknown makes a finding worse, but for those that others depend on."""
    base = replace(FINE, redis=replace(REDIS, appendfsync="everysec", waitaof_waits=True, replay_denied=()))
    assert base.redis is not None
    needless = {
        "product",  # in the text only
        "version",  # matters where permissions are missing
        "rewriting",  # in the text only
        "snapshots",  # matters without an append-only file
        "had_replicas",  # matters without replicas
        "clock_ahead_seconds",  # nothing rests on clocks
    }
    spoilt: dict[str, Any] = {field: None}
    hidden = replace(base, redis=replace(base.redis, **spoilt))
    assert (worst(diagnose(hidden)) >= UNKNOWN) is (field not in needless)


def test_the_gravest_comes_first() -> None:
    """Findings are sorted for a reader in a hurry."""
    facts = replace(FINE, redis=replace(REDIS, appendfsync="everysec", role="slave", busy_milliseconds=1))
    severities = [finding.severity for finding in diagnose(facts)]
    assert severities == sorted(severities, reverse=True)
    assert severities[0] is FAILURE


def test_a_finding_that_calls_for_action_says_which() -> None:
    """A finding above a note has a remedy."""
    with pytest.raises(ValueError, match="remedy"):
        Finding("code", WARNING, "what", "means")


# At start


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"compatible": (6, 2, 0)}, "redis-version"),
        ({"role": "slave"}, "redis-role"),
        ({"eviction_policy": "allkeys-lfu"}, "eviction-policy"),
    ],
)
@pytest.mark.parametrize("level", Durability)
def test_what_no_engine_starts_on(changes: dict[str, Any], code: str, level: Durability) -> None:
    """Some servers are refused at every level."""
    findings = start_conditions(replace(REDIS, **changes), level)
    assert [(finding.code, finding.severity) for finding in findings] == [(code, FAILURE)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"appendonly": False}, "append-only-file"),
        ({"appendfsync": "no"}, "fsync-policy"),
        ({"fsync_pauses": True}, "fsync-on-rewrite"),
        ({"replay_denied": ("XADD",)}, "script-replay"),
    ],
)
def test_what_no_level_on_the_disk_starts_on(changes: dict[str, Any], code: str) -> None:
    """Others are refused where the level rests on Redis's disk, and only there."""
    facts = replace(REDIS, **changes)
    assert [(finding.code, finding.severity) for finding in disk_conditions(facts)] == [(code, FAILURE)]
    for level in Durability:
        assert worst(start_conditions(facts, level)) < FAILURE


def test_a_dropping_replay_is_said_at_weaker_levels() -> None:
    """Without permissions for 'default', accepting writes goes on with a warning."""
    facts = replace(REDIS, replay_denied=("XADD",))
    for level in (Durability.ACCEPTED, Durability.PERSISTED):
        (finding,) = start_conditions(facts, level)
        assert (finding.code, finding.severity) == ("script-replay", WARNING)


def test_a_rewrite_that_pauses_fsync_is_no_lie_under_everysec() -> None:
    """WAITAOF waits for longer then, so the level can be given."""
    assert disk_conditions(replace(REDIS, appendfsync="everysec", fsync_pauses=True)) == []


def test_a_start_on_a_server_that_tells_nothing() -> None:
    """Hidden facts are said and do not forbid the start."""
    for findings in (start_conditions(RedisFacts(), Durability.ACCEPTED), disk_conditions(RedisFacts())):
        assert {finding.severity for finding in findings} == {UNKNOWN}
        assert len(findings) >= 3


def test_a_start_where_all_is_fine() -> None:
    """Nothing is said."""
    assert start_conditions(REDIS, Durability.FSYNCED) == disk_conditions(REDIS) == []
