"""Where every partition stands: what is in Redis, what is in SQL, who works on it."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import epochs, flushers, losses, now_ms, partitions
from writebehind.engine.adapters.log import Log, LogState
from writebehind.engine.adapters.read_counters import summed_cache_reads, summed_reads
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.core.caching import CacheCounts
from writebehind.engine.core.contiguity import backlog, begin
from writebehind.engine.core.positions import EntryID
from writebehind.engine.core.read_counts import ReadCounts
from writebehind.engine.errors import ConfigurationError, DatabaseUnavailable, LogDamaged
from writebehind.flushers.intake import made_at_ms
from writebehind.recovery.dead_letters import counts
from writebehind.recovery.letters import LetterCounts

__all__ = ["LossStatus", "PartitionStatus", "Status", "status"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionStatus:
    """One partition.

    Attributes:
        partition: its number.
        offset: the last entry that SQL has applied.
        end: the last entry of the log.
        backlog: entries that SQL has not applied; None where the log is damaged, so that nobody knows.
        lag_seconds: age of the oldest of them, by the writer's clock and this machine's; None likewise.
        holder: who holds the lease, or None where nobody does.
        lost_entries: entries ever found missing, and those passed over in doubt: an upper bound.
        missing_rows: patches that ever found no row.
        halted: why it is not flushed, or None.
        pressure: the limit for which writes are held, ``entries``, ``seconds`` or ``memory``; None where they are not.
        damaged: what is the matter with its log or meta hash in Redis, and what to do; None where nothing is.
    """

    partition: int
    offset: str
    end: str | None
    backlog: int | None
    lag_seconds: float | None
    holder: str | None
    lost_entries: int
    missing_rows: int
    halted: str | None
    pressure: str | None = None
    damaged: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStatus:
    """What a flusher or a writer found that Redis had lost.

    Attributes:
        partition: where.
        first_id: the first entry concerned.
        last_id: the last one.
        entries: entries whose effect is in neither Redis nor SQL; of those in doubt, it may be in SQL.
        rewritten: entries that their writer wrote again.
        reporter: who found it.
        from_ms: when the first one was made, in milliseconds since 1970; 0 for unknown.
        until_ms: when the last one was made; 0 for unknown.
        found_ms: when it was found, on the database's clock.
        records: tables and keys concerned, where they are known.
        in_doubt: how many of the entries were passed over because nobody can know whether SQL has their writes; then
            all of them are.
    """

    partition: int
    first_id: str
    last_id: str
    entries: int
    rewritten: int
    reporter: str
    from_ms: int
    until_ms: int
    found_ms: int
    records: str
    in_doubt: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A namespace at one moment.

    Attributes:
        namespace: its name.
        partitions: each partition.
        flushers: how many flushers are alive.
        losses: what Redis has lost so far, the latest first.
        dead_letters: by table, the writes that SQL refused and those that wait behind them; under the empty name those
            that nobody can read.
        reads: by table, what reads have met with, as processes have told it, a few seconds ago or when they ended.
        caches: the same by cache.
    """

    namespace: str
    partitions: list[PartitionStatus]
    flushers: int
    losses: list[LossStatus]
    dead_letters: dict[str, LetterCounts]
    reads: dict[str, ReadCounts] = field(default_factory=dict)
    caches: dict[str, CacheCounts] = field(default_factory=dict)

    @property
    def backlog(self) -> int:
        """Entries that SQL has not applied, over all partitions but those that are damaged."""
        return sum(partition.backlog or 0 for partition in self.partitions)

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest entry that SQL has not applied."""
        return max((partition.lag_seconds or 0.0 for partition in self.partitions), default=0.0)

    @property
    def lost_entries(self) -> int:
        """Entries ever found to be in neither Redis nor SQL, or passed over in doubt, by flushers and by writers."""
        return sum(loss.entries for loss in self.losses)

    @property
    def halted(self) -> list[PartitionStatus]:
        """Partitions that are not flushed."""
        return [partition for partition in self.partitions if partition.halted]

    @property
    def damaged(self) -> list[PartitionStatus]:
        """Partitions whose log or meta hash in Redis is not what the engine writes."""
        return [partition for partition in self.partitions if partition.damaged]

    @property
    def pressed(self) -> list[PartitionStatus]:
        """Partitions whose writes are held until more of the backlog is flushed."""
        return [partition for partition in self.partitions if partition.pressure]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "namespace": self.namespace,
            "flushers": self.flushers,
            "backlog": self.backlog,
            "lag_seconds": self.lag_seconds,
            "lost_entries": self.lost_entries,
            "losses": [asdict(loss) for loss in self.losses],
            "dead_letters": {table: asdict(count) for table, count in self.dead_letters.items()},
            "reads": {table: asdict(counts) | {"hit_rate": counts.hit_rate} for table, counts in self.reads.items()},
            "caches": {cache: asdict(counts) | {"hit_rate": counts.hit_rate} for cache, counts in self.caches.items()},
            "halted": [partition.partition for partition in self.halted],
            "damaged": [partition.partition for partition in self.damaged],
            "pressed": [partition.partition for partition in self.pressed],
            "partitions": [asdict(partition) for partition in self.partitions],
        }


def status(app: WriteBehind) -> Status:
    """Look at a namespace. Offsets are read after the logs, so a backlog of 0 means that SQL has it all.

    A log that is damaged is told of in its partition's place, and keeps nobody from seeing the others.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be reached.
        ConfigurationError: the namespace was not initialised.
    """
    log = Log(app.links, app.keys, "status")
    logs = log.look(range(app.keys.partitions))
    rows, earlier, alive, now, found_losses = _rows(app)
    if len(rows) != app.keys.partitions:
        raise ConfigurationError(
            f"namespace {app.keys.namespace} has {len(rows)} of {app.keys.partitions} partitions in SQL",
            "run 'writebehind init'",
        )
    found = [
        PartitionStatus(
            partition=number,
            offset=str(EntryID(rows[number].epoch, rows[number].sequence)),
            holder=rows[number].holder if rows[number].lease_until_ms >= now else None,
            lost_entries=rows[number].lost_entries,
            missing_rows=rows[number].missing_rows,
            halted=rows[number].halted,
            **_log(log, number, state, EntryID(rows[number].epoch, rows[number].sequence), earlier.get(number, {})),
        )
        for number, state in logs.items()
    ]
    return Status(
        namespace=app.keys.namespace,
        partitions=found,
        flushers=alive,
        losses=found_losses,
        dead_letters=counts(app),
        reads=summed_reads(app.links, app.keys),
        caches=summed_cache_reads(app.links, app.keys),
    )


def _log(
    log: Log, number: int, state: LogState | LogDamaged, offset: EntryID, earlier: Mapping[int, EntryID]
) -> dict[str, Any]:
    """Return what a partition's status says of its log."""
    try:
        if isinstance(state, LogDamaged):
            raise state
        position = begin(offset, earlier, state.lineage)
        waiting = backlog(position, state.end, state.lineage)
        first = log.read_range(number, position, None, 1) if waiting else ()
    except LogDamaged as error:
        return {"end": None, "backlog": None, "lag_seconds": None, "damaged": str(error)}
    made = made_at_ms(first[0]) if first else 0
    return {
        "end": str(state.end) if state.end else None,
        "backlog": waiting,
        "lag_seconds": round(max(0.0, time.time() - made / 1000), 3) if made else 0.0,
        # The next write takes the note back, if there is one.
        "pressure": state.held[1] if state.held and waiting > state.held[0] else None,
    }


