"""The validator, given any Python values: a refusal that does not quote them, or wire values that come back."""

import enum
import math
import zoneinfo
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzzing import fuzz
from writebehind.engine.core.columns import Column, Entity, Kind
from writebehind.engine.core.payload import Op, decode, encode
from writebehind.engine.core.records import KEY_BYTES_MAX, RecordPlan
from writebehind.engine.errors import ConfigurationError, ValidationError

MESSAGE_MAX = 3_000
QUOTED_MIN = 12
"""Texts of so many characters are not in a message by accident."""


class Color(enum.Enum):
    """Members for the ENUM columns."""

    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    """An int that is more."""

    ONE = 1


class Word(enum.StrEnum):
    """A str that is more."""

    RED = "RED"
    OTHER = "other"


class Text(str):
    """A subclass, as libraries for translated or safe text have it."""

    __slots__ = ()


class Money(Decimal):
    """Likewise."""


class Moment(datetime):
    """Likewise."""


class Day(date):
    """Likewise."""


class Ratio(float):
    """Likewise."""


LIMITS: dict[Kind, list[dict[str, Any]]] = {
    Kind.INTEGER: [{}, {"minimum": 0, "maximum": 255}],
    Kind.FLOAT: [{}, {"float_bits": 32, "finite_only": True}, {"nan_allowed": False, "minimum": 0}],
    Kind.NUMERIC: [{}, {"precision": 12, "scale": 2}, {"significant_digits": 15, "as_decimal": False}],
    Kind.TEXT: [{}, {"length": 5}, {"bytes_max": 7, "blank_padded": True}],
    Kind.DATETIME: [{}, {"fraction_digits": 0, "earliest": datetime(1000, 1, 1)}],  # noqa: DTZ001 - a column without zones
    Kind.TIME: [{}, {"fraction_digits": 3}],
    Kind.INTERVAL: [{}, {"earliest": timedelta(0), "latest": timedelta(days=1)}],
    Kind.BYTES: [{}, {"length": 4, "exact_length": True}],
    Kind.JSON: [{}, {"json_depth_max": 3, "bytes_max": 50}, {"minimum": -(2**53), "maximum": 2**53}],
    Kind.UUID: [{}, {"as_uuid": False}],
}


@dataclass(frozen=True)
class Subject:
    """A table with a column of one kind, beside its key and in its key."""

    kind: Kind
    plan: RecordPlan
    keyed: RecordPlan | None


def column(kind: Kind, limits: dict[str, Any], **options: Any) -> Column:
    """Return a column of a kind."""
    return Column(name="v", kind=kind, labels={member.name: member for member in Color}, **limits, **options)


def subjects() -> list[Subject]:
    """Return every kind, with and without limits."""
    identity = Column(name="id", kind=Kind.INTEGER, nullable=False, primary_key=True)
    made = []
    for kind in Kind:
        for limits in LIMITS.get(kind, [{}]):
            plan = RecordPlan(Entity("t", (identity, column(kind, limits)), (identity,)))
            key = column(kind, limits, nullable=False, primary_key=True)
            keyed = None if kind is Kind.JSON else RecordPlan(Entity("t", (key,), (key,)))
            made.append(Subject(kind, plan, keyed))
    return made


every_text = st.text(st.characters(exclude_categories=[]), max_size=40)
zones = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12)), zoneinfo.ZoneInfo("UTC")]
)
moments = st.builds(
    lambda moment, fold, zone: moment.replace(fold=fold, tzinfo=zone), st.datetimes(), st.integers(0, 1), zones
)
plain: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 5_000).map(lambda digits: 10**digits),
    st.floats(),
    st.decimals(),
    st.sampled_from([Decimal("sNaN"), Decimal("1E+999999"), Decimal("-0E-999999"), Decimal("0E+999999")]),
    every_text,
    st.sampled_from(["\\N", "\\", "\0", "RED", "true", "1", "\ud800", "x" * 10_000]),
    st.binary(max_size=40),
    moments,
    st.dates(),
    st.times(),
    st.times(timezones=st.just(UTC)),
    st.timedeltas(),
    st.uuids(),
    st.uuids().map(str),
)
odd: st.SearchStrategy[Any] = st.one_of(
    st.complex_numbers(),
    st.fractions(),
    st.ip_addresses(),
    st.binary(max_size=8).map(bytearray),
    st.binary(max_size=8).map(lambda data: memoryview(data)[:4]),
    st.binary(max_size=8).map(lambda data: memoryview(data + b"\0")[::2]),
    st.sampled_from([*Color, *Number, *Word, Kind, object, object(), len, ..., NotImplemented, range(3), lambda: 1]),
    st.sampled_from([(), (1,), [], {}, {1, 2}, frozenset(), OrderedDict(a=1), array("d", [1.0]), iter([])]),
    st.sampled_from([Fraction(1, 3), Exception("x")]),
    every_text.map(Text),
    st.decimals().map(Money),
    st.floats().map(Ratio),
    st.dates().map(lambda day: Day(day.year, day.month, day.day)),
    st.datetimes().map(lambda moment: Moment(*moment.timetuple()[:6], moment.microsecond)),
)  # fmt: skip


