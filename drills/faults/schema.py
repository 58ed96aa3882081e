"""Faults of the schema: a column that is gone for a while, as in a migration that is not through."""

import contextlib
import time
from collections.abc import Iterator

import sqlalchemy as sa

from writebehind.drills.checkers import Halt
from writebehind.drills.fault import Fault
from writebehind.drills.looks import look_at
from writebehind.drills.stage import Stage
from writebehind.drills.tables import counters, records, sets
from writebehind.flushers import status

__all__ = ["DRIFTED"]

AWAY_SECONDS = 2.0
HALT_SECONDS_MAX = 20.0
POLL_SECONDS = 0.05
COLUMNS = (sets.c.op, counters.c.n, records.c.version)
"""Each is written by the service all the time, on every partition."""
AWAY = "elsewhere"


def drifted(stage: Stage) -> None:
    """Rename a column, until every partition has halted for want of it; then give it its name back."""
    column = COLUMNS[(stage.plan.seed + len(stage.incidents)) % len(COLUMNS)]  # all in turn, whatever the seed
    stage.hit(f"{column} is renamed")
    begun = time.monotonic()
    with _away(stage, column):
        stage.halts += _await_halts(stage, column)
        stage.load(AWAY_SECONDS - (time.monotonic() - begun))
        stage.looks.append(look_at(stage.app, f"while {column} was away", stage.stories))
    stage.hit(f"{column} is back")


@contextlib.contextmanager
def _away(stage: Stage, column: sa.Column[int]) -> Iterator[None]:
    """Rename a column inside the block."""
    table, database = column.table.name, stage.app.database
    with database.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN {column.name} TO {AWAY}")
    try:
        yield
    finally:
        with database.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME COLUMN {AWAY} TO {column.name}")


def _await_halts(stage: Stage, column: sa.Column[int]) -> list[Halt]:
    """Wait until every partition has halted; return what they say, at the deadline also of one that goes on."""
    deadline = time.monotonic() + HALT_SECONDS_MAX
    while True:
        found = status(stage.app)
        if len(found.halted) == len(found.partitions) or time.monotonic() > deadline:
            return [Halt(row.partition, column.name, row.halted) for row in found.partitions]
        time.sleep(POLL_SECONDS)


DRIFTED = Fault(
    name="schema-drift",
    summary="a column is renamed under the load for two seconds or more, then named as before",
    strike=drifted,
)
