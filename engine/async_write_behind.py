"""The engine as a service embeds it that runs in an event loop."""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

import redis as redis_client
import sqlalchemy as sa
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy.ext.asyncio import AsyncEngine

from writebehind.engine.adapters.async_clients import LoopCalls, blocking_redis
from writebehind.engine.adapters.blocking_databases import async_engine, blocking_url, is_async, require_blocking
from writebehind.engine.async_core import AsyncCore
from writebehind.engine.async_services import AsyncCache, AsyncRateLimiter
from writebehind.engine.async_writing import AsyncWriter
from writebehind.engine.awaiting import await_out
from writebehind.engine.batches import AsyncAtomicGroup, AsyncBatch
from writebehind.engine.clearances import Clearances
from writebehind.engine.config import CacheTuning, EngineSettings, WritePolicy
from writebehind.engine.core.composing import Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.read_counts import ReadCounts
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import WriteBehindError
from writebehind.engine.following import Following
from writebehind.engine.forks import told_of_forks
from writebehind.engine.receipts import AsyncReceipt
from writebehind.engine.rounds import Rounds
from writebehind.engine.waits import Waits
from writebehind.engine.write_behind import WriteBehind

__all__ = ["AsyncWriteBehind"]

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Model = TypeVar("Model")

THREADS_MAX = 32
"""Looks at an offset, cache and limiter calls that may be under way together."""

HELD_UP_MAX = 32
"""Waits for a disk or a replica that may be under way together; each holds its thread for as long as it takes."""

READERS_MAX = 32
"""Reads that may ask Redis or SQL together; those that wait for others are not among them."""


