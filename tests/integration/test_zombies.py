"""Two holders of one partition, and a database that goes away at the worst moment: SQL still comes out exact."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from running import flushing
from servers import refuse
from writebehind.drills.proxy import Mishap, Proxy
from writebehind.engine import ConfigurationError, DatabaseUnavailable, Durability, WriteBehind
from writebehind.engine.adapters.control_tables import partitions
from writebehind.engine.embedded import EmbeddedDatabase, EmbeddedMariaDB, EmbeddedPostgreSQL
from writebehind.flushers import Flusher, FlusherSettings, initialise, status
from writebehind.flushers.flush import Commit, Write
from writebehind.flushers.flusher import Effect
from writebehind.flushers.flusher import Reply as FlushReply

DEADLINE_SECONDS = 20.0
PARTITIONS = 2
SETTINGS = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, retry_seconds_max=0.3)
COMMIT = {"postgresql": b"Q\0\0\0\x0bCOMMIT\0", "mysql": b"\x07\0\0\0\x03COMMIT"}

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(20), nullable=False, default="nobody"),
    sa.Column("balance", sa.Integer, nullable=False, default=0),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
)
# What happened to the offsets, written by a trigger: no flusher can get around it.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)
INSERT = (
    "INSERT INTO audit (number, token, epoch, sequence) VALUES (NEW.{partition}, NEW.token, NEW.epoch, NEW.sequence)"
)
TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER audited AFTER UPDATE OF sequence ON writebehind_partitions BEGIN "
        + INSERT.format(partition='"partition"')
        + "; END"
    ],
    "postgresql": [
        "CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        + INSERT.format(partition='"partition"')
        + "; RETURN NEW; END $$",
        (
            "CREATE TRIGGER audited AFTER UPDATE OF sequence ON writebehind_partitions "
            "FOR EACH ROW EXECUTE FUNCTION audited()"
        ),
    ],
    "mysql": [
        "CREATE TRIGGER audited AFTER UPDATE ON writebehind_partitions FOR EACH ROW BEGIN "
        "IF NEW.sequence <> OLD.sequence OR NEW.epoch <> OLD.epoch THEN "
        + INSERT.format(partition="`partition`")
        + "; END IF; END"
    ],
}
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for something, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.01)


class World:
    """One namespace, its writes, and what SQL must hold in the end."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        self.redis_url = redis_url
        self.database_url = database
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[accounts, events], namespace=namespace, partitions=PARTITIONS
        )
        initialise(self.app, create_tables=True)
        self.dialect = self.app.database.dialect.name.replace("mariadb", "mysql")
        audit.create(self.app.database)
        with self.app.database.begin() as connection:
            for statement in TRIGGERS[self.dialect]:
                connection.exec_driver_sql(statement)
        self.balances = dict.fromkeys(range(10), 0)
        self.kinds: list[str] = []
        for key in self.balances:
            self.app.put(accounts, {"id": key, "owner": "nobody", "balance": 0})

    def write(self, count: int = 20) -> None:
        """Increment records and append events, in every partition."""
        with self.app.batch() as batch:
            for _ in range(count):
                for key in self.balances:
                    batch.increment(accounts, key, {"balance": 1})
                    self.balances[key] += 1
                kind = f"event {len(self.kinds)}"
                batch.insert(events, {"kind": kind})
                self.kinds.append(kind)

    def backlog(self) -> int:
        """Count what SQL does not have."""
        return status(self.app).backlog

    def holders(self) -> set[str | None]:
        """Return who holds the partitions."""
        return {partition.holder for partition in status(self.app).partitions}

    def tokens(self) -> list[int]:
        """Return the fencing tokens."""
        query = sa.select(partitions.c.token).where(partitions.c.namespace == self.app.keys.namespace)
        with self.app.database.connect() as connection:
            return list(connection.execute(query.order_by(partitions.c.partition)).scalars())

    def waiting_for_locks(self) -> bool:
        """Tell whether a session of the database waits for a lock."""
        time.sleep(0.12)  # InnoDB looks again only when nobody has asked for a tenth of a second
        with self.app.database.connect() as connection:
            return bool(connection.exec_driver_sql(WAITING[self.dialect]).scalar_one())

    def drained(self) -> None:
        """Wait until SQL has everything, also where the connections of its pool are dead."""

        def empty() -> bool:
            try:
                return self.backlog() == 0
            except DatabaseUnavailable:
                return False

        wait_until(empty, "the backlog is empty")

    def check(self) -> None:
        """Compare SQL with the model, and the history of the offsets with the rules."""
        self.drained()
        with self.app.database.connect() as connection:
            rows = {row.id: row.balance for row in connection.execute(sa.select(accounts))}
            kinds = sorted(connection.execute(sa.select(events.c.kind)).scalars())
            history = connection.execute(sa.select(audit).order_by(audit.c.id)).all()
        assert rows == self.balances
        assert kinds == sorted(self.kinds)
        for number in range(PARTITIONS):
            tokens = [row.token for row in history if row.number == number]
            offsets = [(row.epoch, row.sequence) for row in history if row.number == number]
            assert tokens == sorted(tokens)
            assert offsets == sorted(set(offsets))
        found = status(self.app)
        assert (found.lost_entries, found.halted) == (0, [])


