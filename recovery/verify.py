"""Verify: whether records, log and rows of a namespace agree, while it goes on serving.

Nothing is written, nothing is locked, and memory holds one chunk of records at a time, however many there are. A row
that has no record in Redis is not looked at: SQL alone has it, so nothing can contradict it.
"""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from writebehind.engine import WriteBehind
from writebehind.engine.errors import ValidationError
from writebehind.recovery.comparison import Judged, RecordKey
from writebehind.recovery.findings import Tally, Verification
from writebehind.recovery.keyspace import chunks, sampled
from writebehind.recovery.log_audit import LogAudit, audit
from writebehind.recovery.records import Records
from writebehind.recovery.scope import Scope

__all__ = ["OnProgress", "Progress", "verify"]

FINDINGS_MAX: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a comparison is.

    Attributes:
        part: ``logs``, counted in partitions; ``keys``, counted roughly in keys of the Redis database; with a sample
            also ``records``.
        done: how many are done.
        total: of how many.
    """

    part: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]
OnJudged = Callable[[Sequence[Judged]], None]


def verify(
    app: WriteBehind,
    *,
    sample: int | None = None,
    tables: Collection[Any] | None = None,
    partitions: Collection[int] | None = None,
    findings_max: int = FINDINGS_MAX,
    with_values: bool = False,
    on_progress: OnProgress | None = None,
    on_judged: OnJudged | None = None,
) -> Verification:
    """Compare the records, the log and the rows of a namespace.

    It may run beside writers and flushers: what changes while it is looked at is looked at again, and what is on its
    way to SQL counts as pending. Floats are compared to nine digits: increments of them are exact to rounding only.

    Args:
        app: the engine whose namespace to look at.
        sample: compare so many records of each table, chosen at random, in place of all; all keys are still named once
            by Redis, and the logs are read whole.
        tables: names or declared tables; keys of others are passed over, also where nobody declares them. None: all,
            and what belongs to no declared table is foreign.
        partitions: numbers; None: all.
        findings_max: findings that are kept; the counts are exact.
        with_values: keep the differing values with each finding.
        on_progress: told how far it is.
        on_judged: given every chunk of verdicts, also on records that agree.

    Durability: nothing is written. Repeat: harmless. Crash: nothing remains.

    Raises:
        RedisUnavailable, DatabaseUnavailable: a server cannot be read.
        ConfigurationError: the namespace was not initialised, or with other settings, or Redis refuses for good.
        ValidationError: a table, a partition or the sample is out of range.
    """
    scope = Scope.of(app, tables, partitions)
    if sample is not None and sample < 1:
        raise ValidationError(f"a sample of {sample} records", "give a positive number")
    tally = Tally(app, findings_max, with_values=with_values)
    logs: list[LogAudit] = []
    for number in scope.partitions:
        _tell(on_progress, "logs", len(logs), len(scope.partitions))
        logs.append(audit(app, number, scope.only_tables))
    _tell(on_progress, "logs", len(logs), len(logs))
    found = scope.keyspace(app).walk(lambda done, total: _tell(on_progress, "keys", done, total))
    todo: Iterable[list[RecordKey]] = ()
    totals: dict[str, int] = {}
    if sample is None:
        todo = chunks(found, tally.add_foreign)
    else:
        todo, totals = sampled(found, tally.add_foreign, sample, random.Random())  # noqa: S311 - no secret
    chosen = sum(min(total, sample or total) for total in totals.values())
    records = Records(app)
    compared = 0
    for chunk in todo:
        judged = records.judge(chunk)
        for each in judged:
            tally.add(each)
        if on_judged is not None:
            on_judged(judged)
        compared += len(chunk)
        if sample is not None:
            _tell(on_progress, "records", compared, chosen)
    return Verification(
        namespace=app.keys.namespace,
        sample=sample,
        totals=totals,
        tables={name: dict(counts) for name, counts in tally.tables.items()},
        logs=logs,
        findings=tally.findings,
    )


def _tell(on_progress: OnProgress | None, part: str, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(Progress(part=part, done=done, total=total))