class AsyncWriteBehind:
    """``WriteBehind`` for an event loop: the same names, awaited, with the same settings, errors and guarantees.

    Writes of tasks that run at the same time share round trips. What asks a server runs in threads of the engine's own,
    which no cancellation interrupts: see docs/asyncio.md for what a cancelled caller knows.

    It belongs to the event loop in which it is used first. Making one opens no connection; the first use, ``start`` or
    the ``async with`` block does. After a fork the child goes on with connections and an event loop of its own.

    Args:
        redis: a URL, or a client for asyncio or threads (also one made by Sentinel) whose connection settings are taken
            over.
        database: a SQLAlchemy URL, ``AsyncEngine`` or ``Engine``. What the engine itself reads in SQL goes through an
            ``AsyncEngine``'s own connections, or, with an ``Engine``, through threads.
        tables: as ``WriteBehind``.
        namespace: as ``WriteBehind``.
        partitions: as ``WriteBehind``.
        durability: as ``WriteBehind``.
        settings: as ``WriteBehind``.
        on_data_loss: as ``WriteBehind``: a function that is called, in a thread.
        on_dead_letter: as ``WriteBehind``.
        blocking_database: a SQLAlchemy URL or ``Engine`` by which ``blocking`` and flushers connect; made from
            ``database`` where None.

    Raises:
        ConfigurationError: something of this cannot work, with the reason.
    """

    def __init__(
        self,
        *,
        redis: "str | AsyncRedis | redis_client.Redis",
        database: str | sa.URL | AsyncEngine | sa.Engine,
        tables: Sequence[Any],
        namespace: str,
        partitions: int = 16,
        durability: Durability = Durability.ACCEPTED,
        settings: EngineSettings | None = None,
        on_data_loss: Callable[[DataLoss], None] | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
        blocking_database: str | sa.URL | sa.Engine | None = None,
    ) -> None:
        self._own_database: AsyncEngine | None = None
        if not isinstance(database, sa.Engine | AsyncEngine) and is_async(database):
            self._own_database = database = async_engine(database)
        make = functools.partial(
            AsyncCore,
            redis=blocking_redis(redis) if isinstance(redis, AsyncRedis) else redis,
            tables=tables,
            namespace=namespace,
            partitions=partitions,
            durability=durability,
            settings=settings,
            on_data_loss=on_data_loss,
            on_dead_letter=on_dead_letter,
        )
        self._core = make(database=database, calls=lambda: self._calls, flushed_by=lambda: self.blocking)
        if blocking_database is not None:
            require_blocking(blocking_database, self._core.database)
        self._blocking: WriteBehind | None = None
        self._blocking_database = blocking_database
        self._make_blocking = make
        self._closed = False
        self._begin()
        told_of_forks(self)

    def _begin(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: LoopCalls | None = None
        self._making_blocking = threading.Lock()

    @property
    def settings(self) -> EngineSettings:
        """What this process may tune."""
        return self._core.settings

    @property
    def blocking(self) -> WriteBehind:
        """The same engine for threads: for ``initialise``, ``drain``, ``status``, flushers and the command line.

        It has connections of its own, which ``close`` closes with this one's; where the database is an ``AsyncEngine``,
        it needs a driver for threads: psycopg for asyncpg, say.

        Raises:
            ConfigurationError: the driver is not installed, or what the ``AsyncEngine`` is told cannot be told it: then
                it has to be given ``blocking_database``.
        """
        with self._making_blocking:
            # The engine's own flusher, in its thread, may be the first who needs it.
            if self._blocking is None:
                database: sa.URL | sa.Engine | str = self._core.database
                if self._blocking_database is not None:
                    database = self._blocking_database
                elif self._core.database.dialect.is_async:
                    database = blocking_url(self._core.database)
                self._blocking = self._make_blocking(database=database)
            return self._blocking

    # Starting and ending

    async def start(self) -> Self:
        """Connect, compare settings, check the durability level; see ``WriteBehind.start``.

        Repeat: harmless.

        Raises:
            ConfigurationError, RedisUnavailable: as ``WriteBehind.start``.
            WriteBehindError: it is closed, or belongs to another event loop.
        """
        self._bind()
        await self._clearances.wait()
        return self

    async def close(self) -> None:
        """Wait until no write is under way, then close the connections. Accepted writes are not affected.

        A write is under way until it is at the level that it asks for, or its time is up. Who waits for a receipt gets
        a ``DurabilityTimeout``; a read under way, at worst an error that says so: what an ``AsyncEngine`` is asked has
        2 s to end, and is cancelled then.

        Repeat: harmless; where it was cancelled, it goes on.

        Raises:
            WriteBehindError: it belongs to another event loop.
        """
        if self._loop is not None:
            self._here()
        self._closed = True
        if self._loop is None:
            self._core.close()
        else:
            await self._lanes.end()
            self._waits.end()
            await self._rounds.end()
            await self._in_thread(self._core.close)
            if self._calls is not None:
                await self._calls.end()
            for threads in (self._threads, self._readers, self._held_up):
                # What nobody waits for goes on to its end; its connection is closed when it gives it back.
                threads.shutdown(wait=False)
            self._loop = None
        if self._blocking is not None:
            await asyncio.to_thread(self._blocking.close)
        if self._own_database is not None:
            await self._own_database.dispose()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    # Writing

    async def put(
        self,
        table: Any,
        record: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> AsyncReceipt:
        """Insert or replace a whole record; see ``WriteBehind.put``.

        Durability, Repeat, Crash, Raises: as ``WriteBehind.put``. A ``CancelledError`` has a note of what is known of
        the write: "not sent", "under way" (it goes on, and is in the log once or not at all) or "accepted".
        """
        return await self._write(self._core.composer.put(self._core.plan_of(table), record), durability, policy)

    async def patch(
        self,
        table: Any,
        key: Any,
        changes: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> AsyncReceipt:
        """Set some columns of an existing record; see ``WriteBehind.patch``.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return await self._write(self._core.composer.patch(self._core.plan_of(table), key, changes), durability, policy)

    async def increment(
        self,
        table: Any,
        key: Any,
        deltas: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> AsyncReceipt:
        """Add amounts to numeric columns, exactly once; see ``WriteBehind.increment``.

        Durability, Crash, Raises: as ``put``. Repeat: adds once more.
        """
        return await self._write(
            self._core.composer.increment(self._core.plan_of(table), key, deltas), durability, policy
        )

    async def insert(
        self,
        table: Any,
        row: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> AsyncReceipt:
        """Append a row, exactly once; see ``WriteBehind.insert``.

        Durability, Crash, Raises: as ``put``. Repeat: another row.
        """
        return await self._write(self._core.composer.insert(self._core.plan_of(table), row), durability, policy)

    async def delete(
        self, table: Any, key: Any, *, durability: Durability | None = None, policy: WritePolicy | None = None
    ) -> AsyncReceipt:
        """Delete a record; see ``WriteBehind.delete``.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return await self._write(self._core.composer.delete(self._core.plan_of(table), key), durability, policy)

    def batch(self, *, durability: Durability | None = None, policy: WritePolicy | None = None) -> AsyncBatch:
        """Return an async context manager that sends many writes together when its block ends."""
        return AsyncBatch(self, self._core, durability, policy)

    def atomic(
        self, table: Any, key: Any, *, durability: Durability | None = None, policy: WritePolicy | None = None
    ) -> AsyncAtomicGroup:
        """Return an async context manager whose writes become one log entry; see ``WriteBehind.atomic``."""
        _, spread, _ = self._core.plan_of(table).key_only(key)
        return AsyncAtomicGroup(self, self._core, partition_of(spread, self._core.keys.partitions), durability, policy)

    # Reading

    @overload
    async def get(self, table: Any, key: Any, *, as_model: Literal[False] = False) -> dict[str, Any] | None: ...

    @overload
    async def get(self, table: type[Model], key: Any, *, as_model: Literal[True]) -> Model | None: ...

    async def get(self, table: Any, key: Any, *, as_model: bool = False) -> Any:
        """Read a record: every accepted write is seen; see ``WriteBehind.get``.

        A read whose caller is cancelled ends what it asks a server for, and keeps in Redis what it has loaded.
        """
        await self._ensure_started()
        make = self._core.maker_of(table, as_model=as_model)
        record = await await_out(self._core.reading_one(table, key), self._in_reader)
        return record if record is None else make(record)

    @overload
    async def get_many(
        self, table: Any, keys: Sequence[Any], *, as_model: Literal[False] = False
    ) -> dict[Any, dict[str, Any] | None]: ...

    @overload
    async def get_many(
        self, table: type[Model], keys: Sequence[Any], *, as_model: Literal[True]
    ) -> dict[Any, Model | None]: ...

    async def get_many(self, table: Any, keys: Sequence[Any], *, as_model: bool = False) -> Any:
        """Read several records, with one query for all that are not in Redis; see ``WriteBehind.get_many``."""
        await self._ensure_started()
        make = self._core.maker_of(table, as_model=as_model)
        found = await await_out(self._core.reading(table, keys), self._in_reader)
        return {key: None if record is None else make(record) for key, record in found.items()}

    def read_counts(self) -> dict[str, ReadCounts]:
        """Return what the reads of this process have met with so far, by table; ``status`` sums over processes."""
        return self._core.read_counts()

    # Limiting and caching

    def rate_limiter(
        self,
        name: str,
        limit: int | None = None,
        window_seconds: float | None = None,
        *,
        limits: Sequence[tuple[int, float]] | None = None,
    ) -> AsyncRateLimiter:
        """Return a limiter that all processes share who name it; see ``WriteBehind.rate_limiter``."""
        return AsyncRateLimiter(self._core.rate_limiter(name, limit, window_seconds, limits=limits), self.run)

    def cache(self, name: str, *, ttl_seconds: float, **tuning: Unpack[CacheTuning]) -> AsyncCache:
        """Return the cache of a name; see ``WriteBehind.cache``."""
        return AsyncCache(self._core.cache(name, ttl_seconds=ttl_seconds, **tuning), self.run)

    # For batches, receipts, caches and limiters

    async def run(
        self, work: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run blocking work in a thread, which starts the engine if need be. Cancelled, it goes on to its end there."""
        self._bind()
        return await self._in_thread(functools.partial(work, *args, **kwargs))

    def writer(self) -> AsyncWriter:
        """Return what writes; from now on the engine belongs to the running event loop.

        Raises:
            WriteBehindError: it is closed, or belongs to another event loop.
        """
        self._bind()
        return self._writer

    async def confirm(self, receipt: AsyncReceipt, level: Durability, timeout: float) -> None:  # noqa: ASYNC109 - as Receipt.wait
        """Wait until a write is as durable as asked; see ``AsyncReceipt.wait``."""
        level, _ = Durability(level), receipt.entry_id
        async with self._waits.until_closed(level):
            self._here()
            await self._rounds.confirm(receipt, level, timeout)

    async def _write(self, entry: Entry, durability: Durability | None, policy: WritePolicy | None) -> AsyncReceipt:
        partition = entry.partition if entry.partition >= 0 else self._core.any_partition()
        receipt = AsyncReceipt(self, partition)
        declarations, names = self._core.declarations, (entry.member[1],)
        through = declarations.writes_through(names, policy)
        await self.writer().append(entry, receipt, declarations.backpressure_of(names), durability, through=through)
        return receipt

    # Its event loop

    async def _ensure_started(self) -> None:
        self._bind()
        await self._clearances.wait()

    def _bind(self) -> None:
        """Belong to the running event loop from the first use on, or from the next one on if no start has succeeded."""
        if self._closed:
            raise WriteBehindError("this engine is closed", "make a new one")
        if self._loop is not None:
            if self._core.started or not self._loop.is_closed():
                self._here()
                return
            self._leave()
        self._loop = asyncio.get_running_loop()
        self._calls = LoopCalls(self._loop)
        self._threads = ThreadPoolExecutor(THREADS_MAX, "writebehind")
        # Reads may wait for a slow query: they must not hold up those who wait for a disk.
        self._readers = ThreadPoolExecutor(READERS_MAX, "writebehind-read")
        # So may waits for a disk, and these must hold up nobody else.
        self._held_up = ThreadPoolExecutor(HELD_UP_MAX, "writebehind-level")
        self._lanes = self._core.lanes()
        self._waits = Waits()
        self._clearances = Clearances(
            start=self._core.start,
            require=self._core.require,
            in_thread=self._in_thread,
            own=self._core.durability,
        )
        self._writer = AsyncWriter(self._core, self._lanes, self._clearances)
        self._rounds = Rounds(
            self._core.confirming,
            self._core.place_of,
            Following(self._core.progress, self._in_thread),
            in_thread=self._in_thread,
            held_up=self._for_level,
        )

    def _leave(self) -> None:
        """Leave an event loop that has ended, and in which nothing was written."""
        for threads in (self._threads, self._readers, self._held_up):
            threads.shutdown(wait=False)
        if self._own_database is not None:
            # Its connections belong to that loop.
            self._own_database.sync_engine.dispose(close=False)

    def _here(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise WriteBehindError(
                "this engine belongs to another event loop, or is closed",
                "make one in each event loop, and close it there",
            )

    async def _in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await self._in(self._threads, functools.partial(work, *arguments))

    async def _in_reader(self, work: Callable[[], Result]) -> Result:
        return await self._in(self._readers, work)

    async def _for_level(self, work: Callable[[], Result]) -> Result:
        return await self._in(self._held_up, work)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        try:
            done = asyncio.get_running_loop().run_in_executor(threads, work)
        except RuntimeError as error:
            if self._closed:
                raise WriteBehindError("this engine was closed meanwhile", "make a new one") from error
            raise
        return await done

    def after_fork(self) -> None:
        """Become a client of its own, in a forked child; called by the interpreter."""
        self._begin()