@pytest.fixture
def world(redis_url: str, database_url: str, namespace: str) -> Iterator[World]:
    """A namespace on each kind of database."""
    made = World(redis_url, database_url, namespace)
    yield made
    made.app.close()


@pytest.fixture(params=["postgresql", "mariadb"])
def server_world(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> Iterator[World]:
    """A namespace on each kind of database that has a server."""
    made = World(redis_url, request.getfixturevalue(f"{request.param}_url"), namespace)
    yield made
    made.app.close()


class Daemon:
    """``writebehind run`` in a process of its own."""

    def __init__(self, world: World, log: Path) -> None:
        self.log = log
        tables = [f"--table={table.name}" for table in (accounts, events)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "writebehind.flushers.cli", f"--redis={world.redis_url}"),
                    *(f"--database={world.database_url}", *tables, f"--namespace={world.app.keys.namespace}"),
                    *(f"--partitions={PARTITIONS}", "run", "--lease-ttl-seconds=1", "--linger-seconds=0"),
                ],
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: any(holder and f":{self.process.pid}:" in holder for holder in world.holders()), "it serves")

    def freeze(self) -> None:
        """Send SIGSTOP, and wait until it stands."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """Send SIGCONT."""
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def daemon(world: World, log: Path) -> Iterator[Daemon]:
    """Run a daemon, which must end well."""
    running = Daemon(world, log)
    try:
        yield running
        assert running.end() == 0, log.read_text()
    finally:
        running.process.kill()
        running.process.wait()


# Frozen holders


def test_a_frozen_daemon_commits_nothing_after_its_lease(world: World, tmp_path: Path) -> None:
    """A daemon frozen between batches is replaced; when it goes on, tokens and rows stay right."""
    world.write()
    with daemon(world, tmp_path / "first.log") as first:
        world.drained()
        before = world.tokens()
        first.freeze()
        world.write()
        with flushing(world.app, SETTINGS):
            world.drained()
            first.go_on()
            world.write()
            world.drained()
    world.check()
    assert all(new > old for new, old in zip(world.tokens(), before, strict=True))


def test_a_zombie_keeps_no_entry_from_its_successor(world: World, tmp_path: Path) -> None:
    """What a daemon reads that has lost its leases without knowing reaches SQL through the new holder, in time."""
    world.write(1)
    with daemon(world, tmp_path / "first.log") as first:
        world.drained()
        first.freeze()
        with flushing(world.app, SETTINGS, member=False) as successor:
            wait_until(lambda: world.holders() == {successor.holder}, "the successor holds all")
            first.go_on()
            for _ in range(6):
                receipt = world.app.increment(accounts, 1, {"balance": 1})
                world.balances[1] += 1
                receipt.wait(Durability.PERSISTED, 5)
        wait_until(lambda: all(holder and f":{first.process.pid}:" in holder for holder in world.holders()), "back")
    world.check()


def test_a_daemon_frozen_inside_its_transaction(server_world: World, tmp_path: Path) -> None:
    """Its row locks go with its session, its successor gets in, and what it had not committed is applied once."""
    world = server_world
    world.write(1)
    with daemon(world, tmp_path / "first.log") as first:
        world.drained()
        with world.app.database.connect() as other:
            other.execute(sa.select(accounts).where(accounts.c.id == 3).with_for_update())
            world.write()
            wait_until(world.waiting_for_locks, "the daemon waits for the lock inside its transaction")
            first.freeze()
            other.rollback()
        begun = time.monotonic()
        with flushing(world.app, SETTINGS) as successor:
            world.drained()
            assert time.monotonic() - begun < 10
            assert world.holders() == {successor.holder}
            world.write()
            first.go_on()
            world.write()
            world.drained()
    world.check()


def test_two_daemons_under_fire(server_world: World, tmp_path: Path) -> None:
    """Daemons that are frozen and go on in turn, while writes keep coming, lose and double nothing."""
    world = server_world
    with daemon(world, tmp_path / "first.log") as first, daemon(world, tmp_path / "second.log") as second:
        for victim in (first, second):
            world.write()
            victim.freeze()
            world.write()
            world.drained()
            victim.go_on()
            world.write()
    with flushing(world.app, SETTINGS):
        world.drained()
    world.check()


# Commits whose outcome nobody knows


@pytest.mark.parametrize("fault", [Mishap.CUT_BEFORE, Mishap.CUT_AFTER, Mishap.CUT_INSIDE])
def test_an_unknown_commit_is_applied_once(server_world: World, fault: Mishap) -> None:
    """The connection breaks around COMMIT, several times: rows and offset are there once."""
    world = server_world
    url = world.app.database.url
    with Proxy(url.port or 0) as proxy:
        app = WriteBehind(
            redis=world.redis_url,
            database=url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False),
            tables=[accounts, events],
            namespace=world.app.keys.namespace,
            partitions=PARTITIONS,
        )
        injected = 0

        class Cut(Flusher):
            def perform(self, effect: Effect) -> FlushReply:
                nonlocal injected
                if isinstance(effect, Commit) and injected < 4:
                    injected += 1
                    proxy.inject(fault, COMMIT[world.dialect])
                return super().perform(effect)

        with flushing(app, SETTINGS, Cut):
            for _ in range(4):
                world.write()
                world.drained()
        app.close()
        assert proxy.suffered(fault) == injected == 4
    world.check()


@pytest.mark.parametrize("phase", [Write, Commit])
def test_a_connection_that_breaks_anywhere(server_world: World, phase: type[Effect]) -> None:
    """The server ends the flusher's session in the middle of the transaction: the batch is made anew."""
    world = server_world
    broken = 0

    class Broken(Flusher):
        def perform(self, effect: Effect) -> FlushReply:
            nonlocal broken
            if isinstance(effect, phase) and broken < 3:
                broken += 1
                query = "SELECT pg_backend_pid()" if world.dialect == "postgresql" else "SELECT CONNECTION_ID()"
                session = self._transaction.connection.exec_driver_sql(query).scalar_one()
                end = f"SELECT pg_terminate_backend({session})" if world.dialect == "postgresql" else f"KILL {session}"
                with world.app.database.connect() as connection:
                    connection.exec_driver_sql(end)
            return super().perform(effect)

    world.write()
    with flushing(world.app, SETTINGS, Broken):
        world.drained()
    assert broken == 3
    world.check()


