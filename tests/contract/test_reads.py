"""One suite of reads for both shells: each finds the same, loads as often, waits and fails alike."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import orm

from shells import Awaited, Blocking, Shell
from sources import Source
from writebehind.engine import (
    ConfigurationError,
    DatabaseUnavailable,
    EngineSettings,
    ReadCounts,
    ReadTimeout,
    ValidationError,
)
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

DEADLINE_SECONDS = 30.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)


class Base(orm.DeclarativeBase):
    """Declared classes."""


class Account(Base):
    """An account."""

    __tablename__ = "accounts"
    id: orm.Mapped[int] = orm.mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    balance: orm.Mapped[int] = orm.mapped_column(sa.Integer, default=0)
    note: orm.Mapped[str | None] = orm.mapped_column(sa.Text)


plain = sa.Table(
    "plain",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer),
)
Make = Callable[..., Shell]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The database, watched."""
    return Source(monkeypatch)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A plain client of the shared Redis."""
    with redis.Redis.from_url(redis_url) as made:
        yield made


SHELLS: dict[str, tuple[Any, str]] = {
    "threads": (Blocking, "sqlite"),
    "event loop, Engine": (Awaited, "sqlite"),
    "event loop, AsyncEngine": (Awaited, "sqlite+aiosqlite"),
}


@pytest.fixture(params=SHELLS)
def make(request: pytest.FixtureRequest, redis_url: str, namespace: str, sqlite_url: str) -> Iterator[Make]:
    """A factory of engines of each kind in turn, on an initialised database."""
    kind, driver = SHELLS[request.param]
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Shell:
            tuned: dict[str, Any] = {"read_timeout_seconds": DEADLINE_SECONDS, "ttl_jitter_share": 0.0} | settings
            shell: Shell = kind(
                redis=redis_url,
                database=sqlite_url.replace("sqlite", driver, 1),
                namespace=namespace,
                partitions=2,
                tables=[Account, plain],
                settings=EngineSettings(**tuned),
            )
            stack.callback(shell.close)
            initialise(shell.core, create_tables=True)
            return shell

        yield start


def account(number: int, balance: int = 0, note: str | None = None) -> dict[str, Any]:
    """Return a record."""
    return {"id": number, "balance": balance, "note": note}


def store(shell: Shell, *records: dict[str, Any]) -> None:
    """Have rows in SQL that Redis has never heard of."""
    with shell.core.database.begin() as connection:
        for record in records:
            connection.execute(sa.delete(Account).where(Account.id == record["id"]))
            connection.execute(sa.insert(Account.__table__).values(**record))  # type: ignore[arg-type]


def name(shell: Shell, number: int) -> str:
    """Return the name of a record's hash."""
    return str(shell.core.keys.record(partition_of(str(number), 2), "accounts", str(number)))


def counts(shell: Shell) -> ReadCounts:
    """Return what the shell's reads have met with."""
    engine: Any = shell.engine if isinstance(shell, Awaited) else shell.core
    found: ReadCounts = engine.read_counts()["accounts"]
    return found


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Reads:
    """Reads of one key that are under way in threads; in an event loop, in its tasks."""

    def __init__(self, shell: Shell, number: int, key: int) -> None:
        self._pool = ThreadPoolExecutor(number)
        self._reads = [self._pool.submit(shell, "get", Account, key) for _ in range(number)]

    def found(self) -> list[Any]:
        """Wait for all of them."""
        with self._pool:
            return [read.result(DEADLINE_SECONDS) for read in self._reads]


def test_misses_then_hits(make: Make, source: Source) -> None:
    """What is not in Redis is asked for together, once; that there is no row is remembered, too."""
    shell = make()
    store(shell, *(account(number, number) for number in range(50)))
    expected = {number: account(number, number) if number < 50 else None for number in range(60)}
    for _ in range(2):
        assert shell("get_many", Account, range(60)) == expected
        assert [shell("get", Account, number) for number in (3, 55)] == [account(3, 3), None]
    assert len(source.queries) == 1
    found = counts(shell)
    assert (found.hits, found.negative_hits, found.misses, found.loads) == (64, 12, 60, 60)


def test_dirty_records(make: Make, source: Source) -> None:
    """A whole record, a deleted one and a patched one are as they were written, before SQL has any of it."""
    shell = make()
    store(shell, account(2, 2), account(3, 3, "old"))
    shell("put", Account, account(1, 1))
    shell("delete", Account, 2)
    shell("patch", Account, 3, {"note": "new"})
    for _ in range(2):
        assert shell("get_many", Account, [1, 2, 3]) == {1: account(1, 1), 2: None, 3: account(3, 3, "new")}
    assert source.queries == [["3"]]


@pytest.mark.parametrize("landed", [True, False])
def test_a_marker_waits_for_sql(make: Make, *, landed: bool) -> None:
    """What was added to an unknown record is read when SQL has it, or the read says why it cannot be."""
    shell = make(read_timeout_seconds=DEADLINE_SECONDS if landed else 0.05)
    store(shell, account(1, 5))
    shell("increment", Account, 1, {"balance": 2})
    if not landed:
        with pytest.raises(ReadTimeout, match="not in SQL yet"):
            shell("get", Account, 1)
        return
    reads = Reads(shell, 3, 1)
    eventually(lambda: counts(shell).waits == 3)
    drain(shell.core, DEADLINE_SECONDS, QUICK)
    assert reads.found() == [account(1, 7)] * 3