def nested(depth: int, leaf: Any) -> Any:
    """Return a document as deep as that."""
    for level in range(depth):
        leaf = [leaf] if level % 2 else {"a": leaf}
    return leaf


def endless() -> list[Any]:
    """Return a list that holds itself, twice."""
    loop: list[Any] = []
    loop += [loop, loop]
    return loop


documents = st.one_of(
    st.recursive(
        plain | odd,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(every_text | st.integers(), inner, max_size=4),
        max_leaves=12,
    ),
    st.builds(nested, st.integers(0, 2_000), plain),
    st.builds(endless),
)
anything = plain | odd | documents
cases = st.tuples(st.sampled_from(subjects()), anything)


def same(first: Any, second: Any) -> bool:
    """Tell whether two values are the same, NaN being itself."""
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def refused(error: ValidationError, value: Any) -> None:
    """Look at a refusal: it is short, and does not quote the value."""
    text = str(error)
    assert len(text) <= MESSAGE_MAX
    assert error.__cause__ is None
    if isinstance(value, str | bytes | Decimal | date | time) or (isinstance(value, int) and abs(value) < 10**100):
        for quoted in (str(value), repr(value)):
            assert len(quoted) < QUOTED_MIN or quoted not in text
    assert error.__suppress_context__ or error.__context__ is None


def comes_back(plan: RecordPlan, values: dict[str, Any]) -> None:
    """Look at accepted values: the log gives them back."""
    ((_, _, _, decoded),) = decode(encode(Op.PUT, plan.name, "1", values))
    assert decoded.keys() == values.keys()
    for name, wire in values.items():
        assert type(decoded[name]) is type(wire)
        assert same(decoded[name], wire)


def as_hash(fields: list[Any]) -> dict[bytes, bytes]:
    """Return what Redis has after a write of these fields."""
    raw = [field if isinstance(field, bytes) else str(field).encode() for field in fields]
    return dict(zip(raw[::2], raw[1::2], strict=True))


def put(case: tuple[Subject, Any]) -> None:
    """Put a record with the value."""
    subject, value = case
    try:
        _, _, values, fields = subject.plan.full_record({"id": 7, "v": value})
    except ValidationError as error:
        refused(error, value)
        return
    comes_back(subject.plan, values)
    record = subject.plan.decode_hash(as_hash(fields))
    assert record is not None
    assert same(record["v"], subject.plan.values_to_user(values)["v"])


def change(case: tuple[Subject, Any]) -> None:
    """Patch, increment and insert with the value."""
    subject, value = case
    plan = subject.plan
    prepared: list[Callable[[], dict[str, Any]]] = [
        lambda: plan.partial(7, {"v": value})[2],
        lambda: plan.deltas(7, {"v": value})[2],
        lambda: plan.new_row({"id": 7, "v": value})[2],
    ]
    for prepare in prepared:
        try:
            values = prepare()
        except ValidationError as error:
            refused(error, value)
        else:
            comes_back(plan, values)


def key(case: tuple[Subject, Any]) -> None:
    """Use the value as a key, and as what it is not: a mapping, a tuple."""
    subject, value = case
    plan = subject.keyed or subject.plan
    for given in (value, (value,), {"v": value}, {value: value} if _hashable(value) else value):
        try:
            key_text, _, values = plan.key_only(given)
        except ValidationError as error:
            refused(error, value)
        else:
            assert 0 < len(key_text.encode()) <= KEY_BYTES_MAX
            assert plan.key_only(tuple(values.values()))[0] == key_text or plan is subject.keyed
            comes_back(plan, values)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("check", [put, change, key])
def test_any_value(check: Any) -> None:
    """Any value of any kind of column: refused by name, or it comes back as it went in."""
    fuzz(check, cases)


texts = st.binary(max_size=60) | every_text.map(lambda text: text.encode("utf-8", "surrogatepass"))
texts |= plain.filter(lambda value: not isinstance(value, str | int) or isinstance(value, bool)).map(
    lambda value: str(value).encode()
)


def unreadable(error: ConfigurationError, text: bytes) -> None:
    """Look at the error for a text that is none of its column: it does not quote it, in a traceback neither."""
    assert text.decode("utf-8", "replace") not in str(error) or len(text) < QUOTED_MIN
    assert error.__suppress_context__


def read(case: tuple[Subject, bytes]) -> None:
    """Read a hash that another program wrote."""
    subject, text = case
    try:
        record = subject.plan.decode_fields({b"id": b"7", b"v": text})
    except ConfigurationError as error:
        unreadable(error, text)
        return
    assert record.keys() == {"id", "v"}


def test_any_hash() -> None:
    """Any text in a record's hash: a value, or an error that says which column."""
    fuzz(read, st.tuples(st.sampled_from(subjects()), texts))
