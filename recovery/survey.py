"""What is wrong with a namespace's logs, and what recovery does about it: for ``writebehind recover``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from writebehind.engine import WriteBehind
from writebehind.engine.adapters.control_tables import now_ms, partitions
from writebehind.engine.adapters.log import Log, LogState
from writebehind.engine.adapters.sql_reasons import sql_reason
from writebehind.engine.core.contiguity import ahead
from writebehind.engine.errors import DatabaseUnavailable, LogDamaged
from writebehind.recovery.dead_letters import counts_by_partition
from writebehind.recovery.log_audit import LogAudit, audit
from writebehind.recovery.offsets import Offset, offsets

__all__ = ["Concern", "survey"]

FLUSHER = "a flusher, or 'recover --yes'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Concern:
    """Something that recovery has to see to in one partition.

    Attributes:
        partition: its number.
        code: a stable name of the kind of trouble.
        what: what is the case.
        then: what is done about it, and by whom.
        lost_entries: entries that nothing brings back.
    """

    partition: int
    code: str
    what: str
    then: str
    lost_entries: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def survey(app: WriteBehind) -> list[Concern]:
    """Look at every partition; nothing is changed.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be reached.
        ConfigurationError: the namespace was not initialised.
    """
    numbers = range(app.keys.partitions)
    states = Log(app.links, app.keys, "recover").look(numbers)
    stands = offsets(app, numbers)
    found: list[Concern] = []
    for number, state in states.items():
        if isinstance(state, LogDamaged):
            found.append(Concern(partition=number, code="damaged", what=state.message, then=state.hint))
            continue
        found += _history(number, state, stands[number])
        found += _log(number, audit(app, number))
    return found + _leases(app) + _letters(app)


def _history(number: int, state: LogState, stand: Offset) -> Iterator[Concern]:
    if not state.moved and state.floor is None:
        return
    yield Concern(
        partition=number,
        code="new-history",
        what="Redis was restarted, or another primary was promoted, and nobody has compared it with SQL since",
        then=f"{FLUSHER} compares it; until then reads of older records ask SQL, too",
    )
    if ahead(stand.applied, stand.earlier, state.lineage) is not None or (
        state.moved and state.end is not None and stand.position(state.lineage) > state.end
    ):
        yield Concern(
            partition=number,
            code="redis-behind",
            what=f"Redis was rolled back: it no longer has all of what SQL has applied, up to {stand.applied}",
            then=f"{FLUSHER} removes the older records from Redis; the next reads load them from SQL. Nothing of this "
            "is lost. What was accepted later and is in neither is lost unless its writers run: they write it again",
        )
    if state.ghosts:
        yield Concern(
            partition=number,
            code="ghosts",
            what=f"{len(state.ghosts)} entries came back that Redis had lost at an earlier start",
            then=f"{FLUSHER} removes them: they were reported as lost, or written again",
        )


def _log(number: int, found: LogAudit) -> Iterator[Concern]:
    if found.history_missing:
        yield Concern(
            partition=number,
            code="log-emptied",
            what="the log has nothing of what SQL has applied: FLUSHALL, a deleted log, or another Redis",
            then="SQL keeps what it has. Entries that were not flushed are lost, unless their writers still run (they "
            "write them again) or their records are still in Redis: 'recover --from-cache --yes' writes those again",
        )
    if found.group_missing:
        yield Concern(
            partition=number,
            code="group-missing",
            what="the consumer group is gone",
            then=f"{FLUSHER} makes it anew where SQL stands; nothing is lost",
        )
    for gap in found.gaps:
        until = f"and {gap.before}" if gap.before else "and the end of the log"
        yield Concern(
            partition=number,
            code="entries-missing",
            what=f"{'' if gap.known else 'at least '}{gap.entries} entries between {gap.after} {until} are neither in "
            "the log nor in SQL: somebody trimmed or deleted them, or SQL was restored to before what the log retains",
            then="run 'recover --from-cache --yes' BEFORE a flusher steps over them: it writes whole records again "
            "that are still in Redis. Inserts and the rest are lost, and counted",
            lost_entries=gap.entries,
        )
    if found.unreadable:
        yield Concern(
            partition=number,
            code="unreadable",
            what=f"{found.unreadable} entries cannot be read by these tables and this release: "
            + ", ".join(found.unreadable_ids),
            then="damaged ones become dead letters; at others the partition halts until a flusher can read them: "
            "declare the table, or run a newer release",
        )
    if found.dangling:
        yield Concern(
            partition=number,
            code="dangling",
            what=f"{found.dangling} entries are marked as delivered and are no longer in the log",
            then=f"{FLUSHER} clears the marks; if SQL has not applied them they are counted as missing",
        )


def _letters(app: WriteBehind) -> list[Concern]:
    return [
        Concern(
            partition=partition,
            code="dead-letters",
            what=f"SQL refused writes: {count}",
            then="all other keys go on. 'dead-letters list' says which and why; 'dead-letters replay' or 'discard' "
            "decides about them",
        )
        for partition, count in counts_by_partition(app).items()
    ]


def _leases(app: WriteBehind) -> list[Concern]:
    known = partitions.c
    try:
        with app.database.connect() as connection:
            now = int(connection.execute(sa.select(now_ms())).scalar_one())
            rows = connection.execute(sa.select(partitions).where(known.namespace == app.keys.namespace)).all()
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(f"the leases cannot be read: {sql_reason(error)}", "check the database") from error
    found = [
        Concern(
            partition=row.partition,
            code="holder-gone",
            what=f"{row.holder} held it and has not been heard of for {(now - row.lease_until_ms) / 1000:.0f} s",
            then=f"{FLUSHER} takes it over and replays from {row.epoch}-{row.sequence}",
        )
        for row in rows
        if row.holder and row.lease_until_ms < now
    ]
    return found + [
        Concern(
            partition=row.partition,
            code="halted",
            what=f"halted: {row.halted}",
            then="mend the cause; the partition is tried again by itself, and nothing is lost meanwhile",
        )
        for row in rows
        if row.halted
    ]