def test_nothing_is_remembered_for_longer_than_asked(make: Make, source: Source) -> None:
    """Without negative results each read asks."""
    shell = make(negative_ttl_seconds=None)
    assert [shell("get", Account, 1) for _ in range(3)] == [None] * 3
    assert len(source.queries) == 3


def test_stale_while_another_loads(make: Make, source: Source, client: Any) -> None:
    """Past its time a record is given to all but the one who loads it; where SQL is away, to all."""
    shell = make(record_ttl_seconds=100, stale_seconds=1000)
    store(shell, account(1, 5))
    assert shell("get", Account, 1) == account(1, 5)
    source.wait()
    store(shell, account(1, 6))
    client.pexpire(name(shell, 1), 999_000)
    source.hold()
    reads = Reads(shell, 1, 1)
    source.wait()
    assert shell("get", Account, 1) == account(1, 5)
    source.go_on.set()
    assert reads.found() == [account(1, 6)]
    client.pexpire(name(shell, 1), 999_000)
    source.fails = True
    assert [shell("get", Account, 1) for _ in range(2)] == [account(1, 6)] * 2
    assert counts(shell).stale == 3


def test_ahead_of_the_end(make: Make, source: Source, client: Any) -> None:
    """Towards its end a record is loaded again by one caller, who gets the new row."""
    shell = make(record_ttl_seconds=100, refresh_ahead_share=0.5)
    store(shell, account(1, 5))
    shell("get", Account, 1)
    store(shell, account(1, 6))
    assert shell("get", Account, 1) == account(1, 5)
    client.pexpire(name(shell, 1), 49_000)
    assert shell("get", Account, 1) == account(1, 6)
    assert client.pttl(name(shell, 1)) > 90_000
    assert (len(source.queries), counts(shell).stale) == (2, 0)


def test_instances(make: Make) -> None:
    """Records come as instances of their class, where there is one."""
    shell = make()
    shell("put", Account, account(1, 5, "x"))
    found = shell("get", Account, 1, as_model=True)
    assert isinstance(found, Account)
    assert (found.id, found.balance, found.note) == (1, 5, "x")
    many = shell("get_many", Account, [1, 2], as_model=True)
    assert (many[1].balance, many[2]) == (5, None)
    with pytest.raises(ConfigurationError, match="without a class"):
        shell("get", plain, 1, as_model=True)


def test_sql_away(make: Make, source: Source) -> None:
    """What is not in Redis cannot be read; what is there can; and nobody waits for who has tried."""
    shell = make()
    store(shell, account(1, 5))
    shell("put", Account, account(2, 6))
    source.fails = True
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            shell("get", Account, 1)
        with pytest.raises(DatabaseUnavailable):
            shell("get_many", Account, [1, 2])
    assert shell("get", Account, 2) == account(2, 6)
    source.fails = False
    assert shell("get_many", Account, [1, 2]) == {1: account(1, 5), 2: account(2, 6)}
    assert counts(shell).waits == 0


def test_a_slow_load(make: Make, source: Source) -> None:
    """Who waits for it too long is told so; others are not held up by those who wait."""
    shell, hasty = make(), make(read_timeout_seconds=0.2)
    store(shell, account(1, 5))
    shell("put", Account, account(2, 6))
    source.hold()
    reads = Reads(shell, 100, 1)
    source.wait()
    eventually(lambda: counts(shell).waits == 99)
    assert shell("get", Account, 2) == account(2, 6)
    with pytest.raises(ReadTimeout, match="being loaded"):
        hasty("get", Account, 1)
    source.go_on.set()
    assert reads.found() == [account(1, 5)] * 100
    assert source.queries == [["1"]]


@pytest.mark.parametrize("event", ["put", "patch", "increment", "delete", "flush", "expiry"])
def test_what_happens_under_a_slow_load(make: Make, source: Source, client: Any, event: str) -> None:
    """A write, its flush, or the end of the lease cancel what is being loaded: it never covers what came later."""
    shell = make()
    store(shell, account(1, 5))
    source.hold()
    reads = Reads(shell, 1, 1)
    source.wait()
    expected: dict[str, Any] | None = account(1, 9)
    if event in {"put", "flush"}:
        shell("put", Account, account(1, 9))
    elif event in {"patch", "increment"}:
        shell(event, Account, 1, {"balance": 9 if event == "patch" else 4})
    elif event == "delete":
        shell("delete", Account, 1)
        expected = None
    else:
        store(shell, account(1, 9))
    if event in {"flush", "expiry"}:
        drain(shell.core, DEADLINE_SECONDS, QUICK)
        client.delete(name(shell, 1))
        source.go_on.set()
        assert shell("get", Account, 1) == expected
    source.go_on.set()
    assert reads.found() == [account(1, 5)]
    if event == "increment":
        drain(shell.core, DEADLINE_SECONDS, QUICK)
    assert shell("get", Account, 1) == expected
    assert counts(shell).not_kept == 1


def test_keys_that_do_not_fit(make: Make) -> None:
    """They are refused, by either read, and nothing is asked for."""
    shell = make()
    for wrong in ("x", None, (1, 2), [1]):
        with pytest.raises(ValidationError):
            shell("get", Account, wrong)
        with pytest.raises(ValidationError):
            shell("get_many", Account, [1, wrong])
    assert shell("get_many", Account, []) == {}
    assert counts(shell) == ReadCounts()
