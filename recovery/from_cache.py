"""Repair from the cache: SQL was restored to a time that the log no longer reaches back to; the hashes still do."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from writebehind.engine import WriteBehind
from writebehind.engine.core.composing import Entry
from writebehind.engine.core.reading import Standing
from writebehind.engine.errors import ValidationError
from writebehind.recovery.comparison import Assessed, RecordKey, Stand
from writebehind.recovery.keyspace import Foreign, chunks
from writebehind.recovery.records import Records
from writebehind.recovery.rewriting import ConditionalWriter, Rewrite
from writebehind.recovery.scope import Scope
from writebehind.recovery.verify import OnProgress, Progress

__all__ = ["FromCache", "from_cache"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FromCache:
    """What was repaired.

    Attributes:
        records: records looked at.
        rewritten: records written again through the log; with a dry run, those that would be.
        in_sql: records whose last change SQL counts as applied.
        pending: records whose last change is in the log, on its way to SQL.
        suspect: records from before a rollback of Redis: SQL may have them newer.
        changed: records that were written meanwhile: somebody else's write brings them to SQL.
        unusable: records that are not whole in Redis, or not readable: only ``verify`` can tell about these.
    """

    records: int
    rewritten: int
    in_sql: int
    pending: int
    suspect: int
    changed: int
    unusable: int

    def as_json(self) -> dict[str, int]:
        """Return everything as plain values."""
        return asdict(self)


def from_cache(
    app: WriteBehind,
    *,
    everything: bool = False,
    dry_run: bool = False,
    tables: Collection[Any] | None = None,
    partitions: Collection[int] | None = None,
    on_progress: OnProgress | None = None,
) -> FromCache:
    """Write whole records again whose last change SQL has not applied and the log no longer has.

    Before flushers run, SQL's own offset tells which these are. Once a flusher has stepped over the gap in the log, SQL
    counts what was in it as applied: then only ``everything`` reaches those records, or ``verify`` with Redis as the
    winner, which writes no more than what differs.

    Args:
        app: the engine whose namespace to repair.
        everything: also write whole records that SQL counts as applied, whatever SQL has in their place; but not those
            from before a rollback of Redis that no flusher has judged yet.
        dry_run: only count.
        tables: names or declared tables; None: all.
        partitions: numbers; None: all.
        on_progress: told how far it is.

    Durability: what was rewritten is in the log of the primary, and in SQL when it is flushed. A record that is
    written meanwhile is left alone. Repeat: what was rewritten is pending, and is not written again. Crash: each record
    is written or not; repeat it.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be reached, or Redis refuses.
        ConfigurationError: the namespace was not initialised, or with other settings, or Redis refuses for good.
        ValidationError: a table or a partition is out of range.
    """
    scope = Scope.of(app, tables, partitions)
    records, writer = Records(app), ConditionalWriter(app)
    counts: Counter[str] = Counter()

    def advance(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(part="keys", done=done, total=total))

    for chunk in chunks(scope.keyspace(app).walk(advance), _pass_over):
        rewrites: list[Rewrite] = []
        assessed = records.assess(chunk)
        counts["records"] += len(assessed)
        for key, each in assessed.items():
            fate, entry = _fate(app, key, each, everything=everything)
            if entry is None:
                counts[fate] += 1
            else:
                rewrites.append(Rewrite(records.name(key), each.sighting.raw.get(b":version"), entry))
        done: Sequence[bool] = [True] * len(rewrites) if dry_run else writer.write(rewrites)
        counts["rewritten"] += sum(done)
        counts["changed"] += len(done) - sum(done)
    return FromCache(**{name: counts[name] for name in FromCache.__dataclass_fields__})


def _fate(app: WriteBehind, key: RecordKey, assessed: Assessed, *, everything: bool) -> tuple[str, Entry | None]:
    """Return how a record counts, and what to write where it has to be written again."""
    sighting, stand = assessed.sighting, assessed.stand
    plan = app.tables[key.table].plan
    whole = sighting.state is Standing.WHOLE and len(sighting.values) == len(plan.columns)
    fate = "unusable"
    if stand is Stand.PENDING:
        fate = "pending"
    elif stand is not Stand.LOST and (sighting.suspect or not everything):
        fate = "suspect" if sighting.suspect else "in_sql"
    elif sighting.trouble is None and whole:
        try:
            return "rewritten", app.composer.put(plan, sighting.values)
        except ValidationError:
            # Another program has put values there that the column cannot hold.
            fate = "unusable"
    return fate, None


def _pass_over(_: Foreign) -> None:
    """Leave foreign keys alone: they are for ``verify`` to report."""
