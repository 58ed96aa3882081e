"""Passwords and values of rows are in no log, error, cause of an error, ``repr`` or output, whatever goes wrong."""

import contextlib
import datetime as dt
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import redis
import sqlalchemy as sa

import servers
from writebehind.engine import EngineSettings, WriteBehind
from writebehind.engine.core.payload import Op, encode
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status
from writebehind.recovery import Repair, Winner, doctor, from_cache, verify
from writebehind.recovery.survey import survey

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

PASSWORD = "Pass-4711-Marker"
TEXT = "Text-4711-Marker"
NUMBER = 4711_4711
FRACTION = Decimal("4711.4711")
CODE = "Q4711471"
MARKERS = (PASSWORD, TEXT, str(NUMBER), str(FRACTION), TEXT.encode().hex(), CODE)
SECONDS_MAX = 60.0
DEADLINE_SECONDS = 10.0
HALT_SECONDS = 0.7
"""Time for a flusher to halt; where it takes longer on a busy machine, less is looked at."""

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, halt_retry_seconds=0.2, retry_seconds_max=0.1)
IMPATIENT = EngineSettings(redis_timeout_seconds=1, write_timeout_seconds=0.3, read_timeout_seconds=0.3)

metadata = sa.MetaData()
people = sa.Table(
    "people",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(60), nullable=False, unique=True),
    sa.Column("number", sa.Integer, default=0),
    sa.Column("fraction", sa.Numeric(12, 4)),
    sa.Column("document", sa.JSON),
    sa.Column("data", sa.LargeBinary),
    sa.Column("code", sa.Enum("A", "B", name="code")),
    sa.Column("born", sa.Date),
    sa.CheckConstraint("number >= 0", name="not_negative"),
)
children = sa.Table(
    "children",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("parent", sa.ForeignKey("people.id")),
    sa.Column("name", sa.String(60)),
)
tickets = sa.Table(
    "tickets", metadata, sa.Column("code", sa.String(8), primary_key=True), sa.Column("seat", sa.Integer)
)


class Ears:
    """Takes down everything that is raised, logged, shown or printed."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self._heard: list[tuple[str, str]] = []
        self.errors: list[str] = []

    def show(self, where: str, *things: Any) -> None:
        """Take down how things look."""
        self._heard += [(where, thing if isinstance(thing, str) else f"{thing!r} {thing}") for thing in things]

    @contextlib.contextmanager
    def failing(self, where: str) -> Iterator[None]:
        """Expect an error, and take it down with all that caused it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            self.take(where, error)
        else:
            pytest.fail(f"{where}: nothing was raised")

    def take(self, where: str, error: BaseException) -> None:
        """Take down an error, its traceback with the causes, and what its copy in another process would say."""
        self.errors.append(type(error).__name__)
        self._heard.append((where, "".join(traceback.format_exception(error))))
        self._heard.append((where, f"{error!r} {error.args}"))
        with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
            self._heard.append((where, pickle.dumps(error).decode("latin-1")))

    def heard(self) -> list[tuple[str, str]]:
        """Return all of it, the logs included, also the arguments of what was logged and the tracebacks."""
        logged = [("log", record.getMessage()) for record in self._caplog.records]
        logged += [("log", repr(record.args)) for record in self._caplog.records]
        logged += [
            ("log", "".join(traceback.format_exception(record.exc_info[1])))
            for record in self._caplog.records
            if record.exc_info and record.exc_info[1]
        ]
        return self._heard + logged

    def check(self) -> None:
        """Look for what must not be there."""
        found = [
            f"{marker} in {where}: {text[:3000]}"
            for where, text in self.heard()
            for marker in MARKERS
            if marker in text
        ]
        assert found == []


@pytest.fixture
def ears(caplog: pytest.LogCaptureFixture) -> Ears:
    """Ears that listen to all logs, those of the libraries too."""
    return Ears(caplog)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


Make = Callable[..., WriteBehind]


