"""Asking SQL and the logs how a namespace stands."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import redis
import sqlalchemy as sa

from writebehind.engine.adapters.control_tables import epochs, flushers, missing_in, namespaces, now_ms, partitions
from writebehind.engine.adapters.links import Link
from writebehind.engine.adapters.log import Log, LogState
from writebehind.engine.core.contiguity import backlog, begin
from writebehind.engine.core.facts import NamespaceFacts
from writebehind.engine.core.keys import Keys
from writebehind.engine.core.mutation_ids import made_ms
from writebehind.engine.core.positions import ORIGIN, EntryID

__all__ = ["Applied", "States", "ask_sql", "lag", "partitions_in_redis", "unknown", "waiting", "written"]

COLUMNS: Final = (
    "partition", "epoch", "sequence", "holder", "lease_until_ms", "lost_entries", "missing_rows", "halted"
)  # fmt: skip

States = Mapping[int, LogState]


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What SQL says of a namespace, and what it has applied of its logs.

    Attributes:
        facts: what is known without the logs.
        offsets: by partition, up to where SQL has applied it; None where that is not known.
        earlier: by partition and epoch, the last applied entry of the epoch before it.
    """

    facts: NamespaceFacts
    offsets: Mapping[int, EntryID] | None
    earlier: Mapping[int, Mapping[int, EntryID]]


def unknown(keys: Keys) -> Applied:
    """Return what is known of a namespace where SQL cannot be asked."""
    return Applied(facts=NamespaceFacts(partitions_wanted=keys.partitions), offsets=None, earlier={})


def ask_sql(engine: sa.Engine, keys: Keys) -> Applied:
    """Ask SQL how a namespace stands; what it refuses stays unknown."""
    nothing = unknown(keys)
    try:
        with engine.connect() as connection:
            missing = tuple(missing_in(connection))
    except sa.exc.SQLAlchemyError:
        return nothing
    if missing:
        facts = replace(nothing.facts, missing_control_tables=missing, partitions=0)
        return Applied(facts=facts, offsets={}, earlier={})
    try:
        with engine.connect() as connection:
            return _registered(connection, keys)
    except sa.exc.SQLAlchemyError:
        return replace(nothing, facts=replace(nothing.facts, missing_control_tables=()))


def _registered(connection: sa.Connection, keys: Keys) -> Applied:
    def of_this(table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.namespace == keys.namespace

    now = int(connection.execute(sa.select(now_ms())).scalar_one())
    registered = connection.execute(sa.select(namespaces.c.partitions).where(of_this(namespaces))).scalar_one_or_none()
    rows = connection.execute(sa.select(*(partitions.c[name] for name in COLUMNS)).where(of_this(partitions))).all()
    ended = connection.execute(
        sa.select(epochs.c.partition, epochs.c.epoch, epochs.c.sequence, epochs.c.successor).where(of_this(epochs))
    ).all()
    living = sa.and_(of_this(flushers), flushers.c.seen_until_ms >= now)
    alive = connection.execute(sa.select(sa.func.count()).select_from(flushers).where(living)).scalar_one()
    earlier: dict[int, dict[int, EntryID]] = {}
    for row in ended:
        earlier.setdefault(row.partition, {})[row.successor] = EntryID(row.epoch, row.sequence)
    return Applied(
        facts=NamespaceFacts(
            partitions_wanted=keys.partitions,
            missing_control_tables=(),
            partitions=registered or 0,
            flushers=int(alive),
            unheld=sum(row.holder is None or row.lease_until_ms < now for row in rows),
            halted={row.partition: row.halted for row in rows if row.halted},
            lost_entries=sum(row.lost_entries for row in rows),
            missing_rows=sum(row.missing_rows for row in rows),
        ),
        offsets={row.partition: EntryID(row.epoch, row.sequence) for row in rows},
        earlier=earlier,
    )


def waiting(applied: Applied, states: States) -> int | None:
    """Count the entries that SQL does not have; where the logs were looked at after SQL, rather too many."""
    if applied.offsets is None:
        return None
    return sum(backlog(_position(applied, number, state), state.end, state.lineage) for number, state in states.items())


def lag(applied: Applied, states: States, log: Log) -> float | None:
    """Return the age in seconds of the oldest entry that SQL does not have; 0 where there is none.

    Raises:
        RedisUnavailable: Redis cannot be read.
    """
    if applied.offsets is None:
        return None
    oldest = time.time()
    for number, state in states.items():
        position = _position(applied, number, state)
        if backlog(position, state.end, state.lineage):
            first: Any = log.read_range(number, position, None, 1)
            fields = first[0][1] if first else None
            made = made_ms(fields[1]) if fields and len(fields) > 1 else 0
            if made:
                oldest = min(oldest, made / 1000)
    return max(0.0, time.time() - oldest)


def written(before: States, after: States) -> int:
    """Count the entries appended between two looks, where a log still knows where it ended at the first."""
    return sum(
        backlog(before[number].end or ORIGIN, state.end, state.lineage)
        for number, state in after.items()
        if before[number].end is None or (before[number].end or ORIGIN).epoch in state.lineage
    )


def _position(applied: Applied, number: int, state: LogState) -> EntryID:
    return begin((applied.offsets or {}).get(number, ORIGIN), applied.earlier.get(number, {}), state.lineage)


def partitions_in_redis(link: Link, keys: Keys) -> int | None:
    """Return how many partitions Redis's copy of the namespace's settings says; 0 for none, None where it is hidden.

    Raises:
        redis.RedisError: the connection failed.
    """
    (found,) = link.pipeline([("HGET", keys.shared, "partitions")])
    if isinstance(found, redis.ResponseError):
        return None
    return int(found) if found else 0
