"""Comparing SQL with what it must contain, row by row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from writebehind.examples.flights.truth import Expected, Values

__all__ = ["Findings", "compare"]

FETCH_ROWS = 5_000
EXAMPLES_MAX = 5


@dataclass(kw_only=True, slots=True)
class Findings:
    """What differs in one table.

    Attributes:
        table: its name.
        rows: rows found in SQL.
        lost: rows that are missing, and counters that are too low.
        doubled: rows that are there once too often, and counters that are too high.
        differing: other values that are wrong.
        examples: the first few of these, in words.
    """

    table: str
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not (self.lost or self.doubled or self.differing)

    def note(self, example: str) -> None:
        """Keep an example, unless there are enough."""
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{self.table} {example}")


def compare(connection: sa.Connection, expectations: Iterable[Expected]) -> list[Findings]:
    """Compare every row of every table.

    Args:
        connection: to the database, at rest.
        expectations: what the tables must contain.
    """
    return [_compare(connection, expected) for expected in expectations]


def _compare(connection: sa.Connection, expected: Expected) -> Findings:
    findings = Findings(table=expected.table.name)
    awaited = dict(expected.rows)
    width = len(expected.key)
    query = sa.select(*(expected.table.c[name] for name in (*expected.key, *expected.columns)))
    for row in connection.execution_options(yield_per=FETCH_ROWS).execute(query):
        findings.rows += 1
        key: Values = tuple(row[:width])
        want = awaited.pop(key, None)
        if want is None:
            findings.doubled += 1
            findings.note(f"{key} is there {'twice' if key in expected.rows else 'and should not be'}")
        elif want != tuple(row[width:]):
            _judge(findings, expected, key, want, row[width:])
    findings.lost += len(awaited)
    for key in awaited:
        findings.note(f"{key} is missing")
        if len(findings.examples) == EXAMPLES_MAX:
            break
    return findings


def _judge(findings: Findings, expected: Expected, key: Values, want: Values, found: Sequence[object]) -> None:
    for name, right, value in zip(expected.columns, want, found, strict=True):
        if value == right:
            continue
        if name in expected.counters and isinstance(value, int):
            if value < right:
                findings.lost += 1
            else:
                findings.doubled += 1
        else:
            findings.differing += 1
        findings.note(f"{key}: {name} is {value!r}, not {right!r}")
