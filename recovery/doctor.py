"""The doctor: what is wrong with the servers, and what each fault would cost right now.

Asks Redis and SQL for facts, watches the logs grow for about a second, and lets pure rules judge: ``core.diagnosis``
what they mean, ``core.prediction`` what a fault would take. Nothing is written but a scratch key that expires within a
minute (to see whether WAITAOF waits). Takes a second; three or four where fsync is everysec.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis

from writebehind.engine import Durability, WriteBehind
from writebehind.engine.adapters.database_facts import sql_facts
from writebehind.engine.adapters.facts import redis_facts
from writebehind.engine.adapters.fsync import waitaof_waits
from writebehind.engine.adapters.links import Link
from writebehind.engine.adapters.log import Log
from writebehind.engine.adapters.namespace_facts import (
    Applied,
    ask_sql,
    lag,
    partitions_in_redis,
    unknown,
    waiting,
    written,
)
from writebehind.engine.adapters.permissions import denied_to_self
from writebehind.engine.core.diagnosis import diagnose
from writebehind.engine.core.facts import Facts, NamespaceFacts, RedisFacts
from writebehind.engine.core.finding import Finding, Severity, worst
from writebehind.engine.core.prediction import Fault, Prediction, predict
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable, RedisUnavailable

__all__ = ["Diagnosis", "doctor"]

MEASURE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        namespace: whose servers these are.
        facts: what it rests on.
        findings: everything that was looked at, the gravest first.
        predictions: what each fault would cost, of accepted writes and of those at the engine's own level.
    """

    namespace: str
    facts: Facts
    findings: Sequence[Finding]
    predictions: Sequence[Prediction]

    @property
    def severity(self) -> Severity:
        """The gravest severity of all findings."""
        return worst(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; what is not known as None."""
        servers, state = self.facts, self.facts.namespace
        return {
            "namespace": self.namespace,
            "level": servers.level.name,
            "severity": self.severity.name.lower(),
            "redis": _redis_named(servers.redis),
            "database": None
            if servers.sql is None
            else {
                "address": servers.sql.address,
                "dialect": servers.sql.dialect,
                "version": servers.sql.version,
            },
            "backlog_entries": state.backlog_entries,
            "lag_seconds": state.lag_seconds,
            "entries_per_second": state.entries_per_second,
            "findings": [
                {
                    "code": finding.code,
                    "severity": finding.severity.name.lower(),
                    "what": finding.what,
                    "means": finding.means,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
            "predictions": [
                {
                    "fault": prediction.fault.value,
                    "level": prediction.level.name,
                    "loss": prediction.extent.value,
                    "seconds": prediction.seconds,
                    "entries": prediction.entries,
                    "why": prediction.why,
                }
                for prediction in self.predictions
            ],
        }


def _redis_named(facts: RedisFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    version = None if facts.version is None else ".".join(map(str, facts.version))
    return {"address": facts.address, "product": facts.product, "version": version, "hidden": sorted(facts.hidden)}


def doctor(app: WriteBehind, *, retention_seconds: float | None = None) -> Diagnosis:
    """Examine the servers of an engine and the state of its namespace.

    A server that is away or hides something is a finding, not an error.

    Args:
        app: the engine; it need not be started.
        retention_seconds: how long its flushers keep flushed entries in the log, which only they know.

    Durability, Crash: nothing but a scratch key is written. Repeat: harmless.
    """
    facts = Facts(
        level=app.durability,
        replicas_wanted=app.settings.replicas,
        namespace=NamespaceFacts(partitions_wanted=app.keys.partitions),
    )
    try:
        facts = replace(facts, sql=sql_facts(app.database, app.tables))
    except DatabaseUnavailable as error:
        facts = replace(facts, sql_error=error.message)
    try:
        with app.links.unidentified() as link:
            facts = replace(facts, redis=_examine(link, app))
    except RedisUnavailable as error:
        facts = replace(facts, redis_error=error.message)
    facts = replace(facts, namespace=replace(_watch(app, facts), retention_seconds=retention_seconds))
    levels = sorted({Durability.ACCEPTED, app.durability})
    return Diagnosis(
        namespace=app.keys.namespace,
        facts=facts,
        findings=diagnose(facts),
        predictions=[predict(facts, fault, level) for level in levels for fault in Fault],
    )


def _examine(link: Link, app: WriteBehind) -> RedisFacts:
    scratch = app.keys.stems[0] + "fsync-test"
    facts = redis_facts(link, scratch)
    facts = replace(
        facts,
        partitions=partitions_in_redis(link, app.keys),
        waitaof_waits=_try_waitaof(link, facts, scratch),
    )
    # Last: where it cannot end its probe, it closes the link.
    return replace(facts, denied=denied_to_self(link, scratch, app.keys.cache_channel("doctor")))


def _try_waitaof(link: Link, facts: RedisFacts, scratch: str) -> bool | None:
    """Tell whether WAITAOF waits for the fsync; None where it matters not, or cannot be tried."""
    if facts.appendonly is False or facts.appendfsync in {"always", "no"} or facts.role == "slave":
        return None
    (answer,) = link.pipeline([("WAITAOF", 0, 0, 0)])
    if isinstance(answer, Exception):
        # Denied, which says nothing; or there is no such command.
        return None if isinstance(answer, redis.exceptions.NoPermissionError) else False
    try:
        waits = waitaof_waits(link, scratch)
    except redis.ResponseError:
        return None
    # Where the policy is hidden it may be always, under which there is nothing to wait for.
    return None if facts.appendfsync is None and not waits else waits


def _watch(app: WriteBehind, facts: Facts) -> NamespaceFacts:
    """Look at SQL and the logs twice, about a second apart."""

    def in_sql() -> Applied:
        return unknown(app.keys) if facts.sql is None else ask_sql(app.database, app.keys)

    first = in_sql()
    if facts.redis is None:
        return first.facts
    log = Log(app.links, app.keys, "doctor")
    every = range(app.keys.partitions)
    try:
        begun = time.monotonic()
        before = log.states(every)
        time.sleep(MEASURE_SECONDS)
        second = in_sql()
        after = log.states(every)
        seconds = time.monotonic() - begun
        oldest = lag(second, after, log)
    except (RedisUnavailable, ConfigurationError):
        # Redis hides its identity, or is gone meanwhile: the findings on it say so.
        return first.facts
    backlogs = [entries for entries in (waiting(first, before), waiting(second, after)) if entries is not None]
    return replace(
        second.facts,
        backlog_entries=max(backlogs, default=None),
        lag_seconds=None if oldest is None else round(oldest, 3),
        entries_per_second=round(written(before, after) / seconds, 1),
    )
