"""From facts to findings: the whole diagnosis, and the part of it that forbids a start.

Invariants:

1. What is not known gives a finding of severity UNKNOWN, never OK.
2. A start is refused only by a fact, never by a hidden one; a hidden one is said.
"""

from collections.abc import Iterator

from writebehind.engine.core.database_rules import NAMESPACE_RULES, SQL_RULES, namespace_settings
from writebehind.engine.core.disk_rules import (
    DISK_RULES,
    LEVEL_RULES,
    append_only_file,
    fsync_on_rewrite,
    fsync_policy,
    on_disk,
    script_replay,
)
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.facts import Facts, RedisFacts
from writebehind.engine.core.finding import Finding, Severity
from writebehind.engine.core.redis_rules import REDIS_RULES, eviction_policy, redis_role, redis_version, replicas

__all__ = ["diagnose", "disk_conditions", "start_conditions"]


def diagnose(facts: Facts) -> list[Finding]:
    """Return everything that was looked at, the gravest first."""
    found = [*_redis(facts), *_sql(facts)]
    return sorted(found, key=lambda finding: -finding.severity)


def start_conditions(redis: RedisFacts, level: Durability) -> list[Finding]:
    """Return what an engine finds at start: it refuses a FAILURE and says what else is not as it should be.

    Args:
        redis: what is known of the server.
        level: the engine's durability level. What those levels need that rest on the disk, ``disk_conditions`` says.
    """
    findings: list[Finding | None] = [redis_version(redis), redis_role(redis), eviction_policy(redis)]
    replay = script_replay(redis)
    if replay is not None and not on_disk(level):
        severity = min(replay.severity, Severity.WARNING)
        replay = Finding(replay.code, severity, replay.what, replay.means, replay.remedy)
        findings.append(replay)
    return [finding for finding in findings if finding is not None and finding.severity > Severity.NOTE]


def disk_conditions(redis: RedisFacts) -> list[Finding]:
    """Return what forbids, or may forbid, levels that rest on Redis's disk; as ``start_conditions``.

    A rewrite that pauses fsync is no lie where WAITAOF confirms: it waits for longer then.
    """
    findings = [append_only_file(redis, rests=True), fsync_policy(redis, rests=True), script_replay(redis)]
    if redis.appendfsync == "always":
        findings.append(fsync_on_rewrite(redis))
    return [finding for finding in findings if finding is not None and finding.severity > Severity.NOTE]


def _redis(facts: Facts) -> Iterator[Finding]:
    redis = facts.redis
    if redis is None:
        yield Finding(
            "redis", Severity.FAILURE, f"Redis cannot be asked: {facts.redis_error}",
            "Nothing can be accepted, and nothing flushed; what was accepted is as safe as its level says.",
            "start it, or correct the URL",
        )  # fmt: skip
        return
    for rule in REDIS_RULES:
        yield from _some(rule(redis))
    yield replicas(redis, facts.replicas_wanted if facts.level is Durability.REPLICATED else 0)
    for levelled in LEVEL_RULES:
        yield from _some(levelled(redis, rests=on_disk(facts.level)))
    for rule in DISK_RULES:
        yield from _some(rule(redis))


def _sql(facts: Facts) -> Iterator[Finding]:
    if facts.sql is None:
        yield Finding(
            "sql", Severity.FAILURE, f"The database cannot be asked: {facts.sql_error}",
            "Accepted writes stay in Redis, and the backlog grows; writing goes on.", "start it, or correct the URL",
        )  # fmt: skip
        return
    for sql_rule in SQL_RULES:
        yield from _some(sql_rule(facts.sql))
    for rule in NAMESPACE_RULES:
        yield from _some(rule(facts.namespace))
    if facts.redis is not None:
        yield namespace_settings(facts.namespace, facts.redis.partitions)


def _some(finding: Finding | None) -> Iterator[Finding]:
    if finding is not None:
        yield finding
