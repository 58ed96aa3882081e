"""What is the database's fault and not a value's halts its partition, sets nothing aside, and goes on once mended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import pytest
import sqlalchemy as sa

from refusing import DEADLINE_SECONDS, World, accounts, events, orders, until
from running import flushing
from writebehind.engine import WriteBehind
from writebehind.flushers import FlusherSettings, drain, initialise, status
from writebehind.recovery import dead_letters

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


def test_a_text_that_is_a_uuid_now(redis_url: str, mariadb_url: str, namespace: str) -> None:
    """A migration to a type that takes texts of a form of its own sets nothing aside either."""
    world = World(redis_url, mariadb_url, namespace, 1)
    with world.app:
        world.drain()
        execute(world, ["ALTER TABLE accounts CHANGE owner parked varchar(20), ADD owner uuid"])
        with flushing(world.app, QUICK):
            world.put(1)
            until(lambda: len(status(world.app).halted) == 1)
            (halted,) = status(world.app).halted
            assert "column owner of table accounts is declared as text, and is UUID in SQL" in str(halted.halted)
            execute(world, ["ALTER TABLE accounts DROP owner, CHANGE parked owner varchar(20)"])
            until(lambda: status(world.app).backlog == 0)
        assert world.balances() == {1: 1}
        assert (world.letters(), world.told) == ([], [])


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


# What is a value's fault all the same: these cost their own key, and halt nothing.

NOT_NULL = {
    "sqlite": [AWAY, ANEW.format("TEXT NOT NULL", "")],
    "postgresql": ["ALTER TABLE accounts ALTER owner SET NOT NULL"],
    "mariadb": ["ALTER TABLE accounts MODIFY owner varchar(20) NOT NULL"],
}
AUDITED = {
    "sqlite": [
        "CREATE TABLE audit (id INTEGER PRIMARY KEY, who TEXT NOT NULL)",
        "CREATE TRIGGER auditing AFTER INSERT ON accounts BEGIN INSERT INTO audit (who) VALUES (NEW.owner); END",
    ],
    "postgresql": [
        "CREATE TABLE audit (id serial PRIMARY KEY, who text NOT NULL)",
        """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO audit (who) VALUES (NEW.owner); RETURN NEW; END $$""",
        "CREATE TRIGGER auditing AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION note()",
    ],
    "mariadb": [
        "CREATE TABLE audit (id integer AUTO_INCREMENT PRIMARY KEY, who varchar(20) NOT NULL)",
        "CREATE TRIGGER auditing AFTER INSERT ON accounts FOR EACH ROW INSERT INTO audit (who) VALUES (NEW.owner)",
    ],
}


@pytest.mark.parametrize("statements", [NOT_NULL, AUDITED], ids=["own column", "a trigger's table"])
def test_a_null_where_sql_wants_a_value(world: World, statements: dict[str, list[str]]) -> None:
    """A declared column, or one of a trigger's table; also in a group with a table that has no such column."""
    execute(world, statements[world.app.database.dialect.name.replace("mysql", "mariadb")])
    with world.app.atomic(accounts, 2) as group:
        group.put(accounts, {"id": 2, "owner": None})
        group.insert(events, {"kind": "good"})
    world.put(3, owner=None)
    world.put(4)
    world.drain()
    assert sorted(world.letters()) == [("2", "poison"), ("3", "poison")]
    assert world.balances() == {1: 1, 4: 4}


def test_a_column_that_is_another_one_is_not_to_blame(redis_url: str, mariadb_url: str, namespace: str) -> None:
    """One column takes numbers as texts; that another one refuses a moment is the moment's fault."""
    table = sa.Table(
        "moments",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("code", sa.Integer),
        sa.Column("at", sa.DateTime),
    )
    with WriteBehind(redis=redis_url, database=mariadb_url, tables=[table], namespace=namespace, partitions=1) as app:
        initialise(app, create_tables=True)
        with app.database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE moments MODIFY code varchar(10), MODIFY at timestamp NULL")
        for key, year in ((1, 2020), (2, 1950), (3, 2021)):
            app.put(table, {"id": key, "code": 7, "at": datetime(year, 1, 1)})  # noqa: DTZ001 - as the column is
        last = drain(app, DEADLINE_SECONDS, QUICK)
        assert (last.backlog, last.halted, str(last.dead_letters["moments"])) == (0, [], "1 refused, 0 waiting")


RAISING = {
    "postgresql": [
        """CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.owner = 'SECRET' THEN
           RAISE EXCEPTION 'no such owner: %%', NEW.owner USING ERRCODE = '{0}'; END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER guarding BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION guard()",
    ],
    "mariadb": [
        """CREATE TRIGGER guarding BEFORE INSERT ON accounts FOR EACH ROW BEGIN DECLARE said TEXT;
           IF NEW.owner = 'SECRET' THEN SET said = CONCAT('no such owner: ', NEW.owner);
           SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {0}, MESSAGE_TEXT = said; END IF; END""",
    ],
}


RAISERS = [("postgresql", code) for code in ("check_violation", "45000", "22023", "42000")] + [("mariadb", "30001")]


@pytest.fixture(params=RAISERS, ids=[f"{server} {code}" for server, code in RAISERS])
def guarded(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> Iterator[World]:
    """An engine whose accounts have a trigger that refuses one owner, with an error code of the user's."""
    server, code = request.param
    found = World(redis_url, request.getfixturevalue(f"{server}_url"), namespace, 1)
    with found.app:
        execute(found, [statement.format(code) for statement in RAISING[server]])
        yield found


def test_what_a_trigger_raises(guarded: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever code it gives its error, that is about one row; and its text, which may have a value, is not told."""
    guarded.put(2, owner="SECRET")
    guarded.put(3)
    guarded.drain()
    assert (guarded.letters(), guarded.balances()) == ([("2", "poison")], {1: 1, 3: 3})
    (letter,) = dead_letters(guarded.app)
    assert "SECRET" not in caplog.text + repr(letter) + letter.error + "".join(each.error for each in guarded.told)
