"""What a service has for asyncio, as the engine's threads use it: the same servers by the same settings."""

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import redis
from redis.asyncio import Connection as AsyncConnection
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio import UnixDomainSocketConnection as AsyncUnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.sentinel import Sentinel, SentinelConnectionPool
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.adapters.rows import Applied, LetterState, Rows, Serving
from writebehind.engine.config import NamespaceSettings
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.retention import DataLoss
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable

__all__ = ["LoopCalls", "LoopRows", "blocking_redis"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SECONDS_MAX = 60.0
"""How long a thread waits for the event loop to ask the database; one that is stopped for good never does."""

END_SECONDS_MAX = 2.0
"""How long an engine that is closed waits for what its threads ask the database, before it has that end."""

CANCEL_SECONDS = (2.0, 0.5, 0.5)
"""How long it then waits each time: drivers first ask the server to end a query, and are cancelled again in that."""

PAUSE_SECONDS = 0.005

OWN = frozenset(
    {
        "connection_pool",
        "driver_info",
        "encoder_class",
        "himport_registry",
        "maint_notifications_config",
        "maint_notifications_pool_handler",
        "oss_cluster_maint_notifications_handler",
        "orig_host_address",
        "orig_socket_connect_timeout",
        "orig_socket_timeout",
        "parser_class",
        "retry",
    }
)
"""Settings of a client's connections that only those can use; the engine has its own in their place."""


KINDS: Mapping[type, Any] = {
    AsyncConnection: redis.Connection,
    AsyncSSLConnection: redis.SSLConnection,
    AsyncUnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}


def blocking_redis(client: "AsyncRedis") -> redis.Redis:
    """Return a client with the connection settings of one for asyncio, also one made by Sentinel; it connects later.

    Raises:
        ConfigurationError: the settings contain a function that is awaited, or the connections are of a class of the
            service's own.
    """
    pool = client.connection_pool
    settings = _settings(pool.connection_kwargs)
    if isinstance(pool, AsyncSentinelConnectionPool):
        if pool.connection_class not in {SentinelManagedConnection, SentinelManagedSSLConnection}:
            raise _foreign(pool)
        own = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            pool.service_name,
            _sentinel(pool.sentinel_manager),
            is_master=pool.is_master,
            ssl=pool.connection_class is SentinelManagedSSLConnection,
            **settings,
        )
        return redis.Redis(connection_pool=own)
    kind = KINDS.get(pool.connection_class)
    if kind is None:
        raise _foreign(pool)
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **settings))


def _sentinel(manager: AsyncSentinel) -> Sentinel:
    made = Sentinel(  # type: ignore[no-untyped-call]
        [], min_other_sentinels=manager.min_other_sentinels, force_master_ip=getattr(manager, "_force_master_ip", None)
    )
    made.sentinels = [blocking_redis(each) for each in manager.sentinels]
    return made


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in given.items() if name not in OWN}
    if inspect.iscoroutinefunction(settings.get("redis_connect_func")):
        raise ConfigurationError("redis_connect_func of this client is awaited", "give a URL, or a client without it")
    return settings


def _foreign(pool: Any) -> ConfigurationError:
    return ConfigurationError(
        f"this client's connections are of a class of its own: {pool.connection_class.__name__}",
        "give a URL, or a redis.Redis whose connections are of such a class, for threads",
    )


