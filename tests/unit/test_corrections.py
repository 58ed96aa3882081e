"""Corrections are typed by their column and checked like a patch, before anything is written."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.payload import Op
from writebehind.engine.core.records import RecordPlan
from writebehind.engine.errors import ValidationError
from writebehind.recovery.corrections import EXAMPLES, parse, validate

SECRET = "open-sesame"


def plan_of(*columns: Column) -> RecordPlan:
    """Return the plan of a table with a number for a key and these columns."""
    key = Column(name="id", kind=Kind.INTEGER, nullable=False, primary_key=True)
    return RecordPlan(Entity("things", (key, *columns), (key,)))


VALUES: list[tuple[Kind, dict[str, Any], str, Any]] = [
    (Kind.INTEGER, {}, "-42", -42),
    (Kind.FLOAT, {}, "1.5", 1.5),
    (Kind.NUMERIC, {"precision": 8, "scale": 2}, "12.50", Decimal("12.50")),
    (Kind.NUMERIC, {"precision": 8, "scale": 2, "as_decimal": False}, "12.5", 12.5),
    (Kind.TEXT, {}, "a=b", "a=b"),
    (Kind.TEXT, {}, "", ""),
    (Kind.TEXT, {}, r"\\N", r"\N"),
    (Kind.TEXT, {}, r"\N", None),
    (Kind.BOOLEAN, {}, "True", True),
    (Kind.BOOLEAN, {}, "false", False),
    (Kind.DATE, {}, "2026-03-31", date(2026, 3, 31)),
    (Kind.TIME, {}, "13:45:00.5", time(13, 45, 0, 500_000)),
    (Kind.DATETIME, {}, "2026-03-31T13:45", datetime(2026, 3, 31, 13, 45)),  # noqa: DTZ001 - a column without one
    (Kind.DATETIME_UTC, {}, "2026-03-31T13:45:00+00:00", datetime(2026, 3, 31, 13, 45, tzinfo=UTC)),
    (Kind.INTERVAL, {}, "90.5", timedelta(seconds=90, milliseconds=500)),
    (Kind.INTERVAL, {}, "5", timedelta(seconds=5)),
    (Kind.INTERVAL, {}, "-0.000001", timedelta(microseconds=-1)),
    (Kind.BYTES, {}, "00ff", b"\x00\xff"),
    (Kind.JSON, {}, '{"a": [1]}', {"a": [1]}),
    (Kind.UUID, {}, "12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
    (Kind.ENUM, {"labels": {"red": "red", "green": "green"}}, "green", "green"),
    *[(kind, {}, r"\N", None) for kind in Kind if kind is not Kind.ENUM],
]


@pytest.mark.parametrize(("kind", "limits", "text", "value"), VALUES)
def test_texts_are_typed_by_their_column(kind: Kind, limits: dict[str, Any], text: str, value: Any) -> None:
    """They are what stands in Redis, but bytes are hexadecimal and intervals seconds; the column takes the value."""
    plan = plan_of(Column(name="a", kind=kind, **limits))
    found = parse(plan, {"a": text})
    assert found == {"a": value}
    assert type(found["a"]) is type(value)
    wire = validate(plan, Op.PUT, found)["a"]
    assert plan.codecs["a"].to_user(wire) == value


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.TEXT])
def test_other_texts_are_refused(kind: Kind) -> None:
    """The column, its kind and how to write it are named, and what was given is not."""
    plan = plan_of(Column(name="a", kind=kind, labels={"red": "red"} if kind is Kind.ENUM else {}))
    with pytest.raises(ValidationError) as raised:
        parse(plan, {"a": SECRET})
    assert f"things.a is {kind.value}" in str(raised.value)
    assert EXAMPLES[kind] in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_microsecond_cannot_be_divided() -> None:
    """What the column cannot hold is not rounded."""
    with pytest.raises(ValidationError, match="interval"):
        parse(plan_of(Column(name="a", kind=Kind.INTERVAL)), {"a": "0.0000001"})


BALANCE = Column(name="balance", kind=Kind.INTEGER, nullable=False, minimum=0, maximum=100)
NOTE = Column(name="note", kind=Kind.TEXT, length=5)
PLAN = plan_of(BALANCE, NOTE)


def test_corrections_are_what_the_wire_carries() -> None:
    """Any columns but the key's, whatever the letter says of them; amounts where it increments."""
    assert validate(PLAN, Op.PUT, {"balance": 7, "note": None}) == {"balance": 7, "note": None}
    assert validate(PLAN, Op.PATCH, {"note": "x"}) == {"note": "x"}
    assert validate(PLAN, Op.INSERT, {"balance": 0}) == {"balance": 0}
    assert validate(PLAN, Op.INCREMENT, {"balance": -3}) == {"balance": -3}
    assert validate(PLAN, Op.DELETE, {}) == {}


@pytest.mark.parametrize(
    ("op", "corrections", "message"),
    [
        (Op.PUT, {"blance": 1}, "things has no column 'blance'"),
        (Op.PUT, {"id": 2}, r"things\.id belongs to the key"),
        (Op.PUT, {"balance": None}, r"things\.balance cannot be NULL"),
        (Op.PUT, {"balance": -1}, "takes integers from 0 to 100"),
        (Op.PATCH, {"note": "too long"}, "holds 5 characters"),
        (Op.INCREMENT, {"note": "x"}, "cannot be incremented"),
        (Op.INCREMENT, {"balance": None}, r"things\.balance"),
        (Op.INCREMENT, {"balance": 1.5}, r"things\.balance"),
        (Op.DELETE, {"note": "x"}, "a delete has no values"),
    ],
)
def test_what_a_write_could_not_do_a_correction_cannot(op: Op, corrections: dict[str, Any], message: str) -> None:
    """It is refused with the reason."""
    with pytest.raises(ValidationError, match=message):
        validate(PLAN, op, corrections)


def test_an_unknown_column_is_named_before_its_value_is_read() -> None:
    """The known ones are listed."""
    with pytest.raises(ValidationError, match=r"no column 'nothing' \(known are id, balance, note\)"):
        parse(PLAN, {"nothing": "1"})