def _rows(app: WriteBehind) -> tuple[dict[int, sa.Row[Any]], dict[int, dict[int, EntryID]], int, int, list[LossStatus]]:
    namespace = app.keys.namespace
    try:
        with app.database.connect() as connection:
            now = int(connection.execute(sa.select(now_ms())).scalar_one())
            rows = connection.execute(sa.select(partitions).where(partitions.c.namespace == namespace)).all()
            ended = connection.execute(sa.select(epochs).where(epochs.c.namespace == namespace)).all()
            alive = connection.execute(
                sa.select(sa.func.count())
                .select_from(flushers)
                .where(flushers.c.namespace == namespace, flushers.c.seen_until_ms >= now)
            ).scalar_one()
            lost = connection.execute(
                sa.select(losses).where(losses.c.namespace == namespace).order_by(losses.c.found_ms.desc())
            ).mappings()
            told = [LossStatus(**{name: row[name] for name in LossStatus.__slots__}) for row in lost]
    except (sa.exc.ProgrammingError, sa.exc.OperationalError) as error:
        if not _initialised(app):
            raise ConfigurationError("the control tables do not exist", "run 'writebehind init'") from error
        raise DatabaseUnavailable(f"the database cannot be read: {sql_reason(error)}", "check the server") from error
    earlier: dict[int, dict[int, EntryID]] = {}
    for row in ended:
        earlier.setdefault(row.partition, {})[row.successor] = EntryID(row.epoch, row.sequence)
    return {row.partition: row for row in rows}, earlier, int(alive), now, told


def _initialised(app: WriteBehind) -> bool:
    try:
        return sa.inspect(app.database).has_table(partitions.name)
    except sa.exc.SQLAlchemyError:
        return True
