"""The installed command line, as an operator and a script use it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis
import sqlalchemy as sa

from writebehind.engine import BacklogFull, Backpressure, EngineSettings, PoisonEntryError, WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.receipts import Receipt

if TYPE_CHECKING:
    from conftest import OwnRedisFactory

SECONDS_MAX = 60.0
PARTITIONS = 4
KEYS = range(40)
SECRET = "open-sesame"

SHOP = """
import os

import sqlalchemy as sa

from writebehind.engine import WriteBehind

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.String(20)),
)


def make(kind=WriteBehind):
    return kind(
        redis=os.environ["SHOP_REDIS"],
        database=os.environ["SHOP_DATABASE"],
        tables=[accounts],
        namespace=os.environ["SHOP_NAMESPACE"],
        partitions=4,
    )


def awaited():
    from writebehind.engine import AsyncWriteBehind

    return make(AsyncWriteBehind)


class Holder:
    wb = make()


wb = Holder.wb
nothing = 5
"""

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.Column("note", sa.String(20)),
)


def until(happened: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Daemon:
    """A command that goes on running."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it prints something."""

        def printed() -> bool:
            assert text in self.said or self.process.poll() is None, self.said
            return text in self.said

        until(printed)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS_MAX)

    def children(self) -> dict[int, psutil.Process]:
        """Return its flusher processes, by process ID."""
        return {child.pid: child for child in psutil.Process(self.process.pid).children()}


class Shop:
    """An application as the command line sees it: a module, servers, a namespace."""

    def __init__(self, redis_url: str, database: str, namespace: str, directory: Path) -> None:
        self.redis, self.database, self.namespace, self.directory = redis_url, database, namespace, directory
        (directory / "shop.py").write_text(SHOP)
        self.environment = {
            **os.environ,
            "SHOP_REDIS": redis_url,
            "SHOP_DATABASE": database,
            "SHOP_NAMESPACE": namespace,
        }
        self.engine = WriteBehind(
            redis=redis_url, database=database, tables=[accounts], namespace=namespace, partitions=PARTITIONS
        )

    @property
    def urls(self) -> list[str]:
        """The options that do without code."""
        return [
            *("--redis", self.redis, "--database", self.database, "--table", "accounts"),
            *("--namespace", self.namespace, "--partitions", str(PARTITIONS)),
        ]

    def bare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "writebehind.flushers.cli", *arguments],
            env=self.environment, cwd=self.directory, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip

    def call(self, *arguments: str, code: int = 0) -> str:
        """Run a command on the module; check its exit code and give what it printed."""
        done = self.bare("--app", "shop:wb", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code in {0, 2, 3} else done.stderr

    def status(self, *, code: int = 0) -> Any:
        """Return the status as a script reads it."""
        return json.loads(self.call("status", "--json", code=code))

    @contextlib.contextmanager
    def running(self, *options: str) -> Iterator[Daemon]:
        """Keep the daemon running; kill it with its children if the test did not end it."""
        output = self.directory / f"output {len(list(self.directory.glob('output*')))}"
        command = [sys.executable, "-m", "writebehind.flushers.cli", "--app", "shop:wb", "run", *options]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.directory, stdout=file, stderr=file, start_new_session=True
            )
        daemon = Daemon(process, output)
        children: list[psutil.Process] = []
        try:
            yield daemon
        finally:
            if process.poll() is None:
                children = list(daemon.children().values())
                process.kill()
                process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    def put(self, keys: Sequence[int], balance: int = 1) -> list[Receipt]:
        """Write whole records."""
        with self.engine.batch() as batch:
            return [batch.put(accounts, {"id": key, "balance": balance}) for key in keys]

    def rows(self) -> dict[int, int]:
        """Return what SQL has: the balances by key."""
        with self.engine.database.connect() as connection:
            found = connection.execute(sa.select(accounts.c.id, accounts.c.balance))
            return {row.id: row.balance for row in found}

    def sql(self, *statements: str) -> None:
        """Change the database by hand."""
        with self.engine.database.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def holders(self) -> list[str | None]:
        """Return who holds each partition."""
        mine = sa.select(partitions.c.holder).where(partitions.c.namespace == self.namespace)
        with self.engine.database.connect() as connection:
            return list(connection.execute(mine.order_by(partitions.c.partition)).scalars())


ShopFactory = Callable[..., Shop]


