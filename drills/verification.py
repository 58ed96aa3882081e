"""After the drill: what is in SQL, in Redis and in the system, handed to the checkers."""

import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from writebehind.drills import checkers
from writebehind.drills.checkers import Allowance, Audited, Check, Row, Snapshot
from writebehind.drills.journal import Kind, LossReport, Operation, Outcome
from writebehind.drills.looks import look_at
from writebehind.drills.stage import Stage
from writebehind.drills.tables import accounts, counters, guardians, lists, probes, records, sets, wards
from writebehind.drills.workload import OPENING_BALANCE
from writebehind.engine.adapters.log import GROUP
from writebehind.engine.core.payload import decode
from writebehind.engine.core.positions import EntryID
from writebehind.engine.errors import WriteBehindError
from writebehind.flushers import Status, status

__all__ = ["Flushed", "Found", "Told", "await_flushed", "check_all", "check_hygiene"]

FLUSH_SECONDS_MAX = 45.0
POLL_SECONDS = 0.05
SESSION_SECONDS_MAX = 5.0
KEYED: dict[str, tuple[sa.Table, Sequence[str]]] = {
    "records": (records, ("id",)),
    "counters": (counters, ("id",)),
    "accounts": (accounts, ("bank", "account")),
    "probes": (probes, ("id",)),
    "guardians": (guardians, ("id",)),
    "wards": (wards, ("id",)),
}
SESSIONS = {
    "postgresql": "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid()",
    "mysql": "SELECT CONCAT('session ', id) FROM information_schema.processlist WHERE db = DATABASE()"
    " AND id <> CONNECTION_ID()",
}


@dataclass(frozen=True, slots=True)
class Flushed:
    """How the backlog went.

    Attributes:
        seconds: how long it took.
        backlog: what is left.
        halted: partitions that are not served.
        lost_entries: what the flushers have counted as lost.
        in_doubt: those of them that may be in SQL, nobody can know.
    """

    seconds: float
    backlog: int
    halted: tuple[str, ...]
    lost_entries: int
    in_doubt: int


@dataclass(frozen=True, slots=True)
class Told:
    """What the service was told, in all its lives.

    Attributes:
        operations: what became of each, in the order of the intents.
        reports: losses that the engine told it of.
        errors: what it was told where it got no receipt, with how often.
    """

    operations: Sequence[Operation]
    reports: Sequence[LossReport]
    errors: Counter[str]

    @property
    def reported_lost(self) -> int:
        """How many entries the engine said were lost."""
        return sum(report.entries for report in self.reports)


@dataclass(frozen=True, slots=True)
class Found:
    """All that is known in the end."""

    told: Told
    flushed: Flushed
    checks: Sequence[Check]


def await_flushed(stage: Stage) -> Flushed:
    """Wait until SQL has everything, with the flushers that are there.

    Raises:
        WriteBehindError: the servers cannot be asked until the deadline.
    """
    begun = time.monotonic()
    deadline = begun + FLUSH_SECONDS_MAX
    while True:
        found: Status | None = None
        try:
            found = status(stage.app)
        except WriteBehindError:
            if time.monotonic() > deadline:
                raise
        if found is not None and (found.backlog == 0 or time.monotonic() > deadline):
            halted = tuple(f"partition {row.partition}: {row.halted}" for row in found.halted)
            return Flushed(
                time.monotonic() - begun,
                found.backlog,
                halted,
                found.lost_entries,
                sum(loss.in_doubt for loss in found.losses),
            )
        time.sleep(POLL_SECONDS)


def check_all(stage: Stage, told: Told, flushed: Flushed, troubles: Sequence[str], allowed: Allowance) -> list[Check]:
    """Run all but K9; flushers and service have ended.

    Args:
        stage: with its servers still there.
        told: the history.
        flushed: how the backlog went.
        troubles: processes that ended by themselves, faults after which no write came through.
        allowed: what may be lost.
    """
    operations = told.operations
    snapshots = list(stage.observer.snapshots) if stage.observer else []
    with stage.app.database.connect() as connection:
        stored = Counter(connection.execute(sa.select(sets.c.op)).scalars())
        positions: dict[int, list[int]] = defaultdict(list)
        for number, position in connection.execute(sa.select(lists.c.list, lists.c.position)):
            positions[number].append(position)
        values = {row.id: row.n for row in connection.execute(sa.select(counters))}
        rows = {row.id: (row.version, row.born) for row in connection.execute(sa.select(records))}
        balances = {(row.bank, row.account): row.balance for row in connection.execute(sa.select(accounts))}
    found = [
        checkers.set_full(operations, stored, allowed),
        checkers.counters(operations, values, allowed),
        checkers.lists(operations, positions, snapshots, allowed),
        checkers.records(operations, rows, allowed),
        checkers.bank(operations, stored, balances, snapshots, OPENING_BALANCE),
        checkers.tails(*_tails(stage)),
        checkers.fencing(_audit(stage, snapshots)),
        _convergence(stage, operations),
        checkers.liveness(flushed.backlog, flushed.seconds, flushed.halted, troubles),
        checkers.dead_letters([*stage.looks, look_at(stage.app, "in the end", stage.stories)]),
        checkers.halts(stage.halts),
    ]
    lost = sum(len(each.lost) + each.lost_unnamed for each in found)
    reported = flushed.lost_entries + told.reported_lost
    uncertain = flushed.in_doubt + sum(each.outcome is not Outcome.ACKNOWLEDGED for each in operations)
    return [*found, checkers.honesty(lost, uncertain, reported, knowable=not allowed.windows)]


