"""The engine as a service embeds it."""

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import redis as redis_client
import sqlalchemy as sa

from writebehind.engine.adapters.appender import Appender
from writebehind.engine.adapters.conditions import require_server
from writebehind.engine.adapters.confirmer import Confirmer
from writebehind.engine.adapters.declaration import DeclaredTable, declare
from writebehind.engine.adapters.links import Links
from writebehind.engine.adapters.memory import Memory
from writebehind.engine.adapters.reader import Reader
from writebehind.engine.adapters.rewriter import Rewriter
from writebehind.engine.adapters.rows import Rows
from writebehind.engine.adapters.shared import agree
from writebehind.engine.adapters.watch import Watch
from writebehind.engine.batches import AtomicGroup, Batch
from writebehind.engine.config import Backpressure, EngineSettings, NamespaceSettings
from writebehind.engine.core.appending import Call
from writebehind.engine.core.composing import Composer, Draft, Entry
from writebehind.engine.core.durability import Durability
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.letters import DeadLetter
from writebehind.engine.core.partitioning import partition_of
from writebehind.engine.core.payload import decode
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.core.retention import Accepted, DataLoss, Ring
from writebehind.engine.errors import (
    ConfigurationError,
    DataLossDetected,
    DurabilityTimeout,
    PoisonEntryError,
    RedisUnavailable,
    WriteBehindError,
)
from writebehind.engine.receipts import Receipt
from writebehind.engine.sending import send

__all__ = ["WriteBehind"]

logger = logging.getLogger(__name__)

RECONCILE_PAUSE_SECONDS = 0.05