@pytest.fixture
def make(redis_url: str, namespace: str) -> Iterator[Make]:
    """Make engines, and close them."""
    made: list[WriteBehind] = []

    def factory(database: "str | sa.Engine", *, redis_at: str = redis_url, **options: Any) -> WriteBehind:
        settings: dict[str, Any] = {
            "tables": [people, children, tickets],
            "namespace": namespace,
            "partitions": 1,
            "settings": IMPATIENT,
        } | options
        made.append(WriteBehind(redis=redis_at, database=database, **settings))
        return made[-1]

    yield factory
    for engine in made:
        engine.close()


def person(key: int, **values: Any) -> dict[str, Any]:
    """Return a record full of secrets."""
    secret = {"name": f"{TEXT} {key}", "number": NUMBER, "fraction": FRACTION, "document": {"a": [TEXT]}}
    return {"id": key, "data": TEXT.encode(), "code": "A"} | secret | values


BAD_REDIS = ("redis://u:{0}@h:{0}/0", "{0}", "nosuch://u:{0}@h", "redis://u:{0}@[h/0", "redis://u:{0}@h:1/0?db={0}")
BAD_DATABASES = (
    "postgresql+psycopg://u:{0}@h:{0}/d", "{0}", "nosuch://u:{0}@h/d", "postgresql+nosuch://u:{0}@h/d", "//{0}",
    "postgresql+psycopg://u:{0}@[h/d",
)  # fmt: skip


def test_unusable_urls(make: Make, sqlite_url: str, ears: Ears) -> None:
    """A URL that cannot be parsed is not quoted, and neither is what the parser said about it."""
    for pattern in BAD_REDIS:
        with ears.failing(pattern):
            make(sqlite_url, redis_at=pattern.format(PASSWORD)).start()
    for pattern in BAD_DATABASES:
        with ears.failing(pattern):
            initialise(make(pattern.format(PASSWORD)))
    ears.check()


def ways(app: WriteBehind) -> list[Callable[[], Any]]:
    """Return everything that needs the servers."""
    return [
        app.start,
        lambda: app.put(people, person(1)),
        lambda: app.get(people, 1),
        lambda: initialise(app),
        lambda: status(app),
        lambda: drain(app, 1),
        lambda: verify(app),
        lambda: survey(app),
        lambda: from_cache(app),
    ]


def test_redis_that_refuses(make: Make, ears: Ears, sqlite_url: str, own_redis: "OwnRedisFactory") -> None:
    """Wrong passwords and servers that are away, on every way to them."""
    port = redis.ConnectionPool.from_url(
        own_redis({"requirepass": "another"}, binary=servers.newest_redis_binary()).url
    ).connection_kwargs["port"]
    for redis_at in (f"redis://u:{PASSWORD}@127.0.0.1:1/0", f"redis://u:{PASSWORD}@127.0.0.1:{port}/0"):
        app = make(sqlite_url, redis_at=redis_at)
        for number, way in enumerate(ways(app)):
            with ears.failing(f"way {number}"):
                way()
        ears.show("doctor", json.dumps(doctor(app).as_json()), app, app.links)
    ears.check()


def test_sql_that_refuses(make: Make, ears: Ears, postgresql_url: str, mariadb_url: str) -> None:
    """Likewise."""
    urls = [sa.make_url(url).set(password=PASSWORD) for url in (postgresql_url, mariadb_url)]
    for url in [*urls, *(url.set(port=1) for url in urls)]:
        app = make(str_of(url))
        # Writing does without SQL.
        for number, way in enumerate(ways(app)[2:-1]):
            with ears.failing(f"{url.get_backend_name()}, way {number}"):
                way()
        ears.show("doctor", json.dumps(doctor(app).as_json()), app, app.database)
    ears.check()


