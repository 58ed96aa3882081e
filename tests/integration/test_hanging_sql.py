"""A database that takes questions and does not answer: nobody who waits for it waits longer than asked."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.drills.proxy import Proxy
from writebehind.engine import (
    AsyncWriteBehind,
    DatabaseUnavailable,
    Durability,
    DurabilityTimeout,
    EngineSettings,
    PoisonEntryError,
    WriteBehind,
    WritePolicy,
    WriteThroughTimeout,
)
from writebehind.engine.adapters.control_tables import control
from writebehind.engine.adapters.looks import THREADS_MAX
from writebehind.engine.core.partitioning import partition_of
from writebehind.flushers import FlusherSettings, drain, initialise

DEADLINE_SECONDS = 20.0
QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=2)
IMPATIENT = EngineSettings(write_timeout_seconds=1.0)
THROUGH = WritePolicy.WRITE_THROUGH
WAITING = 60

accounts = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False, default=0),
    sa.CheckConstraint("balance >= 0", name="solvent"),
)


# A connection that hangs when its engine is closed is in use; it ends with what uses it.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Hanging:
    """A PostgreSQL that can be reached in two ways, of which one can be made to hang.

    Args:
        url: the database, which always answers.

    Attributes:
        url: leads to it, too.
        direct: always answers.
    """

    def __init__(self, url: str) -> None:
        self.direct = url
        target = sa.make_url(url)
        self._target = (target.host or "127.0.0.1", target.port or 5432)
        self._proxy = Proxy(self._target[1], self._target[0])
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = target.set(host="127.0.0.1", port=self._proxy.port).render_as_string(hide_password=False)

    @contextlib.contextmanager
    def stuck(self, how: str) -> Iterator[None]:
        """Let it answer nothing during the block: a lock is held, or nothing comes back over any connection."""
        if how == "locked":
            with sa.create_engine(self.direct, poolclass=sa.NullPool).connect() as connection:
                names = ", ".join(control.tables)
                connection.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
                yield
            return
        self._proxy._target = self._silent.getsockname()
        self._proxy.half_open()
        try:
            yield
        finally:
            self._proxy._target = self._target
            # What nobody will ever answer ends now, as a keepalive ends it.
            for session in self._proxy._open_sessions():
                session.close()

    def close(self) -> None:
        """End it."""
        self._proxy.close()
        self._silent.close()


@pytest.fixture
def hanging(postgresql_url: str) -> Iterator[Hanging]:
    """A PostgreSQL that can be made to hang."""
    database = Hanging(postgresql_url)
    yield database
    database.close()
    gc.collect()


@pytest.fixture
def direct(hanging: Hanging, redis_url: str, namespace: str) -> Iterator[WriteBehind]:
    """An engine whose database always answers."""
    with engine_on(hanging.direct, redis_url, namespace) as engine:
        initialise(engine, create_tables=True)
        yield engine


def engine_on(database: str, redis: str, namespace: str, settings: EngineSettings = IMPATIENT) -> WriteBehind:
    """Make an engine of four partitions."""
    return WriteBehind(
        redis=redis, database=database, tables=[accounts], namespace=namespace, partitions=4, settings=settings
    )


def looking() -> int:
    """Count the threads that ask SQL for those who wait."""
    return sum(thread.name == "writebehind-look" for thread in threading.enumerate())


def until(happened: Callable[[], object]) -> None:
    """Wait for an event, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def of_partition(number: int) -> Iterator[int]:
    """Yield keys of a partition."""
    return (key for key in range(10_000) if partition_of(str(key), 4) == number)


