"""One trial: an engine with a fresh namespace and a fresh table, and their removal afterwards."""

import itertools
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import redis
import sqlalchemy as sa

from writebehind.bench.workload import account_table, keys_of, record
from writebehind.engine import EngineSettings, WriteBehind
from writebehind.engine.adapters.control_tables import control
from writebehind.flushers.initialisation import initialise

__all__ = ["Plan", "Trial", "trial"]

BATCH_WRITES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure with.

    Attributes:
        redis: URL.
        database: SQLAlchemy URL of a PostgreSQL, for psycopg.
        entries: log entries of one drain.
        rounds: how often each comparison is made; medians are reported.
        seed: of the streams of keys.
        seconds: how long to keep up a load.
    """

    redis: str
    database: str
    entries: int
    rounds: int
    seed: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """An engine to measure, started, with its one table."""

    engine: WriteBehind
    table: sa.Table
    plan: Plan

    def fill(self, distribution: str, entries: int) -> int:
        """Write entries; return how many keys they have."""
        seen: set[int] = set()
        numbered = enumerate(keys_of(distribution, entries, self.plan.seed))
        while some := list(itertools.islice(numbered, BATCH_WRITES)):
            with self.engine.batch() as batch:
                for number, key in some:
                    batch.put(self.table, record(key, number))
            seen.update(key for _, key in some)
        return len(seen)

    def rows(self) -> int:
        """Count the rows in SQL."""
        with self.engine.database.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(self.table)).scalar_one())

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that does something with this namespace in a process of its own."""
        return [
            *(sys.executable, "-m", "writebehind.flushers.cli"),
            *("--redis", self.plan.redis, "--database", self.plan.database),
            *("--table", self.table.name, "--namespace", self.engine.keys.namespace),
            *("--partitions", str(self.engine.keys.partitions)),
            *arguments,
        ]

    @contextmanager
    def process(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command beside the block, and end it with the block."""
        with subprocess.Popen(
            self.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()


@contextmanager
def trial(plan: Plan, *more: sa.schema.SchemaItem, settings: EngineSettings | None = None) -> Iterator[Trial]:
    """Make a namespace and a table for the block.

    Args:
        plan: what with.
        more: columns and constraints beyond the usual ones.
        settings: of the engine, where not the usual ones.

    Repeat: each has a name of its own. Crash: namespace ``bench-...`` and table ``bench_...`` stay behind.
    """
    name = secrets.token_hex(4)
    table = account_table(f"bench_{name}", *more)
    engine = WriteBehind(
        redis=plan.redis, database=plan.database, tables=[table], namespace=f"bench-{name}", settings=settings
    )
    try:
        initialise(engine, create_tables=True)
        engine.start()
        yield Trial(engine=engine, table=table, plan=plan)
    finally:
        engine.close()  # first: a living engine would write again what is removed here
        _remove(engine, table)


def _remove(engine: WriteBehind, table: sa.Table) -> None:
    namespace = engine.keys.namespace
    with engine.database.begin() as connection:
        table.drop(connection, checkfirst=True)
        for own in reversed(control.sorted_tables):
            if sa.inspect(connection).has_table(own.name):
                connection.execute(sa.delete(own).where(own.c.namespace == namespace))
    engine.database.dispose()
    with redis.Redis.from_url(str(engine.redis_target)) as client:
        names = client.scan_iter(f"wb:{{{namespace}*", count=BATCH_WRITES)
        while some := _some(names):
            client.delete(*some)


def _some(names: Iterator[bytes]) -> Sequence[bytes]:
    return list(itertools.islice(names, BATCH_WRITES))