class LoopCalls:
    """What threads have an event loop ask the database; safe to share between threads.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._ended = False
        self._asked: set[Future[Any]] = set()
        self._asking: set[asyncio.Task[Any]] = set()

    def call(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run in the event loop what awaits the database as SQLAlchemy's ``AsyncEngine`` has it; called from a thread.

        Raises:
            DatabaseUnavailable: it does not answer, or the event loop has ended, or the engine is being closed.
        """
        with self._lock:
            if self._ended:
                raise _closed()
            question = self._ask(work, *arguments)
            try:
                asked = asyncio.run_coroutine_threadsafe(question, self._loop)
            except RuntimeError as error:
                question.close()
                raise _loop_ended() from error
            self._asked.add(asked)
        try:
            return asked.result(SECONDS_MAX)
        except CancelledError:
            # An engine that is closed cancels what it has not been told, and so does a loop that ends.
            raise _closed() from None
        except (OSError, TimeoutError) as error:
            asked.cancel()  # asyncpg raises the socket's own errors
            raise DatabaseUnavailable(f"the database does not answer: {error}", "check the database") from error
        finally:
            with self._lock:
                self._asked.discard(asked)

    async def end(self) -> None:
        """Take no more calls, and wait until those under way have given their connections back; called in the loop.

        One that takes too long is cancelled, and its connection closed: an event loop that ended first would leave it
        half open. Repeat: harmless; where it was cancelled, it goes on.
        """
        with self._lock:
            self._ended = True
        until = self._loop.time() + END_SECONDS_MAX
        while self._asked and self._loop.time() < until:  # noqa: ASYNC110 - threads end it
            await asyncio.sleep(PAUSE_SECONDS)
        for seconds in CANCEL_SECONDS:
            if asking := set(self._asking):
                for task in asking:
                    task.cancel()
                await asyncio.wait(asking, timeout=seconds)
        if self._asking:
            logger.warning("%d questions to the database do not end, and keep their connections", len(self._asking))

    async def _ask(self, work: Callable[..., Result], *arguments: Any) -> Result:
        task = asyncio.ensure_future(greenlet_spawn(work, *arguments))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return await task


def _loop_ended() -> DatabaseUnavailable:
    """Return the error for an ``AsyncEngine`` that cannot be asked any more, or not yet."""
    return DatabaseUnavailable("the event loop of the AsyncEngine has ended", "close the engine before its loop")


def _closed() -> DatabaseUnavailable:
    return DatabaseUnavailable("the engine or its event loop ended before the database answered", "make a new one")


class LoopRows(Rows):
    """Rows that are read in an event loop, through the connections of an ``AsyncEngine``; called from threads.

    Args:
        engine: the engine.
        calls: asks in its event loop; None where there is none yet.
        load_seconds_max: as for ``Rows``.
    """

    def __init__(self, engine: AsyncEngine, calls: Callable[[], LoopCalls | None], load_seconds_max: float) -> None:
        super().__init__(engine.sync_engine, load_seconds_max)
        self._calls = calls

    def load(self, declared: DeclaredTable, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """As ``Rows.load``."""
        return self._in_loop(super().load, declared, keys)

    def letter_of(self, namespace: str, partition: int, places: Sequence[EntryID]) -> LetterState | None:
        """As ``Rows.letter_of``."""
        return self._in_loop(super().letter_of, namespace, partition, places)

    def has_letters(self, namespace: str, partition: int) -> bool:
        """As ``Rows.has_letters``."""
        return self._in_loop(super().has_letters, namespace, partition)

    def applied_of(self, namespace: str, numbers: Sequence[int]) -> dict[int, Applied]:
        """As ``Rows.applied_of``."""
        return self._in_loop(super().applied_of, namespace, numbers)

    def serving(self, namespace: str, numbers: Collection[int]) -> dict[int, Serving]:
        """As ``Rows.serving``."""
        return self._in_loop(super().serving, namespace, numbers)

    def note_loss(self, namespace: str, loss: DataLoss, reporter: str) -> None:
        """As ``Rows.note_loss``."""
        try:
            self._in_loop(super().note_loss, namespace, loss, reporter)
        except DatabaseUnavailable as error:
            logger.warning("the loss cannot be recorded in SQL: %s", error)

    def in_doubt(self, namespace: str, partition: int, places: Sequence[EntryID]) -> bool:
        """As ``Rows.in_doubt``."""
        return self._in_loop(super().in_doubt, namespace, partition, places)

    def check(self, settings: NamespaceSettings) -> None:
        """As ``Rows.check``."""
        try:
            self._in_loop(super().check, settings)
        except DatabaseUnavailable as error:
            logger.warning("the namespace's settings cannot be compared with SQL's: %s", error)

    def _in_loop(self, work: Callable[..., Result], *arguments: Any) -> Result:
        calls = self._calls()
        if calls is None:
            raise _loop_ended()
        return calls.call(work, *arguments)