HARSHEST_FIRST = (Backpressure.REJECT, Backpressure.BLOCK, Backpressure.WRITE_THROUGH)


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
        self.database = _engine_of(database)
        self._owns_database = not isinstance(database, sa.Engine)
        self.keys = Keys(namespace, partitions)
        self.tables: dict[str, DeclaredTable] = {}
        self._declared: dict[Any, DeclaredTable] = {}
        for table in tables:
            self._declare(table)
        self.links = Links(redis, self.settings.redis_timeout_seconds)
        self.rows = Rows(self.database)
        self.composer = Composer(self.keys, self.settings.payload_bytes_max)
        key_columns = {
            name: frozenset(column.name for column in declared.entity.key) for name, declared in self.tables.items()
        }
        self._on_data_loss = on_data_loss
        self._on_dead_letter = on_dead_letter
        self._rewriter = Rewriter(
            self.links, self.rows, self.keys, self._ring(), columns=key_columns, on_loss=self.tell_loss
        )
        self._memory = Memory(self.links, self.settings.redis_memory_share_max)
        self._appender = Appender(
            self.links,
            self.keys,
            self.settings,
            rewriter=self._rewriter,
            memory=self._memory,
            policy_of=self._backpressure_of,
        )
        self._reader = Reader(
            self.links, self.rows, self.keys, self.settings.read_timeout_seconds, self._rewriter.meet_known
        )
        self._watch: Watch | None = None
        self._confirmer = Confirmer(self.links, self.rows, self.keys, self.settings.replicas)
        self._spread = itertools.count()
        self._started = False
        self._closed = False
        self._starting = threading.Lock()
        _live.add(self)

    def _declare(self, table: Any) -> None:
        declared = declare(table, self.database.dialect.name)
        name = declared.entity.name
        if name in self.tables:
            raise ConfigurationError(f"table {name} is given twice", "name each table once")
        self.tables[name] = declared
        self._declared[table] = self._declared[declared.table] = declared

    def _ring(self) -> Ring:
        return Ring(self.settings.retained_bytes_max, self.settings.retained_seconds)

    # Starting and ending

    def start(self) -> Self:
        """Connect, compare the namespace's settings with what Redis and SQL have, check the durability level.

        Repeat: harmless. A database that is away or not initialised is no hindrance: writing does without it.

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
                self.rows.check(self.namespace_settings)
                for declared in self.tables.values():
                    for caveat in declared.caveats:
                        logger.warning("%s", caveat)
                self._confirmer.require(self.durability)
                self._watch = Watch(self._rewriter, self._memory)
                self._started = True
        return self

    def close(self) -> None:
        """Close the connections. Accepted writes are not affected: they are in the log. Repeat: harmless."""
        self._closed = True
        self._started = False
        if self._watch is not None:
            self._watch.stop()
        self.links.close()
        if self._owns_database:
            self.database.dispose()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    # Writing

    def put(self, table: Any, record: Mapping[str, Any], *, durability: Durability | None = None) -> Receipt:
        """Insert or replace a whole record. Omitted columns get their default or NULL.

        Args:
            table: a declared class or table.
            record: user values by column name, key included.
            durability: the level to wait for; the engine's where None.

        Durability: on return the write is in the log of the primary, and at the level asked for.
        Repeat: another write of the same values.
        Crash: the write is in log and hash, or in neither.

        Raises:
            ValidationError: the record does not fit the table; nothing was written.
            RedisUnavailable: Redis cannot be reached or refuses; nothing was written.
            BacklogFull: too much of the partition is not in SQL yet, and the policy is not to wait, or there was no
                room in time; nothing was written.
            WriteOutcomeUnknown: the reply was lost and Redis could not be asked again in time.
            DurabilityTimeout: accepted, but not yet as durable as asked.
            ConfigurationError: the table is not declared, or the servers cannot give the level.
        """
        return self._write(self.composer.put(self.plan_of(table), record), durability)

    def patch(
        self, table: Any, key: Any, changes: Mapping[str, Any], *, durability: Durability | None = None
    ) -> Receipt:
        """Set some columns of an existing record; a record that does not exist stays so.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            changes: user values by column name.
            durability: the level to wait for; the engine's where None.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return self._write(self.composer.patch(self.plan_of(table), key, changes), durability)

    def increment(
        self, table: Any, key: Any, deltas: Mapping[str, Any], *, durability: Durability | None = None
    ) -> Receipt:
        """Add amounts to numeric columns, exactly once; NULL counts as 0.

        A record that does not exist begins with the amounts and its columns' defaults, unless the table has another
        NOT NULL column without a default: then it stays absent.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            deltas: amounts by column name, negative ones too.
            durability: the level to wait for; the engine's where None.

        Durability, Crash, Raises: as ``put``. Repeat: adds once more.
        """
        return self._write(self.composer.increment(self.plan_of(table), key, deltas), durability)

    def insert(self, table: Any, row: Mapping[str, Any], *, durability: Durability | None = None) -> Receipt:
        """Append a row, exactly once; no record is kept in Redis. Its key may be left to the database.

        Args:
            table: a declared class or table.
            row: user values by column name.
            durability: the level to wait for; the engine's where None.

        Durability, Crash, Raises: as ``put``. Repeat: another row.
        """
        return self._write(self.composer.insert(self.plan_of(table), row), durability)

    def delete(self, table: Any, key: Any, *, durability: Durability | None = None) -> Receipt:
        """Delete a record; one that does not exist stays so.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.
            durability: the level to wait for; the engine's where None.

        Durability, Repeat, Crash, Raises: as ``put``.
        """
        return self._write(self.composer.delete(self.plan_of(table), key), durability)

    def batch(self, *, durability: Durability | None = None) -> Batch:
        """Return a context manager that sends many writes in one round trip when its block ends."""
        return Batch(self, durability)

    def atomic(self, table: Any, key: Any, *, durability: Durability | None = None) -> AtomicGroup:
        """Return a context manager whose writes become one log entry: all or nothing in Redis and in SQL.

        Args:
            table: with ``key``, names the record whose partition the group lives in.
            key: a scalar, or a tuple for a composite key.
            durability: the level to wait for; the engine's where None.
        """
        _, spread, _ = self.plan_of(table).key_only(key)
        return AtomicGroup(self, partition_of(spread, self.keys.partitions), durability)

    # Reading

    def get(self, table: Any, key: Any) -> dict[str, Any] | None:
        """Read a record: every accepted write is seen, whether it is in SQL yet or not.

        Args:
            table: a declared class or table.
            key: a scalar, or a tuple for a composite key.

        Returns:
            User values by column name, or None where there is no such record.

        Raises:
            ReadTimeout: the record depends on an entry that was not flushed in time.
            RedisUnavailable, DatabaseUnavailable: a server cannot be read.
            ValidationError: the key does not fit the table.
        """
        if isinstance(key, Mapping):
            key = tuple(self.plan_of(table).key_only(key)[2].values())
        return self.get_many(table, [key])[key]

    def get_many(self, table: Any, keys: Sequence[Any]) -> dict[Any, dict[str, Any] | None]:
        """Read several records; see ``get``.

        Returns:
            ``{key: record or None}`` for each key given.
        """
        if not self._started:
            self.start()
        return self._reader.read(self.declared(table), keys)

    # For batches, receipts and flushers

    def declared(self, table: Any) -> DeclaredTable:
        """Return what is known of a declared class or table.

        Raises:
            ConfigurationError: it is not declared.
        """
        try:
            return self._declared[table]
        except (KeyError, TypeError):
            name = getattr(table, "__tablename__", None) or getattr(table, "name", None) or repr(table)
            raise ConfigurationError(
                f"table {name} is not declared", f"add it to tables=[...]; declared are: {', '.join(self.tables)}"
            ) from None

    def plan_of(self, table: Any) -> RecordPlan:
        """Return the record plan of a declared class or table.

        Raises:
            ConfigurationError: it is not declared.
        """
        try:
            return self._declared[table].plan
        except (KeyError, TypeError):
            return self.declared(table).plan

    def any_partition(self) -> int:
        """Return a partition for a row that has no key of its own, taking turns."""
        return next(self._spread) % self.keys.partitions

    def _write(self, entry: Entry, durability: Durability | None) -> Receipt:
        if not self._started:
            self.start()
        level = self.durability if durability is None else durability
        if level:
            self._confirmer.require(level)
        partition = entry.partition if entry.partition >= 0 else self.any_partition()
        appender = self._appender
        sent = Draft(partition).add(entry).call(appender.call_id())
        receipt = Receipt(self, partition)
        accepted = appender.append(sent)
        receipt.accepted(*accepted, sent.call_id, in_doubt=bool(sent.doubts))
        if sent.through:
            level = Durability.PERSISTED
        if level:
            receipt.wait(level, self.settings.write_timeout_seconds)
        return receipt

    def append_many(
        self,
        drafts: Mapping[int, Sequence[Draft]],
        receipts: Mapping[int, Sequence[Receipt]],
        durability: Durability | None,
    ) -> None:
        """Append drafts by partition, each partition's in order, and fill in their receipts.

        Durability: as ``Batch``. Crash: each script call is all or nothing; a partition whose call fails gets no later
        ones.

        Raises:
            WriteBehindError: the failure that says the least, after all partitions were tried; a note of it tells where
                SQL did not get in time what was written through.
        """
        if not self._started:
            self.start()
        level = self.durability if durability is None else durability
        if level:
            self._confirmer.require(level)
        through, failure = send(self._appender, drafts, receipts, self.settings.write_timeout_seconds)
        try:
            self._confirm_all(through, Durability.PERSISTED)
        except WriteBehindError as error:
            if failure is None:
                raise
            failure.add_note(f"what was written through: {error}")
        if failure is not None:
            raise failure
        if level:
            self._confirm_all(receipts.values(), level)

    def _confirm_all(self, receipts: Iterable[Sequence[Receipt]], level: Durability) -> None:
        deadline = time.monotonic() + self.settings.write_timeout_seconds
        refused: PoisonEntryError | DataLossDetected | None = None
        for listed in receipts:
            # What one primary accepted last covers what it accepted before in the partition, where SQL refuses nothing.
            covered = []
            for last in {receipt.identity: receipt for receipt in listed if not receipt.in_doubt}.values():
                left = max(0.0, deadline - time.monotonic())
                try:
                    covered.append(self.confirm(last.partition, last.entry_id, last.identity, level, left))
                except PoisonEntryError:
                    covered.append(False)
            for receipt in listed:
                if all(covered) and not receipt.in_doubt:
                    receipt.durability = max(receipt.durability or level, level)
                    continue
                try:
                    receipt.wait(level, max(0.0, deadline - time.monotonic()))
                except PoisonEntryError as error:
                    refused = refused or error
                except DataLossDetected as error:
                    if not receipt.in_doubt:
                        raise
                    # The others are no worse for it.
                    refused = refused or error
        if refused is not None:
            raise refused

    def _backpressure_of(self, call: Call) -> Backpressure:
        """Return what becomes of a call where a limit is reached.

        Where a call has writes of several tables: REJECT goes before BLOCK, and that before WRITE_THROUGH.
        """
        own = {declared.backpressure for declared in self.tables.values()}
        if own == {None}:
            return self.settings.backpressure
        names = {table for single in Accepted(call, b"0-0", 0.0).singles() for _, table, _, _ in decode(single.payload)}
        # What is about a dead letter may name a table that is not declared, or none.
        chosen = {self.tables[name].backpressure if name in self.tables else None for name in names}
        policies = {policy or self.settings.backpressure for policy in chosen}
        return next(each for each in HARSHEST_FIRST if each in policies)

    def confirm(
        self,
        partition: int,
        entry_id: EntryID,
        identity: bytes,
        durability: Durability,
        timeout: float,
        *,
        in_doubt: bool = False,
    ) -> bool:
        """Wait until an entry is as durable as asked, also where it was written again; see ``Receipt.wait``.

        Return whether the entries of the partition before it certainly are, too.
        """
        level, deadline = Durability(durability), time.monotonic() + timeout
        while True:
            # What SQL has, it has: an entry is looked for in its new place only where it was lost in the old one.
            moved = self._rewriter.whereabouts(partition, entry_id)
            at, primary = moved[-1] if moved else (entry_id, identity)
            places = [entry_id, *(place for place, _ in moved)]
            try:
                try:
                    left = max(0.0, deadline - time.monotonic())
                    covers = self._confirmer.confirm(
                        partition, at, primary, level, left, places=places, in_doubt=in_doubt
                    )
                except DataLossDetected:
                    self._reconcile(partition)
                    if self._rewriter.whereabouts(partition, entry_id) == moved:
                        raise
                else:
                    return covers and not moved
            except RedisUnavailable as error:
                # That error says "nothing was written"; this write was accepted.
                if time.monotonic() >= deadline:
                    raise DurabilityTimeout(
                        f"the write is accepted, but not {level.name} in time: {error.message}",
                        "wait for the receipt again; where Redis has lost the write, the engine writes it again",
                    ) from error
                time.sleep(RECONCILE_PAUSE_SECONDS)

    def tell_loss(self, loss: DataLoss) -> None:
        """Call the application's ``on_data_loss``; used by whoever finds a loss."""
        if self._on_data_loss is not None:
            try:
                self._on_data_loss(loss)
            except Exception:
                # The application's own error must not fail the write or the flush that happened to find the loss.
                logger.exception("on_data_loss raised")

    def tell_dead_letter(self, letter: DeadLetter) -> None:
        """Call the application's ``on_dead_letter``; used by the flusher that has set an entry aside."""
        if self._on_dead_letter is not None:
            try:
                self._on_dead_letter(letter)
            except Exception:
                # The application's own error must not stop the flusher.
                logger.exception("on_dead_letter raised")

    def _reconcile(self, partition: int) -> None:
        try:
            self._rewriter.reconcile(partition)
        except redis_client.ResponseError as error:
            raise RedisUnavailable(f"Redis refuses: {error}", "try later") from error

    def after_fork(self) -> None:
        """Become a client of its own, in a forked child; called by the interpreter."""
        self._starting = threading.Lock()
        self._started = False
        self._watch = None
        self.links.forget()
        self._appender.renew()
        self._rewriter.renew(self._ring())
        self._confirmer.renew()
        self.database.dispose(close=False)


def _engine_of(database: str | sa.URL | sa.Engine) -> sa.Engine:
    if isinstance(database, sa.Engine):
        # The same engine and pool, whose errors do not quote the values of rows.
        hiding = database.execution_options()
        hiding.hide_parameters = True
        return hiding
    try:
        # A connection that ended while it was idle, with its server, is replaced before it is used.
        return sa.create_engine(database, hide_parameters=True, pool_pre_ping=True)
    except ImportError as error:
        raise ConfigurationError(
            f"the database URL needs a driver that is not installed: {error.name}", "pip install it"
        ) from error
    except (sa.exc.ArgumentError, ValueError):
        # The parser's own words may quote the password: they must not be seen in a traceback either.
        raise ConfigurationError(
            "the database URL is not usable", "use dialect+driver://user:password@host/name"
        ) from None


_live: "weakref.WeakSet[WriteBehind]" = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_live):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
