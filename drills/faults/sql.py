"""Faults of the database: killed, cut off around COMMIT, rolled back, its rows locked by others."""

import contextlib
import time
from collections.abc import Iterator

import sqlalchemy as sa

from writebehind.drills.app import LEASE_TTL_SECONDS
from writebehind.drills.fault import Fault, Need
from writebehind.drills.lines import FLUSHERS
from writebehind.drills.proxy import Mishap
from writebehind.drills.stage import Stage
from writebehind.drills.tables import counters, sets
from writebehind.drills.workload import COUNTERS
from writebehind.engine.errors import ConfigurationError, TransientError

__all__ = ["COMMIT_CUT_AFTER", "COMMIT_CUT_BEFORE", "DEADLOCK", "KILLED", "LOCK_TIMEOUT", "ROLLED_BACK"]

DOWN_SECONDS = (0.1, 0.6)
COMMIT = {"postgresql": b"Q\0\0\0\x0bCOMMIT\0", "mariadb": b"\x07\0\0\0\x03COMMIT"}
COMMITS_CUT = 4
SAVED_SECONDS = 1.0
DEADLOCKS = 3
LOCKED_SECONDS = 2.5 * LEASE_TTL_SECONDS
"""A little longer than a flusher waits for a lock."""
BALLAST_ROWS = 300
WAIT_SECONDS_MAX = 10.0
POLL_SECONDS = 0.02
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mariadb": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}
INNODB_STATUS_SECONDS = 0.12
"""InnoDB looks anew only when nobody has asked for a tenth of a second."""


def killed(stage: Stage) -> None:
    """SIGKILL the SQL server and start it again."""
    stage.hit(f"SIGKILL {stage.sql.kind}")
    stage.sql.kill()
    stage.load(stage.chance.uniform(*DOWN_SECONDS))
    stage.sql.start()


def _commits_cut(stage: Stage, mishap: Mishap) -> None:
    if stage.sql_lines is None:
        raise ConfigurationError("this drill has no proxies", "it is a mistake in the drill itself")
    stage.hit(mishap.value)
    for number in range(COMMITS_CUT):
        line = stage.sql_lines[FLUSHERS[number % len(FLUSHERS)]]
        before = line.suffered(mishap)
        line.inject(mishap, COMMIT[stage.sql.kind], skip=stage.chance.randrange(3))
        line.wait_for(mishap, before + 1)


def commit_cut_before(stage: Stage) -> None:
    """Break a flusher's connection when it sends COMMIT, before the server has it."""
    _commits_cut(stage, Mishap.CUT_BEFORE)


def commit_cut_after(stage: Stage) -> None:
    """Break a flusher's connection when the server has committed, before the flusher hears it."""
    _commits_cut(stage, Mishap.CUT_AFTER)


def rolled_back(stage: Stage) -> None:
    """Put a copy of the database back that is a while old, as after a restore or the promotion of a late standby."""
    stage.sql.save()
    stage.recover()
    stage.incidents[-1].recovered = None
    stage.load(SAVED_SECONDS)
    stage.hit("the database is as it was a while ago")
    stage.sql.restore()


def deadlock(stage: Stage) -> None:
    """Let another session lock rows in the wrong order, several times."""
    stage.hit("another session deadlocks with the flushers")
    for _ in range(DEADLOCKS):
        with _other_session(stage) as other:
            # More work than a flusher has done, so that InnoDB would rather roll back the flusher.
            other.execute(sa.insert(sets), [{"op": -1}] * BALLAST_ROWS)
            _lock(other, range(COUNTERS // 2, COUNTERS))
            _await_waiting(stage)
            with contextlib.suppress(sa.exc.DBAPIError):
                _lock(other, range(COUNTERS // 2))


def lock_timeout(stage: Stage) -> None:
    """Let another session keep rows locked for longer than a flusher waits."""
    with _other_session(stage) as other:
        stage.hit("another session locks the counters")
        _lock(other, range(COUNTERS))
        stage.load(LOCKED_SECONDS)
    stage.hit("the lock is gone")


@contextlib.contextmanager
def _other_session(stage: Stage) -> Iterator[sa.Connection]:
    """Open a session of somebody else's; it is rolled back in the end."""
    with stage.app.database.connect() as other:
        try:
            yield other
        finally:
            with contextlib.suppress(sa.exc.DBAPIError):
                other.rollback()


def _lock(session: sa.Connection, numbers: range) -> None:
    session.execute(sa.update(counters).where(counters.c.id.in_(numbers)).values(n=counters.c.n))


def _await_waiting(stage: Stage) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    with stage.app.database.connect() as watching:
        while True:
            time.sleep(INNODB_STATUS_SECONDS if stage.sql.kind == "mariadb" else POLL_SECONDS)
            if watching.exec_driver_sql(WAITING[stage.sql.kind]).scalar_one():
                return
            watching.rollback()
            if time.monotonic() > deadline:
                raise TransientError("no flusher waits for the lock", "look at the flushers' logs")


SERVERS = ("postgresql", "mariadb")
KILLED = Fault(
    name="sql-sigkill",
    summary="the SQL server is killed (SIGKILL) and started again",
    strike=killed,
    needs=frozenset({Need.OWN_SQL}),
    sql=SERVERS,
)
COMMIT_CUT_BEFORE = Fault(
    name="commit-cut-before",
    summary="connections break when COMMIT is sent, before the server has it",
    strike=commit_cut_before,
    needs=frozenset({Need.SQL_LINE, Need.OWN_SQL}),
    sql=SERVERS,
)
COMMIT_CUT_AFTER = Fault(
    name="commit-cut-after",
    summary="connections break when the server has committed, before the flusher hears it",
    strike=commit_cut_after,
    needs=frozenset({Need.SQL_LINE, Need.OWN_SQL}),
    sql=SERVERS,
)
ROLLED_BACK = Fault(
    name="sql-rolled-back",
    summary="the database is put back to what it was a while ago (a restore, a late standby)",
    strike=rolled_back,
    needs=frozenset({Need.OWN_SQL}),
)
DEADLOCK = Fault(name="deadlock", summary="another session locks rows in the wrong order", strike=deadlock, sql=SERVERS)
LOCK_TIMEOUT = Fault(
    name="lock-timeout",
    summary="another session keeps rows locked for longer than a flusher waits",
    strike=lock_timeout,
    sql=SERVERS,
)