def test_values_that_do_not_fit(make: Make, sqlite_url: str, ears: Ears) -> None:
    """No refusal quotes what was passed."""
    app = make(sqlite_url)
    initialise(app, create_tables=True)
    wrong: dict[str, list[Any]] = {
        "id": [TEXT, NUMBER * 10**12, FRACTION, None],
        "name": [NUMBER, TEXT * 10, TEXT + "\0", TEXT + "\ud800", TEXT.encode(), None],
        "number": [TEXT, FRACTION, 1e300, NUMBER * 10**12],
        "fraction": [TEXT, Decimal("4711.47115"), FRACTION * 10**12, float(FRACTION), Decimal("NaN")],
        "document": [{"a": {TEXT}}, {NUMBER: 1}, [TEXT + "\0"], [float("nan"), TEXT], [[TEXT] * 3, object()]],
        "data": [TEXT, [TEXT]],
        "code": [TEXT, NUMBER],
        "born": [TEXT, dt.datetime(2000, 1, 1)],  # noqa: DTZ001 - a wrong value
        "nosuch": [TEXT],
    }
    for column, values in wrong.items():
        for value in values:
            given = person(1) | {column: value}
            for write in (app.put, app.insert):
                with ears.failing(column):
                    write(people, given)
            for change in (app.patch, app.increment):
                with ears.failing(column):
                    change(people, 1, {column: value})
    for key in (TEXT, (1, TEXT), {"name": TEXT}, [TEXT], None, NUMBER * 10**12):
        for take in (app.get, app.delete):
            with ears.failing("key"):
                take(people, key)
    with ears.failing("payload"):
        app.put(people, person(1, data=TEXT.encode() * 100_000))
    with ears.failing("group"), app.atomic(people, 1) as group:
        for key in range(10_001):
            group.delete(people, key)
    assert set(ears.errors) == {"ValidationError"}
    ears.check()


def test_what_sql_refuses(make: Make, database_url: str, ears: Ears) -> None:
    """Constraints, triggers and drift: neither log nor status says which values it was about."""
    app = make(database_url)
    initialise(app, create_tables=True)
    name = app.database.dialect.name
    rows: list[tuple[sa.Table, dict[str, Any], list[str]]] = [
        (people, person(2, name=f"{TEXT} 1"), []),
        (people, person(3, number=-NUMBER), []),
        (children, {"id": 1, "parent": NUMBER, "name": TEXT}, []),
        (people, person(4), _drifts(name)),
        (people, person(5), ["ALTER TABLE people DROP COLUMN data"]),
        (tickets, {"code": "A", "seat": NUMBER}, ["DROP TABLE tickets"]),
    ]
    app.put(people, person(1))
    assert drain(app, DEADLINE_SECONDS, QUICK).backlog == 0
    for table, row, statements in rows:
        with app.database.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        app.put(table, row)
        # The same row as an insert: there, the key is taken, too.
        app.insert(people, person(1))
        found = drain(app, HALT_SECONDS, QUICK)
        ears.show(f"{table.name} {row.get('id')}", found, json.dumps(found.as_json()))
        _skip(app)
    with ears.failing("reading a table that is gone"):
        app.get(tickets, CODE)
    ears.check()


def _drifts(dialect: str) -> list[str]:
    match dialect:
        case "postgresql":
            return ["ALTER TABLE people ALTER COLUMN name TYPE varchar(20) USING left(name, 20)"]
        case "mysql":
            return ["UPDATE people SET name = LEFT(name, 5)", "ALTER TABLE people MODIFY name varchar(5)"]
        case _:
            return []


def _trigger(dialect: str) -> list[str]:
    """Return what makes a trigger that quotes the row in its message."""
    match dialect:
        case "postgresql":
            return [
                """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no %% here', NEW.name; END $$""",
                "CREATE TRIGGER refuse BEFORE INSERT ON children FOR EACH ROW EXECUTE FUNCTION refuse()",
            ]
        case "mysql":
            return [
                """CREATE TRIGGER refuse BEFORE INSERT ON children FOR EACH ROW
                SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = NEW.name"""
            ]
        case _:
            return ["CREATE TRIGGER refuse BEFORE INSERT ON children BEGIN SELECT RAISE(ABORT, 'no'); END"]


def _skip(app: WriteBehind) -> None:
    """Take what is in the log out of it, so that the next trouble comes first."""
    with app.links.link() as link:
        for log in app.keys.logs:
            link.command("XTRIM", log, "MAXLEN", 0)


