"""What a comparison found, in counts and one by one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from writebehind.engine import WriteBehind
from writebehind.engine.core.reading import Standing
from writebehind.recovery.comparison import Judged, Verdict
from writebehind.recovery.keyspace import Foreign
from writebehind.recovery.log_audit import LogAudit
from writebehind.recovery.plain import plain

__all__ = ["FINE", "Finding", "Tally", "Verification"]

UNDECLARED: Final = "(none)"

FINE: Final = frozenset({Verdict.AGREES, Verdict.PENDING, Verdict.DEAD_LETTERED, Verdict.SUSPECT, Verdict.LEFT_OVER})
"""Verdicts that call for no repair: flushing, the next takeover or the dead letters' own commands clear it away."""

STATE_NAMES: Final = {
    Standing.WHOLE: "full",
    Standing.OVERLAY: "partial",
    Standing.IN_LOG: "marker",
    Standing.ABSENT: "tombstone",
    Standing.LOADING: "loading",
    Standing.NO_ROW: "absent",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A record that is not as it should be, or a key that should not be.

    Attributes:
        verdict: what it is.
        name: the key in Redis.
        table: the table, or None where the key belongs to none.
        key_text: the record's key, likewise.
        partition: likewise.
        state: what the hash says about the record: full, partial, marker, tombstone, loading or absent.
        version: the entry that changed it last.
        columns: the columns in which Redis and SQL differ.
        detail: what is wrong, without values.
        values: for each of these columns what Redis and what SQL has; only where they were asked for.
    """

    verdict: Verdict
    name: str
    table: str | None = None
    key_text: str | None = None
    partition: int | None = None
    state: str | None = None
    version: str | None = None
    columns: Sequence[str] = ()
    detail: str = ""
    values: Mapping[str, tuple[Any, Any]] | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; what JSON does not know as text."""
        told = asdict(self) | {"verdict": self.verdict.value, "columns": list(self.columns)}
        del told["values"]
        if self.values is not None:
            told["values"] = {name: [plain(value) for value in both] for name, both in self.values.items()}
        return told


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a comparison found.

    Attributes:
        namespace: its name.
        sample: records of each table that were chosen at random, or None where all were compared.
        totals: with a sample, how many records each table has in Redis.
        tables: by table, how many records got which verdict; foreign keys of no table under ``(none)``.
        logs: each partition's log.
        findings: what is not as it should be; at most as many as were asked for, while the counts are exact.
    """

    namespace: str
    sample: int | None
    totals: Mapping[str, int]
    tables: Mapping[str, Mapping[Verdict, int]]
    logs: Sequence[LogAudit]
    findings: Sequence[Finding]

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many records got which verdict."""
        return {verdict: sum(counts.get(verdict, 0) for counts in self.tables.values()) for verdict in Verdict}

    @property
    def records(self) -> int:
        """How many keys were judged."""
        return sum(self.counts.values())

    @property
    def wrong(self) -> int:
        """How many keys are not as they should be."""
        return sum(count for verdict, count in self.counts.items() if verdict not in FINE)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; what is on its way to SQL is nothing wrong."""
        return not self.wrong and all(log.sound for log in self.logs)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "namespace": self.namespace,
            "sound": self.sound,
            "sample": self.sample,
            "totals": dict(self.totals),
            "records": self.records,
            "counts": _plain_counts(self.counts),
            "tables": {name: _plain_counts(counts) for name, counts in self.tables.items()},
            "logs": [asdict(log) | {"sound": log.sound} for log in self.logs],
            "findings": [finding.as_json() for finding in self.findings],
        }


class Tally:
    """Counts verdicts, and keeps the first findings."""

    def __init__(self, app: WriteBehind, findings_max: int, *, with_values: bool) -> None:
        self._app = app
        self._findings_max = findings_max
        self._with_values = with_values
        self.tables: dict[str, Counter[Verdict]] = {}
        self.findings: list[Finding] = []

    def add_foreign(self, foreign: Foreign) -> None:
        """Count a key that is no record."""
        self._count(UNDECLARED, Verdict.FOREIGN)
        if len(self.findings) < self._findings_max:
            self.findings.append(Finding(verdict=Verdict.FOREIGN, name=foreign.name, detail=foreign.detail))

    def add(self, judged: Judged) -> None:
        """Count a verdict, and keep it where something is wrong."""
        self._count(judged.key.table, judged.verdict)
        if judged.verdict not in FINE and len(self.findings) < self._findings_max:
            self.findings.append(_finding(self._app, judged, with_values=self._with_values))

    def _count(self, table: str, verdict: Verdict) -> None:
        self.tables.setdefault(table, Counter())[verdict] += 1


def _finding(app: WriteBehind, judged: Judged, *, with_values: bool) -> Finding:
    """Return a verdict as a finding."""
    key, sighting = judged.key, judged.sighting
    values = None
    if with_values and sighting is not None and judged.row is not None:
        values = {name: (sighting.values[name], judged.row[name]) for name in judged.columns}
    return Finding(
        verdict=judged.verdict,
        name=app.keys.record(key.partition, key.table, key.key_text),
        table=key.table,
        key_text=key.key_text,
        partition=key.partition,
        state=None if sighting is None or sighting.trouble else STATE_NAMES[sighting.state],
        version=str(sighting.version) if sighting is not None and sighting.version else None,
        columns=judged.columns,
        detail=judged.detail,
        values=values,
    )


def _plain_counts(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts.get(verdict, 0) for verdict in Verdict}