# Servers that die


@pytest.mark.parametrize("kind", [EmbeddedPostgreSQL, EmbeddedMariaDB])
def test_a_database_killed_in_the_middle(redis_url: str, namespace: str, kind: type[EmbeddedDatabase]) -> None:
    """SIGKILL and restart of the SQL server while a flusher drains and writers write: exact in the end."""
    try:
        server = kind()
    except ConfigurationError as error:
        refuse(str(error))
    with server:
        world = World(redis_url, server.create_database("shop"), namespace)
        committed = threading.Semaphore(0)

        class Noticed(Flusher):
            def perform(self, effect: Effect) -> FlushReply:
                reply = super().perform(effect)
                if isinstance(effect, Write):
                    committed.release()
                return reply

        ended = threading.Event()

        def write() -> None:
            while not ended.is_set():
                world.write(2)
                ended.wait(0.01)

        writer = threading.Thread(target=write)
        with flushing(world.app, SETTINGS, Noticed):
            writer.start()
            for _ in range(2):
                assert committed.acquire(timeout=DEADLINE_SECONDS)
                server.kill()
                server.start()
                while committed.acquire(blocking=False):
                    pass
            ended.set()
            writer.join()
            world.drained()
        world.check()
        world.app.close()


# Other sessions


def test_a_lock_that_is_not_had_in_time(server_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A lock timeout takes the whole batch back, and it is tried again until the lock is free."""
    world = server_world
    world.write(1)
    with flushing(world.app, SETTINGS):
        world.drained()
        with world.app.database.connect() as other:
            other.execute(sa.select(accounts).where(accounts.c.id == 9).with_for_update())
            world.write()
            wait_until(lambda: "flush attempt 1" in caplog.text, "the flush gave up waiting")
            assert world.backlog() > 0
            with world.app.database.connect() as third:
                balances = set(third.execute(sa.select(accounts.c.balance)).scalars())
            assert balances == {1}
            other.rollback()
        world.drained()
    world.check()


def test_a_deadlock(server_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is the victim of a deadlock with another session, the batch is applied once and whole."""
    world = server_world
    world.write(1)
    for _ in range(3):
        with flushing(world.app, SETTINGS), world.app.database.connect() as other:
            world.drained()
            # More work than the flusher has done, so that InnoDB would rather roll back the flusher.
            other.execute(sa.insert(events), [{"kind": "rolled back"}] * 300)
            other.execute(sa.update(accounts).where(accounts.c.id == 9).values(owner="other"))
            world.write(1)
            wait_until(world.waiting_for_locks, "the flusher waits for the other session")
            with contextlib.suppress(sa.exc.DBAPIError):
                other.execute(sa.update(accounts).where(accounts.c.id == 0).values(owner="other"))
            with contextlib.suppress(sa.exc.DBAPIError):
                other.rollback()
            world.drained()
    assert "flush attempt" in caplog.text
    world.check()