def test_triggers_that_quote_the_row(make: Make, database_url: str, ears: Ears) -> None:
    """What a trigger says may have any value in it, so it is not passed on."""
    app = make(database_url)
    initialise(app, create_tables=True)
    with app.database.begin() as connection:
        for statement in _trigger(app.database.dialect.name):
            connection.exec_driver_sql(statement)
    app.put(children, {"id": 1, "parent": None, "name": TEXT})
    found = drain(app, HALT_SECONDS, QUICK)
    ears.show("trigger", found, json.dumps(found.as_json()))
    ears.check()


def test_entries_and_hashes_that_cannot_be_read(make: Make, sqlite_url: str, ears: Ears) -> None:
    """Neither the flusher nor a reader quotes what stands there."""
    app = make(sqlite_url)
    initialise(app, create_tables=True)
    forged = [
        TEXT.encode(),
        encode(Op.PUT, "people", "1", {"id": 1, "name": TEXT})[:-2],
        encode(Op.PUT, "nosuch", "1", {"id": TEXT}),
        encode(Op.PUT, "people", "1", {"id": 1, "nosuch": TEXT}),
        encode(Op.PUT, "people", "1", person(1) | {"id": TEXT, "document": TEXT, "fraction": TEXT}),
        encode(Op.INCREMENT, "people", "1", {"id": 1, "number": TEXT}),
        msgspec.msgpack.encode([1, 1, "people", "1", {"name": [TEXT]}]),
        msgspec.msgpack.encode([1, 1, "people", "1", {"name": msgspec.msgpack.Ext(5, TEXT.encode())}]),
        msgspec.msgpack.encode([9, TEXT]),
    ]
    for number, payload in enumerate(forged):
        app.put(children, {"id": 1, "name": "x"})
        with app.links.link() as link:
            epoch = link.command("HGET", app.keys.metas[0], "epoch")
            link.command("XADD", app.keys.logs[0], b"%b-*" % epoch, "m", "0" * 22, "p", payload)
        found = drain(app, HALT_SECONDS, QUICK)
        ears.show(f"entry {number}", found, json.dumps(found.as_json()))
        ears.show(f"entry {number}", json.dumps(verify(app).as_json()), *survey(app))
        _skip(app)
    app.put(people, person(1))
    record = app.keys.record(0, "people", "1")
    for field in ("number", "fraction", "document", "code", "born", ":version", ":state"):
        with app.links.link() as link:
            before = link.command("HGET", record, field)
            link.command("HSET", record, field, TEXT)
            ears.show("verify", json.dumps(verify(app).as_json()))
            with contextlib.suppress(Exception):
                try:
                    app.get(people, 1)
                except Exception as error:
                    ears.take(field, error)
                    raise
            link.command("HSET", record, field, before)
    with app.links.link() as link:
        link.command("SET", app.keys.record(0, "people", "7"), TEXT)
    with ears.failing("a string"):
        app.get(people, 7)
    ears.check()


def test_how_things_look(make: Make, sqlite_url: str, ears: Ears, redis_url: str) -> None:
    """Whatever is handed out, or may be seen in a debugger's list of arguments, hides what it holds."""
    database = sa.create_engine(sqlite_url)
    app = make(database)
    initialise(app, create_tables=True)
    receipt = app.put(people, person(1))
    with app.batch() as batch:
        ears.show("batch", batch, batch.put(people, person(2)))
    with app.atomic(people, 1) as group:
        group.patch(people, 1, {"name": TEXT})
        ears.show("group", group, group.receipt)
    entry = app.composer.put(app.plan_of(people), person(3))
    ears.show("engine", app, app.settings, app.keys, app.links, app.composer, entry, receipt, app.database, app.tables)
    flusher = Flusher(app, QUICK)
    flusher.run(until=lambda: flusher.tally.entries >= 3)
    ears.show("flusher", flusher, flusher.tally, *flusher.holdings.cursors.values())
    with app.database.begin() as connection:
        connection.execute(sa.update(people).values(number=NUMBER + 1))
    seen: list[Any] = []
    found = verify(app, on_judged=seen.extend)
    ears.show("verify", found, json.dumps(found.as_json()), *seen, *found.findings)
    repair = Repair(app, Winner.SQL, dry_run=False)
    verify(app, on_judged=repair)
    ears.show("repair", repair, repair.counts, from_cache(app), *survey(app), doctor(app))
    with app.database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE tickets")
    with ears.failing("the statement's parameters"):
        app.get(tickets, CODE)
    ears.check()