def check_hygiene(stage: Stage, unexpected: Iterable[str]) -> Check:
    """Run K9, after everything that the drill has started was asked to end.

    Args:
        stage: with its servers still there.
        unexpected: processes that did not end as they should.
    """
    left = list(unexpected)
    left += [f"{child.name} runs" for child in stage.children() if child.running]
    found = status(stage.app)
    left += [f"partition {row.partition} is held by {row.holder}" for row in found.partitions if row.holder]
    with stage.redis.client() as client:
        for log in stage.app.keys.logs:
            # A full or emptied Redis may have no group; then nothing is pending either.
            groups = client.xinfo_groups(log) if client.exists(log) else []
            left += [
                f"{group['pending']} pending in {log}"
                for group in groups
                if group["name"] == GROUP and group["pending"]
            ]
    return checkers.hygiene(left + _sessions(stage))


def _sessions(stage: Stage) -> list[str]:
    """Name the sessions that are still there a while after everybody has gone."""
    dialect = stage.app.database.dialect.name.replace("mariadb", "mysql")
    if dialect not in SESSIONS or not stage.sql.own:
        return []
    stage.app.database.dispose()
    if stage.observer is not None:
        stage.observer.close()
    deadline = time.monotonic() + SESSION_SECONDS_MAX
    while True:
        with stage.app.database.connect() as connection:
            left = [str(name) for name in connection.exec_driver_sql(SESSIONS[dialect]).scalars()]
        if not left or time.monotonic() > deadline:
            return [f"session {name}" for name in left]
        time.sleep(POLL_SECONDS)


def _audit(stage: Stage, snapshots: Sequence[Snapshot]) -> list[Audited]:
    """Return the moves of the offsets: those audited, or those seen."""
    if stage.audit is not None and stage.audit.kept:
        return stage.audit.read()
    moves: list[Audited] = []
    before: dict[tuple[int, int], int] = {}
    for snapshot in snapshots:
        for (partition, epoch), sequence in snapshot.applied.items():
            if sequence != before.get((partition, epoch), -1):
                before[partition, epoch] = sequence
                moves.append(Audited(partition, snapshot.tokens.get(partition, 0), epoch, sequence))
    return moves


def _tails(stage: Stage) -> tuple[dict[str, EntryID], dict[str, EntryID]]:
    """Read the version of every record in Redis, and the last entry of every record in the logs."""
    app = stage.app
    newest: dict[str, EntryID] = {}
    with stage.redis.client() as client:
        for number, log in enumerate(app.keys.logs):
            for entry_id, fields in client.xrange(log):
                for _op, table, key_text, _values in decode(fields[b"p"]):
                    if key_text:
                        newest[app.keys.record(number, table, key_text)] = EntryID.parse(entry_id)
        names = list(newest)
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.hget(name, ":version")
        found: list[Any] = pipeline.execute()
    versions = {name: EntryID.parse(version) for name, version in zip(names, found, strict=True) if version}
    return versions, newest


def _convergence(stage: Stage, operations: Sequence[Operation]) -> Check:
    """Run K7; reads that are not answered are no agreement."""
    try:
        return checkers.convergence(*_read_and_rows(stage, operations))
    except WriteBehindError as error:
        return Check("K7", "reads and rows are the same", passed=False, detail=f"{type(error).__name__}: {error}")


def _read_and_rows(stage: Stage, operations: Sequence[Operation]) -> tuple[dict[Hashable, Row], dict[Hashable, Row]]:
    """Read every record through the engine, and from SQL."""
    written = {each.arguments[0] for each in operations if each.kind in {Kind.PUT, Kind.PATCH, Kind.DELETE}}
    read: dict[Hashable, Row] = {}
    rows: dict[Hashable, Row] = {}
    known: dict[str, set[tuple[int, ...]]] = {name: set() for name in KEYED}
    known["records"] |= {(number,) for number in written}
    known["wards"] |= {(story.key,) for story in stage.stories}
    with stage.app.database.connect() as connection:
        for name, (table, key) in KEYED.items():
            for row in connection.execute(sa.select(table)).mappings():
                parts = tuple(row[column] for column in key)
                known[name].add(parts)
                rows[name, parts] = dict(row)
    for name, (table, key) in KEYED.items():
        keys = [parts[0] if len(key) == 1 else parts for parts in known[name]]
        for number, record in stage.app.get_many(table, keys).items():
            if record is not None:
                read[name, number if isinstance(number, tuple) else (number,)] = record
    return read, rows
