"""The drills by name, and how each becomes a plan."""

import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from writebehind.drills.fault import Fault, Need
from writebehind.drills.faults import flushers, network, redis, replicas, rows, schema, service, sql
from writebehind.drills.plan import Plan
from writebehind.drills.sql_servers import SQL_KINDS, can_have
from writebehind.engine import Durability
from writebehind.engine.errors import ConfigurationError

__all__ = ["DRILLS", "Drill", "Options", "objection", "plan_of"]

STRIKES, LOAD_SECONDS = 3, 2.0
SHORT_STRIKES, SHORT_LOAD_SECONDS, SHORT_STEPS = 1, 0.5, 3

EXACT = "nothing acknowledged is lost, nothing is doubled, order is kept"
ASIDE = f"{EXACT}; exactly what SQL refuses is set aside, with what waits behind it, and all else goes on"
HALTED = f"{EXACT}; partitions halt and say why, nothing is set aside, and all go on by themselves"
RETAINED = "nothing is lost while the service lives: it writes again what Redis has lost; nothing is doubled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drill:
    """A rehearsal.

    Attributes:
        name: short, unique.
        faults: what happens, one after the other, each round.
        promise: what must hold.
        appendfsync: Redis's fsync policy.
        level: durability level of the writes.
        sql: databases on which it makes sense, the usual one first.
        steps: whether a short drill takes only some of the faults.
    """

    name: str
    faults: Sequence[Fault]
    promise: str = EXACT
    appendfsync: str = "everysec"
    level: Durability = Durability.ACCEPTED
    sql: tuple[str, ...] = SQL_KINDS
    steps: bool = False

    @property
    def summary(self) -> str:
        """What happens, in one line."""
        return "a flusher is killed before and after each step of a flush" if self.steps else self.faults[0].summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the user has a say in.

    Attributes:
        short: one strike and little load, for CI.
        seed: decides about moments and victims.
        rate: operations a second that the service tries.
        redis_kind, sql_kind: makes of the drill's own servers; the usual ones where None.
        redis_url, database_url: the user's own servers.
        namespace: to use there.
        reckless: namespaces that are not scratch, and tables with rows, are no objection.
    """

    short: bool = False
    seed: int = 1
    rate: float = 1_500.0
    redis_kind: str | None = None
    sql_kind: str | None = None
    redis_url: str | None = None
    database_url: str | None = None
    namespace: str | None = None
    reckless: bool = False


def _drills() -> list[Drill]:
    always, fsynced = "always", Durability.FSYNCED
    postgresql = ("postgresql", "mariadb", "sqlite")
    sqlite = ("sqlite", "postgresql", "mariadb")
    servers = ("postgresql", "mariadb")
    return [
        Drill(name="flusher-sigkill", faults=[flushers.KILLED], sql=postgresql),
        Drill(name="flusher-sigkill-steps", faults=flushers.KILLED_AT_EACH_STEP, sql=postgresql, steps=True),
        Drill(name="recovery-sigkill", faults=[flushers.KILLED_IN_RECOVERY], sql=postgresql),
        Drill(name="zombie", faults=[flushers.ZOMBIE], sql=postgresql),
        Drill(name="zombie-in-transaction", faults=[flushers.ZOMBIE_IN_TRANSACTION], sql=servers),
        Drill(name="service-sigkill", faults=[service.KILLED], sql=sqlite),
        Drill(name="redis-sigkill-always", faults=[redis.KILLED], appendfsync=always, level=fsynced, sql=sqlite),
        Drill(name="redis-sigkill-everysec", faults=[redis.KILLED], sql=sqlite),
        Drill(name="redis-sigkill-no", faults=[redis.KILLED], appendfsync="no", sql=sqlite),
        Drill(name="redis-power-loss-always", faults=[redis.POWER_LOSS], appendfsync=always, level=fsynced, sql=sqlite),
        Drill(name="redis-power-loss-everysec", faults=[redis.POWER_LOSS], promise=RETAINED, sql=sqlite),
        Drill(name="redis-power-loss-no", faults=[redis.POWER_LOSS], promise=RETAINED, appendfsync="no", sql=sqlite),
        Drill(
            name="redis-and-service-power-loss-always",
            faults=[redis.POWER_LOSS_WITH_SERVICE],
            appendfsync=always,
            level=fsynced,
            sql=sqlite,
        ),
        Drill(
            name="redis-and-service-power-loss-everysec",
            faults=[redis.POWER_LOSS_WITH_SERVICE],
            promise="no more is lost than is predicted for these settings; nothing is doubled",
            sql=sqlite,
        ),
        Drill(name="failover", faults=[replicas.FAILOVER], promise=RETAINED, sql=postgresql),
        Drill(name="split-brain", faults=[replicas.SPLIT_BRAIN], promise=RETAINED, sql=postgresql),
        Drill(name="redis-full", faults=[redis.FULL], promise=f"{EXACT}; what is there is flushed", sql=sqlite),
        Drill(name="redis-disk-full-everysec", faults=[redis.DISK_FULL], sql=sqlite),
        Drill(name="redis-disk-full-always", faults=[redis.DISK_FULL], appendfsync=always, level=fsynced, sql=sqlite),
        Drill(name="script-flush", faults=[redis.SCRIPTS_GONE], sql=sqlite),
        Drill(name="flushall", faults=[redis.EMPTIED], promise=RETAINED, sql=sqlite),
        Drill(name="sql-sigkill-postgresql", faults=[sql.KILLED], sql=("postgresql",)),
        Drill(name="sql-sigkill-mariadb", faults=[sql.KILLED], sql=("mariadb",)),
        Drill(name="commit-cut-before", faults=[sql.COMMIT_CUT_BEFORE], sql=servers),
        Drill(name="commit-cut-after", faults=[sql.COMMIT_CUT_AFTER], sql=servers),
        Drill(name="sql-rolled-back-postgresql", faults=[sql.ROLLED_BACK], sql=("postgresql",)),
        Drill(name="sql-rolled-back-sqlite", faults=[sql.ROLLED_BACK], sql=("sqlite",)),
        Drill(name="deadlock", faults=[sql.DEADLOCK], sql=("mariadb", "postgresql")),
        Drill(name="lock-timeout", faults=[sql.LOCK_TIMEOUT], sql=servers),
        Drill(name="poison", faults=[rows.REFUSED], promise=ASIDE, sql=postgresql),
        Drill(name="schema-drift", faults=[schema.DRIFTED], promise=HALTED, sql=postgresql),
        Drill(name="redis-cut", faults=[network.REDIS_CUT], sql=sqlite),
        Drill(name="redis-slow", faults=[network.REDIS_SLOW], sql=sqlite),
        Drill(name="redis-half-open", faults=[network.REDIS_HALF_OPEN], sql=sqlite),
        Drill(name="sql-cut", faults=[network.SQL_CUT], sql=servers),
        Drill(name="sql-slow", faults=[network.SQL_SLOW], sql=servers),
        Drill(name="sql-half-open", faults=[network.SQL_HALF_OPEN], sql=servers),
    ]


DRILLS: Mapping[str, Drill] = {drill.name: drill for drill in _drills()}
"""All of them, in the order in which ``all`` plays them."""


def objection(drill: Drill, options: Options) -> str | None:
    """Tell why a drill cannot be played with these options; None where it can."""
    needs = frozenset[Need]().union(*(fault.needs for fault in drill.faults))
    if options.redis_url is not None:
        if Need.OWN_REDIS in needs or Need.REPLICA in needs:
            return Need.OWN_REDIS
        if Need.REDIS_LINE in needs and not options.redis_url.startswith("redis://"):
            return Need.REDIS_LINE
        if drill.appendfsync != "everysec":
            return f"needs a Redis with appendfsync {drill.appendfsync}: needs embedded servers"
    if options.database_url is not None and Need.OWN_SQL in needs:
        return Need.OWN_SQL
    kind = options.sql_kind or (None if options.database_url is None else _kind_of(options.database_url))
    if kind is not None and kind not in drill.sql:
        return f"makes no sense on {kind}, only on {', '.join(drill.sql)}"
    return None


def plan_of(drill: Drill, options: Options) -> Plan:
    """Make a plan.

    Raises:
        ConfigurationError: the options do not allow it, or no database server is to be had.
    """
    reason = objection(drill, options)
    if reason is not None:
        raise ConfigurationError(f"{drill.name} {reason}")
    if options.namespace is not None and not options.namespace.startswith("drill_") and not options.reckless:
        raise ConfigurationError(
            f"namespace {options.namespace} is not a scratch namespace", "leave it out, or add --i-know-what-i-do"
        )
    kind = options.sql_kind
    if kind is None and options.database_url is None:
        kind = next((each for each in drill.sql if can_have(each)), None)
        if kind is None:
            raise ConfigurationError(f"{drill.name} needs one of {', '.join(drill.sql)}", "install it")
    faults = list(drill.faults)
    if options.short and drill.steps:
        faults = random.Random(options.seed).sample(faults, SHORT_STEPS)  # noqa: S311 - a choice, not a secret
    return Plan(
        name=drill.name,
        summary=drill.summary,
        promise=drill.promise,
        faults=faults * (SHORT_STRIKES if options.short or drill.steps else STRIKES),
        seed=options.seed,
        replay=_replay(drill, options),
        redis_kind=options.redis_kind,
        sql_kind=kind or "sqlite",
        appendfsync=drill.appendfsync,
        level=drill.level,
        rate=options.rate,
        load_seconds=SHORT_LOAD_SECONDS if options.short else LOAD_SECONDS,
        redis_url=options.redis_url,
        database_url=options.database_url,
        namespace=options.namespace,
        replace=options.reckless,
    )


def _kind_of(url: str) -> str:
    return url.partition(":")[0].partition("+")[0].replace("mysql", "mariadb")


def _replay(drill: Drill, options: Options) -> str:
    """Return the command that plays the same again; URLs stay out of it, they may hold passwords."""
    words = ["writebehind", "drill", "run", drill.name, "--seed", str(options.seed)]
    words += ["--short"] if options.short else []
    words += ["--server", options.redis_kind] if options.redis_kind else []
    words += ["--sql", options.sql_kind] if options.sql_kind else []
    words += ["--redis", "URL"] if options.redis_url else []
    words += ["--database", "URL"] if options.database_url else []
    return shlex.join(words)