@pytest.fixture
def open_shop(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[ShopFactory]:
    """Make an application on a database, and close it."""
    made: list[Shop] = []

    def factory(database: str, *, redis_at: str = redis_url, init: bool = True) -> Shop:
        shop = Shop(redis_at, database, namespace, tmp_path)
        made.append(shop)
        if init:
            shop.call("init", "--create-tables")
        return shop

    yield factory
    for shop in made:
        shop.engine.close()


@pytest.fixture
def shop(open_shop: ShopFactory, sqlite_url: str) -> Shop:
    """An initialised application on SQLite."""
    return open_shop(sqlite_url)


# init


def test_init_may_be_repeated(open_shop: ShopFactory, database_url: str) -> None:
    """The first time it says what it made, then that there is nothing to do, and rows are left alone."""
    shop = open_shop(database_url, init=False)
    first = json.loads(shop.call("init", "--create-tables", "--json"))
    assert first["namespace"] == shop.namespace
    assert "created table accounts" in first["done"]
    assert "created table writebehind_partitions" in first["done"]
    shop.put([1])
    shop.call("drain")
    assert json.loads(shop.call("init", "--create-tables", "--json")) == {"namespace": shop.namespace, "done": []}
    assert shop.call("init").strip() == "nothing to do"
    assert shop.rows() == {1: 1}


def test_init_of_other_settings_is_refused(shop: Shop) -> None:
    """A namespace keeps its number of partitions."""
    done = shop.bare(*shop.urls, "init", "--partitions", "8")
    assert done.returncode == 1
    assert "give partitions=4" in done.stderr


# run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_batch(open_shop: ShopFactory, postgresql_url: str, number: signal.Signals) -> None:
    """The batch under way is committed, the leases are handed back, and the exit code is 0."""
    shop = open_shop(postgresql_url)
    shop.put(KEYS)
    blocking = "SELECT count(*) FROM pg_locks WHERE relation = 'accounts'::regclass AND NOT granted"
    with shop.engine.database.connect() as other, shop.engine.database.connect() as watching:
        other.exec_driver_sql("LOCK TABLE accounts IN SHARE MODE")
        with shop.running() as daemon:
            until(lambda: watching.exec_driver_sql(blocking).scalar_one() == 1)
            assert None not in shop.holders()
            daemon.process.send_signal(number)
            daemon.wait_for(f"{number.name}: finishing")
            other.rollback()
            assert daemon.process.wait(SECONDS_MAX) == 0
    assert shop.rows() == dict.fromkeys(KEYS, 1)
    assert shop.holders() == [None] * PARTITIONS
    assert f"ended after {len(KEYS)} entries" in daemon.said
    assert (shop.status()["backlog"], shop.status()["flushers"]) == (0, 0)


def test_a_signal_ends_also_while_redis_is_away(
    open_shop: ShopFactory, own_redis: "OwnRedisFactory", sqlite_url: str
) -> None:
    """It ends with 0, and the leases are handed back, for those are in SQL."""
    server = own_redis()
    shop = open_shop(sqlite_url, redis_at=server.url)
    with shop.running() as daemon:
        shop.put(KEYS)[-1].wait()
        server.kill()
        daemon.wait_for("trying again until it answers")
        assert daemon.end() == 0
    assert shop.holders() == [None] * PARTITIONS


def test_processes_share_the_partitions(shop: Shop) -> None:
    """Two flushers hold half each; one that is killed is replaced; all end with their parent, and nothing is lost."""

    def owners() -> dict[int, int]:
        pids = [int(holder.split(":")[-2]) for holder in shop.holders() if holder]
        return {pid: pids.count(pid) for pid in pids}

    with shop.running("--processes", "2", "--lease-ttl-seconds", "1") as daemon:
        until(lambda: sorted(owners().values()) == [2, 2])
        before = daemon.children()
        assert owners().keys() == before.keys()
        shop.put(KEYS)[-1].wait()
        killed = before.popitem()[1]
        killed.kill()
        receipts = shop.put(KEYS, 2)
        daemon.wait_for(f"flusher process {killed.pid} ended with -9; starting another")
        until(lambda: sorted(owners().values()) == [2, 2] and killed.pid not in owners())
        for receipt in receipts:
            receipt.wait()
        after = daemon.children()
        assert owners().keys() == after.keys()
        assert daemon.end() == 0
        assert not any(child.is_running() for child in after.values())
    assert shop.holders() == [None] * PARTITIONS
    assert shop.rows() == dict.fromkeys(KEYS, 2)


def test_a_signal_while_the_flushers_start(shop: Shop) -> None:
    """Flushers that are told to end before they serve are no failure."""
    with shop.running("--processes", "2") as daemon:
        until(lambda: len(daemon.children()) == 2)
        assert daemon.end() == 0
    assert shop.holders() == [None] * PARTITIONS


def test_flushers_end_when_their_parent_is_killed(shop: Shop) -> None:
    """No flusher is left behind by a SIGKILL of the process that keeps them."""
    with shop.running("--processes", "2") as daemon:
        until(lambda: None not in shop.holders())
        children = list(daemon.children().values())
        assert len(children) == 2
        daemon.process.kill()
        _, alive = psutil.wait_procs(children, SECONDS_MAX)
        assert alive == []
        daemon.process.wait()
    assert shop.holders() == [None] * PARTITIONS


# status


def test_status_for_people_and_for_scripts(shop: Shop) -> None:
    """Backlog, lag, offsets and holders, in each form."""
    receipts = shop.put(KEYS)
    found = shop.status()
    assert (found["namespace"], found["backlog"], found["flushers"]) == (shop.namespace, len(KEYS), 0)
    assert (found["lost_entries"], found["halted"]) == (0, [])
    assert 0 < found["lag_seconds"] < SECONDS_MAX
    assert [row["partition"] for row in found["partitions"]] == list(range(PARTITIONS))
    assert {row["holder"] for row in found["partitions"]} == {None}
    text = shop.call("status").splitlines()
    assert text[0].startswith(f"namespace {shop.namespace}: backlog {len(KEYS)} entries, lag ")
    assert len(text) == 2 + PARTITIONS
    figures = shop.call("status", "--metrics").splitlines()
    backlogs = [line.rpartition(" ")[2] for line in figures if line.startswith("writebehind_backlog_entries{")]
    assert sum(map(int, backlogs)) == len(KEYS)
    with shop.running() as daemon:
        for receipt in receipts:
            receipt.wait()
        found = shop.status()
        assert (found["backlog"], found["lag_seconds"], found["flushers"]) == (0, 0, 1)
        assert all(str(daemon.process.pid) in row["holder"] for row in found["partitions"])
        assert all(row["offset"] == row["end"] for row in found["partitions"])
        assert daemon.end() == 0


def test_status_shows_what_is_held(shop: Shop) -> None:
    """A partition that takes no more is named with the limit, until it is flushed; that is no failure."""
    settings = EngineSettings(backlog_entries_max=2, backpressure=Backpressure.REJECT)
    with WriteBehind(
        redis=shop.redis, database=shop.database, tables=[accounts], namespace=shop.namespace, partitions=PARTITIONS,
        settings=settings,
    ) as engine:  # fmt: skip
        home = partition_of("1", PARTITIONS)
        for _ in range(2):
            engine.put(accounts, {"id": 1})
        with pytest.raises(BacklogFull):
            engine.put(accounts, {"id": 1})
        found = shop.status()
        assert found["pressed"] == [home]
        assert [row["pressure"] for row in found["partitions"] if row["partition"] == home] == ["entries"]
        assert f"partition {home} UNDER PRESSURE: writes are held (limit on entries)" in shop.call("status")
        shop.call("drain", "--rows-per-second-max", "1000", "--commit-seconds-target", "0.5")
        assert shop.status()["pressed"] == []
        engine.put(accounts, {"id": 1})


# drain


def test_drain_does_the_work_itself(shop: Shop) -> None:
    """Where no flusher lives it flushes, also when it is given other settings; then there is nothing left to do."""
    shop.put(KEYS)
    assert shop.call("drain").strip() == "drained"
    assert shop.rows() == dict.fromkeys(KEYS, 1)
    shop.put(KEYS, 2)
    last = json.loads(shop.call("drain", "--json", "--batch-entries-max", "3", "--timeout", "60"))
    assert last["backlog"] == 0
    assert shop.rows() == dict.fromkeys(KEYS, 2)
    assert shop.call("drain", "--timeout", "0").strip() == "drained"
    assert shop.holders() == [None] * PARTITIONS


def test_drain_says_what_remains(open_shop: ShopFactory, postgresql_url: str) -> None:
    """A flusher that is frozen and holds its leases leaves entries at the timeout: exit code 2, and they land later."""
    shop = open_shop(postgresql_url)
    with shop.running("--lease-ttl-seconds", "60") as daemon:
        shop.put(KEYS)[-1].wait()
        daemon.process.send_signal(signal.SIGSTOP)
        shop.put(KEYS, 2)
        begun = time.monotonic()
        last = json.loads(shop.call("drain", "--json", "--timeout", "1", code=2))
        assert time.monotonic() - begun < 20
        assert last["backlog"] == sum(row["backlog"] for row in last["partitions"]) == len(KEYS)
        assert f"{len(KEYS)} entries remain" in shop.call("drain", "--timeout", "0.5", code=2)
        assert shop.rows() == dict.fromkeys(KEYS, 1)
        daemon.process.send_signal(signal.SIGCONT)
        shop.call("drain", "--timeout", "60")
        assert daemon.end() == 0
    assert shop.rows() == dict.fromkeys(KEYS, 2)


def test_drain_names_what_is_halted(shop: Shop) -> None:
    """What cannot be flushed remains, with its reason; when that is mended a drain ends with 0, and so does status."""
    shop.put(KEYS)
    shop.sql("ALTER TABLE accounts RENAME TO elsewhere")
    said = shop.call("drain", "--timeout", "3", code=2)
    assert "HALTED: entry " in said
    assert "accounts" in said
    assert "HALTED: entry " in shop.call("status", code=3)
    shop.sql("ALTER TABLE elsewhere RENAME TO accounts")
    assert shop.call("drain", "--timeout", "60").strip() == "drained"
    assert shop.rows() == dict.fromkeys(KEYS, 1)
    assert shop.status()["halted"] == []


@pytest.mark.parametrize("which", ["logs", "metas"])
def test_a_damaged_log_is_named_and_the_others_are_drained(shop: Shop, which: str) -> None:
    """A partition's log or meta hash was overwritten: status and drain say which, and go on with the others."""
    receipts = shop.put(KEYS)
    name, kept = getattr(shop.engine.keys, which)[1], f"kept:{shop.namespace}"
    others = {key for key, receipt in zip(KEYS, receipts, strict=True) if receipt.partition != 1}
    assert 0 < len(others) < len(KEYS)
    with redis.Redis.from_url(shop.redis, decode_responses=True) as client:
        client.rename(name, kept)
        client.set(name, "foreign")
        said = shop.call("status", code=3)
        assert "partition 1 DAMAGED: Redis refuses to serve the log: WRONGTYPE " in said
        assert f"another program has overwritten {name}: " in said
        assert (
            shop.call("drain", "--timeout", "60", code=1)
            .splitlines()[-1]
            .startswith("Error: not drained: partition 1: Redis refuses to serve the log: WRONGTYPE ")
        )
        assert shop.rows() == dict.fromkeys(others, 1)
        found = shop.status(code=3)
        assert (found["damaged"], found["backlog"]) == ([1], 0)
        assert [row["backlog"] for row in found["partitions"]] == [0, None, 0, 0]
        assert shop.call("recover", code=3).startswith("partition 1: Redis refuses to serve the log: WRONGTYPE ")
        assert client.get(name) == "foreign"
        client.rename(kept, name)
    assert shop.call("drain", "--timeout", "60").strip() == "drained"
    assert shop.rows() == dict.fromkeys(KEYS, 1)
    assert (shop.status()["damaged"], shop.status()["lost_entries"]) == ([], 0)


# What to work on


@pytest.mark.parametrize("app", ["shop:wb", "shop:make", "shop:Holder.wb", "shop:awaited"])
@pytest.mark.parametrize("after", [False, True], ids=["before the command", "after the command"])
def test_an_app_is_found_as_python_would(shop: Shop, app: str, *, after: bool) -> None:
    """An engine of either kind, a function that makes one, a class's attribute; the option on either side."""
    done = shop.bare("status", "--app", app, "--json") if after else shop.bare("--app", app, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["namespace"] == shop.namespace


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_tables_are_reflected(shop: Shop, place: str) -> None:
    """Without code, what an application wrote is flushed; options may stand on both sides of the command."""
    shop.put(KEYS)
    half = shop.urls[:4], shop.urls[4:]
    before, after = {"before": (shop.urls, []), "after": ([], shop.urls), "both": half}[place]
    done = shop.bare(*before, "drain", *after, "--timeout", "60")
    assert (done.returncode, done.stdout.strip()) == (0, "drained"), done.stderr
    assert shop.rows() == dict.fromkeys(KEYS, 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status"], "give --app MODULE:ATTRIBUTE"),
        (["--app", "shop:wb", "--table", "accounts", "status"], "not both"),
        (["--app", "shop:wb", "status", "--redis", "redis://127.0.0.1:1/0"], "not both"),
        (["--redis", "redis://127.0.0.1:1/0", "--table", "accounts", "status"], "give --app MODULE:ATTRIBUTE"),
        (["--app", "shop", "status"], "is not MODULE:ATTRIBUTE"),
        (["--app", "shop:wb", "flush"], "No such command"),
        (["--app", "shop:wb", "run", "--processes", "0"], "--processes"),
        (["--app", "shop:wb", "drain", "--timeout", "soon"], "--timeout"),
        (["--app", "shop:wb", "status", "--loud"], "--loud"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    open_shop: ShopFactory, sqlite_url: str, arguments: list[str], complaint: str
) -> None:
    """The message says what is wrong, and nothing is done."""
    done = open_shop(sqlite_url, init=False).bare(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--app", "nowhere:wb", "status"], "nowhere"),
        (["--app", "shop:absent", "status"], "absent"),
        (["--app", "shop:nothing", "status"], "is a int"),
        (["--app", "shop:wb", "run", "--lease-ttl-seconds", "0.5"], "lease_ttl_seconds"),
        (["--redis", "redis://x", "--database", "sqlite://", "--table", "absent", "status"], "no table absent"),
        (["--redis", "redis://x", "--database", "nosql://x", "--table", "accounts", "status"], "--database"),
        (["--redis", "redis://x", "--database", "shop", "--table", "accounts", "status"], "--database"),
    ],
)
def test_an_error_is_exit_code_1(open_shop: ShopFactory, sqlite_url: str, arguments: list[str], complaint: str) -> None:
    """What cannot be found or used is named, without a traceback."""
    done = open_shop(sqlite_url, init=False).bare(*arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


# Secrets


@pytest.mark.parametrize("command", ["init", "status", "drain", "run"])
@pytest.mark.parametrize("by", ["app", "urls"])
def test_a_wrong_password_of_redis_is_not_printed(
    open_shop: ShopFactory, own_redis: "OwnRedisFactory", sqlite_url: str, command: str, by: str
) -> None:
    """The error says that Redis refuses, and neither stream has the password."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "another")
    url = server.url.replace("redis://", f"redis://:{SECRET}@")
    shop = open_shop(sqlite_url, redis_at=url, init=False)
    accounts.create(shop.engine.database)
    done = shop.bare(*(["--app", "shop:wb"] if by == "app" else shop.urls), command)
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert "Redis" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["init", "status", "drain", "run"])
@pytest.mark.parametrize("by", ["app", "urls"])
def test_a_wrong_password_of_the_database_is_not_printed(
    open_shop: ShopFactory, postgresql_url: str, command: str, by: str
) -> None:
    """The error says that the database refuses, and neither stream has the password."""
    url = sa.make_url(postgresql_url).set(password=SECRET).render_as_string(hide_password=False)
    shop = open_shop(url, init=False)
    options = ["--app", "shop:wb"] if by == "app" else shop.urls
    if command == "run" and by == "app":
        # A database that is away may come back: the daemon waits for it.
        with shop.running() as daemon:
            daemon.wait_for("leases: ")
            assert daemon.end() == 0
            said = daemon.said
    else:
        done = shop.bare(*options, command)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
    assert "database" in said or "OperationalError" in said
    assert SECRET not in said
    assert "Traceback" not in said


def test_right_passwords_are_not_printed(
    open_shop: ShopFactory, own_redis: "OwnRedisFactory", postgresql_url: str
) -> None:
    """Not even by a verbose daemon that serves, loses Redis, and ends."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", SECRET)
    shop = open_shop(postgresql_url, redis_at=server.url.replace("redis://", f"redis://:{SECRET}@"), init=False)
    password = sa.make_url(postgresql_url).password
    assert password
    said = ""
    for command in (["init", "--create-tables"], ["status"], ["status", "--json"], ["drain"]):
        done = shop.bare("--app", "shop:wb", "--verbose", *command)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    with shop.running("--processes", "1") as daemon:
        shop.put(KEYS)[-1].wait()
        server.kill()
        daemon.wait_for("trying again until it answers")
        assert daemon.end() == 0
        said += daemon.said
    assert SECRET not in said
    assert password not in said


# What an operator has to mend


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["run", "status", "drain"])
def test_missing_control_tables_are_named(open_shop: ShopFactory, database_url: str, command: str) -> None:
    """Exit code 1, and the message says which command makes them."""
    shop = open_shop(database_url, init=False)
    said = shop.call(command, code=1)
    assert "writebehind init" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "breaks", "mends", "reason"),
    [
        (
            "sqlite",
            "CREATE TRIGGER refuse BEFORE INSERT ON accounts WHEN NEW.balance < 0 BEGIN SELECT RAISE(ABORT, 'r7'); END",
            "DROP TRIGGER refuse",
            "r7",
        ),
        (
            "postgresql",
            "ALTER TABLE accounts ADD CONSTRAINT r7 CHECK (balance >= 0)",
            "ALTER TABLE accounts DROP CONSTRAINT r7",
            "r7",
        ),
        (
            "postgresql",
            "ALTER TABLE accounts ALTER COLUMN note SET NOT NULL",
            "ALTER TABLE accounts ALTER COLUMN note DROP NOT NULL",
            'column "note"',
        ),
        (
            "mariadb",
            "ALTER TABLE accounts ADD CONSTRAINT r7 CHECK (balance >= 0)",
            "ALTER TABLE accounts DROP CONSTRAINT r7",
            "r7",
        ),
    ],
    indirect=["database_url"],
    ids=["trigger, sqlite", "check, postgresql", "not null, postgresql", "check, mariadb"],
)
def test_a_refused_entry_costs_its_key_only(
    open_shop: ShopFactory, database_url: str, breaks: str, mends: str, reason: str
) -> None:
    """Entry and reason are named, everybody else flows, and a replay brings it in when the cause is mended."""
    shop = open_shop(database_url)
    shop.sql(breaks)
    records = {key: {"id": key, "balance": key, "note": "x"} for key in KEYS} | {7: {"id": 7, "balance": -1}}
    with shop.running() as daemon:
        with shop.engine.batch() as batch:
            receipts = {key: batch.put(accounts, records[key]) for key in KEYS}
        for key, receipt in receipts.items():
            with contextlib.nullcontext() if key != 7 else pytest.raises(PoisonEntryError):
                receipt.wait()
        daemon.wait_for("DEAD LETTER ")
        daemon.wait_for(f"SQL refuses entry {receipts[7].entry_id} of accounts")
        found = shop.status()
        counts = {"refused": 1, "retrying": 0, "waiting": 0}
        assert (found["halted"], found["backlog"], found["dead_letters"]) == ([], 0, {"accounts": counts})
        assert "dead letters of accounts: 1 refused" in shop.call("status")
        assert reason in shop.call("dead-letters", "list")
        assert shop.rows() == {key: key for key in KEYS if key != 7}
        shop.sql(mends)
        shop.call("dead-letters", "replay", "--all", "--wait", "30")
        assert shop.status()["dead_letters"] == {}
        assert daemon.end() == 0
    assert shop.rows() == {key: records[key]["balance"] for key in KEYS}


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_missing_table_halts_until_it_is_there(open_shop: ShopFactory, database_url: str) -> None:
    """Its partitions halt and name it; when it is created everything lands, without a restart."""
    shop = open_shop(database_url, init=False)
    shop.call("init")
    receipts = shop.put(KEYS)
    with shop.running() as daemon:
        until(lambda: daemon.said.count("HALTED") >= PARTITIONS)
        found = shop.status(code=3)
        assert found["halted"] == list(range(PARTITIONS))
        assert all("accounts" in row["halted"] for row in found["partitions"])
        assert found["backlog"] == len(KEYS)
        accounts.create(shop.engine.database)
        for receipt in receipts:
            receipt.wait()
        until(lambda: daemon.said.count("flushes again") >= PARTITIONS)
        shop.status()
        assert daemon.end() == 0
    assert shop.rows() == dict.fromkeys(KEYS, 1)


def test_a_loss_is_exit_code_3(open_shop: ShopFactory, own_redis: "OwnRedisFactory", sqlite_url: str) -> None:
    """Entries that somebody removed from the log show in status, in both forms."""
    server = own_redis()
    shop = open_shop(sqlite_url, redis_at=server.url)
    receipts = [shop.put([7], balance)[0] for balance in range(5)]
    with redis.Redis.from_url(server.url) as client:
        client.xdel(shop.engine.keys.logs[receipts[0].partition], *(str(each.entry_id) for each in receipts[:3]))
    shop.call("drain", "--timeout", "60")
    assert shop.status(code=3)["lost_entries"] == 3
    assert ", 3 entries lost" in shop.call("status", code=3)
    assert shop.rows() == {7: 4}
