"""The database goes back in time: a restored snapshot, or a standby that lagged when it was promoted."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.engine import Durability, WriteBehind
from writebehind.engine.adapters.control_tables import control
from writebehind.flushers import FlusherSettings, Status, drain, initialise, status
from writebehind.recovery import from_cache

DEADLINE_SECONDS = 15.0
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
TRIMMING = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2, retention_seconds=0)

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def app(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> Iterator[WriteBehind]:
    """An initialised engine of two partitions."""
    database = request.getfixturevalue(f"{request.param}_url")
    with WriteBehind(
        redis=redis_url, database=database, tables=[accounts, events], namespace=namespace, partitions=2
    ) as made:
        initialise(made, create_tables=True)
        yield made


Snapshot = dict[sa.Table, list[dict[str, Any]]]


def snapshot(app: WriteBehind) -> Snapshot:
    """Copy everything that is committed."""
    with app.database.connect() as connection:
        tables = [*control.sorted_tables, *metadata.sorted_tables]
        return {table: [dict(row) for row in connection.execute(sa.select(table)).mappings()] for table in tables}


def restore(app: WriteBehind, then: Snapshot) -> None:
    """Put everything back as it was, as a promoted standby has it: at once, and with the clock going on."""
    with app.database.begin() as connection:
        for table, rows in then.items():
            connection.execute(sa.delete(table))
            if rows:
                connection.execute(sa.insert(table), rows)


def write(app: WriteBehind, first: int, last: int) -> None:
    """Write what shows when it is applied twice or never."""
    if first == 0:
        app.put(accounts, {"id": 1, "balance": 0})
    for number in range(first, last):
        app.increment(accounts, 1, {"balance": 1})
        app.put(accounts, {"id": 100 + number, "balance": number})
        app.insert(events, {"kind": str(number)})


def stored(app: WriteBehind) -> tuple[dict[int, int], list[int]]:
    """What SQL has."""
    with app.database.connect() as connection:
        balances = {row.id: row.balance for row in connection.execute(sa.select(accounts))}
        return balances, sorted(int(kind) for kind in connection.execute(sa.select(events.c.kind)).scalars())


def expected(numbers: int) -> tuple[dict[int, int], list[int]]:
    """What SQL should have after so many writes."""
    return {1: numbers} | {100 + number: number for number in range(numbers)}, list(range(numbers))


def flush(app: WriteBehind, settings: FlusherSettings = SETTINGS) -> Status:
    """Flush everything."""
    last = drain(app, DEADLINE_SECONDS, settings)
    assert (last.backlog, last.halted) == (0, [])
    return last


@pytest.mark.parametrize("served", [False, True], ids=["flushed later", "flusher running"])
def test_what_the_log_retains_is_applied_again(
    app: WriteBehind, caplog: pytest.LogCaptureFixture, *, served: bool
) -> None:
    """Everything after the snapshot comes back from the log, exactly, without another write."""
    write(app, 0, 4)
    with flushing(app, SETTINGS) if served else contextlib.nullcontext():
        if not served:
            flush(app)
        app.increment(accounts, 1, {"balance": 0}).wait(Durability.PERSISTED if served else Durability.ACCEPTED)
        wait_for(app, expected(4))
        then = snapshot(app)
        write(app, 4, 10)
        if not served:
            flush(app)
        wait_for(app, expected(10))
        restore(app, then)
        assert stored(app) == expected(4)
        if not served:
            assert flush(app).lost_entries == 0
        wait_for(app, expected(10))
        if served:
            assert "SQL was rolled back" in caplog.text
    assert status(app).lost_entries == 0
    write(app, 10, 12)
    flush(app)
    assert stored(app) == expected(12)


def wait_for(app: WriteBehind, state: tuple[dict[int, int], list[int]]) -> None:
    """Wait until SQL has this."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while stored(app) != state and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stored(app) == state


def test_what_was_trimmed_is_counted_and_repaired_from_the_cache(
    app: WriteBehind, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the retention the gap is exact, in status too, and what is whole in Redis is written again."""
    write(app, 0, 4)
    flush(app, TRIMMING)
    then = snapshot(app)
    write(app, 4, 10)
    flush(app, TRIMMING)
    with redis.Redis.from_url(redis_url) as plain:
        client: Any = plain
        for log in app.keys.logs:
            client.xtrim(log, maxlen=0)
    assert stored(app) == expected(10)
    restore(app, then)
    caplog.set_level(logging.ERROR)
    repaired = from_cache(app)
    assert repaired.rewritten >= 6
    found = flush(app)
    assert found.lost_entries == 18
    assert sum(loss.entries for loss in found.losses) == 18
    assert "DATA LOSS" in caplog.text
    balances, kinds = stored(app)
    assert balances == expected(10)[0]
    assert kinds == [0, 1, 2, 3]
