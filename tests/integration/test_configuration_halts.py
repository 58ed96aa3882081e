"""What is the database's fault and not a value's halts its partition, sets nothing aside, and goes on once mended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from refusing import World, accounts, events, orders, until
from running import flushing
from writebehind.engine import WriteBehind
from writebehind.flushers import FlusherSettings, status

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, halt_retry_seconds=0.1, foreign_key_seconds=0)
KEYS = range(1, 150)  # as many as go by COPY where they are not tried apart

AWAY, BACK = "ALTER TABLE accounts RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO accounts"
ANEW = "CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner {0}, balance INT, limited INT, name TEXT{1}) STRICT"
CHANGES = {
    ("missing table", ""): ([AWAY], [BACK]),
    ("missing column", ""): (
        ["ALTER TABLE accounts RENAME COLUMN owner TO keeper"],
        ["ALTER TABLE accounts RENAME COLUMN keeper TO owner"],
    ),
    ("other type", "sqlite"): ([AWAY, ANEW.format("INT", "")], ["DROP TABLE accounts", BACK]),
    ("other type", "postgresql"): (
        ["ALTER TABLE accounts ALTER COLUMN owner TYPE integer USING length(owner)"],
        ["ALTER TABLE accounts ALTER COLUMN owner TYPE varchar(20)"],
    ),
    ("other type", "mariadb"): (
        ["ALTER TABLE accounts CHANGE owner parked varchar(20), ADD owner integer"],
        ["ALTER TABLE accounts DROP owner, CHANGE parked owner varchar(20)"],
    ),
    ("required column", "sqlite"): (
        [AWAY, ANEW.format("TEXT", ", branch INT NOT NULL")],
        ["DROP TABLE accounts", BACK],
    ),
    ("required column", ""): (
        [
            "ALTER TABLE accounts ADD branch integer NOT NULL DEFAULT 0",
            "ALTER TABLE accounts ALTER branch DROP DEFAULT",
        ],
        ["ALTER TABLE accounts DROP branch"],
    ),
}
SAID = {"missing table": "accounts", "missing column": "owner", "other type": "owner", "required column": "branch"}


@pytest.fixture
def world(redis_url: str, database_url: str, namespace: str) -> Iterator[World]:
    """An engine with four partitions on each database."""
    found = World(redis_url, database_url, namespace, 4)
    with found.app:
        yield found


def execute(world: World, statements: Sequence[str]) -> None:
    """Do what a migration does."""
    with world.app.database.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.mark.parametrize("kind", SAID)
def test_a_migration_that_is_not_through(world: World, kind: str) -> None:
    """Every partition with a write of the table halts and says why; what has none flows; nothing is set aside."""
    dialect = world.app.database.dialect.name.replace("mysql", "mariadb")
    change, mend = CHANGES.get((kind, dialect)) or CHANGES[kind, ""]
    world.drain()
    execute(world, change)
    with flushing(world.app, QUICK):
        for key in KEYS:
            world.put(key)
        until(lambda: len(status(world.app).halted) == 4)
        halted = status(world.app).halted
        assert all(SAID[kind] in str(each.halted) for each in halted), halted
        assert (world.letters(), world.told) == ([], [])
        execute(world, mend)
        until(lambda: status(world.app).backlog == 0)
    assert world.balances() == {key: key for key in KEYS}
    assert {row.owner for row in world.rows().values()} == {"Ada"}
    last = world.drain()
    assert (world.letters(), last.halted) == ([], [])


def test_other_partitions_flow(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """A table that is missing holds up the partitions with its writes, and no others."""
    world = World(redis_url, sqlite_url, namespace, 4)
    with world.app:
        world.drain()
        execute(world, [AWAY])
        with flushing(world.app, QUICK):
            world.put(2)
            until(lambda: len(status(world.app).halted) == 1)
            for _ in range(40):
                world.app.insert(events, {"kind": "good"})
            # About a quarter of them comes behind the entry that halts its partition.
            until(lambda: 10 <= len(world.rows(events)) == 41 - status(world.app).backlog)
            assert len(status(world.app).halted) == 1
            execute(world, [BACK])
            until(lambda: status(world.app).backlog == 0)
        assert (len(world.rows(events)), world.balances()) == (40, {1: 1, 2: 2})


@contextmanager
def user(admin: sa.Engine, name: str) -> Iterator[str]:
    """Make a user who may write all tables but accounts, which it may read; yield it as GRANT names it."""
    postgresql = admin.dialect.name == "postgresql"
    quoted = name if postgresql else f"{name}@'%%'"
    password = "WITH LOGIN PASSWORD" if postgresql else "IDENTIFIED BY"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE USER {quoted} {password} 'secret'")
        try:
            for table in sa.inspect(connection).get_table_names():
                rights = "SELECT" if table == "accounts" else "SELECT, INSERT, UPDATE, DELETE"
                connection.exec_driver_sql(f"GRANT {rights} ON {table} TO {quoted}")
            yield quoted
        finally:
            if postgresql:
                connection.exec_driver_sql(f"DROP OWNED BY {quoted}")
            connection.exec_driver_sql(f"DROP USER {quoted}")


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_a_permission_that_is_missing(
    request: pytest.FixtureRequest, redis_url: str, namespace: str, server: str
) -> None:
    """A flusher that may not write a table halts at its first entry, and goes on once it may."""
    url = sa.make_url(request.getfixturevalue(f"{server}_url"))
    world = World(redis_url, url.render_as_string(hide_password=False), namespace, 1)
    admin = world.app.database.execution_options(isolation_level="AUTOCOMMIT")
    with world.app, user(admin, namespace) as restricted:
        database = url.set(username=namespace, password="secret").render_as_string(hide_password=False)
        app = WriteBehind(
            redis=redis_url, database=database, tables=[accounts, orders, events], namespace=namespace, partitions=1
        )
        with app, flushing(app, QUICK):
            for key in KEYS:
                world.put(key)
            until(lambda: status(world.app).halted != [])
            (halted,) = status(world.app).halted
            assert "denied" in str(halted.halted)
            assert "accounts" in str(halted.halted)
            assert (world.letters(), world.rows()) == ([], {})
            with admin.connect() as connection:
                connection.exec_driver_sql(f"GRANT INSERT, UPDATE, DELETE ON accounts TO {restricted}")
            until(lambda: status(world.app).backlog == 0)
        assert world.balances() == {key: key for key in KEYS}
        assert (world.letters(), status(world.app).halted) == ([], [])