@pytest.mark.parametrize("how", ["locked", "silent"])
def test_who_waits_in_threads(hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str, how: str) -> None:
    """Writes through, batches and receipts, also of what was flushed before, end in time; few threads are stuck."""
    with engine_on(hanging.url, redis_url, namespace) as engine, ThreadPoolExecutor(WAITING) as pool:
        keys = of_partition(0)
        flushed, refused = (
            engine.put(accounts, {"id": next(keys)}),
            engine.put(accounts, {"id": next(keys), "balance": -1}),
        )
        drain(direct, DEADLINE_SECONDS)
        with pytest.raises(PoisonEntryError):
            refused.wait(Durability.PERSISTED, 5)
        receipt = engine.put(accounts, {"id": 1})

        def batch() -> None:
            with engine.batch(policy=THROUGH) as batch:
                for key in range(100, 140):
                    batch.put(accounts, {"id": key})

        with hanging.stuck(how):
            asked: list[tuple[type[Exception], Callable[[], object]]] = [
                (WriteThroughTimeout, lambda: engine.put(accounts, {"id": 2}, policy=THROUGH)),
                (WriteThroughTimeout, batch),
                (DurabilityTimeout, lambda: receipt.wait(Durability.PERSISTED, 1)),
                (DurabilityTimeout, lambda: receipt.wait(Durability.PERSISTED, 0)),
                # Redis says that the offset has passed it, and only SQL whether it is a dead letter.
                (DurabilityTimeout, lambda: flushed.wait(Durability.PERSISTED, 1)),
            ]
            waits = [(error, pool.submit(work)) for error, work in asked for _ in range(WAITING // len(asked))]
            for error, wait in waits:
                assert type(wait.exception(DEADLINE_SECONDS)) is error
            assert 0 < looking() <= THREADS_MAX
            assert engine.put(accounts, {"id": 3}).durability is Durability.ACCEPTED
        engine.own_flusher.close()
        drain(direct, DEADLINE_SECONDS)
        assert flushed.wait(Durability.PERSISTED, DEADLINE_SECONDS).durability is Durability.PERSISTED
        assert receipt.wait(Durability.PERSISTED, DEADLINE_SECONDS).durability is Durability.PERSISTED
        until(lambda: looking() == 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["locked", "silent"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_who_waits_in_a_loop(
    *, hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str, driver: str, how: str
) -> None:
    """However many wait, each is told in time, and what needs Redis alone goes on; so does closing."""
    url = sa.make_url(hanging.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)

    async def main() -> None:
        engine = AsyncWriteBehind(
            redis=redis_url, database=url, tables=[accounts], namespace=namespace, partitions=4, settings=IMPATIENT
        )
        limiter, cache = engine.rate_limiter("api", 100_000, 60), engine.cache("profile", ttl_seconds=60)
        first = await engine.put(accounts, {"id": 1})
        await limiter.hit("me")
        with hanging.stuck(how):
            waits: list[Any] = [
                asyncio.ensure_future(engine.put(accounts, {"id": key}, policy=THROUGH)) for key in range(WAITING)
            ]
            waits += [asyncio.ensure_future(first.wait(timeout=seconds)) for seconds in (0, 0.1, 1)]
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not all(wait.done() for wait in waits):
                    assert (await limiter.hit("me")).allowed
                    await cache.invalidate("me")
                    await asyncio.sleep(0.05)
                assert 0 < looking() <= THREADS_MAX
                outcomes = await asyncio.gather(*waits, return_exceptions=True)
                told = Counter(type(outcome) for outcome in outcomes)
                assert told == {WriteThroughTimeout: WAITING, DurabilityTimeout: 3}
                await engine.close()
        await asyncio.to_thread(until, lambda: looking() == 0)

    asyncio.run(main())
    drain(direct, DEADLINE_SECONDS)


@pytest.mark.parametrize("awaited", [False, True], ids=["threads", "an event loop"])
def test_redis_tells_while_sql_does_not(
    hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str, *, awaited: bool
) -> None:
    """Who waits hears of a flush from Redis, although its own look at SQL never ends."""
    patient = EngineSettings(write_timeout_seconds=DEADLINE_SECONDS)

    def blocking() -> Durability | None:
        with engine_on(hanging.url, redis_url, namespace, patient) as engine:
            receipt = engine.put(accounts, {"id": 1})
            with hanging.stuck("silent"), ThreadPoolExecutor(1) as pool:
                wait = pool.submit(receipt.wait, Durability.PERSISTED, DEADLINE_SECONDS)
                until(looking)
                drain(direct, DEADLINE_SECONDS)
                return wait.result(DEADLINE_SECONDS).durability

    async def in_a_loop() -> Durability | None:
        engine = AsyncWriteBehind(
            redis=redis_url, database=hanging.url, tables=[accounts], namespace=namespace, partitions=4,
            settings=patient,
        )  # fmt: skip
        async with engine:
            receipt = await engine.put(accounts, {"id": 1})
            with hanging.stuck("silent"):
                wait = asyncio.ensure_future(receipt.wait(timeout=DEADLINE_SECONDS))
                await asyncio.to_thread(until, looking)
                await asyncio.to_thread(drain, direct, DEADLINE_SECONDS)
                return (await wait).durability

    assert (asyncio.run(in_a_loop()) if awaited else blocking()) is Durability.PERSISTED


def test_what_redis_knows_of_other_partitions(
    hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str
) -> None:
    """A look that never ends for one partition leaves time to hear from Redis that the others are flushed."""
    partitions = control.tables["writebehind_partitions"]
    with direct.database.begin() as connection:
        # A flusher that does nothing has the one.
        connection.execute(
            sa.update(partitions)
            .where(partitions.c.namespace == namespace, partitions.c.partition == 0)
            .values(holder="another", lease_until_ms=2**50)
        )
    stuck, free = next(of_partition(0)), next(of_partition(1))
    patient = EngineSettings(write_timeout_seconds=3.0)
    with engine_on(hanging.url, redis_url, namespace, patient) as engine, flushing(direct, QUICK):
        direct.put(accounts, {"id": free}).wait(Durability.PERSISTED, DEADLINE_SECONDS)
        engine.start()
        with hanging.stuck("silent"), pytest.raises(WriteThroughTimeout) as late, engine.batch(policy=THROUGH) as batch:
            receipts = [batch.put(accounts, {"id": key}) for key in (stuck, free)]
        assert late.value.receipts == (receipts[0],)
        assert receipts[1].durability is Durability.PERSISTED
        engine.own_flusher.close()


def test_a_write_to_another_history(
    hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where only SQL can tell what Redis has lost, a write does not wait for it for long."""
    forgetful = EngineSettings(retained_bytes_max=0)
    with engine_on(hanging.url, redis_url, namespace, forgetful) as engine, ThreadPoolExecutor(1) as pool:
        engine.put(accounts, {"id": 1})
        with hanging.stuck("silent"), redis.Redis.from_url(redis_url) as client:
            client.delete(*client.scan_iter(f"wb:{{{namespace}:*", count=1000))
            write = pool.submit(engine.put, accounts, {"id": 1})
            assert write.result(DEADLINE_SECONDS).durability is Durability.ACCEPTED
            assert "SQL cannot be asked now which of them it has (the database does not answer in time)" in caplog.text


def test_a_process_that_starts_and_ends(
    hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """A silent database keeps no process from its first write, nor from its end, closed or not."""
    program = tmp_path / "service.py"
    program.write_text(
        "import sqlalchemy as sa\n"
        "from writebehind.engine import *\n"
        "accounts = sa.Table('accounts', sa.MetaData(),"
        " sa.Column('id', sa.Integer, primary_key=True, autoincrement=False),"
        " sa.Column('balance', sa.BigInteger, nullable=False, default=0))\n"
        f"engine = WriteBehind(redis={redis_url!r}, database={hanging.url!r}, namespace={namespace!r}, partitions=4,"
        " tables=[accounts], settings=EngineSettings(write_timeout_seconds=0.5))\n"
        "try:\n"
        "    engine.put(accounts, {'id': 1}, policy=WritePolicy.WRITE_THROUGH)\n"
        "except WriteThroughTimeout as late:\n"
        "    print('late', len(late.receipts))\n"
    )
    with hanging.stuck("silent"):
        ended = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
    assert (ended.returncode, ended.stdout) == (0, "late 1\n"), ended.stderr
    assert "cannot be compared with SQL's: the database does not answer in time" in ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork(hanging: Hanging, direct: WriteBehind, redis_url: str, namespace: str) -> None:
    """A child of one whose looks are stuck writes, is told in time, and closes."""
    with engine_on(hanging.url, redis_url, namespace) as engine:
        receipt = engine.put(accounts, {"id": 1})
        with hanging.stuck("silent"):
            for _ in range(THREADS_MAX + 1):
                with pytest.raises(DurabilityTimeout):
                    receipt.wait(timeout=0)
            assert looking() == THREADS_MAX
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(int(DEADLINE_SECONDS))
                    mine = engine.put(accounts, {"id": 2})
                    with contextlib.suppress(DurabilityTimeout):
                        mine.wait(Durability.PERSISTED, 0.2)
                    engine.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
    drain(direct, DEADLINE_SECONDS)


def test_what_is_asked_has_a_limit(hanging: Hanging, direct: WriteBehind, redis_url: str) -> None:
    """Queries for offsets, letters, losses and leases end by themselves behind a lock."""
    namespace = direct.keys.namespace
    engine = engine_on(hanging.direct, redis_url, namespace, EngineSettings(load_lease_seconds=0.2))
    rows = engine.rows
    place = direct.put(accounts, {"id": 1}).entry_id
    asked: list[Callable[[], object]] = [
        lambda: rows.applied_of(namespace, [0]),
        lambda: rows.letter_of(namespace, 0, [place]),
        lambda: rows.has_letters(namespace, 0),
        lambda: rows.in_doubt(namespace, 0, [place]),
        lambda: rows.serving(namespace, [0]),
    ]
    with ThreadPoolExecutor(len(asked)) as pool, hanging.stuck("locked"):
        for ended in [pool.submit(ask) for ask in asked]:
            assert isinstance(ended.exception(DEADLINE_SECONDS), DatabaseUnavailable)
    for ask in asked:
        ask()
    engine.close()
