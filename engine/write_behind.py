"""The engine as a service embeds it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import redis as redis_client
import sqlalchemy as sa

from writebehind.engine.adapters.appender import Appender
from writebehind.engine.adapters.conditions import require_server
from writebehind.engine.adapters.confirmer import Confirmer
from writebehind.engine.adapters.databases import belongs_to_threads, engine_of
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.looks import Looks
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.read_counters import ReadCounters
from writebehind.engine.adapters.reader import Reader
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.adapters.shared import agree
from writebehind.engine.adapters.watch import Watch
from writebehind.engine.batches import AtomicGroup, Batch
from writebehind.engine.caches import Cache
from writebehind.engine.config import CacheSettings, CacheTuning, EngineSettings, NamespaceSettings, WritePolicy
from writebehind.engine.confirmations import Confirmations
from writebehind.engine.core.composing import Composer, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.read_counts import ReadCounts
from writebehind.engine.core.retention import DataLoss, Ring
from writebehind.engine.declarations import Declarations
from writebehind.engine.errors import DatabaseUnavailable, RedisUnavailable, WriteBehindError
from writebehind.engine.forks import told_of_forks
from writebehind.engine.listeners import Listeners
from writebehind.engine.own_flusher import OwnFlusher
from writebehind.engine.rate_limiter import RateLimiter
from writebehind.engine.reading import Reading
from writebehind.engine.receipts import Receipt
from writebehind.engine.services import Services
from writebehind.engine.writing import Writer

__all__ = ["WriteBehind"]

logger = logging.getLogger(__name__)

CHECK_SECONDS_MAX = 5.0
"""How long a start waits for SQL."""

Model = TypeVar("Model")


class WriteBehind:
    """Writes at Redis speed; the SQL database receives every accepted write exactly once, in the order of its key.

    Making one opens no connection; the first use, ``start`` or the ``with`` block does. It may be shared between
    threads. After a fork the child goes on with connections of its own.

    Args:
        redis: a URL, or a ``redis.Redis`` (also one made by Sentinel) whose connection settings are taken over.
        database: a SQLAlchemy URL or ``Engine``; a flusher makes its own from the same URL, so what it needs to
            connect (TLS, say) has to stand in the URL.
        tables: declarative classes or ``sqlalchemy.Table``.
        namespace: separates applications that share servers.
        partitions: how many ordered shards; fixed for the lifetime of the namespace.
        durability: level of writes that do not name one.
        settings: what this process may tune.
        on_data_loss: called with a ``DataLoss`` for each partition in which Redis has lost accepted writes of this
            process, also where they could be written again; by whichever thread finds out.
        on_dead_letter: called with a ``DeadLetter`` for each entry that SQL refuses, by the flusher, in its process.

    Raises:
        ConfigurationError: something of this cannot work, with the reason.
    """

    def __init__(
        self,
        *,
        redis: "str | redis_client.Redis",
        database: str | sa.URL | sa.Engine,
        tables: Sequence[Any],
        namespace: str,
        partitions: int = 16,
        durability: Durability = Durability.ACCEPTED,
        settings: EngineSettings | None = None,
        on_data_loss: Callable[[DataLoss], None] | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.namespace_settings = NamespaceSettings(namespace=namespace, partitions=partitions)
        self.durability = Durability(durability)
        self.redis_target = redis
        self.database = engine_of(database)
        self._owns_database = not isinstance(database, sa.Engine)
        self.keys = Keys(namespace, partitions)
        self.declarations = Declarations(tables, self.database.dialect.name, self.settings.backpressure)
        self.tables = self.declarations.by_name
        self.declared, self.plan_of = self.declarations.of, self.declarations.plan_of
        self.links = Links(redis, self.settings.redis_timeout_seconds)
        self.rows = self._rows()
        self._looks = Looks(in_callers_thread=belongs_to_threads(self.database))
        self.composer = Composer(self.keys, self.settings.payload_bytes_max)
        listeners = Listeners(on_data_loss, on_dead_letter)
        self.tell_loss, self.tell_dead_letter = listeners.loss, listeners.dead_letter
        self._rewriter = Rewriter(
            self.links,
            self.rows,
            self._looks,
            self.keys,
            self._ring(),
            columns=self.declarations.key_columns(),
            on_loss=listeners.loss,
        )
        self._memory = Memory(self.links, self.settings.redis_memory_share_max)
        self._appender = Appender(
            self.links,
            self.keys,
            self.settings,
            rewriter=self._rewriter,
            memory=self._memory,
            policy_of=self.declarations.backpressure_of_call,
        )
        self._counters = ReadCounters(self.links, self.keys, self.tables)
        self._reader = Reader(
            self.links,
            self.rows,
            self.keys,
            self.settings,
            counters=self._counters,
            meet=self._rewriter.meet_known,
        )
        self._reading = Reading(self.declarations, self._reader)
        self._watch: Watch | None = None
        self._confirmer = Confirmer(self.links, self.rows, self._looks, self.keys, self.settings.replicas)
        self._confirmations = Confirmations(self._confirmer, self._rewriter)
        self.confirm, self.confirming = self._confirmations.confirm, self._confirmations.confirming
        self.own_flusher = OwnFlusher(self._flushed_by, self.rows, namespace)
        self._writer = Writer(
            self,
            appender=self._appender,
            confirmer=self._confirmer,
            confirmations=self._confirmations,
            own_flusher=self.own_flusher,
        )
        self.any_partition, self.append_many = self._writer.any_partition, self._writer.append_many
        self._services = Services(self.links, self.keys)
        self._started = False
        self._closed = False
        self._starting = threading.Lock()
        told_of_forks(self)

    def _rows(self) -> Rows:
        return Rows(self.database, self.settings.load_lease_seconds)

    def _flushed_by(self) -> "WriteBehind":
        return self

    def _ring(self) -> Ring:
        return Ring(self.settings.retained_bytes_max, self.settings.retained_seconds)

    # Starting and ending

    def start(self) -> Self:
        """Connect, compare the namespace's settings with what Redis and SQL have, check the durability level.

        Repeat: harmless. A database that is away, does not answer or is not initialised is no hindrance: writing does
        without it.

        Raises:
            ConfigurationError: the settings differ, the servers cannot give the durability level, or Redis would void
                the guarantee: it is too old, a replica, or may evict the log.
            RedisUnavailable: Redis cannot be reached.
        """
        with self._starting:
            if self._closed:
                raise WriteBehindError("this engine is closed", "make a new one")
            if not self._started:
                require_server(self.links, self.keys, self.durability)
                agree(self.links, self.keys, self.namespace_settings)
                self._check_in_sql()
                for declared in self.tables.values():
                    for caveat in declared.caveats:
                        logger.warning("%s", caveat)
                self._confirmer.require(self.durability)
                self._watch = Watch(self._rewriter, self._memory, self._counters)
                self._started = True
        return self

    def close(self) -> None:
        """Close the connections. Accepted writes are not affected: they are in the log. Repeat: harmless."""
        self._closed = True
        self._started = False
        if self._watch is not None:
            self._watch.stop()
            try:
                self._counters.tell()
            except RedisUnavailable as error:
                logger.warning("the last counts of reads are missing from the sums: %s", error)
        self.own_flusher.close()
        self._services.close()
        self.links.close()
        if self._owns_database:
            self.database.dispose()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    # Writing

    def put(
        self,
        table: Any,
        record: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> Receipt:
        """Insert or replace a whole record. Omitted columns get their default or NULL.

        Args:
            table: a declared class or table.
            record: user values by column name, key included.
            durability: the level to wait for; the engine's where None.
            policy: whether to return only when SQL has the write (``WRITE_THROUGH``); what the table says where None.

        Durability: on return the write is in the log of the primary, and at the level asked for; written through, it is
            in SQL, too, and the record in Redis says the same.
        Repeat: another write of the same values.
        Crash: the write is in log and hash, or in neither.

        Raises:
            ValidationError: the record does not fit the table; nothing was written.
            RedisUnavailable: Redis cannot be reached or refuses; nothing was written.
            BacklogFull: too much of the partition is not in SQL yet, and the policy is not to wait, or there was no
                room in time; nothing was written.
            WriteOutcomeUnknown: the reply was lost and Redis could not be asked again in time.
            DurabilityTimeout: accepted, but not yet as durable as asked; a ``WriteThroughTimeout``, which has the
                receipt, where it was to be written through.
            PoisonEntryError: accepted, and SQL refuses it: it is a dead letter. Only for who waits for SQL.
            DataLossDetected: accepted, then lost by Redis before SQL had it. Only for who waits.
            ConfigurationError: the table is not declared, or the servers cannot give the level.
        """
        return self._write(self.composer.put(self.plan_of(table), record), durability, policy)

    def patch(
        self,
        table: Any,
        key: Any,
        changes: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> Receipt:
        """Set some columns of an existing record; a record that does not exist stays so.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            changes: user values by column name.
            durability: the level to wait for; the engine's where None.
            policy: as ``put``.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return self._write(self.composer.patch(self.plan_of(table), key, changes), durability, policy)

    def increment(
        self,
        table: Any,
        key: Any,
        deltas: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> Receipt:
        """Add amounts to numeric columns, exactly once; NULL counts as 0.

        A record that does not exist begins with the amounts and its columns' defaults, unless the table has another
        NOT NULL column without a default: then it stays absent.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            deltas: amounts by column name, negative ones too.
            durability: the level to wait for; the engine's where None.
            policy: as ``put``.

        Durability, Crash, Raises: as ``put``. Repeat: adds once more.
        """
        return self._write(self.composer.increment(self.plan_of(table), key, deltas), durability, policy)

    def insert(
        self,
        table: Any,
        row: Mapping[str, Any],
        *,
        durability: Durability | None = None,
        policy: WritePolicy | None = None,
    ) -> Receipt:
        """Append a row, exactly once; no record is kept in Redis. Its key may be left to the database.

        Args:
            table: a declared class or table.
            row: user values by column name.
            durability: the level to wait for; the engine's where None.
            policy: as ``put``.

        Durability, Crash, Raises: as ``put``. Repeat: another row.
        """
        return self._write(self.composer.insert(self.plan_of(table), row), durability, policy)

    def delete(
        self, table: Any, key: Any, *, durability: Durability | None = None, policy: WritePolicy | None = None
    ) -> Receipt:
        """Delete a record; one that does not exist stays so.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            durability: the level to wait for; the engine's where None.
            policy: as ``put``.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return self._write(self.composer.delete(self.plan_of(table), key), durability, policy)

    def batch(self, *, durability: Durability | None = None, policy: WritePolicy | None = None) -> Batch:
        """Return a context manager that sends many writes in one round trip when its block ends.

        Args:
            durability: the level to wait for; the engine's where None.
            policy: of all of its writes; what the table of each says where None.
        """
        return Batch(self, durability, policy)

    def atomic(
        self, table: Any, key: Any, *, durability: Durability | None = None, policy: WritePolicy | None = None
    ) -> AtomicGroup:
        """Return a context manager whose writes become one log entry: all or nothing in Redis and in SQL.

        Args:
            table: with ``key``, names the record whose partition the group lives in.
            key: a scalar, or a tuple for a composite key.
            durability: the level to wait for; the engine's where None.
            policy: as ``put``; where None, it is written through if one of its tables is.
        """
        _, spread, _ = self.plan_of(table).key_only(key)
        return AtomicGroup(self, partition_of(spread, self.keys.partitions), durability, policy)

    # Reading

    @overload
    def get(self, table: Any, key: Any, *, as_model: Literal[False] = False) -> dict[str, Any] | None: ...

    @overload
    def get(self, table: type[Model], key: Any, *, as_model: Literal[True]) -> Model | None: ...

    def get(self, table: Any, key: Any, *, as_model: bool = False) -> Any:
        """Read a record: every accepted write is seen, whether it is in SQL yet or not.

        What is not in Redis is loaded from SQL by one caller for all, and kept for its time to live; changes that
        others make in SQL meanwhile are not seen until it ends.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            as_model: return an instance of the declared class, detached, with its columns loaded.

        Returns:
            User values by column name, or the instance; None where there is no such record.

        Raises:
            ReadTimeout: the record depends on an entry that was not flushed in time, or on another caller's load.
            RedisUnavailable, DatabaseUnavailable: a server cannot be read.
            ValidationError: the key does not fit the table.
            ConfigurationError: an instance is asked for, and the table was declared without a class.
        """
        self.ensure_started()
        return self._reading.one(table, key, as_model=as_model)

    @overload
    def get_many(
        self, table: Any, keys: Sequence[Any], *, as_model: Literal[False] = False
    ) -> dict[Any, dict[str, Any] | None]: ...

    @overload
    def get_many(
        self, table: type[Model], keys: Sequence[Any], *, as_model: Literal[True]
    ) -> dict[Any, Model | None]: ...

    def get_many(self, table: Any, keys: Sequence[Any], *, as_model: bool = False) -> Any:
        """Read several records, with one query for all that are not in Redis; see ``get``.

        Returns:
            ``{key: record or None}`` for each key given.
        """
        self.ensure_started()
        return self._reading.many(table, keys, as_model=as_model)

    def read_counts(self) -> dict[str, ReadCounts]:
        """Return what the reads of this process have met with so far, by table; ``status`` sums over processes."""
        return self._counters.counts()

    # Limiting and caching

    def rate_limiter(
        self,
        name: str,
        limit: int | None = None,
        window_seconds: float | None = None,
        *,
        limits: Sequence[tuple[int, float]] | None = None,
    ) -> RateLimiter:
        """Return a limiter that all processes share who name it; see ``Services.rate_limiter``."""
        return self._services.rate_limiter(name, limit, window_seconds, limits, self.ensure_started)

    def cache(self, name: str, *, ttl_seconds: float, **tuning: Unpack[CacheTuning]) -> Cache:
        """Return the cache of a name, for anything that can be computed; see ``Services.cache``."""
        return self._services.cache(name, CacheSettings(ttl_seconds=ttl_seconds, **tuning))

    # For batches, receipts and flushers, with ``confirm``, ``append_many`` and others that its parts lend

    def ensure_started(self) -> None:
        """Start where that was not done."""
        if not self._started:
            self.start()

    def _check_in_sql(self) -> None:
        look = self._looks.begin(self.rows.check, self.namespace_settings)
        try:
            look.result(CHECK_SECONDS_MAX)
        except DatabaseUnavailable as error:
            logger.warning("the namespace's settings cannot be compared with SQL's: %s", error)

    def _write(self, entry: Entry, durability: Durability | None, policy: WritePolicy | None) -> Receipt:
        through = self.declarations.writes_through((entry.member[1],), policy)
        return self._writer.write(entry, durability, through=through)

    def after_fork(self) -> None:
        """Become a client of its own, in a forked child; called by the interpreter."""
        self._starting = threading.Lock()
        self._started = False
        self._watch = None
        self.links.forget()
        self._looks.renew()
        self._appender.renew()
        self._rewriter.renew(self._ring())
        self._confirmer.renew()
        self._counters.begin()
        self._reader.renew()
        self.own_flusher.renew()
        self._services.after_fork()
        self.database.dispose(close=False)