SHOP = """
import os

import sqlalchemy as sa

from writebehind.engine import WriteBehind

metadata = sa.MetaData()
people = sa.Table(
    "people", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(60), unique=True),
)
wb = WriteBehind(
    redis=os.environ["SHOP_REDIS"], database=os.environ["SHOP_DATABASE"], tables=[people],
    namespace=os.environ["SHOP_NAMESPACE"], partitions=1,
)
"""

COMMANDS = (
    ("status",),
    ("doctor",),
    ("verify",),
    ("recover", "--from-cache", "--json"),
    ("recover", "--yes", "--timeout", "1"),
    ("init", "--create-tables"),
    ("status", "--json"),
    ("doctor", "--json"),
    ("verify", "--json", "--repair", "sql"),
    ("drain", "--timeout", "1"),
)


@pytest.mark.parametrize("state", ["wrong password", "away", "unusable", "set aside"])
def test_the_command_line(
    state: str, ears: Ears, tmp_path: Path, own_redis: "OwnRedisFactory", postgresql_url: str
) -> None:
    """Every command, logging all it can, with an app and with URLs as options."""
    (tmp_path / "shop.py").write_text(SHOP)
    namespace = "shop"
    url = own_redis({"requirepass": PASSWORD}, binary=servers.newest_redis_binary()).url
    database = sa.make_url(postgresql_url)
    places = {
        "wrong password": (url.replace(PASSWORD, PASSWORD + "x"), str_of(database.set(password=PASSWORD + "x"))),
        "away": (f"redis://u:{PASSWORD}@127.0.0.1:1/0", str_of(database.set(password=PASSWORD, port=1))),
        "unusable": (f"redis://u:{PASSWORD}@h:{PASSWORD}", f"postgresql+psycopg://u:{PASSWORD}@h:{PASSWORD}/d"),
        "set aside": (url, postgresql_url),
    }
    redis_at, database_at = places[state]
    call = Caller(tmp_path, redis_at, database_at, namespace, ears)
    if state == "set aside":
        assert call("init", "--create-tables").returncode == 0
        _halt(url, postgresql_url, namespace)
        assert "UniqueViolation" in call("drain", "--timeout", "10").stderr
        listed = call("dead-letters", "list").stdout
        (letter,) = re.findall(r"\b0-\d+\b(?=.*people)", listed)
        call("dead-letters", "list", "--json", bare=True)
        assert "people" in call("dead-letters", "show", letter).stdout
        call("dead-letters", "show", letter, "--json")
    for number, command in enumerate(COMMANDS if state == "set aside" else COMMANDS[-5:]):
        call(*command, bare=number % 2 == 0)
    ears.check()


def str_of(url: sa.URL) -> str:
    """Return a URL with its password."""
    return url.render_as_string(hide_password=False)


class Caller:
    """Runs commands, both ways, and has everything that they print taken down."""

    def __init__(self, directory: Path, redis_at: str, database: str, namespace: str, ears: Ears) -> None:
        self._directory = directory
        self._options = ["--redis", redis_at, "--database", database, "--table", "people", "--namespace", namespace]
        self._options += ["--partitions", "1"]
        self._environment = {
            **os.environ, "SHOP_REDIS": redis_at, "SHOP_DATABASE": database, "SHOP_NAMESPACE": namespace,
        }  # fmt: skip
        self._ears = ears

    def __call__(self, *command: str, bare: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run one command, with an app or with options."""
        options = self._options if bare else ["--app", "shop:wb"]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("writebehind")), "--verbose", *options, *command],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        self._ears.show(" ".join(command), done.stdout, done.stderr)
        return done


def _halt(redis_at: str, database: str, namespace: str) -> None:
    """Write what SQL refuses."""
    table = sa.Table(
        "people",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(60), unique=True),
    )
    app = WriteBehind(redis=redis_at, database=database, tables=[table], namespace=namespace, partitions=1)
    with contextlib.closing(app):
        app.put(table, {"id": 1, "name": TEXT})
        app.put(table, {"id": 2, "name": TEXT})
