"""The text of a key leads back to its values, and to nothing else."""

import enum
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from writebehind.engine.adapters.declaration import declare
from writebehind.engine.core.records import RecordPlan
from writebehind.recovery.key_texts import ForeignKey, key_values


class Color(enum.Enum):
    """Members whose names and values differ."""

    RED = "r"
    BLUE = "b:"


KEYS: list[tuple[Any, list[Any]]] = [
    (sa.BigInteger(), [0, -1, 2**63 - 1]),
    (sa.Double(), [0.0, 0.1, -1e300, math.inf]),
    (sa.Numeric(12, 2), [Decimal("1.50"), Decimal(-7)]),
    (sa.Numeric(12, 2, asdecimal=False), [0.25, -7.0]),
    (sa.String(20), ["", "a:b", "{}", "100 %", "é\U0001f600", "\\N", "\\", "%00", " "]),
    (sa.Boolean(), [True, False]),
    (sa.Date(), [date(2024, 2, 29)]),
    (sa.Time(), [time(1, 2, 3, 4)]),
    (sa.DateTime(), [datetime(2024, 2, 29, 12, 30, 1, 5)]),  # noqa: DTZ001
    (sa.DateTime(timezone=True), [datetime(2024, 2, 29, 12, tzinfo=UTC)]),
    (sa.Interval(), [timedelta(days=-1, microseconds=1)]),
    (sa.LargeBinary(), [b"", b"\x00\xff:", b"\\N"]),
    (sa.Uuid(), [UUID(int=5)]),
    (sa.Uuid(as_uuid=False), ["12345678-1234-5678-1234-56781234567a"]),
    (sa.Enum(Color, name="colors"), list(Color)),
    (sa.Enum("a b", "\\N", name="letters"), ["a b", "\\N"]),
]


def plan_of(*kinds: Any) -> RecordPlan:
    """Declare a table whose key has columns of these types."""
    columns = [
        sa.Column(f"k{number}", kind, primary_key=True, autoincrement=False) for number, kind in enumerate(kinds)
    ]
    return declare(sa.Table("t", sa.MetaData(), *columns), "postgresql").plan


def test_every_kind_of_key_comes_back() -> None:
    """What the engine makes of a key, alone or in a composite one, gives the same wire values back."""
    for kind, values in KEYS:
        plan = plan_of(kind, sa.String(20))
        for value in values:
            text, spread, wires = plan.key_only((value, "x:y"))
            assert key_values(plan, text) == (spread, wires), (kind, value)


@pytest.mark.parametrize(
    "text",
    ["", "a", "1:2", "01", "+1", " 1", "1.0", "99999999999999999999", "%31", "1%", "%ff", "1%00", "\\N"],
)
def test_other_texts_are_foreign(text: str) -> None:
    """A text that the engine would not write for any key of the table is none."""
    with pytest.raises(ForeignKey):
        key_values(plan_of(sa.BigInteger()), text)


def test_insert_only_tables_have_no_records() -> None:
    """Where a table has no key in Redis, no text is a key of it."""
    table = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(20), nullable=False),
        info={"writebehind": {"partition_by": "tenant"}},
    )
    with pytest.raises(ForeignKey, match="insert-only"):
        key_values(declare(table, "postgresql").plan, "1")
