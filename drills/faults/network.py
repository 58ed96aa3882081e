"""Faults on the way to the servers: connections cut, slow, and half open."""

from writebehind.drills.fault import Fault, Need
from writebehind.drills.lines import FLUSHERS, Lines
from writebehind.drills.stage import Stage
from writebehind.engine.errors import ConfigurationError

__all__ = ["REDIS_CUT", "REDIS_HALF_OPEN", "REDIS_SLOW", "SQL_CUT", "SQL_HALF_OPEN", "SQL_SLOW"]

CUT_SECONDS = (0.2, 1.0)
SLOW_SECONDS = 1.0
LATENCY_SECONDS = 0.04


def _redis(stage: Stage) -> Lines:
    if stage.redis_lines is None:
        raise ConfigurationError("this drill has no proxies", "it is a mistake in the drill itself")
    return stage.redis_lines


def _sql(stage: Stage) -> Lines:
    if stage.sql_lines is None:
        raise ConfigurationError("this drill has no proxies", "it is a mistake in the drill itself")
    return stage.sql_lines


def _cut(stage: Stage, lines: Lines) -> None:
    for line in lines:
        line.refuse()
    stage.load(stage.chance.uniform(*CUT_SECONDS))
    for line in lines:
        line.accept()


def _slow(stage: Stage, lines: Lines) -> None:
    for line in lines:
        line.latency_seconds = LATENCY_SECONDS
    stage.load(SLOW_SECONDS)
    for line in lines:
        line.latency_seconds = 0.0


def redis_cut(stage: Stage) -> None:
    """Break all connections to Redis, and refuse new ones for a while."""
    stage.hit("connections to Redis are cut")
    _cut(stage, _redis(stage))


def redis_slow(stage: Stage) -> None:
    """Delay everything on its way to and from Redis."""
    stage.hit(f"Redis answers {2 * LATENCY_SECONDS:g} s later")
    _slow(stage, _redis(stage))


def redis_half_open(stage: Stage) -> None:
    """Let the open connections to Redis carry nothing more; new ones do."""
    lines = _redis(stage)
    stage.hit("connections to Redis are half open")
    for line in lines:
        line.half_open()
    stage.recover()
    for line in lines:
        line.break_half_open()


def sql_cut(stage: Stage) -> None:
    """Break the flushers' connections to the database, and refuse new ones for a while."""
    stage.hit("connections to the database are cut")
    _cut(stage, _sql(stage))


def sql_slow(stage: Stage) -> None:
    """Delay everything on its way between flushers and database."""
    stage.hit(f"the database answers {2 * LATENCY_SECONDS:g} s later")
    _slow(stage, _sql(stage))


def sql_half_open(stage: Stage) -> None:
    """Let one flusher's connections to the database carry nothing more, until a firewall breaks them."""
    victim = _sql(stage)[stage.chance.choice(FLUSHERS)]
    stage.hit("one flusher's connections to the database are half open")
    victim.half_open()
    stage.recover()
    stage.hit("they break")
    victim.break_half_open()


REDIS = frozenset({Need.REDIS_LINE})
SQL = frozenset({Need.SQL_LINE})
SERVERS = ("postgresql", "mariadb")
REDIS_CUT = Fault(name="redis-cut", summary="all connections to Redis break", strike=redis_cut, needs=REDIS)
REDIS_SLOW = Fault(name="redis-slow", summary="the way to Redis is slow", strike=redis_slow, needs=REDIS)
REDIS_HALF_OPEN = Fault(
    name="redis-half-open",
    summary="connections to Redis stay open and carry nothing",
    strike=redis_half_open,
    needs=REDIS,
)
SQL_CUT = Fault(name="sql-cut", summary="all connections to the database break", strike=sql_cut, needs=SQL, sql=SERVERS)
SQL_SLOW = Fault(name="sql-slow", summary="the way to the database is slow", strike=sql_slow, needs=SQL, sql=SERVERS)
SQL_HALF_OPEN = Fault(
    name="sql-half-open",
    summary="one flusher's connections to the database stay open and carry nothing",
    strike=sql_half_open,
    needs=SQL,
    sql=SERVERS,
)
